"""vidkv chat: from a pipe, and on a terminal with line editing and history."""
import os
import pty
import re
import select
import subprocess
import unittest

from test_cli import QUESTION, VIDKV, Clips


def held(stderr):
    """KiB held, of each summary."""
    return [float(kib) for kib in re.findall(r"([\d.]+) KiB held", stderr)]


class FromAPipe(Clips):
    def chat(self, *lines, options=()):
        return subprocess.run([VIDKV, "chat", self.clip, "-n", "3", "--kv", "stock", *options], input="".join(line + "\n" for line in lines),
                              capture_output=True, text=True)

    def test_earlier_turns_are_remembered(self):
        done = self.chat(QUESTION, "/stats", QUESTION, "/stats", "/clear", QUESTION, "/stats", "/exit")
        self.assertEqual((done.returncode, len(done.stdout.splitlines())), (0, 3), done.stderr)
        first, second, afresh = held(done.stderr)[:3]
        self.assertGreater(second, first)
        self.assertEqual(afresh, first)
        answers = done.stdout.splitlines()
        self.assertEqual(answers[0], answers[2])

    def test_a_full_context_forgets_earlier_turns(self):
        question = QUESTION + " " + "really " * 150
        tokens = 1100  # the clip, room for a question and one answer; not for many turns
        done = self.chat(*[question] * 8, options=["-c", str(tokens)])
        self.assertEqual((done.returncode, len(done.stdout.splitlines())), (0, 8), done.stderr)
        self.assertIn("earlier turns are forgotten", done.stderr)

    def test_commands_do_not_go_to_the_model(self):
        done = self.chat("/help", "/nonsense", "/exit", QUESTION)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        self.assertIn("/clear", done.stderr)
        self.assertIn("no command /nonsense", done.stderr)

    def test_end_of_the_pipe(self):
        done = subprocess.run([VIDKV, "chat", self.clip, "-n", "3", "--kv", "stock"], input=QUESTION, capture_output=True, text=True)
        self.assertEqual((done.returncode, len(done.stdout.splitlines())), (0, 1), done.stderr)


class OnATerminal(Clips):
    def setUp(self):
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen([VIDKV, "chat", self.clip, "-n", "3", "--kv", "stock"], stdin=slave, stderr=slave, stdout=subprocess.PIPE,
                                      text=True, start_new_session=True, env={**os.environ, "TERM": "xterm"})
        os.close(slave)
        self.screen = ""

    def tearDown(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()
        os.close(self.master)

    def wait_for(self, words, after=0):
        while words not in self.screen[after:]:
            ready, _, _ = select.select([self.master], [], [], 120)
            self.assertTrue(ready, self.screen)
            try:
                self.screen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                self.fail(self.screen)

    def type(self, keys):
        at = len(self.screen)
        os.write(self.master, keys.encode())
        return at

    def test_history_and_editing(self):
        self.wait_for("> ")
        at = self.type(QUESTION + "\r")
        self.assertTrue(self.child.stdout.readline())
        self.wait_for("\n> ", at)  # the terminal echoes keys that come before
        at = self.type("\x1b[A")  # up
        self.wait_for("circle?", at)
        at = self.type("\r")
        self.assertTrue(self.child.stdout.readline())
        self.wait_for("\n> ", at)
        at = self.type("/helpx\x7f\r")  # backspace
        self.wait_for("/clear", at)
        self.wait_for("\n> ", self.screen.index("/clear", at))  # keys typed before the prompt are the terminal's, not the editor's
        self.type("\x04")
        out, _ = self.child.communicate(timeout=120)
        self.assertEqual((self.child.returncode, out), (0, ""))
        self.assertNotIn("^[[A", self.screen)

    def test_an_end_typed_during_an_answer(self):
        self.wait_for("> ")
        at = self.type(QUESTION + "\r")
        self.wait_for("\n", at)
        self.type("\x04")
        out, _ = self.child.communicate(timeout=120)
        self.assertEqual((self.child.returncode, len(out.splitlines())), (0, 1), self.screen)

    def test_interrupt_at_the_prompt(self):
        self.wait_for("> ")
        os.kill(self.child.pid, 2)
        self.child.communicate(timeout=120)
        self.assertEqual(self.child.returncode, 130)


if __name__ == "__main__":
    unittest.main()
