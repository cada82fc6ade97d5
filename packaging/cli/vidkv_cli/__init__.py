"""The program vidkv, as a package: vidkv_cli/bin/vidkv with everything it loads beside it."""
import importlib.util
import os
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "bin" / "vidkv"


def main():
    """Becomes the program, so that signals and exit codes are its own."""
    if importlib.util.find_spec("numpy"):
        os.environ.setdefault("VIDKV_PYTHON", sys.executable)
    os.execv(PROGRAM, [str(PROGRAM), *sys.argv[1:]])
