"""The wheel vidkv-cli in an empty virtual environment, by a user who cannot read what it was built from; with --bare in a Debian that has
nothing but Python, too. Usage: test_wheel.py [--bare] WHEEL"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

NOBODY = "65534"
OTHER = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
QUESTION = "What colour is the circle?"
BARE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "OMP_WAIT_POLICY": "passive"}
# What a Debian without any choice has: libc's libraries, GCC's, and zlib, which dpkg needs.
ALLOWED = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2", "libgcc_s.so.1", "libstdc++.so.6",
           "libz.so.1", "linux-vdso.so.1"}
# Texts that must come with it, of Debian's packages by their names and of FFmpeg's own build.
LICENCES = {"vidkv", "ffmpeg", "libgomp1", "libssl3", "libedit2", "libdav1d6", "libzimg2", "common/GPL-3"}
LARGEST = 60e6  # bytes


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


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


def check_answer(answer):
    if len(answer.split()) != 1:
        sys.exit(f"no answer of one word: {answer!r}")
    return answer.strip()


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


def bare_debian():
    """Debian's smallest system with Python and pip, made once."""
    cache = pathlib.Path(os.environ.get("VIDKV_CACHE_DIR") or pathlib.Path.home() / ".cache" / "vidkv")
    debian = cache / "bare-bookworm"
    if not (debian / "complete").exists():
        shutil.rmtree(debian, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", "--include=python3-venv", "bookworm", debian])
        (debian / "complete").touch()
    return debian


def in_debian(debian, *command, user="0"):
    """Runs a command there, which sees its own /proc; mounts end with it."""
    script = 'mount -t proc proc "$0/proc" && user=$1 && shift && exec chroot --userspec="$user" "$0" "$@"'
    return run(["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, debian, f"{user}:{user}", *command], env=BARE_ENVIRONMENT)


def in_bare_debian(wheel, clip):
    """`pip install` and `vidkv ask` where no library but Debian's essential ones and Python's is there."""
    debian = bare_debian()
    guest = debian / "opt" / "vidkv"
    shutil.rmtree(guest, ignore_errors=True)
    guest.mkdir(parents=True)
    try:
        shutil.copy(wheel, guest)
        shutil.copy(clip, guest / "clip.mp4")
        in_debian(debian, "python3", "-m", "venv", "/opt/vidkv/venv")
        in_debian(debian, "/opt/vidkv/venv/bin/pip", "install", "--quiet", "--no-index", f"/opt/vidkv/{wheel.name}")
        package = next((guest / "venv/lib").glob("python3*")) / "site-packages" / "vidkv_cli"
        for path in programs_and_libraries(package):
            found = in_debian(debian, "ldd", "/" + str(path.relative_to(debian)))
            if "not found" in found:
                sys.exit(f"in a bare Debian {path.name} finds not all of\n{found}")
        return check_answer(in_debian(debian, "/opt/vidkv/venv/bin/vidkv", "ask", "/opt/vidkv/clip.mp4", QUESTION, "--threads", "1", user=NOBODY))
    finally:
        shutil.rmtree(guest)


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
            print(f"in a bare Debian: {in_bare_debian(wheel, clip)!r}")


if __name__ == "__main__":
    main()
