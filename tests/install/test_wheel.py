"""The wheel vidkv-cli in an empty virtual environment, by a user who cannot read what it was built from. Usage: test_wheel.py WHEEL"""
import os
import pathlib
import subprocess
import sys
import tempfile

OTHER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
QUESTION = "What colour is the circle?"
ALLOWED = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6", "linux-vdso.so.1"}
# What auditwheel's policy takes every desktop to have; Debian's FFmpeg wants them. A bare system installs them
# (scripts/build-wheel --help).
ALLOWED |= {"libz.so.1", "libexpat.so.1", "libresolv.so.2", "libglib-2.0.so.0", "libgobject-2.0.so.0", "libffi.so.8", "libpcre2-8.so.0", "libX11.so.6",
            "libxcb.so.1", "libXau.so.6", "libXdmcp.so.6", "libXext.so.6", "libXrender.so.1", "libbsd.so.0", "libmd.so.0"}


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_libraries(package, environment):
    """Everything that is loaded comes with the wheel, or is on every Linux."""
    files = [path for path in package.parent.glob("vidkv_cli*/**/*") if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]
    for path in files:
        for line in run(["ldd", path], env=environment).splitlines():
            name = os.path.basename(line.split()[0])
            if name not in {*ALLOWED, "statically"} and not name.startswith("ld-linux") and str(package.parent) not in line:
                sys.exit(f"{path} needs {line.strip()}")
    return len(files)


def main():
    wheel = pathlib.Path(sys.argv[1]).resolve()
    if "manylinux" not in wheel.name:
        sys.exit(f"{wheel.name} has no manylinux tag")
    with tempfile.TemporaryDirectory(prefix="vidkv-wheel-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        run(["/usr/bin/python3", "-m", "venv", folder / "venv"])
        run([folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", wheel])
        package = next((folder / "venv/lib").glob("python3*")) / "site-packages" / "vidkv_cli"
        bare = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OMP_WAIT_POLICY": "passive"}
        count = check_libraries(package, bare)
        clips = folder / "clips"
        clips.mkdir()
        clips.chmod(0o777)
        vidkv = [*OTHER, folder / "venv/bin/vidkv"]
        run([*vidkv, "data", "--seed", "3", "--split", "short", "--count", "1", clips / "made"], env=bare, cwd="/")
        answer = run([*vidkv, "ask", next(clips.rglob("*.mp4")), QUESTION, "--kv", "t1.65", "--threads", "1"], env=bare, cwd="/")
        if len(answer.split()) != 1:
            sys.exit(f"no answer of one word: {answer!r}")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB, {count} programs and libraries, answered {answer.strip()!r}")


if __name__ == "__main__":
    main()
