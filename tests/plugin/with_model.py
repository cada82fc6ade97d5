"""Runs a test program on a text model: with_model.py NAME PROGRAM [ARGUMENTS].

NAME is one of measure/eval/fetch_text_model.py. SmolLM2 is fetched where it is missing; a larger model is used where it lies in the
cache folder already, and the test is skipped (exit code 77) where it does not, unless VIDKV_FETCH_MODELS is set."""
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "measure" / "eval"))
import fetch_text_model  # noqa: E402

SKIPPED = 77


def model(name):
    path = fetch_text_model.cache_folder() / fetch_text_model.MODELS[name].file
    if path.exists():
        return path
    if name != "smollm2" and not os.environ.get("VIDKV_FETCH_MODELS"):
        print(f"skipped: {path} is missing (set VIDKV_FETCH_MODELS=1 to have it fetched)")
        sys.exit(SKIPPED)
    fetched = subprocess.run([sys.executable, fetch_text_model.__file__, name], check=False)
    if fetched.returncode != 0:
        print(f"skipped: {name} cannot be fetched")
        sys.exit(SKIPPED)
    return path


if __name__ == "__main__":
    os.environ["VIDKV_TEXT_MODEL"] = str(model(sys.argv[1]))
    sys.exit(subprocess.run(sys.argv[2:], check=False).returncode)
