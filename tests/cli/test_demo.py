"""scripts/demo.py, on a command that answers at once: which caches it shows, and what it says of a short clip."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from test_cli import ROOT

COMMAND = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
if arguments[0] == "data":
    folder, long = arguments[-1], "long" in arguments
    os.makedirs(folder)
    with open(os.path.join(folder, "questions.jsonl"), "w") as f:
        f.write(json.dumps({{"video": "clip.mp4", "question": "What?", "answer": "long" if long else "short"}}))
else:
    kv = arguments[arguments.index("--kv") + 1]
    tokens = 2000 if "long" in arguments[1] else 173
    print(json.dumps({{"video": arguments[1], "frames": 8, "visual_tokens": tokens, "kv": kv, "kv_bytes": 147, "kv_bytes_f16": 100,
                      "true_bits": 16, "answers": [{{"question": "What?", "answer": "long"}}]}}))
"""


class Demo(unittest.TestCase):
    def run_demo(self, *options):
        with tempfile.TemporaryDirectory() as folder:
            command = os.path.join(folder, "vidkv")
            with open(command, "w", encoding="utf-8") as f:
                f.write(COMMAND.format(python=sys.executable))
            os.chmod(command, 0o755)
            done = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "demo.py"), "--vidkv", command, "--clips", folder, *options],
                                  capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_long_clip_first_and_no_percentage_of_the_short_one(self):
        text = self.run_demo()
        long, short = text.split("A short clip")
        self.assertIn("A long clip", long)
        for name in ("f16", "k1.5v1.58", "t2.2", "t1.65", "t1.15", "the paper's"):
            self.assertIn(name, long)
        self.assertIn("147%", long)
        self.assertNotIn("147%", short)
        self.assertIn("Under 400 tokens nothing is packed yet", short)

    def test_json(self):
        runs = json.loads(self.run_demo("--json"))["runs"]
        self.assertEqual([r["kv"] for r in runs], ["f16", "k1.5v1.58", "t2.2", "t1.65", "t1.15"] * 2)
        self.assertEqual(runs[0]["answers"][0]["expected"], "long")


if __name__ == "__main__":
    unittest.main()
