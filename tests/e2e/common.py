"""What the end-to-end tests share."""
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.normpath(os.path.join(os.path.dirname(__file__), "..", ".."))
VIDKV = os.environ.get("VIDKV", os.path.join(ROOT, "build", "bin", "vidkv"))
SKIPPED = 77


def skip(reason):
    print(f"SKIPPED: {reason}")
    sys.exit(SKIPPED)


def ask(video, questions, *options):
    """The report of `vidkv ask --json`."""
    done = subprocess.run([VIDKV, "ask", video, *questions, "--no-cache", "--json", *options], capture_output=True, text=True)
    assert done.returncode == 0, f"vidkv ask failed ({done.returncode}): {done.stderr}"
    return json.loads(done.stdout)


def make_set(split, seed, count):
    """A generated set in a temporary folder: (the folder's owner, [(video, [entry])])."""
    owner = tempfile.TemporaryDirectory(prefix="vidkv-e2e-")
    out = os.path.join(owner.name, "set")
    subprocess.run([VIDKV, "data", "--seed", str(seed), "--split", split, "--count", str(count), out], check=True)
    clips = {}
    with open(os.path.join(out, "questions.jsonl"), encoding="utf-8") as f:
        for entry in map(json.loads, f):
            clips.setdefault(os.path.join(out, entry["video"]), []).append(entry)
    return owner, list(clips.items())
