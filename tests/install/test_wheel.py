"""The wheel vidkv-cli in an empty virtual environment, by a user who cannot read what it was built from; with --bare in a Debian that has
nothing but Python, too. Usage: test_wheel.py [--bare] WHEEL"""
import argparse
import os
import pathlib
import shutil
import sys
import tempfile

from debian import BARE_ENVIRONMENT, NOBODY, as_nobody, check_answer, in_debian, run

OTHER = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
QUESTION = "What colour is the circle?"
# What a Debian without any choice has: libc's libraries, GCC's, and zlib, which dpkg needs.
ALLOWED = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2", "libgcc_s.so.1", "libstdc++.so.6",
           "libz.so.1", "linux-vdso.so.1"}
# Texts that must come with it, of Debian's packages by their names and of FFmpeg's own build.
LICENCES = {"vidkv", "ffmpeg", "libgomp1", "libssl3", "libedit2", "libdav1d6", "libzimg2", "common/GPL-3"}
LARGEST = 60e6  # bytes


def programs_and_libraries(package):
    return [path for path in package.parent.glob("vidkv_cli*/**/*") if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]


def check_libraries(package):
    """Everything that is loaded comes with the wheel, or is on every Debian."""
    files = programs_and_libraries(package)
    for path in files:
        for line in run(["ldd", path], env=BARE_ENVIRONMENT).splitlines():
            name = os.path.basename(line.split()[0])
            if name not in {*ALLOWED, "statically"} and not name.startswith("ld-linux") and str(package.parent) not in line:
                sys.exit(f"{path} needs {line.strip()}")
    return files


def check_licences(package):
    """Every library that was put into the wheel is of a project whose text is there; what is compiled in has its own beside it."""
    folder = next(package.parent.glob("vidkv_cli-*.dist-info")) / "licenses"
    texts = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if not LICENCES <= texts:
        sys.exit(f"no licence texts of {LICENCES - texts}")
    own = {path.name for path in (package / "share/doc/vidkv/licences").iterdir()}
    if "llama.cpp" not in own or "cli11" not in own:
        sys.exit(f"licence texts of {own} alone")
    return len(texts) + len(own)


def install(wheel, folder):
    run(["/usr/bin/python3", "-m", "venv", folder / "venv"])
    run([folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", wheel])
    return next((folder / "venv/lib").glob("python3*")) / "site-packages" / "vidkv_cli"


def as_another_user(wheel, folder):
    """Installed on this system; makes a clip and asks about it. Returns the clip, what was installed, how many licence texts, and the answer."""
    package = install(wheel, folder)
    files, licences = check_libraries(package), check_licences(package)
    clips = folder / "clips"
    clips.mkdir()
    clips.chmod(0o777)
    vidkv = [*OTHER, folder / "venv/bin/vidkv"]
    run([*vidkv, "data", "--seed", "3", "--split", "short", "--count", "1", clips / "made"], env=BARE_ENVIRONMENT, cwd="/")
    clip = next(clips.rglob("*.mp4"))
    return clip, files, licences, check_answer(run([*vidkv, "ask", clip, QUESTION, "--kv", "t1.65", "--threads", "1"], env=BARE_ENVIRONMENT, cwd="/"))


def in_bare_debian(wheel, clip, folder):
    """`pip install` and `vidkv ask` where no library but Debian's essential ones and Python's is there."""
    guest = folder / "guest"
    guest.mkdir()
    shutil.copy(wheel, guest)
    shutil.copy(clip, guest / "clip.mp4")
    found = in_debian(guest, f"""
python3 -m venv /opt/vidkv/venv
/opt/vidkv/venv/bin/pip install --quiet --no-index /opt/vidkv/{wheel.name}
find /opt/vidkv/venv/lib/python3*/site-packages/vidkv_cli* -type f | xargs ldd 2>/dev/null || true  # most files are no programs
""")
    if "not found" in found:
        sys.exit(f"in a bare Debian not all libraries are found:\n{found}")
    return check_answer(in_debian(guest, as_nobody("/opt/vidkv/venv/bin/vidkv", "ask", "/opt/vidkv/clip.mp4", f"'{QUESTION}'", "--threads", "1")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bare", action="store_true", help="in a bare Debian too (needs root and debootstrap)")
    parser.add_argument("wheel", type=pathlib.Path)
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve()
    if "manylinux" not in wheel.name:
        sys.exit(f"{wheel.name} has no manylinux tag")
    size = wheel.stat().st_size
    if size > LARGEST:
        sys.exit(f"{wheel.name} has {size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}")
    with tempfile.TemporaryDirectory(prefix="vidkv-wheel-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        clip, files, licences, answer = as_another_user(wheel, folder)
        print(f"{wheel.name}: {size / 1e6:.0f} MB, {len(files)} programs and libraries, {sum('ggml-cpu-' in f.name for f in files)} CPU back-ends, "
              f"{licences} licence texts, answered {answer!r}")
        if arguments.bare:
            print(f"in a bare Debian: {in_bare_debian(wheel, clip, folder)!r}")


if __name__ == "__main__":
    main()
