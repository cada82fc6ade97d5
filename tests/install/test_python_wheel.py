"""The wheel vidkv: for NumPy alone, on an old processor, and with torch and transformers.
Usage: test_python_wheel.py [--with-torch PYTHON] WHEEL"""
import argparse
import email
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

OLD_PROCESSOR = "Nehalem"  # of 2008: no AVX; NumPy's own wheels want no less
CACHE = """
import numpy, sys, vidkv
cache = vidkv.Cache(layers=1, kv_heads=2, head_dim=64, cells=1024, params=vidkv.Params.from_preset("t1.65"))
rows = numpy.random.default_rng(1).standard_normal((600, 2, 64)).astype(numpy.float32)
cache.append(0, 0, rows, rows)
cache.seal()
assert cache.length(0) == 600 and "torch" not in sys.modules
print(vidkv.isa())
"""
PLUG_IN = """
import vidkv.transformers as plug_in
print(plug_in.__file__, len(plug_in.BACKENDS))
"""


def run(*command, fails=False, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/", **options)
    if (done.returncode != 0) != fails:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stderr if fails else done.stdout.strip()


def expect(holds, what):
    if not holds:
        sys.exit(what)


def check_metadata(wheel):
    expect("manylinux" in wheel.name, f"{wheel.name} has no manylinux tag")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        texts = {name.rpartition("/licenses/")[2] for name in archive.namelist() if "/licenses/" in name}
    expect({"vidkv", "nanobind", "robin_map", "xxhash"} <= texts, f"licence texts of {texts} alone")
    expect(metadata.get_all("Provides-Extra") == ["transformers", "demo"], f"extras: {metadata.get_all('Provides-Extra')}")
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    expect(len(needed) == 1 and needed[0].startswith("numpy"), f"it needs {needed}")


def check_numpy_alone(wheel, folder):
    run("/usr/bin/python3", "-m", "venv", "--system-site-packages", folder / "venv")  # Debian's NumPy
    python = folder / "venv/bin/python"
    run(folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", wheel)
    found = [run(python, "-c", CACHE)]
    complaint = run(python, "-c", "import vidkv.transformers", fails=True).strip().splitlines()[-1]
    expect("pip install 'vidkv[transformers]'" in complaint, f"without torch it says: {complaint}")
    if shutil.which("qemu-x86_64"):
        found.append(run("qemu-x86_64", "-cpu", OLD_PROCESSOR, python, "-c", CACHE))
        expect(found[1] == "scalar", f"on a {OLD_PROCESSOR} it takes {found[1]}")
    return found


def check_with_torch(wheel, folder, python):
    target = folder / "target"
    run(folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--target", target, wheel)
    expect(str(target) in run(python, "-c", PLUG_IN, env={**os.environ, "PYTHONPATH": str(target)}), "another vidkv was imported")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--with-torch", metavar="PYTHON", help="a Python with torch and transformers")
    parser.add_argument("wheel", type=pathlib.Path)
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve()
    check_metadata(wheel)
    with tempfile.TemporaryDirectory(prefix="vidkv-wheel-") as name:
        sets = check_numpy_alone(wheel, pathlib.Path(name))
        if arguments.with_torch:
            check_with_torch(wheel, pathlib.Path(name), arguments.with_torch)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, instruction sets {', '.join(sets)}")


if __name__ == "__main__":
    main()
