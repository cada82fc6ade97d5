"""LLaVA-OneVision with random weights: converted from both published layouts, bad folders refused, and the language model read by
stock llama.cpp."""
import json
import os
import subprocess
import sys
import tempfile

from common import ROOT, skip

try:
    import torch
    import transformers

    import random_llava
except ImportError as missing:
    skip(f"{missing} (scripts/test installs tests/e2e/requirements.txt)")

LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
CONVERT = os.path.join(ROOT, "models", "convert_llava_onevision", "convert.py")
SEED = int(os.environ.get("VIDKV_TEST_SEED", "20261125"))


def convert(folder, *options, code=0):
    """The paths written, or what was said."""
    environment = {**os.environ, "PYTHONPATH": os.path.join(LLAMA_CPP, "gguf-py")}
    done = subprocess.run([sys.executable, CONVERT, folder, *options], capture_output=True, text=True, env=environment)
    assert done.returncode == code, f"convert.py ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.split() if code == 0 else done.stderr.strip()


def same_tensors(first, second):
    sys.path.insert(0, os.path.join(LLAMA_CPP, "gguf-py"))
    from gguf import GGUFReader
    one, two = ({t.name: (t.tensor_type, t.data.tobytes()) for t in GGUFReader(path).tensors} for path in (first, second))
    return one == two


def check_layouts(work):
    """lmms-lab's layout of the same weights gives the same tensors, whatever the shards and the type they are kept in."""
    hf = random_llava.make_hf(f"{work}/hf", SEED, random_llava.SMALL, dtype=torch.bfloat16)
    lmms = random_llava.make_lmms(hf, f"{work}/lmms")
    for one, two in zip(convert(hf), convert(lmms)):
        assert same_tensors(one, two), (one, two)
    tied = random_llava.make_hf(f"{work}/tied", SEED, random_llava.SMALL, tied=True, shard_size="300KB")
    assert os.path.exists(f"{tied}/model.safetensors.index.json")
    text, mmproj = convert(tied)
    check_stock_tools(f"{work}/q8.gguf", text, mmproj)


def check_stock_tools(quantized, text, mmproj):
    """llama-quantize takes the language model, and llama-mtmd-cli both files with a picture."""
    bin = os.path.join(LLAMA_CPP, "..", "build", "bin")
    subprocess.run([f"{bin}/llama-quantize", text, quantized, "q8_0"], check=True, capture_output=True)
    picture = f"{quantized}.ppm"
    with open(picture, "wb") as f:
        f.write(b"P6 64 64 255\n" + bytes(64 * 64 * 3))
    for model in (text, quantized):
        done = subprocess.run([f"{bin}/llama-mtmd-cli", "-m", model, "--mmproj", mmproj, "--image", picture, "-p", "What?", "-n", "4", "-c", "2048",
                               "--temp", "0"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]


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


def main():
    if not os.path.isdir(os.path.join(LLAMA_CPP, "gguf-py")):
        skip("no source of llama.cpp (LLAMA_CPP): its gguf package is needed")
    transformers.utils.logging.disable_progress_bar()
    print(f"seed {SEED}")
    for check in (check_bad_folders, check_layouts):
        with tempfile.TemporaryDirectory(prefix="vidkv-llava-") as work:
            check(work)


if __name__ == "__main__":
    sys.exit(main())
