"""vidkv serve: what llama-server is started with, what is printed, and how both end."""
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.request

from test_cli import TINY, VIDKV, vidkv

# Says what it was given, and then what llama-server says.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" > "$SAID"
env >> "$SAID"
echo "0.01 I VidKV: KV cache packed with t1.65 (1.6 bits), 7.5 of 45 MiB" >&2
echo "0.02 I srv  main: server is listening on http://127.0.0.1:8123" >&2
[ -z "$FAIL" ] || { echo "0.03 E srv  main: the error of a server" >&2; exit 3; }
exec sleep 1000
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Serve(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.said = os.path.join(self.folder.name, "said")
        server = os.path.join(self.folder.name, "llama-server")
        with open(server, "w") as f:
            f.write(STAND_IN)
        os.chmod(server, 0o755)
        self.environment = {**os.environ, "VIDKV_LLAMA_SERVER": server, "SAID": self.said, "VIDKV_CACHE_DIR": self.folder.name}

    def start(self, *arguments, environment=None):
        child = subprocess.Popen([VIDKV, "serve", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env=environment or self.environment)
        self.addCleanup(lambda: child.poll() is None and (child.kill(), child.communicate()))
        return child

    def children_of(self, child):
        with open(f"/proc/{child.pid}/task/{child.pid}/children", encoding="ascii") as f:
            return [int(pid) for pid in f.read().split()]

    def test_arguments_and_settings(self):
        child = self.start("--kv", "t2.2", "--port", "8123", "-c", "4096", "-t", "1", "-np", "2", "--api-key", "secret")
        self.assertEqual(child.stdout.readline(), "http://127.0.0.1:8123\n")
        with open(self.said, encoding="utf-8") as f:
            said = f.read().splitlines()
        for words in (["-m", os.path.join(TINY, "vidkv-tiny.gguf")], ["--mmproj", os.path.join(TINY, "mmproj-vidkv-tiny.gguf")], ["--device", "VIDKV"],
                      ["-fa", "on"], ["-c", "4096"], ["-t", "1"], ["-np", "2"], ["--api-key", "secret"], ["--port", "8123"]):
            at = said.index(words[0])
            self.assertEqual(os.path.basename(said[at + 1]), os.path.basename(words[1]))
        self.assertIn("VIDKV_PRESET=t2.2", said)
        self.assertTrue(any(line.startswith("GGML_BACKEND_PATH=") and line.endswith("libggml-vidkv.so") for line in said))
        server, = self.children_of(child)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
        self.assertEqual((child.returncode, out), (130, ""))
        self.assertIn("VidKV: KV cache packed with t1.65", err)
        self.assertFalse(os.path.exists(f"/proc/{server}"))

    def test_a_server_that_ends(self):
        done = vidkv("serve", env={**self.environment, "FAIL": "1"})
        self.assertEqual(done.returncode, 1)
        self.assertIn("llama-server ended with 3 (0.03 E srv  main: the error of a server)", done.stderr)

    def test_no_server(self):
        done = vidkv("serve", env={**self.environment, "VIDKV_LLAMA_SERVER": os.path.join(self.folder.name, "none")})
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done.stderr)
        self.assertEqual(vidkv("serve", "--kv", "k9", env=self.environment).returncode, 2)

    def test_the_stock_server(self):
        environment = {name: value for name, value in self.environment.items() if name != "VIDKV_LLAMA_SERVER"}
        port = free_port()
        child = self.start("--port", str(port), "-c", "2048", "-np", "1", environment=environment)
        address = child.stdout.readline().strip()
        self.assertEqual(address, f"http://127.0.0.1:{port}", child.poll() is not None and child.stderr.read())
        while True:
            try:
                with urllib.request.urlopen(address + "/health") as answer:
                    self.assertEqual(json.load(answer)["status"], "ok")
                    break
            except urllib.error.HTTPError:  # it is loading the model
                time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate()
        self.assertEqual(child.returncode, 130)
        self.assertIn("VidKV: KV cache packed with t1.65", err)


if __name__ == "__main__":
    unittest.main()
