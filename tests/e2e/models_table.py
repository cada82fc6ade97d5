"""Which video models run: each structure with random weights through llama.cpp's own converter, then `vidkv ask` on a clip with llama.cpp's
cache, with f16 and with packed ones. The table in docs/models.md is what this prints (--write); as a test, it must be what this finds."""
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile

from common import ROOT, VIDKV, ask, make_set, skip

try:
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers import AddedToken

    import random_llava
except ImportError as missing:
    skip(f"{missing} (scripts/test installs tests/e2e/requirements.txt)")

LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
DOCUMENT = os.path.join(ROOT, "docs", "models.md")
BEGIN, END = "<!-- models_table.py begins -->\n", "<!-- models_table.py ends -->\n"
SEED = 20261125
FRAMES = 16
CACHES = ("stock", "f16", "t1.65", "k1.5v1.58")
# The vocabulary of the small model is in no table of the converter; qwen2's pattern is the one it uses.
SHIM = """import sys, runpy; L = sys.argv[1]; sys.path[:0] = [L, L + '/gguf-py']
import conversion.base as b
b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'qwen2'
def no_sentencepiece(self): raise FileNotFoundError
b.TextModel._set_vocab_sentencepiece = no_sentencepiece
import conversion.qwenvl as q
q.Qwen2VLModel.set_vocab = lambda self: self._set_vocab_gpt2()
sys.argv = sys.argv[1:]; sys.argv[0] = L + '/convert_hf_to_gguf.py'
runpy.run_path(sys.argv[0], run_name='__main__')"""
TEXT = dict(hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768,
            tie_word_embeddings=False)
NOT_TRIED = ("LLaVA-OneVision 1.5", "MiniCPM-V", "Gemma 4", "GLM-4V", "Kimi-VL", "Pixtral", "Llama 4", "Cohere2 Vision", "DeepSeek-OCR",
             "Hunyuan-VL", "Granite Vision")


def tokenizer(*tokens):
    made = transformers.AutoTokenizer.from_pretrained(random_llava.TOKENIZER)
    made.add_tokens([AddedToken(token, special=True) for token in tokens], special_tokens=True)
    return made


def published_name(name):
    """transformers 5 leaves out a step that published files, and so the converter, have."""
    return re.sub(r"^(model\.)?vision_tower\.(embeddings|encoder|post_layernorm)\.", r"\1vision_tower.vision_model.\2.", name)


def save(folder, model, words, preprocessor, text=None, vision=None):
    """text, vision: names of the parts' classes, where published folders name them."""
    random_llava.randomize(model, SEED)
    model.generation_config = transformers.GenerationConfig()
    model.half().save_pretrained(folder)
    words.save_pretrained(folder)
    weights = load_file(f"{folder}/model.safetensors")
    save_file({published_name(name): weight for name, weight in weights.items()}, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with open(f"{folder}/config.json", encoding="utf-8") as f:
        config = json.load(f)
    for part, architecture in (("text_config", text), ("vision_config", vision)):
        if architecture:
            config[part]["architectures"] = [architecture]
    random_llava.write(folder, "config.json", config)
    random_llava.write(folder, "preprocessor_config.json", dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, **preprocessor))


def qwen_parts(sections):
    words = tokenizer()
    number = words.convert_tokens_to_ids
    ids = dict(image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"), vision_start_token_id=number("<|vision_start|>"),
               vision_end_token_id=number("<|vision_end|>"))
    rope = {"rope_type": "default", "type": "default", "mrope_section": sections, "rope_theta": 1e6}
    return words, ids, dict(TEXT, vocab_size=len(words), rope_parameters=rope)


QWEN_PIXELS = dict(min_pixels=36 * 784, max_pixels=64 * 784, patch_size=14, temporal_patch_size=2, merge_size=2)


def qwen2_vl(folder):
    words, ids, text = qwen_parts([8, 12, 12])
    vision = dict(depth=4, embed_dim=64, hidden_size=256, num_heads=2, patch_size=14, mlp_ratio=4)
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    save(folder, transformers.Qwen2VLForConditionalGeneration(config), words, QWEN_PIXELS)


def qwen2_5_vl(folder):
    words, ids, text = qwen_parts([8, 12, 12])
    vision = dict(depth=4, hidden_size=64, intermediate_size=128, out_hidden_size=256, num_heads=2, patch_size=14, window_size=112, fullatt_block_indexes=[1, 3])
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    save(folder, transformers.Qwen2_5_VLForConditionalGeneration(config), words, QWEN_PIXELS)


def qwen3_vl(folder):
    words, ids, text = qwen_parts([12, 10, 10])
    text["rope_parameters"]["mrope_interleaved"] = True
    vision = dict(depth=4, hidden_size=64, intermediate_size=128, out_hidden_size=256, num_heads=2, patch_size=16, deepstack_visual_indexes=[0],
                  num_position_embeddings=144)
    config = transformers.Qwen3VLConfig(text_config=dict(text, head_dim=64), vision_config=vision, tie_word_embeddings=False, **ids)
    save(folder, transformers.Qwen3VLForConditionalGeneration(config), words, dict(QWEN_PIXELS, patch_size=16))


def smolvlm2(folder):
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=112, patch_size=14)
    config = transformers.SmolVLMConfig(text_config=dict(TEXT, model_type="llama", vocab_size=len(words)), vision_config=vision, scale_factor=2,
                                        image_token_id=words.convert_tokens_to_ids("<image>"), tie_word_embeddings=False)
    save(folder, transformers.SmolVLMForConditionalGeneration(config), words, dict(size=dict(longest_edge=112)),
         text="LlamaForCausalLM")


def internvl3(folder):
    words = tokenizer("<img>", "</img>", "<IMG_CONTEXT>")
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=[112, 112], patch_size=[14, 14])
    config = transformers.InternVLConfig(text_config=dict(TEXT, model_type="qwen2", vocab_size=len(words)), vision_config=vision, downsample_ratio=0.5,
                                         image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=16, tie_word_embeddings=False)
    save(folder, transformers.InternVLForConditionalGeneration(config), words, dict(size=dict(height=112, width=112)),
         text="Qwen2ForCausalLM", vision="InternVisionModel")


def gemma3(folder):
    words = tokenizer("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>")
    number = words.convert_tokens_to_ids
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14, vision_use_head=False)
    text = dict(TEXT, model_type="gemma3_text", head_dim=64, sliding_window=64, query_pre_attn_scalar=64, vocab_size=len(words), num_hidden_layers=6)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_index=number("<image_soft_token>"),
                                       boi_token_index=number("<start_of_image>"), eoi_token_index=number("<end_of_image>"), tie_word_embeddings=False)
    save(folder, transformers.Gemma3ForConditionalGeneration(config), words, {})


def llava_onevision(folder):
    random_llava.make_hf(folder, SEED, dict(text={k: TEXT[k] for k in list(TEXT)[:5]}, vision=random_llava.SMALL["vision"]))


MODELS = (("Qwen2-VL", qwen2_vl), ("Qwen2.5-VL", qwen2_5_vl), ("Qwen3-VL", qwen3_vl), ("LLaVA-OneVision", llava_onevision), ("SmolVLM2", smolvlm2),
          ("InternVL 3", internvl3), ("Gemma 3", gemma3))


class Failed(Exception):
    """One line that says what did not work."""


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word"


def convert(folder, make):
    if make is llava_onevision:
        script = [os.path.join(ROOT, "models", "convert_llava_onevision", "convert.py"), folder, "--name", "model"]
        calls = [[sys.executable, *script]]
    else:
        calls = [[sys.executable, "-c", SHIM, LLAMA_CPP, folder, "--outfile", f"{folder}/{name}", "--outtype", "f16", *extra]
                 for name, extra in (("model.gguf", []), ("mmproj-model.gguf", ["--mmproj"]))]
    environment = {**os.environ, "PYTHONPATH": os.path.join(LLAMA_CPP, "gguf-py")}
    for call in calls:
        done = subprocess.run(call, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise Failed(f"the converter: {last_line(done.stderr)}")
    return f"{folder}/model.gguf", f"{folder}/mmproj-model.gguf"


def run(files, clip):
    """{cache: report} of one question with every cache."""
    reports = {}
    options = () if files is None else ("-m", files[0], "--mmproj", files[1])
    for kv in CACHES:
        try:
            reports[kv] = ask(clip, ["What colour is the circle?"], "--kv", kv, "-n", "8", "--frames", str(FRAMES), *options)
        except AssertionError as error:
            raise Failed(f"--kv {kv}: {last_line(str(error))}") from None
    return reports


def row(name, weights, clip, files):
    try:
        reports = run(files() if callable(files) else files, clip)
    except Failed as why:
        return f"| {name} | {weights} | no: {why} | | | |\n"
    same = "yes" if reports["stock"]["answers"][0]["answer"] == reports["f16"]["answers"][0]["answer"] else "no"
    held = " / ".join(f"{reports[kv]['kv_bytes'] / reports[kv]['kv_bytes_f16']:.0%}" for kv in CACHES[2:])
    return f"| {name} | {weights} | yes | {reports['f16']['visual_tokens']} | {same} | {held} |\n"


def table():
    lines = ["| structure | weights | runs | visual tokens of 16 frames | `f16` answers as llama.cpp's own cache | held with t1.65 / k1.5v1.58, of f16 |\n",
             "|---|---|---|---|---|---|\n"]
    owner, clips = make_set("short", SEED, 1)
    with owner, contextlib.ExitStack() as stack:
        clip = clips[0][0]
        lines.append(row("Qwen2.5-VL", "trained (the small model)", clip, None))
        for name, make in MODELS:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vidkv-models-"))
            make(f"{folder}/hf")
            lines.append(row(name, "random", clip, lambda d=f"{folder}/hf", m=make: convert(d, m)))
            print(lines[-1], end="", flush=True)
    lines += [f"| {name} | | not tried | | | |\n" for name in NOT_TRIED]
    return "".join(lines)


def main():
    if not os.path.isdir(os.path.join(LLAMA_CPP, "conversion")):
        skip("no source of llama.cpp (LLAMA_CPP): its converter is needed")
    transformers.utils.logging.disable_progress_bar()
    found = table()
    with open(DOCUMENT, encoding="utf-8") as f:
        before, _, rest = f.read().partition(BEGIN)
    stated, _, after = rest.partition(END)
    if "--write" in sys.argv:
        with open(DOCUMENT, "w", encoding="utf-8") as f:
            f.write(before + BEGIN + found + END + after)
        return
    assert found == stated, f"docs/models.md says otherwise (python tests/e2e/models_table.py --write):\n{found}"


if __name__ == "__main__":
    sys.exit(main())
