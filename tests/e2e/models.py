"""Every structure of structures.py through llama.cpp: made with random weights, converted by llama.cpp's own converter, and asked about a
video with llama.cpp's cache, with f16 rows in VidKV's and with t1.65. The table in docs/models.md says what came of it.

    python models.py            the quick ones, or with VIDKV_NIGHTLY=1 all; each row must stand in the table as it comes out
    python models.py --write    all, and writes those rows
    python models.py NAME...    those"""
import json
import os
import re
import subprocess
import sys
import tempfile

from common import ROOT, VIDKV, make_set, skip

try:
    import transformers

    from structures import STRUCTURES, convert, make_hf
except ImportError as missing:
    skip(f"{missing} (scripts/test installs tests/e2e/requirements.txt)")

LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
COMPARE = os.environ.get("COMPARE_CACHES", os.path.join(ROOT, "build", "bin", "compare_caches"))
SEED = int(os.environ.get("VIDKV_TEST_SEED", "20261126"))
DOCUMENT = os.path.join(ROOT, "docs", "models.md")
ROW = re.compile(r"^\| ([^|]+) \| (`[^|]+) \| ([^|]+) \| ([^|]+) \|(?= [^|]+ \|$)", re.MULTILINE)  # without what transformers makes of it
SAME, NEAR = 1e-3, 1.0  # nats: two ways to add up the same numbers; packed keys and values of random weights


def enlarged(clip):
    """A clip of 168 x 168 pixels: models of any resolution then give more tokens than stay in f16."""
    path = clip.replace(".mp4", "-168.mp4")
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-i", clip, "-vf", "scale=168:168", path], check=True)
    return path


def measured(files, clip):
    """What compare_caches says of each cache."""
    done = subprocess.run([COMPARE, *files, clip, "stock", "f16", "t1.65"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"compare_caches ended with {done.returncode}"])[-1])
    return {one["kv"]: one for one in json.loads(done.stdout)}


def check(caches, report):
    """What must hold, whatever the machine."""
    stock, rows, packed = (caches[kv] for kv in ("stock", "f16", "t1.65"))
    assert stock["frames"] >= 16 and stock["visual_tokens"] > 0, stock
    assert rows["kl"] < SAME, f"f16 rows are not the same: {rows['kl']:.1e} nats"
    assert packed["packed"] and packed["bytes"] < packed["bytes_f16"], packed
    assert 0 < packed["kl"] < NEAR, f"t1.65 is {packed['kl']:.2f} nats off"
    assert report["visual_tokens"] == stock["visual_tokens"] and report["kv_bytes"] < report["kv_bytes_f16"], report


def asked(files, clip):
    """The report of the command as a user starts it."""
    command = [VIDKV, "ask", clip, "What colour is the circle?", "-m", files[0], "--mmproj", files[1], "--kv", "t1.65", "--frames", "32",
               "--timestamps", "0", "-n", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row(structure, clip):
    """A line of the table, but for its last cell; None if the structure failed, and that is said."""
    try:
        return tried(structure, clip)
    except (AssertionError, RuntimeError, ValueError, KeyError) as failure:
        print(f"{structure.name} FAILED: {type(failure).__name__} {failure}", flush=True)
        return None


def tried(structure, clip):
    with tempfile.TemporaryDirectory(prefix="vidkv-model-") as work:
        files = convert(make_hf(structure, f"{work}/{structure.projector}", SEED), LLAMA_CPP)
        architecture = architecture_of(files[0])
        if structure.fails:
            return failed_as_stated(structure, files, clip, architecture)
        caches = measured(files, clip)
        check(caches, asked(files, clip))
    packed = caches["t1.65"]
    print(f"{structure.name}: f16 rows {caches['f16']['kl']:.1e} nats off, t1.65 {packed['kl']:.1e}, {packed['bytes'] / packed['bytes_f16']:.2f} of the bytes",
          flush=True)
    return f"| {structure.name} | `{architecture}`, `{structure.projector}` | {packed['visual_tokens']} | {packed['head_dim']} |"


def failed_as_stated(structure, files, clip, architecture):
    try:
        measured(files, clip)
    except RuntimeError as failure:
        if structure.fails in str(failure):
            return f"| {structure.name} | `{architecture}`, `{structure.projector}`: fails to load | - | - |"
        raise
    raise AssertionError("it runs: take what is said of its failure out of structures.py")


def architecture_of(path):
    from gguf import GGUFReader
    return GGUFReader(path).fields["general.architecture"].contents()


def wanted():
    """The structures to try."""
    named = [one for one in STRUCTURES if one.name in sys.argv[1:]]
    every = "--write" in sys.argv or os.environ.get("VIDKV_NIGHTLY")
    return named or [one for one in STRUCTURES if every or one.quick]


def rewrite(rows):
    """Puts rows into the document, where there is one of that name."""
    with open(DOCUMENT, encoding="utf-8") as file:
        text = file.read()
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write(ROW.sub(lambda found: rows.get(found[1], found[0]), text))


def main():
    if not os.path.isdir(os.path.join(LLAMA_CPP, "conversion")):
        skip("no source of llama.cpp (LLAMA_CPP): its converter is needed")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(f"seed {SEED}")
    owner, clips = make_set("long", SEED, 1)
    with owner:
        clip = enlarged(clips[0][0])
        made = [(structure.name, row(structure, clip)) for structure in wanted()]
    if os.environ.get("VERBOSE"):
        print(*(line for _, line in made if line), sep="\n")
    rows = {name: line for name, line in made if line}
    if "--write" in sys.argv:
        rewrite(rows)
    with open(DOCUMENT, encoding="utf-8") as file:
        stated = {found[1]: found[0] for found in ROW.finditer(file.read())}
    assert set(stated) == {one.name for one in STRUCTURES}, f"docs/models.md and structures.py do not name the same: {set(stated) ^ {s.name for s in STRUCTURES}}"
    for name, line in rows.items():
        assert stated[name] == line, f"docs/models.md says {stated[name]}, and it is {line}"
    assert len(rows) == len(made), "structures failed"


if __name__ == "__main__":
    sys.exit(main())
