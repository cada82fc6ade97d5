"""Saving, killed at any moment: the older file survives, or the new one is there, whole."""
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
VIDKV = os.environ.get("VIDKV", os.path.join(ROOT, "build", "bin", "vidkv"))
QUESTION = "What colour is the circle?"
ROUNDS = 4


def vidkv(*arguments):
    return subprocess.run([VIDKV, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)


class KilledSave(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="vidkv-kill-")
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        done = vidkv("data", "--seed", "5", "--split", "short", "--count", "1", os.path.join(cls.folder, "set"))
        assert done.returncode == 0, done.stderr
        cls.clip = os.path.join(cls.folder, "set", "clip-00000.mp4")

    def moments(self):
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        return random.Random(seed)

    def assert_whole(self, saved, answer):
        self.assertEqual(vidkv("verify", saved).returncode, 0)
        again = vidkv("ask", "--load-cache", saved, QUESTION)
        self.assertEqual((again.returncode, again.stdout), (0, answer), again.stderr)

    def test_ask(self):
        saved = os.path.join(self.folder, "ask.cache")
        command = ["ask", self.clip, QUESTION, "--save-cache", saved]
        begun = time.monotonic()
        whole = vidkv(*command)
        seconds = time.monotonic() - begun
        self.assertEqual(whole.returncode, 0, whole.stderr)
        moments = self.moments()
        for _ in range(ROUNDS):
            program = subprocess.Popen([VIDKV, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0.3, 1.0) * seconds)
            program.send_signal(signal.SIGKILL)
            program.wait()
            self.assert_whole(saved, whole.stdout)

    def test_chat(self):
        """Saves one after the other, so that the end comes within one of them."""
        saved = os.path.join(self.folder, "chat.cache")
        begin = vidkv("ask", self.clip, QUESTION, "--save-cache", saved)
        self.assertEqual(begin.returncode, 0, begin.stderr)
        moments, left = self.moments(), 0
        for _ in range(ROUNDS):
            program = subprocess.Popen([VIDKV, "chat", "--load-cache", saved, "--save-cache", saved], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
            before = os.stat(saved).st_ino
            program.stdin.write(f"/save {saved}\n" * 1000)
            program.stdin.flush()
            while os.stat(saved).st_ino == before:  # each save is another file that takes the name
                self.assertIsNone(program.poll(), "the conversation ended")
            time.sleep(moments.uniform(0, 0.02))
            program.send_signal(signal.SIGKILL)
            program.communicate()
            left += len([name for name in os.listdir(self.folder) if name.startswith("chat.cache") and name != "chat.cache"])
            self.assert_whole(saved, begin.stdout)
        print(f"{left} files left half written")


if __name__ == "__main__":
    unittest.main()
