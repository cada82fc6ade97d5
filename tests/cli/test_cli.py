"""The command line: shapes of its JSON, exit codes, and one clear line for every bad input."""
import atexit
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import unittest

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
VIDKV = os.environ.get("VIDKV", os.path.join(ROOT, "build", "bin", "vidkv"))
TINY = os.path.join(ROOT, "models", "tiny")
QUESTION = "What colour is the circle?"
PRESETS = ["f16", "k2v2", "k1.5v2", "k1.5v1.58"]
TRELLIS = ["t4.2", "t3.2", "t2.2", "t1.65", "t1.15", "t1.0"]
PEERS = ["q8_0", "q5_1", "q5_0", "q4_0", "q8_0-rot", "q5_0-rot", "q4_0-rot", "kivi2", "turbo3", "turbo2"]
PEERS += ["trellis2", "trellis1", "kvarn2", "oscar-omni2", "oscar-spectral2", "vidkv-released"]
TEXT = os.path.join(ROOT, "include", "vidkv", "vidkv.h")


def vidkv(*arguments, **options):
    return subprocess.run([VIDKV, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-nostdin", "-y", "-loglevel", "error", *arguments], check=True)


@functools.cache
def made_set():
    """A generated set, made once for all classes of a run."""
    folder = tempfile.mkdtemp(prefix="vidkv-cli-")
    atexit.register(shutil.rmtree, folder)
    made = os.path.join(folder, "set")
    done = vidkv("data", "--seed", "3", "--split", "short", "--count", "1", made)
    assert done.returncode == 0, done.stderr
    return made


class Clips(unittest.TestCase):
    """A folder with a generated set, shared by the tests of a class."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="vidkv-cli-")
        cls.set = os.path.join(cls.folder, "set")
        shutil.copytree(made_set(), cls.set)
        cls.clip = os.path.join(cls.set, "clip-00000.mp4")
        cls.twice = os.path.join(cls.folder, "twice.mp4")  # enough tokens for pages of 128 to be sealed
        ffmpeg("-stream_loop", "1", "-i", cls.clip, "-c", "copy", cls.twice)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def path(self, name, content=None):
        path = os.path.join(self.folder, name)
        if content is not None:
            with open(path, "wb") as f:
                f.write(content)
        return path

    def read(self, path):
        with open(path, "rb") as f:
            return f.read()

    def assert_fails(self, done, words, code=1):
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("vidkv: "), done.stderr)
        self.assertIn(words, done.stderr)

    def ask_fails(self, words, video, *options, **more):
        self.assert_fails(vidkv("ask", video, QUESTION, *options, **more), words)


class Reports(Clips):
    def test_presets(self):
        report = json.loads(vidkv("presets", "--json").stdout)
        self.assertEqual(list(report), ["default", "presets"])
        self.assertEqual(report["default"], "t1.65")
        for preset in report["presets"]:
            self.assertEqual(list(preset), ["name", "family", "k_bits_64", "v_bits_64", "k_bits_128", "v_bits_128"])
            self.assertEqual(preset["family"], "reference" if preset["name"] == "f16" else "paper" if preset["name"][0] == "k" else "trellis")
        names = [p["name"] for p in report["presets"]]
        self.assertEqual([n for n in names if n in PRESETS], PRESETS)
        self.assertEqual([n for n in names if n in TRELLIS], TRELLIS)
        for preset in report["presets"]:
            if preset["name"] not in TRELLIS:
                continue
            promise = float(preset["name"][1:])
            for head_dim in ("64", "128"):
                self.assertLessEqual((preset["k_bits_" + head_dim] + preset["v_bits_" + head_dim]) / 2, promise + 0.005)
        self.assertEqual(report["presets"][0]["k_bits_128"], 16)

    def test_presets_table_has_a_line_a_preset(self):
        names = [p["name"] for p in json.loads(vidkv("presets", "--json").stdout)["presets"]]
        rows = [line.split() for line in vidkv("presets").stdout.splitlines() if line.startswith("  ") and len(line.split()) >= 5]
        self.assertEqual(sorted(row[0] for row in rows if row[0] in names), sorted(names))
        self.assertEqual([row[0] for row in rows if "default" in row], ["t1.65"])

    def test_the_default_is_the_same_everywhere(self):
        report = json.loads(vidkv("ask", self.clip, QUESTION, "--json", "-n", "2").stdout)
        self.assertEqual(report["kv"], "t1.65")
        for command in ("ask", "chat"):
            text = " ".join(vidkv(command, "--help").stdout.split())
            self.assertIn("(default t1.65): t4.2, t3.2, t2.2, t1.65, t1.15, t1.0; the paper's k2v2", text)

    def test_ask(self):
        held = {}
        for kv in ("stock", *PRESETS, "t1.15"):
            done = vidkv("ask", self.twice, QUESTION, "How many squares appear?", "--kv", kv, "--json", "-n", "4")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            report = json.loads(done.stdout)
            self.assertEqual(list(report), ["video", "frames", "visual_tokens", "kv", "kv_bytes", "kv_bytes_f16", "true_bits", "tokens_per_s",
                                            "read_s", "prefill_s", "decode_s", "tokens", "packed", "peak_bytes",
                                            "watched_before", "answers"])
            self.assertEqual((report["video"], report["kv"]), (self.twice, kv))
            self.assertEqual([a["question"] for a in report["answers"]], [QUESTION, "How many squares appear?"])
            self.assertEqual(report["visual_tokens"], report["frames"] // 2 * 9)
            held[kv] = report["kv_bytes"]
        self.assertGreater(held["f16"], held["k2v2"])
        self.assertGreater(held["k2v2"], held["k1.5v1.58"])
        self.assertGreater(held["f16"], held["t1.15"])  # statistics of the queries weigh more than bits in so short a clip

    def test_protection_takes_more_bytes(self):
        def held(*options):
            done = vidkv("ask", self.twice, QUESTION, "--json", "-n", "4", *options)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            report = json.loads(done.stdout)
            return report["kv"], report["kv_bytes"], report["answers"]
        for kv in ("k1.5v1.58", "t1.15"):
            plain, named, asked = held("--kv", kv), held("--kv", kv + "-stp0.2"), held("--kv", kv, "--protect", "0.2")
            self.assertEqual(named, asked)  # one feature under two names
            self.assertEqual(asked[0], kv + "-stp0.2")
            self.assertGreater(asked[1], plain[1])

    def test_answers_do_not_depend_on_earlier_questions(self):
        both = json.loads(vidkv("ask", self.clip, "How many squares appear?", QUESTION, "--kv", "f16", "--json", "-n", "4").stdout)
        alone = json.loads(vidkv("ask", self.clip, QUESTION, "--kv", "f16", "--json", "-n", "4").stdout)
        self.assertEqual(both["answers"][1], alone["answers"][0])

    def test_text_output(self):
        done = vidkv("ask", self.clip, QUESTION, "--kv", "f16", "-n", "4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("\n"), 1)
        self.assertEqual(done.stderr.count("\n"), 2)
        for words in ("frames", "visual tokens", "held", "true bits", "tokens/s", "prefill", "decode", "memory"):
            self.assertIn(words, done.stderr)

    def test_frames_caps(self):
        report = json.loads(vidkv("ask", self.clip, QUESTION, "--frames", "8", "--json", "-n", "2").stdout)
        self.assertEqual((report["frames"], report["visual_tokens"]), (8, 36))

    def test_chat(self):
        done = subprocess.run([VIDKV, "chat", self.clip, "-n", "3", "--kv", "f16"], input=f"{QUESTION}\n\n/clear\n{QUESTION}\n/quit\n", capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = done.stdout.splitlines()
        self.assertEqual(len(answers), 2)
        self.assertEqual(answers[0], answers[1])

    def test_eval(self):
        report = json.loads(vidkv("eval", "video", "--kv", "f16,k2v2", "--data", self.set, "--json").stdout)
        self.assertEqual(list(report), ["run", "clips", "questions", "visual_tokens_mean", "presets", "blank_accuracy"])
        self.assertEqual(report["clips"], 1)
        for preset, name in zip(report["presets"], ("f16", "k2v2")):
            self.assertEqual(list(preset), ["name", "accuracy", "accuracy_se", "drop", "drop_se", "accuracy_by_type", "accuracy_by_candidates", "kld", "kld_se",
                                        "kv_bytes", "true_bits"])
            self.assertEqual(preset["name"], name)
            for share in (preset["accuracy"], *preset["accuracy_by_type"].values(), *preset["accuracy_by_candidates"].values()):
                self.assertTrue(0 <= share <= 1, share)

    def test_eval_video_with_peers(self):
        clip = ["--split", "long", "--seed", "3", "--count", "1"] # beyond sink tokens and window, or peers would pack nothing
        report = json.loads(vidkv("eval", "video", "--kv", "kivi2,f16,turbo3,t1.65", *clip, "--json").stdout)
        found = {p["name"]: p for p in report["presets"]}
        self.assertEqual(list(found), ["kivi2", "f16", "turbo3", "t1.65"])
        self.assertEqual(found["f16"]["kld"], 0)
        self.assertEqual((found["kivi2"]["true_bits"], found["turbo3"]["true_bits"]), (3, 3 + 16 / 128))
        for peer in ("kivi2", "turbo3"):
            self.assertGreater(found[peer]["kld"], 0)

    def test_version_and_help(self):
        self.assertRegex(vidkv("--version").stdout, r"^vidkv \d+\.\d+\.\d+\n$")
        text = vidkv("--help").stdout
        for words in ("EXAMPLES", "ENVIRONMENT", "EXIT CODES", "presets"):
            self.assertIn(words, text)


class Divergence(unittest.TestCase):
    """eval kl, on the language model of the small video model: shapes and bounds, not figures that mean something."""
    TINY_KL = ["eval", "kl", "-m", os.path.join(TINY, "vidkv-tiny.gguf"), "--window-length", "1024"]
    KL = [*TINY_KL, "--text", TEXT, "--windows", "2"]

    def run_kl(self, *options, kl=None):
        done = vidkv(*(kl or self.KL), "--json", *options)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        report = json.loads(done.stdout)
        return report, {preset["name"]: preset for preset in report["presets"]}

    def test_all_codecs(self):
        report, found = self.run_kl("--kv", "all")
        self.assertEqual((report["windows"], report["protocol"], report["text"]), (2, "near", TEXT))
        names = [p["name"] for p in json.loads(vidkv("presets", "--json").stdout)["presets"]]
        self.assertEqual(list(found), names + PEERS + [name + "-nosink" for name in PEERS])
        for preset in found.values():
            for key in ("kld", "kld_se", "ppl", "top1", "k_bits", "v_bits", "kv_bytes"):
                self.assertIn(key, preset)
            self.assertLessEqual(preset["kld_median"], preset["kld_p99"])
            self.assertLessEqual(preset["kld_p99"], preset["kld_p999"])
            self.assertAlmostEqual(preset["flips"], 1 - preset["top1"])
            self.assertGreaterEqual(preset["kld"], 0)
            self.assertEqual(len(preset["kld_windows"]), 2)
            self.assertAlmostEqual(sum(preset["kld_windows"]) / 2, preset["kld"], places=9)
        self.assertEqual((found["f16"]["kld"], found["f16"]["top1"], found["f16"]["k_bits"]), (0, 1, 16))
        self.assertLess(found["q8_0"]["kld"], found["q4_0"]["kld"])
        self.assertLess(found["q4_0"]["kld"], found["kivi2"]["kld"])
        self.assertLess(found["t2.2"]["kld"], found["t1.15"]["kld"])
        self.assertLess(found["t1.15"]["kv_bytes"], found["t2.2"]["kv_bytes"])
        self.assertLess(found["kivi2-nosink"]["kv_bytes"], found["kivi2"]["kv_bytes"])

    def test_measured_bits_are_the_presets_bits(self):
        _, found = self.run_kl("--kv", "k2v2,k1.5v1.58,t1.65")
        listed = {p["name"]: p for p in json.loads(vidkv("presets", "--json").stdout)["presets"]}
        for name, preset in found.items():
            # the plan: 4 bytes per channel, spread over the 640 packed tokens
            self.assertAlmostEqual(preset["k_bits"], listed[name]["k_bits_128"], delta=32 / 640 + 0.001)
            self.assertAlmostEqual(preset["v_bits"], listed[name]["v_bits_128"], places=3)

    def test_tokens_are_protected_by_the_queries_of_the_text(self):
        # Values alone: keys of one bit lose more than they do. The text that is frozen: no edit of a header decides this.
        frozen = os.path.join(ROOT, "measure", "eval", "text.txt")
        _, found = self.run_kl("--kv", "k16vt1,k16vt1-stp0.25", kl=[*self.TINY_KL, "--text", frozen, "--windows", "4"])
        plain, protects = found["k16vt1"], found["k16vt1-stp0.25"]
        self.assertAlmostEqual(protects["v_bits"], plain["v_bits"] + 0.25, delta=0.03)  # whole quads per page, and the mask
        self.assertLess(protects["kld"], plain["kld"])

    def test_stock_agrees_with_the_f16_preset(self):
        _, found = self.run_kl("--kv", "stock")
        self.assertLess(found["stock"]["kld"], 1e-3)

    def test_far_and_details(self):
        report, found = self.run_kl("--kv", "f16,t1.65", "--protocol", "far", "--details")
        self.assertEqual(report["protocol"], "far")
        self.assertEqual(found["f16"]["kld"], 0)
        layers = found["t1.65"]["layers"]
        self.assertGreater(len(layers), 1)
        for layer in layers:
            self.assertEqual(list(layer), ["layer", "k_error", "v_error", "k_channel_bits", "v_channel_bits"])
            self.assertGreater(min(layer["k_error"], layer["v_error"]), 0, layer["layer"])
            self.assertTrue(all(0 <= bits <= 16 for bits in layer["k_channel_bits"] + layer["v_channel_bits"]), layer["layer"])

    def test_sink_and_residual(self):
        _, found = self.run_kl("--kv", "f16,kivi2", "--sink", "0", "--residual", "256")
        self.assertEqual((found["kivi2"]["sink_tokens"], found["kivi2"]["residual_length"]), (0, 256))

    def test_csv(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "kl.csv")
            self.run_kl("--kv", "f16,q8_0", "--csv", path)
            with open(path, encoding="utf-8") as f:
                lines = f.read().splitlines()
        self.assertEqual(lines[0], "name,kld,kld_se,kld_median,kld_p99,kld_p999,ppl,top1,k_bits,v_bits,kv_bytes")
        self.assertEqual([line.split(",")[0] for line in lines[1:]], ["f16", "q8_0"])

    def test_bad_input(self):
        with tempfile.TemporaryDirectory() as folder:
            empty, short, binary = (os.path.join(folder, name) for name in ("empty", "short", "binary"))
            for path, content in ((empty, b" \n"), (short, b"A short text. " * 20), (binary, bytes(range(256)) * 100)):
                with open(path, "wb") as f:
                    f.write(content)
            for words, *options in (("is empty", "--text", empty), ("name a longer --text", "--text", short), ("not a text file", "--text", binary),
                                    ("cannot read the text", "--text", os.path.join(folder, "none")), ("no preset 'kivi9'", "--kv", "kivi9"),
                                    ("cannot read the model", "-m", os.path.join(folder, "none")), ("cannot write", "--csv", os.path.join(folder, "no", "f"))):
                done = self.run_with(options)
                self.assertEqual((done.returncode, done.stdout), (2 if words.startswith("no preset") else 1, ""), done.stderr)
                self.assertIn(words, done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def run_with(self, option):
        arguments = [*self.KL, "--kv", "f16"]
        if option[0] in arguments:
            arguments[arguments.index(option[0]) + 1] = option[1]
            option = ()
        return vidkv(*arguments, *option)


class Report(unittest.TestCase):
    def test_page_and_plots(self):
        python = os.environ.get("VIDKV_PYTHON", "python3")
        if subprocess.run([python, "-c", "import matplotlib"], capture_output=True, check=False).returncode != 0:
            self.skipTest(f"{python} has no matplotlib")
        with tempfile.TemporaryDirectory() as folder:
            kl, page = os.path.join(folder, "kl.json"), os.path.join(folder, "page")
            with open(kl, "w", encoding="utf-8") as f:
                f.write(vidkv(*Divergence.KL, "--kv", "f16,t1.65,kivi2", "--details", "--json").stdout)
            done = vidkv("report", "--kl", kl, page)
            self.assertEqual(done.returncode, 0, done.stderr)
            for name in ("index.html", "kl-near.png", "layers-near.png", "channels-near.png"):
                self.assertGreater(os.path.getsize(os.path.join(page, name)), 1000, name)
            with open(os.path.join(page, "index.html"), encoding="utf-8") as f:
                self.assertIn("t1.65", f.read())

    def test_no_matplotlib(self):
        with tempfile.TemporaryDirectory() as folder:
            python = os.path.join(folder, "python")
            with open(python, "w", encoding="utf-8") as f:
                f.write("#!/bin/sh\nexit 1\n")
            os.chmod(python, 0o755)
            done = vidkv("report", os.path.join(folder, "page"), env={**os.environ, "VIDKV_PYTHON": python})
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot import matplotlib", done.stderr)


class BadVideo(Clips):
    def test_missing(self):
        self.ask_fails("no such file", self.path("nothing.mp4"))

    def test_empty(self):
        self.ask_fails("is empty", self.path("empty.mp4", b""))

    def test_folder(self):
        self.ask_fails("is a folder", self.folder)

    def test_text(self):
        self.ask_fails("text file", self.path("words.txt", b"These are words.\n" * 100))

    def test_text_named_as_a_video(self):
        self.ask_fails("not a video", self.path("words.mp4", b"These are words.\n" * 100))

    def test_noise(self):
        self.ask_fails("not a video", self.path("noise.mp4", bytes(range(256)) * 40))

    def test_sound_only(self):
        sound = self.path("sound.wav")
        ffmpeg("-f", "lavfi", "-i", "sine=duration=1", sound)
        self.ask_fails("no video stream", sound)

    def test_cut_off(self):
        whole = self.read(self.clip)
        for share in (0.1, 0.5, 0.9):
            self.ask_fails("cut off", self.path("cut.mp4", whole[:int(len(whole) * share)]))

    def test_cut_off_without_its_index(self):
        late = self.path("late.mp4")
        ffmpeg("-i", self.clip, "-c", "copy", late)
        whole = self.read(late)
        self.ask_fails("cut off", self.path("late-cut.mp4", whole[:len(whole) // 2]))

    def test_damaged_is_taken_on_request(self):
        whole = self.read(self.clip)
        done = vidkv("ask", self.path("half.mp4", whole[:len(whole) // 2]), QUESTION, "--accept-damaged", "-n", "2", "--kv", "stock")
        self.assertEqual(done.returncode, 0, done.stderr)


class BadModel(Clips):
    def options(self, text="vidkv-tiny.gguf", mmproj="mmproj-vidkv-tiny.gguf"):
        return ["-m", os.path.join(TINY, text), "--mmproj", os.path.join(TINY, mmproj), "--kv", "stock"]

    def test_not_gguf(self):
        self.ask_fails("is not a GGUF model", self.clip, *self.options(text=self.path("m.gguf", b"hello" * 100)))

    def test_missing(self):
        self.ask_fails("cannot read the model", self.clip, *self.options(text=self.path("none.gguf")))

    def test_cut_off(self):
        half = self.read(os.path.join(TINY, "vidkv-tiny.gguf"))
        self.ask_fails("cannot load the model", self.clip, *self.options(text=self.path("half.gguf", half[:len(half) // 2])))

    def test_text_model_as_vision_tower(self):
        self.ask_fails("does not fit the model", self.clip, *self.options(mmproj="vidkv-tiny.gguf"))

    def test_vision_tower_as_text_model(self):
        self.ask_fails("cannot load the model", self.clip, *self.options(text="mmproj-vidkv-tiny.gguf"))

    def test_unknown_preset(self):
        for name in ("k3v2", "q2", "", "k2v2x"):
            self.assert_fails(vidkv("ask", self.clip, QUESTION, "--kv", name), "no preset", code=2)

    def test_context_too_small(self):
        self.ask_fails("the context holds 64: use -c", self.clip, "-c", "64")

    def test_plugin_missing(self):
        self.ask_fails("cannot load the plug-in", self.clip, env={**os.environ, "VIDKV_PLUGIN": self.path("none.so")})


class SavedCache(Clips):
    def setUp(self):
        self.saved = self.path("saved.cache")
        done = vidkv("ask", self.clip, QUESTION, "--kv", "f16", "--json", "-n", "4", "--save-cache", self.saved)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.report = json.loads(done.stdout)

    def load(self, path, *options, kv="f16"):
        return vidkv("ask", "--load-cache", path, QUESTION, "--kv", kv, "--json", "-n", "4", *options)

    def test_same_answer(self):
        report = json.loads(self.load(self.saved).stdout)
        for key in ("video", "frames", "visual_tokens", "answers"):
            self.assertEqual(report[key], self.report[key])

    def test_cut_off(self):
        content = self.read(self.saved)
        for size in (10, 40, len(content) // 2, len(content) - 1):
            self.assert_fails(self.load(self.path("cut.cache", content[:size])), "saved cache")

    def test_altered(self):
        content = bytearray(self.read(self.saved))
        for at in (14, 20, 40, len(content) // 2, len(content) - 1):
            altered = bytearray(content)
            altered[at] ^= 4
            self.assert_fails(self.load(self.path("altered.cache", bytes(altered))), "cut off or altered")

    def test_of_another_preset(self):
        self.assert_fails(self.load(self.saved, kv="k2v2"), "was kept as f16")

    def test_no_cache(self):
        self.assert_fails(self.load(self.path("words.cache", b"words" * 100)), "is no VidKV file")

    def test_full_disk_leaves_the_old_file(self):
        before = self.read(self.saved)

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        self.ask_fails("cannot save the cache", self.clip, "--kv", "f16", "--save-cache", self.saved, preexec_fn=limit)
        self.assertEqual(self.read(self.saved), before)
        self.assertEqual([n for n in os.listdir(self.folder) if n.endswith(".part")], [])

    def test_folder_missing(self):
        self.ask_fails("cannot save the cache", self.clip, "--kv", "stock", "--save-cache", self.path("none/saved.cache"))


class Usage(Clips):
    def test_wrong_usage(self):
        for arguments in (["ask"], ["ask", self.clip], ["ask", self.clip, ""], ["frobnicate"], [], ["ask", self.clip, QUESTION, "--fps", "0"],
                          ["ask", self.clip, QUESTION, "--frames", "x"], ["ask", self.clip, QUESTION, "--nonsense"], ["chat"],
                          ["ask", self.clip, QUESTION, "--mmproj", "x"], ["data", "--seed", "1"], ["eval"]):
            self.assert_fails(vidkv(*arguments), "--help", code=2)

    def test_full_standard_output(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([VIDKV, "presets"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot write", done.stderr)

    def test_data_refuses_a_folder_in_use(self):
        done = vidkv("data", "--seed", "1", "--split", "short", "--count", "1", self.set)
        self.assertEqual(done.returncode, 1)
        self.assertIn("is not empty", done.stderr)

    def test_eval_without_questions(self):
        self.assert_fails(vidkv("eval", "video", "--data", self.folder), "no questions.jsonl")
        self.assert_fails(vidkv("eval", "video", "--kv", "f16,nope", "--data", self.set), "no preset 'nope'", code=2)

    def test_interrupt(self):
        questions = [QUESTION] * 200  # the first answer is far from the last
        child = subprocess.Popen([VIDKV, "ask", self.clip, *questions, "--kv", "stock"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.read(1)  # it has begun to answer, or ended
        child.send_signal(signal.SIGINT)
        child.communicate()
        self.assertEqual(child.returncode, 130)


if __name__ == "__main__":
    unittest.main()
