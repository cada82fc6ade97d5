"""Videos of every kind: the frames that `vidkv frames` takes, their times and their colours.

The test picture is red for two seconds, then green, then blue, at 10 frames per second, with a white square that moves one pixel per
frame and says by its place which frame it is."""
import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import tempfile
import threading
import time
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


class Kinds(Videos):
    CONTAINERS = {"a.mp4": ["-c:v", "libx264"], "a.mov": ["-c:v", "prores_ks"], "a.mkv": ["-c:v", "libx264", "-bf", "3"], "a.webm": ["-c:v", "libvpx"],
                  "b.webm": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p10le"], "a.avi": ["-c:v", "mpeg4", "-q", "2"], "a.ts": ["-c:v", "libx264", "-g", "10"],
                  "a.flv": ["-c:v", "flv", "-q", "2"], "a.gif": [], "a.apng": [], "a.h264": ["-c:v", "libx264"], "a.nut": ["-c:v", "ffv1"],
                  "hevc10.mp4": ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none"],
                  "a.mpg": ["-c:v", "mpeg2video", "-r", "30", "-q", "2"],
                  "late-moov.mp4": ["-c:v", "libx264"], "early-moov.mp4": ["-c:v", "libx264", "-movflags", "faststart"],
                  "fragments.mp4": ["-c:v", "libx264", "-g", "10", "-movflags", "frag_keyframe+empty_moov"]}

    def test_containers(self):
        for name, options in self.CONTAINERS.items():
            with self.subTest(name):
                video = self.make(name, *options)
                frames = self.frames(video, "--frames", "6")
                self.assertEqual(len(frames), 6)
                for n, (seconds, _) in enumerate(frames):
                    self.assertAlmostEqual(seconds, n, delta=0.06)
                self.assert_colours(frames, 12)
                self.assertEqual(len(self.times(video)), 24)

    def test_pixel_formats(self):
        for name in ("yuv420p", "yuvj420p", "yuv422p12le", "yuv444p16le", "yuva420p", "yuv410p", "gray", "gray10le", "gray16le", "ya16le", "gbrp16le", "gbrap16le",
                     "rgba64le", "rgb48be", "rgb565le", "pal8", "monob", "nv12", "p010le", "yuv440p", "bgr0"):
            with self.subTest(name):
                video = self.make(f"{name}.nut", "-pix_fmt", name, "-c:v", "rawvideo")
                (_, got), = self.frames(video, "--frames", "1")
                expected = self.pixels(video, "-frames:v", "1")
                self.assertLessEqual(np.abs(got.astype(int) - expected).max(), 2)

    def test_matrices_and_ranges(self):
        for matrix in ("bt709", "smpte170m", "bt2020nc"):
            for scale_range in ("tv", "pc"):
                with self.subTest(f"{matrix} {scale_range}"):
                    to = {"bt2020nc": "bt2020"}.get(matrix, matrix)
                    video = self.make("colours.mkv", "-vf", f"scale=out_color_matrix={to}:out_range={scale_range},format=yuv444p",
                            "-colorspace", matrix, "-color_range",
                                      scale_range, "-c:v", "libx264", "-qp", "0")
                    self.assert_colours(self.frames(video, "--frames", "3"), 4)

    def test_same_as_ffmpeg(self):
        (_, got), = self.frames(self.h264, "--frames", "1")
        self.assertEqual(np.abs(got.astype(int) - self.pixels(self.h264, "-frames:v", "1")).max(), 0)

    def test_hdr_is_brought_to_sdr(self):
        for curve, name in (("smpte2084", "smpte2084"), ("arib-std-b67", "arib-std-b67")):
            with self.subTest(name):
                to_hdr = (f"format=gbrpf32le,zscale=p=2020:t={curve}:m=2020_ncl:r=limited:npl=203:pin=bt709:tin=bt709,format=yuv420p10le")
                video = self.make(f"{name}.mp4", "-vf", to_hdr, "-c:v", "libx265", "-x265-params",
                                  f"log-level=none:colorprim=bt2020:transfer={name}:colormatrix=bt2020nc")
                for seconds, picture in self.frames(video, "--frames", "3"):
                    own = int(seconds // 2)
                    colour = picture[2:20].reshape(-1, 3).mean(0)
                    self.assertGreater(colour[own], 180, seconds)  # bright, and of its own hue
                    self.assertLess(np.delete(colour, own).max(), 40, seconds)
                    white = picture[28:36, int(seconds * RATE) + 4:int(seconds * RATE) + 12].reshape(-1, 3).mean(0)
                    self.assertGreater(white.min(), 190, seconds)

    def test_turned_and_mirrored(self):
        for turn in (90, 180, 270):
            video = self.make(f"turned{turn}.mp4", "-c", "copy", "-metadata:s:v", f"rotate={turn}", source=self.h264)
            (_, got), = self.frames(video, "--frames", "1")
            upright = np.rot90(true_frame(0), turn // 90)
            self.assertEqual(got.shape, upright.shape)
            self.assertLess(np.abs(got.astype(int) - upright).mean(), 4, turn)
            expected = self.decoded(video, "-frames:v", "1").reshape(got.shape)
            self.assertEqual(np.abs(got.astype(int) - expected).max(), 0)
        with open(self.h264, "rb") as f:
            content = f.read()
        unit = b"\0\1\0\0" + bytes(8) + bytes(4) + b"\0\1\0\0"
        for x, y in ((-1, 1), (1, -1)):
            matrix = ((x * 65536) & 0xffffffff).to_bytes(4, "big") + bytes(12) + ((y * 65536) & 0xffffffff).to_bytes(4, "big")
            at = content.index(unit, content.index(b"tkhd"))
            video = self.path("mirrored.mp4")
            with open(video, "wb") as f:
                f.write(content[:at] + matrix + content[at + len(matrix):])
            (_, got), = self.frames(video, "--frames", "1")
            self.assertLess(np.abs(got.astype(int) - true_frame(0)[::y, ::x]).mean(), 4, (x, y))

    def test_pixels_become_squares(self):
        for aspect, shape in (("2", (HEIGHT, 2 * WIDTH)), ("1/2", (2 * HEIGHT, WIDTH))):
            video = self.make("pixels.mp4", "-vf", f"setsar={aspect}", "-c:v", "libx264")
            (_, got), = self.frames(video, "--frames", "1")
            self.assertEqual(got.shape[:2], shape)

    def test_odd_sizes(self):
        for size in ("97x65", "1x1", "3x101"):
            video = self.make("odd.mkv", "-vf", f"scale={size},setsar=1", "-c:v", "ffv1", "-pix_fmt", "yuv420p")
            (_, got), = self.frames(video, "--frames", "1")
            self.assertEqual(f"{got.shape[1]}x{got.shape[0]}", size)

    def test_interlaced_pictures_have_no_comb(self):
        fields = "tinterlace=interleave_top,setfield=tff"
        moving = ["-f", "lavfi", "-i", "color=black:s=96x64:r=50:d=2,format=yuv420p,drawbox=x=10:y=0:w=20:h=64:c=white:t=fill,scroll=h=0.04"]
        video = self.path("fields.mpg")
        ffmpeg(*moving, "-vf", fields, "-flags", "+ildct+ilme", "-c:v", "mpeg2video", "-q", "2", video)
        def comb(picture):
            lines = picture[8:-8, :, 1].astype(int)
            return np.abs(lines[1:-1] * 2 - lines[:-2] - lines[2:]).mean()
        raw = self.pixels(video, "-vf", "select=eq(n\\,5)", "-frames:v", "1")
        self.assertGreater(comb(raw), 5)
        for _, picture in self.frames(video, "--start", "0.2", "--frames", "3"):
            self.assertLess(comb(picture), 1)

    def test_one_picture(self):
        for name in ("one.png", "one.jpg", "one.webp", "one.bmp", "one.tiff"):
            image = self.make(name, "-frames:v", "1")
            for options in ((), ("--frames", "8"), ("--fps", "100")):
                frames = self.frames(image, *options)
                self.assertEqual(len(frames), 1, name)
                self.assert_colours(frames, 6)

    def test_images_in_order(self):
        folder = self.path("images")
        os.mkdir(folder)
        self.make("images/f%d.png", "-vf", "select=not(mod(n\\,5))", "-vsync", "passthrough", "-start_number", "1")  # f1 ... f12: f10 comes after f9
        with open(os.path.join(folder, "notes.txt"), "w", encoding="utf-8") as f:
            f.write("no image")
        for name in (folder, os.path.join(folder, "*.png")):
            frames = self.frames(name)
            self.assertEqual([round(s, 2) for s, _ in frames], [round(n / 4, 2) for n in range(12)])
            for n, (_, picture) in enumerate(frames):
                self.assertEqual(picture[0, 0].argmax(), n // 4)
            self.assertEqual(len(self.times(name, "--frames", "5")), 5)

    def test_the_picture_stream(self):
        cover = self.make("cover.png", "-frames:v", "1", "-vf", "negate")
        video = self.path("cover.mp4")
        ffmpeg("-i", self.h264, "-i", cover, "-map", "0", "-map", "1", "-c:v:0", "copy", "-c:v:1", "png", "-disposition:v:1", "attached_pic", video)
        self.assert_colours(self.frames(video, "--frames", "3"), 6)
        sound = self.path("cover.m4a")
        ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-i", cover, "-map", "0", "-map", "1", "-c:v", "png", "-disposition:v", "attached_pic", sound)
        self.assert_fails("no video stream", "frames", sound)
        two = self.path("two.mkv")
        ffmpeg("-i", self.h264, "-i", self.h264, "-map", "0", "-map", "1", "-c:v:0", "libx264", "-filter:v:0", "scale=48:32", "-c:v:1",
                "copy", "-disposition:v:0", "0",
               "-disposition:v:1", "default", two)
        self.assert_colours(self.frames(two, "--frames", "3"), 6)
        audio_first = self.path("audio-first.mp4")
        ffmpeg("-f", "lavfi", "-i", "sine=d=20", "-i", self.h264, "-map", "0", "-map", "1", "-c:v", "copy", audio_first)
        self.assert_colours(self.frames(audio_first, "--frames", "6"), 6)  # evenly over the picture, not over the sound
        self.assertEqual(len(self.times(audio_first)), 24)

    def test_cases_that_failed(self):
        for name, count in (("hevc10.mp4", 28), ("h264hi10.mp4", 28), ("hevc10_1f.mp4", 1), ("nodur.webm", 28), ("four_live.webm", 80)):
            self.assertEqual(len(self.times(os.path.join(VIDEOS, name))), count, name)
        live = self.frames(os.path.join(VIDEOS, "four_live.webm"), "--frames", "8")
        self.assertEqual([round(s, 1) for s, _ in live], [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5])
        self.assertEqual([tuple(p.reshape(-1, 3).mean(0) > 100) for _, p in live[::2]],
                         [(True, False, False), (False, True, False), (False, False, True), (True, True, True)])


class Times(Videos):
    def test_fps_never_invents_frames(self):
        for fps in ("10", "11", "30", "1000"):
            self.assertEqual(len(self.times(self.h264, "--fps", fps)), RATE * SECONDS, fps)
        ntsc = self.make("ntsc.mkv", "-vf", "setpts=N/(30000/1001)/TB", "-r", "30000/1001", "-c:v", "libx264")  # times in whole milliseconds
        self.assertEqual(len(self.times(ntsc, "--fps", "30")), RATE * SECONDS)

    def test_times_are_those_of_the_frames(self):
        for fps in (0.5, 1, 3):
            frames = self.frames(self.h264, "--fps", str(fps))
            self.assertEqual(len(frames), round(fps * SECONDS))
            for n, (seconds, _) in enumerate(frames):
                self.assertAlmostEqual(seconds, n / fps, delta=0.051)
            self.assert_colours(frames, 6)

    def test_start_and_end(self):
        times = self.times(self.h264, "--start", "2", "--end", "4.5", "--fps", "2")
        self.assertEqual([round(t, 2) for t in times], [2, 2.5, 3, 3.5, 4])
        self.assertEqual([round(t, 2) for t in self.times(self.h264, "--start", "0:03", "--frames", "3")], [3, 4, 5])
        self.assert_colours(self.frames(self.h264, "--start", "1", "--end", "0:05", "--frames", "7"), 6)
        self.assert_fails("ends at", "frames", self.h264, "--start", "60")
        self.assert_fails("not after --start", "frames", self.h264, "--start", "3", "--end", "2", code=2)
        for wrong in ("x", "1:2:3:4", "-1", "1:x", ""):
            self.assertEqual(vidkv("frames", self.h264, "--start", wrong).returncode, 2, wrong)

    def test_variable_rate(self):
        video = self.make("variable.mp4", "-vf", "select='lt(n,10)+not(mod(n,15))'", "-vsync", "vfr", "-c:v", "libx264")
        times = self.times(video, "--fps", "10")
        self.assertEqual([round(t, 1) for t in times], [n / 10 for n in range(10)] + [1.5, 3, 4.5])
        self.assert_colours(self.frames(video, "--fps", "10"), 6)

    def test_late_start_and_breaks(self):
        for name in ("late.mkv", "late.ts"):
            video = self.make(name, "-c", "copy", "-output_ts_offset", "1000", source=self.h264)
            frames = self.frames(video, "--frames", "6")
            self.assertAlmostEqual(frames[0][0], 0, delta=0.01)
            self.assert_colours(frames, 6)
        once = self.make("once.ts", "-c", "copy", source=self.h264)
        twice = self.path("twice.ts")
        with open(once, "rb") as f, open(twice, "wb") as g:
            g.write(f.read() * 2)
        frames = self.frames(twice, "--frames", "6")
        self.assertEqual([round(s) for s, _ in frames], [0, 2, 4, 6, 8, 10])
        self.assertEqual([int(p[0, 0].argmax()) for _, p in frames], [0, 1, 2, 0, 1, 2])

    def test_edit_list(self):
        video = self.make("edit.mp4", "-c", "copy", source=self.h264, before=("-ss", "1.5"))
        frames = self.frames(video, "--frames", "4")
        for (seconds, picture) in frames:
            self.assertEqual(picture[0, 0].argmax(), min(2, int((seconds + 1.5) // 2)), seconds)

    def test_repeated_times(self):
        video = self.make("repeated.mkv", "-vf", "setpts=floor(N/2)*2/10/TB", "-vsync", "passthrough", "-c:v", "ffv1")
        self.assertEqual(len(self.times(video, "--fps", "1000")), RATE * SECONDS)

    def test_wrong_duration(self):
        with open(self.h264, "rb") as f:
            content = f.read()
        for box, at in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
            where = content.index(box) + at
            content = content[:where] + (10 ** 6).to_bytes(4, "big") + content[where + 4:]
        video = self.path("wrong-duration.mp4")
        with open(video, "wb") as f:
            f.write(content)
        frames = self.frames(video, "--frames", "6")
        self.assertEqual(len(frames), 6)
        self.assert_colours(frames, 6)

    def test_sparse_frames_are_sought(self):
        video = self.path("long.mp4")
        ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=25:d=600", "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", video)
        report = json.loads(vidkv("frames", video, "--frames", "16", "--json").stdout)
        self.assertEqual(len(report["frames"]), 16)
        for n, frame in enumerate(report["frames"]):
            self.assertAlmostEqual(frame["seconds"], n * 600 / 16, delta=0.021)
        self.assertLess(report["packets_decoded"], 16 * 80)  # of 15,000


class Streams(Videos):
    def test_one_key_frame(self):
        # Times of decoding lie before the start, and no key frame after it: a jump must find the first.
        for name, options in (("one.ts", ["-c:v", "libx264", "-bf", "3"]), ("one.m2ts", ["-c:v", "libx264", "-output_ts_offset", "95000"]),
                              ("one.mpg", ["-c:v", "mpeg2video", "-r", "25", "-g", "600"]), ("one.flv", ["-c:v", "libx264"])):
            video = self.make(name, *options)
            with self.subTest(name):
                for seconds, wanted in zip(self.times(video, "--frames", "4"), (0, 1.5, 3, 4.5), strict=True):
                    self.assertAlmostEqual(seconds, wanted, delta=0.05)
                self.assertAlmostEqual(self.times(video, "--start", "4", "--fps", "1")[0], 4, delta=0.05)

    def test_standard_input(self):
        for name, options in (("in.mp4", ["-c:v", "libx264"]), ("in.webm", ["-c:v", "libvpx"]), ("in.ts", ["-c:v", "libx264", "-g", "10"])):
            video = self.make(name, *options)
            with open(video, "rb") as f:
                content = f.read()
            for options in (("--frames", "6"), ("--fps", "1")):
                with tempfile.TemporaryDirectory() as out:
                    done = vidkv("frames", "-", "--json", "--out", out, *options, stdin=None, input=content)
                    self.assertEqual((done.returncode, done.stderr), (0, b""))
                    frames = self.read(json.loads(done.stdout)["frames"])
                self.assertEqual(len(frames), 6)
                self.assert_colours(frames, 12)

    def test_pipe_with_a_name(self):
        pipe = self.path("pipe")
        os.mkfifo(pipe)
        writer = subprocess.Popen(["sh", "-c", f"sleep 0.3; cat '{self.h264}' > '{pipe}'"])
        self.assertEqual(len(self.times(pipe, "--frames", "6")), 6)
        writer.wait()

    @contextlib.contextmanager
    def served(self, family=socket.AF_INET, tls=None):
        """The port of a web server for the folder."""
        folder = self.folder

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=folder)

            def log_message(self, *arguments):
                pass

        class Server(socketserver.ThreadingTCPServer):
            address_family = family

            def handle_error(self, *arguments):
                pass  # a client that does not trust the certificate

        with Server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Handler) as server:
            if tls:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_address[1]
            server.shutdown()

    def test_http(self):
        self.make("served.ts", "-c", "copy", source=self.h264)
        self.make("list.m3u8", "-c", "copy", "-hls_time", "1", "-hls_list_size", "0", source=self.h264)
        with self.served() as port:
            address = f"http://127.0.0.1:{port}/"
            for name in ("h264.mp4", "served.ts", "list.m3u8"):  # the index of h264.mp4 is at its end, and this server sends no ranges
                with self.subTest(name):
                    frames = self.frames(address + name, "--frames", "6")
                    self.assertEqual(len(frames), 6)
                    self.assert_colours(frames, 6)
            self.assert_fails("404", "frames", address + "none.mp4")
        self.assert_fails("cannot be opened", "frames", address + "h264.mp4")
        self.assert_fails("does not know", "frames", "nonsense://x/y.mp4")

    def test_ipv6(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            self.skipTest(f"no IPv6 on the loopback: {error}")
        with self.served(socket.AF_INET6) as port:
            self.assert_colours(self.frames(f"http://[::1]:{port}/h264.mp4", "--frames", "6"), 6)

    def test_https(self):
        key, certificate = self.path("key.pem"), self.path("certificate.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with self.served(tls=tls) as port:
            address = f"https://localhost:{port}/h264.mp4"
            trusting = {**os.environ, "SSL_CERT_FILE": certificate}
            self.assert_colours(self.frames(address, "--frames", "6", env=trusting), 6)
            self.assert_fails("certificate is not trusted", "frames", address)

    def test_rtsp(self):
        ts = self.make("rtsp.ts", "-c:v", "libx264", "-g", "10", "-bf", "0")
        with open(ts, "rb") as f:
            content = f.read()

        class Camera(socketserver.StreamRequestHandler):
            """MPEG-TS in RTP packets within the connection (RFC 2326, section 10.12)."""
            DESCRIPTION = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"

            def handle(self):
                while request := self.request_lines():
                    method = request[0].split()[0]
                    more, body = b"", self.DESCRIPTION if method == b"DESCRIBE" else b""
                    if method == b"DESCRIBE":
                        more = b"Content-Type: application/sdp\r\nContent-Length: %d\r\n" % len(body)
                    if method == b"SETUP":
                        more = b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                    sequence = next(line for line in request if line.lower().startswith(b"cseq"))
                    self.wfile.write(b"RTSP/1.0 200 OK\r\n" + sequence + b"\r\nSession: 1\r\n" + more + b"\r\n" + body)
                    if method == b"PLAY":
                        return self.play()
                return None

            def request_lines(self):
                lines = []
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    lines.append(line.strip())
                return lines

            def play(self):
                packet = 7 * 188
                for n, start in enumerate(range(0, len(content), packet)):
                    rtp = struct.pack(">BBHII", 0x80, 33, n & 0xffff, n * 900, 1) + content[start:start + packet]
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Camera) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            frames = self.frames(f"rtsp://127.0.0.1:{server.server_address[1]}/camera", "--fps", "1")
            server.shutdown()
        self.assertGreaterEqual(len(frames), SECONDS - 1)
        self.assert_colours(frames, 12)

    def test_stream_that_comes_once(self):
        self.make("once-only.ts", "-c:v", "libx264", "-g", "10")
        with open(self.path("once-only.ts"), "rb") as f:
            content = f.read()

        class Sender(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(content)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sender) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"tcp://127.0.0.1:{server.server_address[1]}"
            self.assertEqual(len(self.times(address)), 24)
            for count in (1, 5, 6, 24, 60):
                frames = self.frames(address, "--frames", str(count))
                self.assertEqual(len(frames), min(count, 24))
                self.assert_colours(frames, 12)
                if count > 1:
                    self.assertGreater(frames[-1][0], SECONDS * (1 - 2 / min(count, 24)))  # over all of it
            server.shutdown()

    @staticmethod
    def catches(pid, signum):
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            caught = next(line for line in f if line.startswith("SigCgt:"))
        return int(caught.split()[1], 16) >> (signum - 1) & 1

    def stopped(self, arguments, signum, **more):
        child = subprocess.Popen([VIDKV, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        while not self.catches(child.pid, signum) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signum)
        child.communicate(timeout=30)  # the end comes, however busy the machine is
        return child.returncode

    def test_signals_end_the_waiting(self):
        with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:  # takes connections and says nothing
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.assertEqual(self.stopped(["frames", f"http://127.0.0.1:{silent.server_address[1]}/a.mp4"], signum), 130)
                self.assertEqual(self.stopped(["frames", "-"], signum, stdin=subprocess.PIPE), 130)

    def test_signal_leaves_no_half_a_file(self):
        out = self.path("half")
        child = subprocess.Popen([VIDKV, "frames", self.h264, "--fps", "10", "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (self.catches(child.pid, signal.SIGTERM) and os.path.isdir(out) and os.listdir(out)):
            time.sleep(0.001)
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=30)
        for name in os.listdir(out):
            self.assertTrue(name.endswith(".png"), name)
            self.pixels(os.path.join(out, name))


class Damaged(Videos):
    def test_cut(self):
        for name, options in (("cut.mp4", ["-c:v", "libx264", "-movflags", "faststart"]), ("cut.mkv", ["-c:v", "ffv1"]), ("cut.webm", ["-c:v", "libvpx"]),
                              ("cut.flv", ["-c:v", "flv"]), ("late-cut.mp4", ["-c:v", "libx264"]), ("cut.gif", []), ("cut.y4m", ["-pix_fmt", "yuv420p"])):
            video = self.make(name, *options)
            with open(video, "rb") as f:
                whole = f.read()
            for share in (0.1, 0.5, 0.8):
                with open(video, "wb") as f:
                    f.write(whole[:int(len(whole) * share)])
                for options in ((), ("--frames", "6")):
                    with self.subTest(f"{name} {share} {options}"):
                        done = vidkv("frames", video, "--json", *options)
                        self.assertEqual((done.returncode, done.stdout), (1, b""), done.stderr)
                        self.assertIn(b"cut off", done.stderr)
                        self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_taken_on_request(self):
        video = self.make("half.mkv", "-c:v", "ffv1")
        with open(video, "r+b") as f:
            f.truncate(os.path.getsize(video) // 2)
        self.assertGreater(len(self.times(video, "--accept-damaged")), 5)
        self.assertEqual(len(self.times(video, "--accept-damaged", "--frames", "4")), 4)

    def test_refused(self):
        empty, words, noise, text = (self.path(name) for name in ("empty.mp4", "words.mp4", "noise.mp4", "words.txt"))
        for path, content in ((empty, b""), (words, b"These are words.\n" * 100), (noise, bytes(range(256)) * 40), (text, b"These are words.\n" * 100)):
            with open(path, "wb") as f:
                f.write(content)
        bare = self.path("bare")
        os.mkdir(bare)
        for path, reason in ((empty, "is empty"), (words, "not a video"), (noise, "not a video"), (text, "text file"), (bare, "folder without images"),
                             (self.path("none.mp4"), "no such file"), (self.path("*.none"), "no such file")):
            self.assert_fails(reason, "frames", path)
        self.assert_fails("not a video", "frames", "-", stdin=None, input=b"words" * 1000)
        animated = self.make("animated.webp", "-loop", "0")
        self.assert_fails("animated WebP", "frames", animated)


class Arguments(Videos):
    """What is a video and what is a question: found before a model is loaded, so a missing model ends each command."""
    NO_MODEL = {**os.environ, "VIDKV_MODEL": "none.gguf", "VIDKV_MMPROJ": "none.gguf"}

    def goes_on_to_the_model(self, *arguments):
        self.assert_fails("cannot read the model", "ask", *arguments, env=self.NO_MODEL)

    def test_videos_and_questions(self):
        v = self.h264
        for arguments in ((v, "Why?"), (v, "Why?", "a/b or c?"), (v, v, "Why?"), (v, "-q", "Why?"),
                    (v, v, "-q", "Why?", "-q", "Who?"), (v, "--", "clip.mp4"), (v, v, "--", "a/b", "-x"),
                          (v, "--fps", "1", "--", "Why?")):
            with self.subTest(arguments):
                self.goes_on_to_the_model(*arguments)

    def test_a_file_is_no_question(self):
        v = self.h264
        for words, code, arguments in (("no such file: 'other.mp4'", 1, (v, "other.mp4", "Why?")), ("no such file: 'a/b'", 1, (v, "Why?", "a/b")),
                                       ("no such file", 1, ("none.mp4", "Why?")),
                                                   ("name videos before questions", 2, (v, "Why?", v)), ("question is missing", 2, (v,)),
                                       ("question is missing", 2, (v, v)), ("video is missing", 2, ("--", "Why?")),
                                                   ("no such file: 'Why?'", 1, (v, "Why?", "-q", "Who?")),
                                       ("name no other", 2, ("--load-cache", "c", "other.mp4", "Why?")), ("name no other", 2, ("--load-cache", "c", v, "Why?")),
                                       ("name no other", 2, ("--load-cache", "c", v, "-q", "Why?"))):
            with self.subTest(arguments):
                self.assert_fails(words, "ask", *arguments, code=code)

    def test_several_videos(self):
        clip = os.path.join(VIDEOS, "hevc10.mp4")
        one, two = (json.loads(vidkv("ask", *videos, "--json", "-t", "1", "-n", "2", "--",
                "What colour is the circle?").stdout) for videos in ((clip,), (clip, clip)))
        self.assertEqual(two["frames"], 2 * one["frames"])
        self.assertEqual(two["visual_tokens"], 2 * one["visual_tokens"])
        self.assertEqual(one["video"], clip)


if __name__ == "__main__":
    unittest.main()
