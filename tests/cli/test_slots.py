"""vidkv pack and unpack: slot files of the stock llama-server, byte for byte, and what is no such file."""
import filecmp
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

from test_cli import QUESTION, VIDKV, Clips, vidkv
from test_serve import free_port

TOKENS = 700


class Server:
    """vidkv serve with the stock llama-server."""

    def __init__(self, folder, *arguments):
        environment = {**os.environ, "VIDKV_CACHE_DIR": folder, "VIDKV_VIDEOS_MAX_SIZE": "100M"}
        command = [VIDKV, "serve", "--port", str(free_port()), "-c", "4096", "--no-cont-batching", *arguments]
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.address = self.child.stdout.readline().strip()
        assert self.address, self.child.communicate()[1]
        self.slots = os.path.join(folder, "slots")
        while True:
            try:
                self.get("/health")
                break
            except urllib.error.HTTPError:  # it is loading the model
                time.sleep(0.05)

    def get(self, path):
        with urllib.request.urlopen(self.address + path) as answer:
            return json.load(answer)

    def post(self, path, **body):
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def complete(self, tokens, n=8):
        return self.post("/completion", prompt=tokens, n_predict=n, id_slot=0, cache_prompt=True, temperature=0, return_tokens=True, ignore_eos=True)

    def slot(self, action, name):
        return self.post(f"/slots/0?action={action}", filename=name)

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        return self.child.communicate()[1]


class Slots(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="vidkv-slots-")
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        server = Server(cls.folder, "-np", "1")
        cls.addClassCleanup(lambda: server.child.poll() is None and server.stop())
        cls.server = server
        cls.prompt = [100 + i * 37 % 150 for i in range(TOKENS)]
        cls.answer = server.complete(cls.prompt)["tokens"]
        server.slot("save", "talk")
        cls.slot = os.path.join(server.slots, "talk")
        cls.packed = os.path.join(cls.folder, "talk.vidkv")
        cls.done = vidkv("pack", cls.slot, cls.packed, "--json")

    def path(self, name):
        return os.path.join(self.folder, name)

    def refused(self, done, says):
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done.stderr)
        self.assertIn(says, done.stderr)

    def test_small_and_back(self):
        self.assertEqual(self.done.returncode, 0, self.done.stderr)
        report = json.loads(self.done.stdout)
        self.assertEqual((report["tokens"], report["slot_bytes"], report["packed_bytes"]),
                         (TOKENS + 7, os.path.getsize(self.slot), os.path.getsize(self.packed)))
        self.assertGreater(report["rows_packed"], report["rows"] // 2)
        self.assertLess(2 * report["packed_bytes"], report["slot_bytes"])
        self.assertEqual(vidkv("verify", self.packed).returncode, 0)
        again = self.path("again.bin")
        self.assertEqual(vidkv("unpack", self.packed, again).returncode, 0)
        self.assertTrue(filecmp.cmp(self.slot, again, shallow=False))
        for isa in ("scalar", "avx2"):
            done = vidkv("unpack", self.packed, again, "-t", "3", env={**os.environ, "VIDKV_FORCE_ISA": isa})
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue(filecmp.cmp(self.slot, again, shallow=False))

    def test_the_server_goes_on_with_it(self):
        self.assertEqual(vidkv("unpack", self.packed, os.path.join(self.server.slots, "back")).returncode, 0)
        self.server.complete([200] * 50, 1)  # another conversation
        self.assertEqual(self.server.slot("restore", "back")["n_restored"], TOKENS + 7)
        answer = self.server.complete(self.prompt + self.answer[:4], 4)
        self.assertEqual(answer["tokens"], self.answer[4:])
        self.assertGreater(answer["timings"]["cache_n"], TOKENS - 8)

    def test_what_is_refused(self):
        self.server.complete([150, 151, 152, 153], 1)
        self.server.slot("save", "short")
        self.refused(vidkv("pack", os.path.join(self.server.slots, "short"), self.path("x")), "holds no packed pages")
        with open(self.slot, "rb") as f:
            content = f.read()
        for name, changed, says in (("cut", content[:len(content) // 2], "is cut off"), ("text", b"not a slot", "is no slot file"),
                                    ("empty", b"", "is no slot file")):
            with open(self.path(name), "wb") as f:
                f.write(changed)
            self.refused(vidkv("pack", self.path(name), self.path("x")), says)
        self.refused(vidkv("pack", self.path("none"), self.path("x")), "No such file")
        self.refused(vidkv("pack", self.slot, self.slot), "take the place")
        self.refused(vidkv("pack", self.slot, self.folder), "is a folder")
        self.refused(vidkv("pack", self.slot, "/no/such/folder/x"), "/no/such/folder/x")
        self.refused(vidkv("unpack", self.packed, "/no/such/folder/x"), "/no/such/folder/x")
        self.refused(vidkv("unpack", self.slot, self.path("x")), "is no VidKV file")
        self.refused(vidkv("ask", "--load-cache", self.packed, "What?"), "is a packed slot of llama-server: vidkv unpack")
        self.assertFalse(os.path.exists(self.path("x")))
        self.assertEqual(vidkv("pack", self.slot).returncode, 2)

    def test_altered_rows_are_kept_as_they_are(self):
        """Whatever is in the rows: either it comes back, or one line says why not."""
        with open(self.slot, "rb") as f:
            content = bytearray(f.read())
        for at in range(len(content) // 3, len(content), len(content) // 9):
            content[at & ~1] ^= 1
        with open(self.path("altered"), "wb") as f:
            f.write(content)
        self.assertEqual(vidkv("pack", self.path("altered"), self.path("altered.vidkv")).returncode, 0)
        self.assertEqual(vidkv("unpack", self.path("altered.vidkv"), self.path("altered.bin")).returncode, 0)
        self.assertTrue(filecmp.cmp(self.path("altered"), self.path("altered.bin"), shallow=False))

    def test_a_server_without_the_plug_in(self):
        folder = self.path("stock")
        server = Server(folder, "-np", "1", "--kv", "stock")
        try:
            os.makedirs(server.slots, exist_ok=True)
            shutil.copyfile(self.slot, os.path.join(server.slots, "talk"))
            self.assertEqual(server.slot("restore", "talk")["n_restored"], TOKENS + 7)
            server.slot("save", "carried")
            server.complete(self.prompt[::-1], 1)
            server.slot("save", "stock")
        finally:
            server.stop()
        carried = os.path.join(server.slots, "carried")
        self.assertEqual(vidkv("pack", carried, self.path("carried.vidkv")).returncode, 0)
        self.assertEqual(vidkv("unpack", self.path("carried.vidkv"), self.path("carried.bin")).returncode, 0)
        self.assertTrue(filecmp.cmp(carried, self.path("carried.bin"), shallow=False))
        self.refused(vidkv("pack", os.path.join(server.slots, "stock"), self.path("x")), "a server without the plug-in")


class Killed(unittest.TestCase):
    def test_while_a_slot_is_saved(self):
        """llama-server writes a slot file in its place, so that the one being saved may be cut (and ends the server that restores it, with
        the plug-in or without); vidkv pack says so, and the others are as they were."""
        folder = tempfile.mkdtemp(prefix="vidkv-slots-")
        self.addCleanup(shutil.rmtree, folder)
        prompt = [100 + i * 37 % 150 for i in range(TOKENS)]
        server = Server(folder, "-np", "1")
        answer = server.complete(prompt)["tokens"]
        server.slot("save", "kept")
        server.slot("save", "talk")
        kept, talk = (os.path.join(server.slots, name) for name in ("kept", "talk"))
        whole = os.path.getsize(kept)
        threading.Thread(target=save_again_and_again, args=(server,), daemon=True).start()
        while os.path.getsize(talk) == whole:  # until one has begun
            self.assertIsNone(server.child.poll())
        with open(f"/proc/{server.child.pid}/task/{server.child.pid}/children", encoding="ascii") as f:
            os.kill(int(f.read()), signal.SIGKILL)
        _, said = server.child.communicate()
        self.assertEqual(server.child.returncode, 1)
        self.assertIn("llama-server ended with 137", said)
        server = Server(folder, "-np", "1")
        self.addCleanup(server.stop)
        if os.path.getsize(talk) != whole:
            refused = vidkv("pack", talk, os.path.join(folder, "x"))
            self.assertEqual((refused.returncode, refused.stderr.count("\n")), (1, 1), refused.stderr)
        self.assertEqual(server.slot("restore", "kept")["n_restored"], TOKENS + 7)
        self.assertEqual(server.complete(prompt + answer[:4], 4)["tokens"], answer[4:])


def save_again_and_again(server):
    try:
        while True:
            server.slot("save", "talk")
    except OSError:  # it is gone
        pass


class WatchedVideos(Clips):
    """What vidkv ask has watched, as slots of a server."""

    def ask(self, server, content):
        request = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
        answer = server.post("/v1/chat/completions", **request)
        return answer["choices"][0]["message"]["content"].strip(), answer["timings"]

    def test_is_not_watched_again(self):
        folder = self.path("cache")
        video = self.path("holiday.mp4")
        shutil.copyfile(self.twice, video)
        environment = {**os.environ, "VIDKV_CACHE_DIR": folder, "VIDKV_VIDEOS_MAX_SIZE": "100M"}
        refused = vidkv("serve", "--video", "holiday.mp4", env=environment)
        self.assertEqual((refused.returncode, refused.stderr.count("\n")), (1, 1), refused.stderr)
        self.assertIn("no watched video 'holiday.mp4'", refused.stderr)
        asked = json.loads(vidkv("ask", video, QUESTION, "-n", "8", "--json", env=environment).stdout)
        server = Server(folder, "--video", "holiday.mp4")
        try:
            restored = server.slot("restore", "holiday.mp4")["n_restored"]
            content = [{"type": "input_video", "input_video": {"url": "file://holiday.mp4"}}, {"type": "text", "text": QUESTION}]
            answer, timings = self.ask(server, content)
        finally:
            said = server.stop()
        self.assertIn("watched videos: holiday.mp4", said)
        self.assertGreaterEqual(timings["cache_n"], restored - 20, timings)
        self.assertEqual(answer, asked["answers"][0]["answer"])
        self.assertEqual([name for name in os.listdir(server.slots)], [])
        with open(video, "ab") as f:
            f.write(b"changed")
        refused = vidkv("serve", "--video", "holiday.mp4", env=environment)
        self.assertIn("was changed since it was watched", refused.stderr)
        self.assertIn("use --kv t1.65", vidkv("serve", "--kv", "t2.2", "--video", "holiday.mp4", env=environment).stderr)


if __name__ == "__main__":
    unittest.main()
