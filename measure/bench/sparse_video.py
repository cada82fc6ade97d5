#!/usr/bin/env python3
"""How long 64 frames of a long 1080p video take, against decoding all of it: processor seconds of both, on a file made here.

usage: sparse_video.py VIDKV [MINUTES]   (default 60; needs the program ffmpeg; the file takes about 10 MB a minute in TMPDIR)"""
import json
import os
import resource
import subprocess
import sys
import tempfile


def processor_seconds(*command):
    """User and system seconds of a command, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, printed


def make_video(folder, minutes):
    """One minute of ffmpeg's test picture with a key frame every 2 s, repeated without encoding it again."""
    minute, long = os.path.join(folder, "minute.mp4"), os.path.join(folder, "long.mp4")
    ffmpeg = ["ffmpeg", "-nostdin", "-y", "-loglevel", "error"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", "testsrc2=s=1920x1080:r=25:d=60", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p",
                    "-g", "50", minute], check=True)
    subprocess.run([*ffmpeg, "-stream_loop", str(minutes - 1), "-i", minute, "-c", "copy", long], check=True)
    return minute, long


def main():
    vidkv, minutes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60
    with tempfile.TemporaryDirectory() as folder:
        minute, long = make_video(folder, minutes)
        sparse, printed = processor_seconds(vidkv, "frames", long, "--frames", "64", "--json")
        one_minute, _ = processor_seconds("ffmpeg", "-nostdin", "-loglevel", "error", "-i", minute, "-f", "null", "-")
        report = json.loads(printed)
        print(f"{minutes} minutes, {os.path.getsize(long) >> 20} MiB: {len(report['frames'])} frames, {report['packets_decoded']} packets decoded, "
              f"{sparse:.1f} processor seconds; decoding all of it: {one_minute * minutes:.1f} ({minutes} times one minute's)")


if __name__ == "__main__":
    main()
