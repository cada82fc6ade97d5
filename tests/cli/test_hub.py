"""vidkv ask -hf: against a server on the loopback that speaks Hugging Face's paths and serves the small video model."""
import hashlib
import http.server
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

from test_cli import QUESTION, TINY, VIDKV, Clips

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "a1B2" * 10
CUT = 100_000  # bytes until a download breaks off


def content(name):
    with open(os.path.join(TINY, name), "rb") as f:
        return f.read()


class Hub(http.server.ThreadingHTTPServer):
    """repositories: name -> {file: bytes}."""
    daemon_threads = True

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories, self.seen, self.tokens, self.ranges = repositories, [], set(), []
        self.break_off = self.stall = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.urlparse(self.path).path.strip("/")
        self.server.tokens.add(self.headers.get("Authorization"))
        parts = path.split("/")
        api = parts[:2] == ["api", "models"]
        files = self.server.repositories.get("/".join(parts[2:4] if api else parts[:2]))
        if files is None:
            return self.reply(404, b'{"error": "Repository not found"}')
        if api and parts[4:] == ["refs"]:
            return self.reply(200, json.dumps({"branches": [{"name": "main", "targetCommit": COMMIT}]}).encode())
        if api and parts[4] == "tree":
            return self.reply(200, json.dumps([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40,
                                                "lfs": {"oid": hashlib.sha256(data).hexdigest()}} for name, data in files.items()]).encode())
        self.file(parts[-1], files[parts[-1]])

    def file(self, name, data):
        if self.command == "GET":
            self.server.seen.append(name)
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if first:
            self.server.ranges.append((name, first))
        if self.command == "GET" and (self.server.stall or self.server.break_off):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:CUT])
            self.wfile.flush()
            self.server.break_off = False
            while self.server.stall:
                time.sleep(0.05)
            self.close_connection = True
            return
        more = {"Content_Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        self.reply(206 if first else 200, data[first:], "application/octet-stream", Accept_Ranges="bytes", ETag='"x"', **more)


class FromTheHub(Clips):
    def setUp(self):
        model, mmproj = content("vidkv-tiny.gguf"), content("mmproj-vidkv-tiny.gguf")
        both = {"README.md": b"a model", "vidkv-tiny-Q8_0.gguf": model, "vidkv-tiny-Q4_K_M.gguf": model, "mmproj-vidkv-tiny-f16.gguf": mmproj}
        self.hub = Hub({"us/tiny": both, "us/text-only": {"vidkv-tiny-Q8_0.gguf": model}, "us/nothing": {"README.md": b"no model"}})
        thread = threading.Thread(target=self.hub.serve_forever, daemon=True)
        thread.start()
        self.cache = tempfile.TemporaryDirectory()
        self.environment = {**os.environ, "HF_ENDPOINT": self.hub.url, "LLAMA_CACHE": self.cache.name}
        for name in ("MODEL_ENDPOINT", "HF_TOKEN"):
            self.environment.pop(name, None)

    def tearDown(self):
        self.hub.stall = False
        self.hub.shutdown()
        self.hub.server_close()
        self.cache.cleanup()

    def command(self, name, *options):
        return [VIDKV, "ask", self.clip, QUESTION, "-hf", name, "--kv", "f16", "-n", "4", *options]

    def ask(self, name, *options):
        return subprocess.run(self.command(name, *options), capture_output=True, text=True, stdin=subprocess.DEVNULL, env=self.environment)

    def test_model_and_mmproj_are_fetched_once(self):
        local = subprocess.run([VIDKV, "ask", self.clip, QUESTION, "--kv", "f16", "-n", "4"], capture_output=True, text=True)
        first = self.ask("us/tiny")
        self.assertEqual((first.returncode, first.stdout), (0, local.stdout), first.stderr)
        self.assertEqual(sorted(self.hub.seen), ["mmproj-vidkv-tiny-f16.gguf", "vidkv-tiny-Q4_K_M.gguf"])  # as llama.cpp chooses
        self.assertNotIn("fetch", first.stderr)  # no terminal, no progress
        again = self.ask("us/tiny")
        self.assertEqual((again.stdout, len(self.hub.seen)), (local.stdout, 2))
        self.hub.shutdown()
        self.assertEqual(self.ask("us/tiny", "--offline").stdout, local.stdout)
        snapshot = os.path.join(self.cache.name, "models--us--tiny", "snapshots", COMMIT)  # the hub's own layout: other tools find it
        self.assertEqual(sorted(os.listdir(snapshot)), ["mmproj-vidkv-tiny-f16.gguf", "vidkv-tiny-Q4_K_M.gguf"])

    def test_quantization_is_chosen(self):
        done = self.ask("us/tiny:Q8_0")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("vidkv-tiny-Q8_0.gguf", self.hub.seen)

    def test_token(self):
        self.environment["HF_TOKEN"] = TOKEN
        self.assertEqual(self.ask("us/tiny").returncode, 0)
        self.assertEqual(self.hub.tokens, {"Bearer " + TOKEN})

    def test_a_download_that_breaks_off_goes_on(self):
        self.hub.break_off = True
        done = self.ask("us/tiny")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({first for _, first in self.hub.ranges}, {CUT})

    def test_refusals(self):
        for words, name in (("it has vidkv-tiny-Q8_0.gguf, vidkv-tiny-Q4_K_M.gguf", "us/tiny:Q2_K"), ("no model 'us/none'", "us/none"),
                            ("no vision tower", "us/text-only"), ("holds no GGUF", "us/nothing")):
            self.assert_fails(self.ask(name), words)
        self.assert_fails(self.ask("us/tiny", "--offline"), "leave out --offline")
        self.assert_fails(self.ask("tiny"), "USER/MODEL", code=2)
        self.assert_fails(self.ask("us/tiny", "-m", "x.gguf"), "not both", code=2)

    def test_no_network(self):
        self.environment["HF_ENDPOINT"] = "http://127.0.0.1:1"
        self.assert_fails(self.ask("us/tiny"), "cannot reach http://127.0.0.1:1")

    def test_interrupt(self):
        self.hub.stall = True
        child = subprocess.Popen(self.command("us/tiny"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)
        while not self.hub.seen:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
        self.assertEqual((child.returncode, out), (130, ""))


if __name__ == "__main__":
    unittest.main()
