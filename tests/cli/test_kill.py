"""vidkv ask --save-cache, killed at any moment: the older file survives, or the new one is there, whole."""
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
ROUNDS = 8


def vidkv(*arguments):
    return subprocess.run([VIDKV, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)


class KilledSave(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="vidkv-kill-")
        self.addCleanup(shutil.rmtree, self.folder)
        done = vidkv("data", "--seed", "5", "--split", "short", "--count", "1", os.path.join(self.folder, "set"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.clip = os.path.join(self.folder, "set", "clip-00000.mp4")
        self.saved = os.path.join(self.folder, "saved.cache")
        self.command = ["ask", self.clip, QUESTION, "--save-cache", self.saved]

    def test_older_file_survives(self):
        begun = time.monotonic()
        whole = vidkv(*self.command)
        seconds = time.monotonic() - begun
        self.assertEqual(whole.returncode, 0, whole.stderr)
        seed = random.SystemRandom().randrange(2**32)
        moments = random.Random(seed)
        for i in range(ROUNDS):
            program = subprocess.Popen([VIDKV, *self.command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0.3, 1.0) * seconds)
            program.send_signal(signal.SIGKILL)
            program.wait()
            again = vidkv("ask", "--load-cache", self.saved, QUESTION)
            self.assertEqual(again.returncode, 0, f"seed {seed}, round {i}: {again.stderr}")
            self.assertEqual(again.stdout, whole.stdout, f"seed {seed}, round {i}")


if __name__ == "__main__":
    unittest.main()
