#!/usr/bin/env python3
"""A training checkpoint -> a transformers folder -> GGUF + mmproj, through llama.cpp's own converter.

    python convert.py --checkpoint CKPT --llama-cpp DIR OUT     (CKPT "random": untrained weights)

OUT/hf/ loads in transformers; OUT/vidkv-tiny.gguf and OUT/mmproj-vidkv-tiny.gguf load in llama.cpp. All weights are
f16, so that both run the same numbers. Each file is written beside its place and then renamed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file

import tokens
from network import Config, VideoModel

# ChatML without a system turn: what the model was trained on.
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
            "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
            "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
            "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

# A new vocabulary's hash is in no converter's table, and qwen2's pattern is the one tokens.py uses; Qwen2-VL's
# set_vocab tries sentencepiece first, which this model has not.
SHIM = """import sys, runpy; L = sys.argv[1]; sys.path[:0] = [L, L + '/gguf-py']
import conversion.base as b
b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'qwen2'
import conversion.qwenvl as q
q.Qwen2VLModel.set_vocab = lambda self: self._set_vocab_gpt2()
sys.argv = sys.argv[1:]; sys.argv[0] = L + '/convert_hf_to_gguf.py'
runpy.run_path(sys.argv[0], run_name='__main__')"""


def model_config(c, ids):
    return dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", vocab_size=c.vocab, hidden_size=c.hidden,
        intermediate_size=c.ffn, num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
        hidden_act="silu", max_position_embeddings=32768, rms_norm_eps=c.eps, rope_theta=c.theta, tie_word_embeddings=True,
        rope_scaling=dict(type="mrope", mrope_section=list(c.sections)), use_sliding_window=False, torch_dtype="float16",
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], vision_token_id=ids["<|vision_pad|>"], image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_config=dict(
            model_type="qwen2_5_vl", depth=c.vision_layers, hidden_act="silu", hidden_size=c.vision_hidden,
            intermediate_size=c.vision_ffn, num_heads=c.vision_heads, in_chans=3, in_channels=3, out_hidden_size=c.hidden,
            patch_size=c.patch, spatial_patch_size=c.patch, spatial_merge_size=c.merge, temporal_patch_size=2, window_size=112,
            tokens_per_second=2, fullatt_block_indexes=[c.vision_layers - 1]))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)


def export(model, out):
    """Write the transformers folder."""
    os.makedirs(out, exist_ok=True)
    tokenizer = tokens.load()
    ids = {s: tokenizer.token_to_id(s) for s in tokens.SPECIAL}
    write_json(f"{out}/config.json", model_config(model.c, ids))
    write_json(f"{out}/generation_config.json", dict(
        bos_token_id=ids["<|endoftext|>"], eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"],
        do_sample=False))
    write_json(f"{out}/preprocessor_config.json", dict(
        min_pixels=8 * 784, max_pixels=4096 * 784, patch_size=14, temporal_patch_size=2, merge_size=2,
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
        image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2_5_VLProcessor"))
    tokenizer.save(f"{out}/tokenizer.json")
    write_json(f"{out}/tokenizer_config.json", dict(
        tokenizer_class="Qwen2Tokenizer", model_max_length=32768, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token=None, add_bos_token=False, add_prefix_space=False, errors="replace", chat_template=TEMPLATE,
        additional_special_tokens=tokens.SPECIAL[1:],
        added_tokens_decoder={str(i): dict(content=s, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True)
                              for s, i in ids.items()}))
    with open(f"{out}/tokenizer.json", encoding="utf-8") as f:
        bpe = json.load(f)["model"]
    write_json(f"{out}/vocab.json", bpe["vocab"])
    with open(f"{out}/merges.txt", "w", encoding="utf-8") as f:
        f.write("\n".join(" ".join(m) if isinstance(m, list) else m for m in bpe["merges"]))
    save_file({k: v.detach().half().contiguous() for k, v in model.state_dict().items()}, f"{out}/model.safetensors", metadata={"format": "pt"})


def convert(hf, llama_cpp, text, mmproj):
    for path, extra in ((text, []), (mmproj, ["--mmproj"])):
        subprocess.run([sys.executable, "-c", SHIM, llama_cpp, hf, "--outfile", path, "--outtype", "f16", *extra], check=True)


def load_checkpoint(path):
    """A model from a training checkpoint, or untrained for "random"."""
    if path == "random":
        torch.manual_seed(0)
        return VideoModel(Config()).eval()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = VideoModel(Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description="Checkpoint -> transformers folder, GGUF and mmproj.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--llama-cpp", required=True, help="llama.cpp source tree (b11434)")
    parser.add_argument("out")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as work:
        export(load_checkpoint(args.checkpoint), f"{work}/hf")
        # The folder's own name becomes the model's name in the GGUF.
        convert(f"{work}/hf", args.llama_cpp, f"{work}/vidkv-tiny.gguf", f"{work}/mmproj-vidkv-tiny.gguf")
        os.makedirs(f"{args.out}/hf", exist_ok=True)
        for name in os.listdir(f"{work}/hf"):
            os.replace(f"{work}/hf/{name}", f"{args.out}/hf/{name}")
        for name in ("vidkv-tiny.gguf", "mmproj-vidkv-tiny.gguf"):
            os.replace(f"{work}/{name}", f"{args.out}/{name}")


if __name__ == "__main__":
    main()
