"""Puts into a wheel that auditwheel repaired the licence texts of what it carries: as dist-info/licenses, beside VidKV's own.
Usage: licences.py [--ffmpeg FOLDER] WHEEL [NAME=FILE...]

Each library that auditwheel put in has the text of the Debian package that it came from, or, where FOLDER/lib has it, FFmpeg's;
NAME=FILE adds what was compiled in. Texts that these refer to (/usr/share/common-licenses) are added too."""
import argparse
import base64
import hashlib
import pathlib
import re
import subprocess
import sys
import sysconfig
import zipfile

COMMON = "/usr/share/common-licenses/"
FFMPEG = """FFmpeg's libraries in this wheel (libavcodec, libavfilter, libavformat, libavutil, libswscale) are built, unchanged, from Debian's
source package ffmpeg {version} (https://snapshot.debian.org/package/ffmpeg/), under the GNU Lesser General Public License,
version 3: the text below, with the GPL-3 beside this file. They are loaded at run time and may be replaced by your own.

"""


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def debian_package(library):
    try:
        return output("dpkg-query", "--search", f"*/{sysconfig.get_config_var('MULTIARCH')}/{library}").split(":")[0]
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"licences: no Debian package has {library}: what is its licence?")


def texts_of_libraries(names, ffmpeg):
    """What was put into the wheel: {name: text}."""
    texts = {}
    for name in names:
        library = re.sub(r"-[0-9a-f]{8}(?=\.so)", "", name)
        if ffmpeg and (ffmpeg / "lib" / library).exists():
            version = output("dpkg-query", "--show", "--showformat", "${source:Version}", "libavcodec-dev")
            texts["ffmpeg"] = FFMPEG.format(version=version) + (ffmpeg / "COPYING.LGPLv3").read_text() + f"\n({COMMON}GPL-3)\n"
        else:
            package = debian_package(library)
            texts[package] = pathlib.Path("/usr/share/doc", package, "copyright").read_text()
    return texts


def with_common(texts):
    wanted = {name.rstrip(".") for text in texts.values() for name in re.findall(re.escape(COMMON) + r"([\w.+-]+)", text)}
    common = {f"common/{name}": pathlib.Path(COMMON, name).read_text() for name in wanted if pathlib.Path(COMMON, name).is_file()}
    return {**texts, **common}


def record_line(path, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(data)}\n"


def add(wheel, texts):
    """Writes the wheel anew with these files in its dist-info."""
    new = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as out:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines = old.read(record).decode()
        for entry in old.infolist():
            if entry.filename != record:
                out.writestr(entry, old.read(entry))
        for name, text in sorted(texts.items()):
            path = f"{record.rpartition('/')[0]}/licenses/{name}"
            if path not in old.namelist():
                out.writestr(path, text)
                lines = record_line(path, text.encode()) + lines
        out.writestr(record, lines)
    new.rename(wheel)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ffmpeg", metavar="FOLDER", type=pathlib.Path, help="what scripts/build-ffmpeg printed")
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("texts", nargs="*", metavar="NAME=FILE")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as archive:
        libraries = [pathlib.PurePath(name).name for name in archive.namelist() if ".libs/" in name and ".so" in name]
    texts = texts_of_libraries(libraries, arguments.ffmpeg)
    for text in arguments.texts:
        name, _, path = text.partition("=")
        texts[name] = pathlib.Path(path).read_text()
    add(arguments.wheel, with_common(texts))


if __name__ == "__main__":
    main()
