#!/usr/bin/python3
"""The package where there is NumPy and no torch: the library works, and what needs torch says in one line what to install."""
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("torch"):
    print("skipped: this Python has torch")
    sys.exit(77)
try:
    import numpy

    import vidkv
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

cache = vidkv.Cache(layers=1, kv_heads=2, head_dim=64, cells=1024, params=vidkv.Params.from_preset("t1.65"))
rows = numpy.random.default_rng(1).standard_normal((600, 2, 64)).astype(numpy.float32)
cache.append(0, 0, rows, rows)
cache.seal()
assert cache.length(0) == 600

for arguments, what in ((["-c", "import vidkv.transformers"], "vidkv[transformers]"), (["-m", "vidkv", "demo", "a.mp4", "What?"], "vidkv[demo]")):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and f"pip install '{what}'" in last, done.stderr
