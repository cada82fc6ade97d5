"""The command around its commands: help, hints, environment, threads, progress, saved caches, plans."""
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

from test_cli import QUESTION, TINY, VIDKV, Clips, vidkv


def on_terminal(command, columns=80, **options):
    """Runs with standard error on a terminal: (exit code, what it showed)."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave, **options)
    os.close(slave)
    shown = b""
    while True:
        try:
            got = os.read(master, 4096)
        except OSError:
            break
        if not got:
            break
        shown += got
    os.close(master)
    return child.wait(), shown.decode(errors="replace")


class Help(unittest.TestCase):
    COMMANDS = (["ask"], ["chat"], ["videos"], ["videos", "rm"], ["serve"], ["presets"], ["plan"], ["data"], ["report"],
                ["eval", "kl"], ["eval", "video"], ["eval", "retrieval"], ["eval", "answers"], ["bench", "attention"], ["bench", "model"])

    def test_examples_are_those_of_the_command(self):
        for command in self.COMMANDS:
            text = vidkv(*command, "--help").stdout
            for example in re.findall(r"^  (vidkv .*)$", text, re.M):
                self.assertTrue(example.startswith("vidkv " + " ".join(command)) or " && vidkv " in example, (command, example))

    def test_types_are_for_people(self):
        for command in self.COMMANDS:
            text = vidkv(*command, "--help").stdout
            for words in ("INT in [", "FLOAT:", "4611686018427387903", " TEXT", "REQUIRED"):
                self.assertNotIn(words, text, command)
            for line in text.splitlines():
                self.assertFalse("(required)" in line and "default" in line, line)

    def test_no_line_is_wider_than_a_terminal_is_made(self):
        for command in ([], ["ask"], ["chat"], ["plan"]):
            for line in vidkv(*command, "--help").stdout.splitlines():
                self.assertLessEqual(len(line), 125, line)

    def test_a_mistyped_command(self):
        for words, hint in ((["aks"], "did you mean ask?"), (["Chat"], "did you mean chat?"), (["eval", "vidoe"], "did you mean video?"),
                            (["frobnicate"], "the commands are ask, chat")):
            done = vidkv(*words)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done.stderr)
            self.assertIn(hint, done.stderr)


class Environment(Clips):
    def test_unknown_instruction_set_is_told(self):
        done = vidkv("presets", env={**os.environ, "VIDKV_FORCE_ISA": "sse"})
        self.assertEqual((done.returncode, done.stderr.count("\n")), (0, 1), done.stderr)
        self.assertIn("VIDKV_FORCE_ISA=sse is ignored", done.stderr)
        self.assertEqual(vidkv("presets", env={**os.environ, "VIDKV_FORCE_ISA": "scalar"}).stderr, "")

    @staticmethod
    def spin_counts(*words, **settings):
        """What libgomp has read when it was loaded, at each start of the program."""
        environment = {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), "OMP_DISPLAY_ENV": "VERBOSE", **settings}
        done = vidkv(*(words or ["--version"]), env=environment)
        assert done.returncode == 0, done.stderr
        return re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)

    def test_threads_do_not_spin_for_long(self):
        for name in ("_", "OLDPWD", "SHLVL", "PWD"):
            self.assertIn(self.spin_counts(**{name: "x"}), (["1000"], ["0"]), "it is not started twice")
        self.assertIn(self.spin_counts()[-1], ("1000", "0"))

    def test_beside_other_tasks_threads_sleep_at_once(self):
        others = [subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) for _ in range(os.cpu_count())]
        try:
            for other in others:
                other.stdout.readline()
            self.assertEqual(self.spin_counts(PWD="/"), ["0"])
            self.assertEqual(self.spin_counts()[-1], "0")
        finally:
            for other in others:
                other.kill()
                other.communicate()

    def test_what_the_user_says_about_spinning_counts(self):
        self.assertEqual(self.spin_counts(PWD="/", GOMP_SPINCOUNT="77"), ["77"])
        self.assertEqual(self.spin_counts(PWD="/", OMP_WAIT_POLICY="passive"), ["0"])


class ProgressBar(Clips):
    def test_forty_columns(self):
        code, shown = on_terminal([VIDKV, "ask", self.clip, QUESTION, "--kv", "stock", "-n", "2"], columns=40)
        self.assertEqual(code, 0, shown)
        drawn = [line for line in re.split(r"\r\x1b\[K|\r\n", shown) if line.startswith(("reading", "filling"))]
        self.assertTrue(drawn, shown)
        self.assertLess(max(map(len, drawn)), 40)

    def test_data_shows_progress(self):
        code, shown = on_terminal([VIDKV, "data", "--seed", "5", "--split", "short", "--count", "2", self.path("shown")])
        self.assertEqual(code, 0, shown)
        self.assertIn("making clips 1/2", shown)


class Data(Clips):
    def test_interrupt_leaves_nothing(self):
        folder = self.path("interrupted")
        os.mkdir(folder)
        child = subprocess.Popen([VIDKV, "data", "--seed", "5", "--split", "long", "--count", "500", os.path.join(folder, "set")],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not os.listdir(folder):
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
        self.assertEqual((child.returncode, out, err.strip()), (130, "", ""))
        self.assertEqual(os.listdir(folder), [])

    def test_full_disk(self):
        folder = self.path("small")
        os.mkdir(folder)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", folder], capture_output=True).returncode != 0:
            self.skipTest("no small file system can be mounted here")
        try:
            self.assert_fails(vidkv("data", "--seed", "1", "--split", "short", "--count", "3", os.path.join(folder, "set")), "no space left")
        finally:
            subprocess.run(["umount", folder], check=True)


class SavedCaches(Clips):
    def setUp(self):
        self.saved = self.path("saved.cache")
        done = vidkv("ask", self.twice, QUESTION, "--kv", "t1.15", "-n", "4", "--save-cache", self.saved)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_file_knows_its_preset(self):
        report = json.loads(vidkv("ask", "--load-cache", self.saved, QUESTION, "--json", "-n", "4").stdout)
        self.assertEqual(report["kv"], "t1.15")
        environment = {**os.environ, "VIDKV_KV": "k2v2"}  # a default, no wish
        self.assertEqual(vidkv("ask", "--load-cache", self.saved, QUESTION, "-n", "4", env=environment).returncode, 0)
        self.assert_fails(vidkv("ask", "--load-cache", self.saved, QUESTION, "--kv", "k2v2"), "leave --kv out")

    def test_a_loaded_cache_is_saved_elsewhere(self):
        copy = self.saved + ".copy"
        done = vidkv("ask", "--load-cache", self.saved, QUESTION, "-n", "4", "--save-cache", copy)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(vidkv("ask", "--load-cache", copy, QUESTION, "-n", "4").stdout, done.stdout)

    def test_the_place_is_checked_before_the_work(self):
        for path, advice in ((self.path("no/such/x"), "make its folder first"), (self.folder, "name another place")):
            done = vidkv("ask", self.clip, QUESTION, "-m", "/nowhere.gguf", "--mmproj", "x", "--save-cache", path)
            self.assert_fails(done, "cannot save the cache")
            self.assertIn(advice, done.stderr)

    def test_what_differs_is_said(self):
        other = self.path("other.gguf", self.read(os.path.join(TINY, "vidkv-tiny.gguf")) + b"x")
        tower = self.path("tower.gguf", self.read(os.path.join(TINY, "mmproj-vidkv-tiny.gguf")) + b"x")
        text, mmproj = (os.path.join(TINY, name) for name in ("vidkv-tiny.gguf", "mmproj-vidkv-tiny.gguf"))
        for words, options in (("of another model", ["-m", other, "--mmproj", mmproj]), ("of another vision tower", ["-m", text, "--mmproj", tower]),
                               ("another --fps", ["--fps", "2"]), ("another --frames", ["--frames", "3"]), ("another --start", ["--start", "1"]),
                               ("another --end", ["--end", "2"]), ("another --timestamps", ["--timestamps", "2"])):
            self.assert_fails(vidkv("ask", "--load-cache", self.saved, QUESTION, *options), words)

    def test_files_of_earlier_versions(self):
        self.assert_fails(vidkv("ask", "--load-cache", self.path("old.cache", b"VIDKVSES" + bytes(100)), QUESTION), "older version")


class Figures(Clips):
    def test_json(self):
        report = json.loads(vidkv("ask", self.clip, QUESTION, "--json", "-n", "4").stdout)
        for name in ("read_s", "prefill_s", "decode_s"):
            self.assertGreater(report[name], 0, name)
        self.assertTrue(0 < report["tokens"] <= 4)
        self.assertGreater(report["peak_bytes"], 10 << 20)
        self.assertAlmostEqual(report["tokens_per_s"], report["tokens"] / report["decode_s"], places=6)

    def test_no_cache_holds_more_than_f16_and_a_page(self):
        """A page of 128 tokens is held whole, however few of them there are."""
        report = json.loads(vidkv("ask", self.clip, QUESTION, "--kv", "f16", "--json", "-n", "2").stdout)
        tokens = report["visual_tokens"]
        bytes_per_token = report["kv_bytes_f16"] / tokens  # somewhat more: the prompt's tokens count too
        self.assertLess(report["kv_bytes"], report["kv_bytes_f16"] + 128 * bytes_per_token)

    def test_sampling_and_system_prompt(self):
        def answer(*options):
            done = vidkv("ask", self.clip, QUESTION, "--kv", "stock", "--json", "-n", "8", *options)
            self.assertEqual(done.returncode, 0, done.stderr)
            report = json.loads(done.stdout)
            return report["answers"][0]["answer"], report["kv_bytes_f16"]
        greedy = answer()
        self.assertEqual(answer("--temp", "5", "--top-p", "0"), greedy)  # the likeliest alone is left
        self.assertEqual(answer("--temp", "5", "--top-k", "1"), greedy)
        self.assertEqual(answer("--temp", "2", "--seed", "4"), answer("--temp", "2", "--seed", "4"))
        self.assertGreater(answer("--system", "Answer in one word.")[1], greedy[1])  # its tokens are in the cache


class PlanCommand(unittest.TestCase):
    def plan(self, *options):
        done = vidkv("plan", *options, "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def test_tokens_and_bytes(self):
        plan = self.plan("--minutes", "30", "--fps", "1", "--kv", "f16,q8_0,t1.65")
        self.assertEqual((plan["frames"], plan["visual_tokens"]), (1800, 900 * 9))  # the small model: 9 tokens for two frames
        self.assertGreater(plan["tokens"], plan["visual_tokens"])
        f16, q8, packed = (row["kv_bytes"] for row in plan["presets"])
        self.assertAlmostEqual(q8 / f16, 34 / 64, delta=0.02)
        self.assertLess(packed, f16 / 5)
        self.assertNotIn("seconds", plan)  # nothing was measured

    def test_the_plan_is_what_ask_takes(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(vidkv("data", "--seed", "3", "--split", "long", "--count", "1", os.path.join(folder, "set")).returncode, 0)
            report = json.loads(vidkv("ask", os.path.join(folder, "set", "clip-00000.mp4"), QUESTION, "--json", "-n", "2").stdout)
        plan = self.plan("--minutes", str(report["frames"] / 4 / 60), "--kv", "t1.65")
        self.assertEqual(plan["visual_tokens"], report["visual_tokens"])
        self.assertAlmostEqual(plan["presets"][0]["kv_bytes"] / report["kv_bytes"], 1, delta=0.15)

    def test_text(self):
        done = vidkv("plan", "--minutes", "30", "--fps", "1")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for words in ("8100 visual tokens", "t2.2", "t1.65", "t1.15", "GiB held"):
            self.assertIn(words, done.stdout)

    def test_bad_input(self):
        for words, *options in (("no size '9x'", "--minutes", "1", "--size", "9x"), ("no preset 'k9'", "--minutes", "1", "--kv", "k9"),
                                ("--minutes is required", "--fps", "1"), ("--minutes", "--minutes", "-3")):
            done = vidkv("plan", *options)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done.stderr)
            self.assertIn(words, done.stderr)


class Wrong(Clips):
    def test_a_missing_model_is_the_first_complaint(self):
        self.assert_fails(vidkv("ask", self.clip, QUESTION, "-m", os.path.join(TINY, "none.gguf")), "cannot read the model")


if __name__ == "__main__":
    unittest.main()
