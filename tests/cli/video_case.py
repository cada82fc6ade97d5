"""The test picture, and videos made of it: what the tests of video input start from.

The test picture is red for two seconds, then green, then blue, at 10 frames per second, with a white square that moves one pixel per
frame and says by its place which frame it is."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import numpy as np

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
VIDKV = os.environ.get("VIDKV", os.path.join(ROOT, "build", "bin", "vidkv"))
VIDEOS = os.path.join(ROOT, "tests", "cli", "videos")
WIDTH, HEIGHT, RATE, SECONDS = 96, 64, 10, 6
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)])
SQUARE = 16


def true_frame(n):
    """uint8 [HEIGHT, WIDTH, 3]: the picture of frame n."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    picture[:] = COLOURS[n // (2 * RATE)]
    picture[24:24 + SQUARE, n:n + SQUARE] = 255
    return picture


def ffmpeg(*arguments, **options):
    subprocess.run(["ffmpeg", "-nostdin", "-y", "-loglevel", "error", *arguments], check=True, **options)


def vidkv(*arguments, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([VIDKV, *arguments], capture_output=True, timeout=120, **options)


class Videos(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="vidkv-video-")
        cls.source = os.path.join(cls.folder, "source.mkv")
        pixels = b"".join(true_frame(n).tobytes() for n in range(RATE * SECONDS))
        ffmpeg_input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(RATE), "-i", "pipe:0"]
        subprocess.run(["ffmpeg", "-y", "-loglevel", "error", *ffmpeg_input, "-c:v", "ffv1", cls.source], input=pixels, check=True)
        cls.h264 = cls.make("h264.mp4", "-c:v", "libx264", "-g", "10", "-bf", "2", "-qp", "6")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    @classmethod
    def make(cls, name, *options, source=None, before=()):
        """A file made of the test picture (or another file)."""
        path = cls.path(name)
        ffmpeg(*before, "-i", source or cls.source, *options, path)
        return path

    def frames(self, video, *options, **more):
        """[(seconds, uint8 picture)], as written to PNG files."""
        with tempfile.TemporaryDirectory() as out:
            done = vidkv("frames", video, "--json", "--out", out, *options, **more)
            self.assertEqual((done.returncode, done.stderr), (0, b""), (video, done.stderr))
            return self.read(json.loads(done.stdout)["frames"])

    @classmethod
    def read(cls, frames):
        """Frames of one size, all PNG files of a folder."""
        height, width = frames[0]["height"], frames[0]["width"]
        folder = os.path.dirname(frames[0]["file"])
        pixels = cls.decoded(os.path.join(folder, "frame-%05d.png")).reshape(-1, height, width, 3)
        return list(zip((f["seconds"] for f in frames), pixels, strict=True))

    def times(self, video, *options, **more):
        done = vidkv("frames", video, "--json", *options, **more)
        self.assertEqual((done.returncode, done.stderr), (0, b""), (video, done.stderr))
        return [f["seconds"] for f in json.loads(done.stdout)["frames"]]

    @staticmethod
    def pixels(path, *options):
        probe = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "csv=p=0", path]
        width, height = map(int, subprocess.run(probe, capture_output=True, check=True, text=True).stdout.strip().strip(",").split(","))
        pixels = Videos.decoded(path, *options)
        return pixels.reshape(height, width, 3)

    @staticmethod
    def decoded(path, *options):
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", path, *options, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
        return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)

    def assert_colours(self, frames, tolerance, offset=0.0, gray=False):
        """Every frame is what the test picture is at its time."""
        for seconds, picture in frames:
            true = true_frame(min(RATE * SECONDS - 1, max(0, round((seconds + offset) * RATE)))).astype(int)
            if gray:
                true = np.repeat((true @ np.array([0.299, 0.587, 0.114])).round()[:, :, None], 3, 2)
            self.assertEqual(picture.shape, true.shape)
            self.assertLess(np.abs(picture - true).mean(), tolerance, seconds)

    def assert_fails(self, words, *arguments, code=1, **more):
        done = vidkv(*arguments, **more)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, b"")
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertIn(words, done.stderr.decode())
