"""Watched videos that are kept: the next question, changed files, limits, several processes, vidkv videos."""
import json
import os
import shutil
import signal
import subprocess
import unittest

from test_cli import QUESTION, VIDKV, Clips, ffmpeg, vidkv


class Kept(Clips):
    def setUp(self):
        self.videos = self.path("videos")
        shutil.rmtree(self.videos, ignore_errors=True)
        self.environment = {**os.environ, "VIDKV_VIDEOS_DIR": self.videos, "VIDKV_VIDEOS_MAX_SIZE": "100M"}
        self.video = self.path("video.mp4")
        shutil.copyfile(self.twice, self.video)

    def run_vidkv(self, *arguments, **settings):
        return vidkv(*arguments, env={**self.environment, **settings})

    def ask(self, *options, **settings):
        done = self.run_vidkv("ask", self.video, QUESTION, "-n", "4", "--json", *options, **settings)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def files(self):
        return sorted(name for name in os.listdir(self.videos) if name.endswith(".vidkv")) if os.path.isdir(self.videos) else []

    def listed(self):
        return json.loads(self.run_vidkv("videos", "--json").stdout)["videos"]


class SecondQuestion(Kept):
    def test_is_answered_without_the_video(self):
        for preset in ("t1.65", "t2.2", "k1.5v1.58"):
            first, second, anew = self.ask("--kv", preset), self.ask("--kv", preset), self.ask("--kv", preset, "--no-cache")
            self.assertEqual([r["watched_before"] for r in (first, second, anew)], [False, True, False])
            self.assertEqual((second["read_s"], second["prefill_s"]), (0, 0))
            for key in ("video", "frames", "visual_tokens", "kv", "kv_bytes_f16", "packed", "answers"):
                self.assertEqual(second[key], first[key], key)
                self.assertEqual(anew[key], first[key], key)
        self.assertEqual(len(self.files()), 3)

    def test_another_way_of_asking_watches_again(self):
        self.ask()
        for options in (["--fps", "2"], ["--frames", "10"], ["--start", "1"], ["--end", "5"], ["--kv", "t2.2"], ["--system", "Be short."]):
            self.assertFalse(self.ask(*options)["watched_before"], options)
        self.assertTrue(self.ask()["watched_before"])
        self.assertTrue(self.ask("--temp", "1", "-t", "1", "-c", "4096")["watched_before"])

    def test_nothing_is_kept(self):
        self.ask("--no-cache")
        self.ask(VIDKV_VIDEOS_MAX_SIZE="0")
        self.ask("--kv", "stock")
        self.ask("--kv", "f16")
        with open(self.video, "rb") as video:
            done = subprocess.run([VIDKV, "ask", "-", QUESTION, "-n", "2"], stdin=video, capture_output=True, text=True, env=self.environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.files(), [])


class ChangedVideo(Kept):
    def test_other_bytes(self):
        self.ask()
        shutil.copyfile(self.clip, self.video)
        self.assertFalse(self.ask()["watched_before"])
        self.assertTrue(self.ask()["watched_before"])
        self.assertEqual(len(self.files()), 1)

    def pictures(self):
        done = subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "quiet", "-i", self.video, "-f", "framemd5", "-"], capture_output=True, check=False)
        return done.stdout

    def test_other_bytes_of_the_same_size_and_time(self):
        self.ask()
        times, before = os.stat(self.video), self.pictures()
        with open(self.video, "r+b") as f:
            f.seek(os.path.getsize(self.video) // 2)
            f.write(b"x")
        os.utime(self.video, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.assertFalse(self.ask("--accept-damaged")["watched_before"])
        done = self.run_vidkv("ask", self.video, QUESTION, "-n", "4", "--json")
        if done.returncode == 0:  # otherwise the byte has damaged it
            self.assertEqual(json.loads(done.stdout)["watched_before"], self.pictures() == before)

    def test_the_same_bytes_at_another_time(self):
        self.ask()
        os.utime(self.video, (1, 1))
        self.assertTrue(self.ask()["watched_before"])


class TheSameFrames(Kept):
    def test_in_another_file(self):
        first = self.ask()
        other = self.path("other.mkv")
        ffmpeg("-i", self.video, "-c", "copy", other)
        self.addCleanup(os.remove, other)
        kept, self.video = self.video, other
        again = self.ask()
        self.assertTrue(again["watched_before"])
        self.assertEqual((again["video"], again["answers"]), (other, first["answers"]))
        self.video = kept
        ffmpeg("-i", kept, "-c", "copy", "-metadata", "title=another", self.path("renewed.mp4"))
        os.replace(self.path("renewed.mp4"), kept)
        self.assertTrue(self.ask()["watched_before"])
        self.assertEqual(len(self.files()), 1)

    def test_other_frames_of_the_same_length(self):
        self.ask()
        other = self.path("other.mp4")
        ffmpeg("-i", self.video, "-vf", "drawbox=x=0:y=0:w=8:h=8:color=white:t=fill:enable='between(t,1,1.5)'", "-qp", "0", other)
        self.addCleanup(os.remove, other)
        self.video = other
        self.assertFalse(self.ask()["watched_before"])


class Files(Kept):
    def damage(self, change):
        self.ask()
        path = os.path.join(self.videos, self.files()[0])
        content = bytearray(self.read(path))
        change(content)
        with open(path, "wb") as f:
            f.write(content)

    def test_damaged_files_are_replaced(self):
        def cut(content):
            del content[len(content) // 2:]

        def altered(content):
            content[len(content) // 2] ^= 1

        for change in (cut, altered):
            self.damage(change)
            done = self.run_vidkv("ask", self.video, QUESTION, "-n", "4")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("read anew", done.stderr)
            self.assertTrue(self.ask()["watched_before"])

    def test_a_folder_that_cannot_be_written(self):
        with open(self.videos, "w"):  # a file in its place
            pass
        try:
            done = self.run_vidkv("ask", self.video, QUESTION, "-n", "4")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("not kept", done.stderr)
        finally:
            os.remove(self.videos)

    def test_the_limit(self):
        self.ask()
        size = os.path.getsize(os.path.join(self.videos, self.files()[0]))
        os.utime(os.path.join(self.videos, self.files()[0]), (1, 1))
        oldest = self.files()
        limit = str(int(size * 2.5))
        self.ask("--kv", "k1.5v1.58", VIDKV_VIDEOS_MAX_SIZE=limit)
        self.ask("--kv", "t1.15", VIDKV_VIDEOS_MAX_SIZE=limit)
        self.assertNotIn(oldest[0], self.files())
        self.assertLessEqual(sum(video["bytes"] for video in self.listed()), int(limit))
        done = self.run_vidkv("ask", self.video, QUESTION, "-n", "4", VIDKV_VIDEOS_MAX_SIZE="1K")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("more than VIDKV_VIDEOS_MAX_SIZE", done.stderr)
        self.assert_fails(self.run_vidkv("ask", self.video, QUESTION, VIDKV_VIDEOS_MAX_SIZE="much"), "takes a size", code=2)

    def test_two_processes_at_once(self):
        command = [VIDKV, "ask", self.video, QUESTION, "-n", "4", "--json"]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment, text=True) for _ in range(3)]
        answers = []
        for child in children:
            out, err = child.communicate()
            self.assertEqual((child.returncode, err), (0, ""))
            answers.append(json.loads(out)["answers"])
        self.assertEqual(answers, [answers[0]] * 3)
        self.assertEqual(len(self.files()), 1)
        self.assertEqual(self.ask()["answers"], answers[0])
        self.assertEqual([name for name in os.listdir(self.videos) if name.endswith((".new", ".part"))], [])


class VideosCommand(Kept):
    def test_list_and_remove(self):
        self.assertEqual(self.listed(), [])
        self.ask()
        self.ask("--kv", "t2.2")
        first, second = self.listed()
        self.assertEqual([first["kv"], second["kv"]], ["t2.2", "t1.65"])
        self.assertEqual((first["title"], first["videos"]), ("video.mp4", [self.video]))
        self.assertGreater(first["seconds"], 5)
        self.assertEqual(first["bytes"], os.path.getsize(first["file"]))
        text = self.run_vidkv("videos").stdout
        self.assertEqual(len(text.splitlines()), 3)
        self.assertIn("video.mp4", text)
        self.assert_fails(self.run_vidkv("videos", "rm", "other.mp4"), "no watched video 'other.mp4'")
        self.assertEqual(self.run_vidkv("videos", "rm", first["id"][:8]).returncode, 0)
        self.assertEqual([video["id"] for video in self.listed()], [second["id"]])
        self.assertEqual(self.run_vidkv("videos", "rm", self.video).returncode, 0)
        self.assertEqual(self.listed(), [])

    def test_prune(self):
        self.ask()
        self.ask("--kv", "t2.2")
        newest, oldest = self.listed()
        self.assertEqual(self.run_vidkv("videos", "prune", "--max-size", str(newest["bytes"])).returncode, 0)
        self.assertEqual([video["id"] for video in self.listed()], [newest["id"]])
        self.assertEqual(self.run_vidkv("videos", "prune", "--max-size", "0").returncode, 0)
        self.assertEqual(self.listed(), [])
        self.assert_fails(self.run_vidkv("videos", "prune", "--max-size", "x"), "takes a size", code=2)
        self.assert_fails(self.run_vidkv("videos", "prune"), "--max-size", code=2)


class Conversation(Kept):
    def chat(self, *arguments, lines):
        done = subprocess.run([VIDKV, "chat", *arguments, "-n", "3"], input="".join(line + "\n" for line in lines), capture_output=True, text=True,
                              env=self.environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def test_turns_are_remembered(self):
        saved = self.path("talk.vidkv")
        whole = self.chat(self.video, lines=[QUESTION, "And the square?", "Which shape is red?"])
        self.chat(self.video, "--save-cache", saved, lines=[QUESTION, "And the square?"])
        later = self.chat("--load-cache", saved, lines=["Which shape is red?"])
        self.assertIn("2 earlier questions are remembered", later.stderr)
        self.assertEqual(later.stdout.splitlines(), whole.stdout.splitlines()[2:])
        afresh = self.chat("--load-cache", saved, lines=["/clear", QUESTION])
        self.assertEqual(afresh.stdout.splitlines(), whole.stdout.splitlines()[:1])
        self.assertEqual(vidkv("ask", "--load-cache", saved, QUESTION, "-n", "3").stdout, whole.stdout.splitlines()[0] + "\n")

    def test_save_command(self):
        saved = self.path("said.vidkv")
        done = self.chat(self.video, lines=[QUESTION, "/save", "/save /no/such/folder/x", f"/save {saved}"])
        self.assertIn("/save takes", done.stderr)
        self.assertIn("cannot save the cache to '/no/such/folder/x'", done.stderr)
        self.assertIn("1 earlier question is remembered", self.chat("--load-cache", saved, lines=["/exit"]).stderr)


class Killed(Kept):
    def test_leaves_nothing_half_written(self):
        for moment in range(4):
            child = subprocess.Popen([VIDKV, "ask", self.video, QUESTION, "-n", "4"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                     env=self.environment)
            try:
                child.wait(timeout=0.2 * (moment + 1))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
            for video in self.listed():
                self.assertEqual(video["title"], "video.mp4")
        self.ask()
        self.assertTrue(self.ask()["watched_before"])


if __name__ == "__main__":
    unittest.main()
