"""clang-tidy over every source of a build folder, many at a time; what passed before and has not changed since is not checked again.
Usage: tidy.py [--jobs N] BUILD   (scripts/nightly tidy calls it; exit code 1 if anything was found)"""
import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("src", "cli", "measure", "plugins", "python/src", "tests", "fuzz", "examples")
# The compile commands are GCC's; what Clang does not know of its warnings does not matter.
COMMAND = ["clang-tidy-14", "-quiet", "-extra-arg=-Wno-unknown-warning-option"]


@cache
def digest(path):
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    except OSError:
        return "missing"


def included(build):
    """Object -> every file that was read to compile it, as ninja keeps it."""
    files, current = {}, None
    for line in subprocess.run(["ninja", "-C", build, "-t", "deps"], capture_output=True, text=True, check=True).stdout.splitlines():
        if not line.startswith(" "):
            current = files.setdefault(line.partition(":")[0], [])
        elif line.strip():
            current.append(os.path.join(build, line.strip()))
    return files


def sources(build):
    """Source -> a key that changes with its compile commands, with all it includes, and with the checks."""
    own = re.compile("^" + re.escape(f"{ROOT}/") + "(" + "|".join(FOLDERS) + ")/")
    read, units = included(build), {}
    for unit in json.loads((build / "compile_commands.json").read_text()):
        if own.match(unit["file"]) and not unit["file"].endswith(".cu"):  # those are compiled for a GPU, which needs CUDA's headers
            units.setdefault(unit["file"], []).append(unit["command"])
    checks = digest(ROOT / ".clang-tidy")
    keys = {}
    for file, compiled in sorted(units.items()):
        parts = [checks, digest(file)]
        for command in sorted(compiled):
            parts += [command, *map(digest, sorted(read.get(re.search(r" -o (\S+)", command)[1], [])))]
        keys[file] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return keys


def findings(build, file):
    done = subprocess.run([*COMMAND, "-p", build, file], capture_output=True, text=True)
    lines = re.findall(r"^.*(?:warning|error): .*$", done.stdout + done.stderr, re.MULTILINE)
    return sorted({line.replace(f"{ROOT}/", "") for line in lines}) or ([f"{file}: clang-tidy failed"] if done.returncode else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="files at a time (default: as many as cores)")
    parser.add_argument("build", type=lambda name: pathlib.Path(name).resolve())
    arguments = parser.parse_args()
    keys = sources(arguments.build)
    passed = arguments.build / "tidy"
    passed.mkdir(exist_ok=True)
    left = [file for file, key in keys.items() if not (passed / key).exists()]
    print(f"tidy: {len(keys)} sources, {len(left)} of them new or changed", file=sys.stderr)

    def check(file):
        found = [] if (passed / keys[file]).exists() else findings(arguments.build, file)  # another run may have been here
        if not found:
            (passed / keys[file]).touch()
        print("\n".join(found), end="\n" if found else "", file=sys.stderr, flush=True)
        return bool(found)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = sum(pool.map(check, left))
    print(f"tidy: {failed} of {len(left)} with findings", file=sys.stderr)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
