"""LLaVA-OneVision with random weights: converted from both published layouts, and the same as in transformers: the embeddings of
frames, the logits, the greedy answer, the tokens that a question protects."""
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import types

from common import ROOT, VIDKV, ask, make_set, skip

try:
    import numpy as np
    import torch
    import transformers

    import random_llava
    from transformers.image_processing_utils import select_best_resolution
except ImportError as missing:
    skip(f"{missing} (scripts/test installs tests/e2e/requirements.txt)")

LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
ENCODE_FRAMES = os.environ.get("ENCODE_FRAMES", os.path.join(ROOT, "build", "bin", "encode_frames"))
CONVERT = os.path.join(ROOT, "models", "convert_llava_onevision", "convert.py")
STAGE = os.environ.get("VIDKV_STAGE", "")  # the Python package, where it was built
SEED = int(os.environ.get("VIDKV_TEST_SEED", "20261125"))
QUESTION, ANSWER, SHARE = "What colour is the circle?", 12, 0.2
SYSTEM, NEXT = "You count shapes.", "And the square?"
# Inputs of matrix products are rounded to f16 as well as weights, and so are keys and values: noise of about the same size each.
MORE_NOISE = 4


def convert(folder, *options, code=0):
    """The paths written, or what was said."""
    environment = {**os.environ, "PYTHONPATH": os.path.join(LLAMA_CPP, "gguf-py")}
    done = subprocess.run([sys.executable, CONVERT, folder, *options], capture_output=True, text=True, env=environment)
    assert done.returncode == code, f"convert.py ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.split() if code == 0 else done.stderr.strip()


def smooth_frames(count, width, height, seed):
    """uint8 [count, height, width, 3]: coloured clouds."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 9, 16), generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


class Ours:
    """What the command makes of frames; talk: a system prompt and a second question, for a conversation, or "picture"."""

    def __init__(self, text, mmproj, frames, width, talk=()):
        with tempfile.TemporaryDirectory() as work:
            frames.tofile(f"{work}/frames")
            size = [str(frames.shape[2]), str(frames.shape[1])]
            subprocess.run([ENCODE_FRAMES, text, mmproj, f"{work}/frames", *size, QUESTION, str(ANSWER), str(SHARE), f"{work}/out", *talk], check=True)
            self.embeddings = np.fromfile(f"{work}/out.embeddings", np.float32).reshape(-1, width)
            self.tokens = np.fromfile(f"{work}/out.tokens", np.int32).tolist()
            self.logprobs = np.fromfile(f"{work}/out.logprobs", np.float32).reshape(1 + len(self.tokens), -1)
            self.salient = np.fromfile(f"{work}/out.salient", np.int64).tolist()
            self.turns = [np.fromfile(f"{work}/out.{turn}", np.int32).tolist() for turn in ("first", "second") if len(talk) == 2]


def fitted(size, grid):
    """(height, width) as large as fits into a grid: transformers' get_patch_output_size, which wants Pillow."""
    high, wide = (there / here for there, here in zip(grid, size))
    if wide < high:
        return min(math.ceil(size[0] * wide), grid[0]), grid[1]
    return grid[0], min(math.ceil(size[1] * high), grid[1])


class Reference:
    """The same in transformers."""

    def __init__(self, folder, half=False):
        self.model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        if half:
            for weight in self.model.parameters():
                weight.data = weight.data.half().float() if weight.dim() > 1 else weight.data
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.video = self.model.config.video_token_id

    def pixels(self, frames):
        """As LlavaOnevisionVideoProcessor does it: [1, frames, 3, 384, 384]."""
        planes = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
        if planes.shape[-2:] != (384, 384):
            planes = torch.nn.functional.interpolate(planes, (384, 384), mode="bicubic", antialias=True)
        return ((planes.float() / 255 - 0.5) / 0.5)[None]

    def embeddings(self, frames):
        with torch.no_grad():
            return self.model.get_video_features(self.pixels(frames), vision_feature_layer=-1, vision_feature_select_strategy="full").pooler_output[0].numpy()

    def tiles(self, picture):
        """As LlavaOnevisionImageProcessor does it: the whole, then the tiles: [1, 1 + tiles, 3, 384, 384]."""
        height, width = picture.shape[:2]
        planes = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
        grid = select_best_resolution((height, width), self.model.config.image_grid_pinpoints)
        size = fitted((height, width), grid)
        larger = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
        (above, below), (left, right) = ((free // 2, free - free // 2) for free in (grid[0] - size[0], grid[1] - size[1]))
        whole = torch.nn.functional.pad(larger, (left, right, above, below))[0]
        cut = [whole[:, y:y + 384, x:x + 384] for y in range(0, grid[0], 384) for x in range(0, grid[1], 384)]
        square = torch.nn.functional.interpolate(planes, (384, 384), mode="bicubic", antialias=True)[0]
        return ((torch.stack([square, *cut]).float() / 255 - 0.5) / 0.5)[None]

    def picture(self, picture):
        with torch.no_grad():
            return self.model.get_image_features(self.tiles(picture), torch.tensor([picture.shape[:2]])).pooler_output[0].numpy()

    def prompt(self, visual, system=""):
        talk = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        talk.append({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]})
        text = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        return torch.tensor([self.tokenizer.encode(text.replace("<video>", "<video>" * visual), add_special_tokens=False)])

    def logprobs(self, frames, visual, answer):
        """Of the answer's tokens and the one after: [1 + tokens, vocabulary]."""
        return self.logprobs_after(frames, self.prompt(visual), answer)

    def logprobs_after(self, frames, ids, answer):
        whole = torch.cat([ids, torch.tensor([answer], dtype=ids.dtype)], 1)
        with torch.no_grad():
            logits = self.model(input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values_videos=self.pixels(frames)).logits
        return torch.log_softmax(logits[0, ids.shape[1] - 1:].float(), -1).numpy()

    def conversation(self, visual, system, turns):
        """Ids up to each answer of a conversation; a later turn has no video."""
        ids = self.prompt(visual, system)
        again = "<|im_end|><|im_start|>user \n" + NEXT + "<|im_end|><|im_start|>assistant\n"
        more = turns[0] + self.tokenizer.encode(again, add_special_tokens=False)
        return ids, torch.cat([ids, torch.tensor([more], dtype=ids.dtype)], 1)

    def salient(self, embeddings, share):
        """Cells of the `share` of visual tokens nearest to the question."""
        question = self.tokenizer.encode(QUESTION, add_special_tokens=False)
        with torch.no_grad():
            wanted = self.model.get_input_embeddings()(torch.tensor(question)).mean(0).numpy()
        first = self.prompt(len(embeddings))[0].tolist().index(self.video)
        nearest = np.argsort(-(embeddings @ wanted), kind="stable")[:round(share * len(embeddings))]
        return sorted(first + int(i) for i in nearest)


def relative(got, wanted):
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def check_same_answer(ours, logprobs, noise):
    """Greedy tokens of the same logits; two that are nearer to each other than the noise may change places."""
    for step, (token, row) in enumerate(zip(ours.tokens, logprobs)):
        best = int(row.argmax())
        assert token == best or row[best] - row[token] < noise, f"token {step}: {token}, in transformers {best}"


def compare(name, folder, files, frames):
    """Prints the measured differences, and holds them to their bounds."""
    reference, rounded = Reference(folder), Reference(folder, half=True)
    wanted = reference.embeddings(frames)
    ours = Ours(*files, frames, wanted.shape[1])
    assert ours.embeddings.shape == wanted.shape == (196 * len(frames) + 1, wanted.shape[1]), ours.embeddings.shape
    error = relative(ours.embeddings, wanted)
    logprobs = reference.logprobs(frames, len(wanted), ours.tokens)
    noise = float(np.std(rounded.logprobs(frames, len(wanted), ours.tokens) - logprobs))
    drift = float(np.std(ours.logprobs - logprobs))
    print(f"{name}: embeddings {error:.1e} off (f16 weights alone: {relative(rounded.embeddings(frames), wanted):.1e}), logits {drift:.1e} "
          f"(f16 weights alone: {noise:.1e}, their spread {np.std(logprobs):.2f}), {len(set(ours.tokens))} different tokens of {len(ours.tokens)}")
    assert error < 1e-3, error
    assert drift < MORE_NOISE * noise, (drift, noise)
    assert len(ours.tokens) >= ANSWER // 2
    check_same_answer(ours, logprobs, MORE_NOISE * noise)
    expected = set(reference.salient(wanted, SHARE))
    common = len(expected & set(ours.salient))
    assert len(ours.salient) == len(expected) and common >= 0.97 * len(expected), (common, len(expected))
    return ours


def same_tensors(first, second):
    from gguf import GGUFReader
    one, two = ({t.name: (t.tensor_type, t.data.tobytes()) for t in GGUFReader(path).tensors} for path in (first, second))
    return one == two


def check_layouts(work):
    """lmms-lab's layout of the same weights gives the same tensors, whatever the shards and the type they are kept in."""
    hf = random_llava.make_hf(f"{work}/hf", SEED, random_llava.SMALL, dtype=torch.bfloat16)
    lmms = random_llava.make_lmms(hf, f"{work}/lmms")
    for one, two in zip(convert(hf), convert(lmms)):
        assert same_tensors(one, two), (one, two)
        assert keys_of(one, "vidkv.") == keys_of(two, "vidkv."), (one, two)
    tied = random_llava.make_hf(f"{work}/tied", SEED, random_llava.SMALL, tied=True, shard_size="300KB")
    assert os.path.exists(f"{tied}/model.safetensors.index.json")
    frames = smooth_frames(1, 384, 384, SEED)
    compare("tied embeddings, shards", tied, convert(tied), frames)
    return lmms


def check_quantized(work, text, mmproj, frames, exact):
    """What llama-quantize makes of the language model still answers, a little off."""
    path = f"{work}/q8.gguf"
    subprocess.run([os.path.join(LLAMA_CPP, "..", "build", "bin", "llama-quantize"), text, path, "q8_0"], check=True, capture_output=True)
    ours = Ours(path, mmproj, frames, exact.embeddings.shape[1])
    off = float(np.std(ours.logprobs[0] - exact.logprobs[0]))
    print(f"q8_0: the first logits are {off:.1e} off")
    assert 0 < off < 0.1 * np.std(exact.logprobs[0])


def edit_json(path, **changes):
    with open(path, encoding="utf-8") as f:
        value = json.load(f)
    value.update(changes)
    with open(path, "w", encoding="utf-8") as f:
        json.dump({k: v for k, v in value.items() if v is not None}, f)


def cut(path):
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) // 2)


def without_token(folder):
    with open(f"{folder}/tokenizer.json", encoding="utf-8") as f:
        text = f.read()
    with open(f"{folder}/tokenizer.json", "w", encoding="utf-8") as f:
        f.write(text.replace("<|im_end|>", "<|none|>"))


BAD_FOLDERS = (  # what is done to a good folder, what is said
    (lambda d: os.remove(f"{d}/config.json"), "config.json' is missing"),
    (lambda d: cut(f"{d}/config.json"), "config.json' cannot be read"),
    (lambda d: edit_json(f"{d}/config.json", model_type="llama", architectures=["LlamaForCausalLM"]), "is no LLaVA-OneVision: its config.json says llama"),
    (lambda d: os.remove(sorted(n.path for n in os.scandir(d) if n.name.startswith("model-"))[0]), "shards are missing"),
    (lambda d: os.remove(f"{d}/model.safetensors.index.json"), "no model.safetensors or model.safetensors.index.json"),
    (lambda d: cut(sorted(n.path for n in os.scandir(d) if n.name.startswith("model-"))[0]), "is cut off or damaged"),
    (lambda d: random_llava.write(d, "model.safetensors.index.json", []), "no JSON object"),
    (lambda d: edit_json(f"{d}/config.json", text_config=dict(random_llava.SMALL["text"], num_key_value_heads=3)), "and 3 of keys"),
    (lambda d: edit_json(f"{d}/config.json", image_grid_pinpoints=[["a", "b"]]), "are not in tiles of"),
    (without_token, "lacks <|im_end|>"),
    (lambda d: os.remove(f"{d}/tokenizer.json"), "vocab.json' is missing"),
    (lambda d: edit_json(f"{d}/config.json", vision_feature_layer=7), "vision_feature_layer 7"),
    (lambda d: edit_json(f"{d}/config.json", vision_feature_select_strategy="default"), "only 'full' is converted"),
)


def check_bad_folders(work):
    good = random_llava.make_hf(f"{work}/good", SEED, random_llava.SMALL, shard_size="500KB")
    for number, (spoil, says) in enumerate(BAD_FOLDERS):
        bad = f"{work}/bad{number}"
        subprocess.run(["cp", "-r", good, bad], check=True)
        spoil(bad)
        said = convert(bad, code=1)
        assert says in said and "\n" not in said, f"{said!r} in the place of {says!r}"
        assert not [n for n in os.listdir(bad) if ".gguf" in n], "a half-made file is left"
    said = convert(f"{work}/nowhere", code=1)
    assert "is no folder" in said, said


def check_sizes(work):
    """Frames of another size are squeezed as transformers' video processor does it."""
    small = random_llava.make_hf(f"{work}/small", SEED + 1, random_llava.SMALL)
    files = convert(small)
    frames = smooth_frames(3, 384, 384, SEED)
    exact = compare("small widths", small, files, frames)
    for width, height in ((640, 360), (211, 301)):
        compare(f"frames of {width}x{height}", small, files, smooth_frames(2, width, height, SEED))
    check_quantized(work, *files, frames, exact)
    compare("f32 files", small, convert(small, f"{work}/f32", "--outtype", "f32"), frames)


GRIDS = [[384 * i, 384 * j] for i in range(1, 4) for j in range(1, 4)]


def check_pictures(work):
    """One picture is seen whole and in tiles, as published: wide, high, small, and with more tiles than are kept."""
    small = random_llava.make_hf(f"{work}/small", SEED + 3, random_llava.SMALL)
    edit_json(f"{small}/config.json", image_grid_pinpoints=GRIDS, vision_aspect_ratio="anyres_max_3")
    files, reference, width = convert(small), Reference(small), random_llava.SMALL["text"]["hidden_size"]
    for size in ((700, 300), (301, 777), (150, 100), (1000, 1100)):
        picture = smooth_frames(1, *size, SEED)
        wanted, ours = reference.picture(picture[0]), Ours(*files, picture, width, talk=("picture",))
        assert ours.embeddings.shape == wanted.shape, (size, ours.embeddings.shape, wanted.shape)
        error = relative(ours.embeddings, wanted)
        print(f"a picture of {size[0]}x{size[1]}: {len(wanted)} embeddings, {error:.1e} off")
        assert error < 1e-3, error
    check_picture_file(work, files, smooth_frames(1, 700, 300, SEED), len(reference.picture(smooth_frames(1, 700, 300, SEED)[0])))
    edit_json(f"{small}/config.json", image_grid_pinpoints=[[384, 100]])
    assert "not in tiles of 384 pixels" in convert(small, code=1)


def check_picture_file(work, files, frames, tokens):
    """The command takes a picture by itself so, and among others as a frame."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    subprocess.run(["ffmpeg", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-", f"{work}/picture.png"],
                   input=frames.tobytes(), check=True)
    options = ("-m", files[0], "--mmproj", files[1], "--kv", "t1.65", "-n", "2")
    assert ask(f"{work}/picture.png", [QUESTION], *options)["visual_tokens"] == tokens
    two = subprocess.run([VIDKV, "ask", f"{work}/picture.png", f"{work}/picture.png", QUESTION, "--json", *options], capture_output=True, check=True)
    assert json.loads(two.stdout)["visual_tokens"] == 2 * 197


def check_conversation(work):
    """`vidkv chat`, after a system prompt: both answers are the likeliest tokens in transformers; and the command answers so."""
    small = random_llava.make_hf(f"{work}/small", SEED + 2, random_llava.SMALL)
    files, frames = convert(small), smooth_frames(2, 384, 384, SEED)
    reference, rounded, visual = Reference(small), Reference(small, half=True), 2 * 196 + 1
    ours = Ours(*files, frames, random_llava.SMALL["text"]["hidden_size"], talk=(SYSTEM, NEXT))
    for ids, answer in zip(reference.conversation(visual, SYSTEM, ours.turns), ours.turns):
        logprobs = reference.logprobs_after(frames, ids, answer)
        noise = float(np.std(rounded.logprobs_after(frames, ids, answer) - logprobs))
        assert len(answer) >= ANSWER // 2
        check_same_answer(types.SimpleNamespace(tokens=answer), logprobs, MORE_NOISE * noise)
    assert ours.turns[0] == ours.tokens, "the first turn is not what ask answers"
    owner, clips = make_set("short", SEED, 1)
    with owner:
        options = ["-m", files[0], "--mmproj", files[1], "--kv", "t1.65", "--frames", "4", "-n", "4", "--system", SYSTEM]
        asked = subprocess.run([VIDKV, "ask", clips[0][0], QUESTION, *options], capture_output=True, check=True).stdout
        lines = "\n".join([QUESTION, NEXT, "/clear", QUESTION, ""])
        done = subprocess.run([VIDKV, "chat", clips[0][0], *options], input=lines.encode(), capture_output=True, check=False)
    assert done.returncode == 0 and asked.strip(), done.stderr
    assert done.stdout.startswith(asked) and done.stdout.endswith(asked) and len(done.stdout) > 2 * len(asked), (asked, done.stdout)


def check_vocabulary_in_parts(work):
    """vocab.json, merges.txt and added_tokens.json in the place of tokenizer.json: the same vocabulary."""
    whole = random_llava.make_hf(f"{work}/whole", SEED, random_llava.SMALL)
    parts = f"{work}/parts"
    subprocess.run(["cp", "-r", whole, parts], check=True)
    with open(f"{parts}/tokenizer.json", encoding="utf-8") as f:
        tokenizer = json.load(f)
    os.remove(f"{parts}/tokenizer.json")
    random_llava.write(parts, "vocab.json", tokenizer["model"]["vocab"])
    random_llava.write(parts, "added_tokens.json", {token["content"]: token["id"] for token in tokenizer["added_tokens"]})
    with open(f"{parts}/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(" ".join(merge) + "\n" for merge in tokenizer["model"]["merges"]))
    one, two = (keys_of(convert(folder)[0], "tokenizer.ggml.") for folder in (whole, parts))
    assert one == two and len(one["tokenizer.ggml.merges"]) > 100
    os.remove(f"{parts}/merges.txt")
    assert "merges.txt is in" in convert(parts, code=1)


def keys_of(path, start):
    from gguf import GGUFReader
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if name.startswith(start)}


def check_real_widths(work):
    real = random_llava.make_hf(f"{work}/real", SEED, random_llava.REAL_WIDTHS)
    compare("the widths of 0.5B, 2 layers each", real, convert(real), smooth_frames(2, 384, 384, SEED))
    if os.environ.get("VIDKV_NIGHTLY"):  # 10 GB of memory, 12 of disk
        shutil.rmtree(real)
        real = random_llava.make_hf(f"{work}/7b", SEED, random_llava.WIDTHS_OF_7B)
        compare("the widths of 7B, 2 layers, SigLIP's 27", real, convert(real), smooth_frames(2, 384, 384, SEED))


def demo(folder, clip, frames):
    """What `python -m vidkv.demo` answers with transformers' own cache."""
    command = [sys.executable, "-m", "vidkv.demo", clip, QUESTION, "--model", folder, "--preset", "dynamic", "--dtype", "float32", "--frames", str(frames),
               "--max-new-tokens", str(ANSWER), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": STAGE})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_video_files(work):
    """`vidkv ask` takes the published number of frames of a file, from the first to the last, and answers as the published demo does."""
    small = random_llava.make_hf(f"{work}/small", SEED + 1, random_llava.SMALL)
    text, mmproj = convert(small)
    owner, clips = make_set("short", SEED, 2)
    with owner:
        for (clip, _), frames in zip(clips, (32, 7)):
            options = () if frames == 32 else ("--frames", str(frames))
            report = ask(clip, [QUESTION], "-m", text, "--mmproj", mmproj, "--kv", "f16", "-n", str(ANSWER), *options)
            assert report["frames"] <= frames and report["visual_tokens"] == 196 * report["frames"] + 1, report
            if not STAGE:
                print("SKIPPED in part: no Python package in this build (-DVIDKV_BUILD_PYTHON=ON) to compare vidkv ask with vidkv.demo")
                return
            wanted = demo(small, clip, frames)
            print(f"{report['frames']} frames of a file: vidkv ask {report['answers'][0]['answer']!r}, vidkv.demo {wanted['answer']!r}")
            assert wanted["frames"] == report["frames"] and wanted["answer"] == report["answers"][0]["answer"]
        for protected in ("t1.65", "k1.5v1.58"):
            report = ask(clip, [QUESTION], "-m", text, "--mmproj", mmproj, "--kv", protected, "--protect", "0.2", "-n", "4", "--frames", "4")
            assert report["kv_bytes"] < report["kv_bytes_f16"]
        done = subprocess.run([VIDKV, "ask", clip, QUESTION, "-m", text, "--mmproj", mmproj, "--timestamps", "1"], capture_output=True, text=True)
        assert done.returncode == 1 and "no time stamps" in done.stderr, done.stderr


def main():
    if not os.path.isdir(os.path.join(LLAMA_CPP, "gguf-py")):
        skip("no source of llama.cpp (LLAMA_CPP): its gguf package is needed")
    sys.path.insert(0, os.path.join(LLAMA_CPP, "gguf-py"))
    transformers.utils.logging.disable_progress_bar()
    print(f"seed {SEED}")
    checks = (check_bad_folders, check_vocabulary_in_parts, check_layouts, check_sizes, check_pictures, check_conversation, check_real_widths, check_video_files)
    for check in checks:
        if check.__name__ not in sys.argv[1:] and sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory(prefix="vidkv-llava-") as work:
            check(work)


if __name__ == "__main__":
    sys.exit(main())
