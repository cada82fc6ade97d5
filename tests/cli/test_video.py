"""Videos of every kind: the frames that `vidkv frames` takes, their times and their colours."""
import json
import math
import os
import unittest

import numpy as np

from video_case import HEIGHT, RATE, SECONDS, VIDEOS, WIDTH, Videos, ffmpeg, true_frame, vidkv


class Kinds(Videos):
    CONTAINERS = {"a.mp4": ["-c:v", "libx264"], "a.mov": ["-c:v", "prores_ks"], "a.mkv": ["-c:v", "libx264", "-bf", "3"], "a.webm": ["-c:v", "libvpx"],
                  "b.webm": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p10le"], "a.avi": ["-c:v", "mpeg4", "-q", "2"], "a.ts": ["-c:v", "libx264", "-g", "10"],
                  "a.flv": ["-c:v", "flv", "-q", "2"], "a.gif": [], "a.webp": ["-c:v", "libwebp_anim", "-lossless", "1"], "a.apng": [],
                  "a.h264": ["-c:v", "libx264"], "webcam.mpjpeg": ["-c:v", "mjpeg", "-q", "2", "-r", "25", "-f", "mpjpeg"], "a.nut": ["-c:v", "ffv1"],
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
        for name, rate in (("fast.mp4", "1000"), ("fast.mkv", "1000"), ("odd.mp4", "999")):  # of a slow-motion camera
            fast = self.make(name, "-vf", f"setpts=N/{rate}/TB", "-r", rate, "-c:v", "libx264")
            seconds = RATE * SECONDS / int(rate)
            for fps in (100, 333, int(rate)):
                self.assertEqual(len(self.times(fast, "--fps", str(fps))), math.ceil(seconds * fps - 0.01), (name, fps))
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
