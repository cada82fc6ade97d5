"""The Debian package, installed by apt with what it depends on in a Debian that has next to nothing: asks about a clip, builds a program with
the library, and leaves nothing when it is removed. Usage: test_deb.py DEB (needs root and debootstrap)"""
import pathlib
import shutil
import sys
import tempfile

from debian import as_nobody, check_answer, in_debian

TESTS = pathlib.Path(__file__).resolve().parent.parent
QUESTION = "What colour is the circle?"
TRY = f"""
exec 3>&1 >&2
apt-get update -qq
apt-get install -qq --no-install-recommends /opt/vidkv/vidkv.deb
ldd /usr/bin/vidkv $(dpkg -L vidkv | grep "\\.so") | grep "not found" && exit 1
{as_nobody("vidkv", "ask", "/opt/vidkv/clip.mp4", f"'{QUESTION}'", "--threads", "1")} >&3
apt-get install -qq --no-install-recommends gcc libc6-dev pkg-config
gcc /opt/vidkv/main.c $(pkg-config --cflags --libs vidkv) -o /tmp/main
/tmp/main
apt-get remove -qq vidkv
! find /usr -name "*vidkv*" | grep .
"""


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="vidkv-deb-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        shutil.copy(sys.argv[1], folder / "vidkv.deb")
        shutil.copy(TESTS / "install" / "consumer" / "main.c", folder)
        shutil.copy(TESTS / "cli" / "videos" / "hevc10.mp4", folder / "clip.mp4")
        answer = check_answer(in_debian(folder, TRY))
        print(f"{pathlib.Path(sys.argv[1]).name}: {(folder / 'vidkv.deb').stat().st_size / 1e6:.0f} MB, in a bare Debian: {answer!r}")


if __name__ == "__main__":
    main()
