"""A Debian that has next to nothing, to try packages in: debootstrap makes it once, and what a test does there is gone afterwards (needs root)."""
import os
import pathlib
import shutil
import subprocess
import sys

NOBODY = "65534"
BARE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "OMP_WAIT_POLICY": "passive", "DEBIAN_FRONTEND": "noninteractive"}
# A layer in memory over the system, alone in its own mounts; the folder "$2" is seen there as /opt/vidkv.
ENTER = """
layer=$1 debian=$0 guest=$2 && shift 2 && mount -t tmpfs layer "$layer" && mkdir "$layer/upper" "$layer/work" "$layer/root" &&
mount -t overlay overlay -o lowerdir="$debian",upperdir="$layer/upper",workdir="$layer/work" "$layer/root" &&
mount -t proc proc "$layer/root/proc" && mount -t devtmpfs dev "$layer/root/dev" && mkdir "$layer/root/opt/vidkv" && mount --bind "$guest" "$layer/root/opt/vidkv" &&
cp /etc/resolv.conf "$layer/root/etc/" && exec chroot "$layer/root" sh -e
"""


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def bare_debian():
    """Debian's smallest system with Python and pip, made once."""
    cache = pathlib.Path(os.environ.get("VIDKV_CACHE_DIR") or pathlib.Path.home() / ".cache" / "vidkv")
    debian = cache / "bare-bookworm"
    if not (debian / "complete").exists():
        shutil.rmtree(debian, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", "--include=python3-venv", "bookworm", debian])
        (debian / "complete").touch()
    return debian


def in_debian(folder, script):
    """What the shell script prints, run as root in a bare Debian that sees the folder as /opt/vidkv."""
    layer = folder / "layer"
    layer.mkdir(exist_ok=True)
    return run(["unshare", "--mount", "--pid", "--fork", "sh", "-c", ENTER, bare_debian(), layer, folder], input=script, env=BARE_ENVIRONMENT)


def as_nobody(*command):
    """The words of a script that runs the command as a user without rights."""
    return " ".join(["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command])


def check_answer(answer):
    if len(answer.split()) != 1:
        sys.exit(f"no answer of one word: {answer!r}")
    return answer.strip()
