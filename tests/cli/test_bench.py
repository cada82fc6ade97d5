"""vidkv bench: shapes of its reports, figures that follow from each other, and one clear line for every bad input."""
import csv
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
VIDKV = os.environ.get("VIDKV", os.path.join(ROOT, "build", "bin", "vidkv"))
TINY = os.path.join(ROOT, "models", "tiny", "vidkv-tiny.gguf")
PEERS = ["ggml-f16", "ggml-q8_0", "ggml-q4_0", "llama.cpp-f16", "llama.cpp-q8_0", "llama.cpp-q4_0"]
ROW = ["shape", "tokens", "phase", "query_tokens", "isa", "threads", "name", "ms", "ratio_f16", "ratio_q8_0"]


def bench(*arguments, **options):
    return subprocess.run([VIDKV, "bench", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def attention(*arguments, **options):
    return bench("attention", "--shape", "9/3/64", "--tokens", "1k", "--phase", "decode", "--repeat", "3", *arguments, **options)


class Bench(unittest.TestCase):
    def report(self, done):
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def assert_fails(self, done, words, code):
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("vidkv: "), done.stderr)
        self.assertIn(words, done.stderr)


class Attention(Bench):
    def test_json(self):
        report = self.report(attention("--kv", "f16,k2v2", "--query-tokens", "1,4", "--json"))
        self.assertEqual(list(report)[:2], ["cpu", "stream_gb_s"])
        self.assertGreater(report["stream_gb_s"], 0)
        names = [row["name"] for row in report["rows"]]
        self.assertEqual(names, (PEERS + ["f16", "k2v2"]) * 2)
        self.assertEqual([row["query_tokens"] for row in report["rows"]], [1] * 8 + [4] * 8)
        for row in report["rows"]:
            for name in ROW + ["gb_s"]:
                self.assertIn(name, row)
            self.assertEqual((row["shape"], row["tokens"], row["phase"]), ("9/3/64", 1024, "decode"))

    def test_ratios_are_the_peer_over_this_one(self):
        rows = {row["name"]: row for row in self.report(attention("--kv", "k2v2", "--json"))["rows"]}
        for row in rows.values():
            self.assertAlmostEqual(row["ratio_f16"], rows["ggml-f16"]["ms"] / row["ms"], places=9)
            self.assertAlmostEqual(row["ratio_q8_0"], rows["ggml-q8_0"]["ms"] / row["ms"], places=9)
            self.assertAlmostEqual(row["gb_s"], row["bytes"] / row["ms"] / 1e6, places=6)

    def test_bytes_are_those_of_the_cache(self):
        rows = {row["name"]: row for row in self.report(attention("--kv", "f16,k2v2", "--json"))["rows"]}
        f16 = 2 * 1024 * 3 * 64 * 2
        self.assertEqual((rows["ggml-f16"]["bytes"], rows["f16"]["bytes"]), (f16, f16))
        self.assertEqual(rows["ggml-q8_0"]["bytes"], f16 * 34 // 64)
        self.assertLess(rows["k2v2"]["bytes"], f16 / 2)

    def test_every_preset_computes_what_its_cache_says(self):
        presets = [p["name"] for p in json.loads(subprocess.run([VIDKV, "presets", "--json"], capture_output=True, text=True).stdout)["presets"]]
        for row in self.report(attention("--kv", ",".join(presets), "--json"))["rows"]:
            self.assertLess(row["error"], 0.05, row)
            if row["name"] == "f16":
                self.assertLess(row["error"], 1e-3)

    def test_prefill(self):
        rows = self.report(bench("attention", "--shape", "4/1/64", "--tokens", "512", "--phase", "prefill", "--repeat", "3", "--kv", "k2v2", "--json"))["rows"]
        self.assertEqual([row["name"] for row in rows], PEERS[:4] + ["k2v2"])
        self.assertEqual({(row["phase"], row["query_tokens"]) for row in rows}, {("prefill", 512)})

    def test_instruction_sets_are_measured_in_one_report(self):
        probe = attention("--kv", "k2v2", "--isa", "avx2,scalar", "--json")
        if "has no avx2" in probe.stderr:
            self.skipTest("this processor has no AVX2")
        report = self.report(probe)
        self.assertEqual([row["isa"] for row in report["rows"]], ["avx2"] * 7 + ["scalar"] * 7)
        self.assertEqual(list(report["int8_gmac_s_by_isa_and_threads"]), ["avx2", "scalar"])
        if os.path.exists(os.path.join(os.path.dirname(VIDKV), "libggml-cpu-avx2.so")):
            self.assertEqual(report["rows"][0]["ggml_isa"], "avx2")

    def test_tables_of_one_instruction_set(self):
        names = ["vnni256", "avx512vnni"]
        for name in [*names, "avxvnni"]:
            self.assertIn(name, attention("--help").stdout)
        probe = attention("--kv", "t1.65", "--isa", ",".join(names), "--json")
        if "has no" in probe.stderr:
            self.skipTest("this processor has no AVX-512 VNNI")
        report = self.report(probe)
        self.assertEqual([row["isa"] for row in report["rows"] if row["name"] == "t1.65"], names)
        self.assertTrue(all(row["int8_share"] > 0 for row in report["rows"]))

    def test_fit_of_three_lengths(self):
        report = self.report(bench("attention", "--shape", "4/1/64", "--tokens", "256,512,768", "--phase", "decode", "--repeat", "3", "--kv", "f16", "--json"))
        self.assertEqual([fit["name"] for fit in report["fits"]], PEERS + ["f16"])
        for fit in report["fits"]:
            self.assertTrue(0 <= fit["r2"] <= 1, fit)

    def test_csv(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rows.csv")
            report = self.report(attention("--kv", "k2v2", "--json", "--csv", path))
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        header = [line for line in lines if line.startswith("# ")]
        self.assertTrue(header[0].startswith("# command: vidkv bench attention "), header)
        self.assertEqual(header[1], "# cpu: " + report["cpu"])
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
        self.assertEqual([row["name"] for row in rows], PEERS + ["k2v2"])
        self.assertAlmostEqual(float(rows[-1]["ms"]), report["rows"][-1]["ms"])

    def test_table(self):
        done = attention("--kv", "k2v2")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for name in PEERS + ["k2v2", "9/3/64", "GB/s"]:
            self.assertIn(name, done.stdout)

    def test_bad_input(self):
        for words, arguments in (("no shape", ["--shape", "28/3/128"]), ("no shape", ["--shape", "28/4"]), ("no shape", ["--shape", "0/0/0"]),
                                 ("no shape", ["--shape", "8/8/12"]), ("no number of tokens", ["--tokens", "many"]),
                                 ("no number of tokens", ["--tokens", "-5"]), ("no number of tokens", ["--tokens", "99999999999999999M"]),
                                 ("no preset 'k9v9'", ["--kv", "k9v9"]), ("--phase", ["--phase", "training"]), ("--isa", ["--isa", "mmx"]),
                                 ("--threads", ["--threads", "0"])):
            self.assert_fails(bench("attention", *arguments), words, 2)

    def test_instruction_set_of_another_machine(self):
        machine = os.uname().machine
        self.assert_fails(attention("--kv", "k2v2", "--isa", "avx2" if machine == "aarch64" else "neon"), "has no", 1)

    def test_csv_that_cannot_be_written(self):
        self.assert_fails(attention("--kv", "k2v2", "--csv", "/nowhere/rows.csv"), "cannot write '/nowhere/rows.csv'", 1)

    def test_no_memory(self):
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        self.assert_fails(attention("--kv", "k2v2", "--tokens", "16M", preexec_fn=limit), "no memory left: ask for fewer --tokens", 1)


class Seal(Bench):
    def test_json(self):
        report = self.report(bench("seal", "--shape", "9/3/64", "--tokens", "1k", "--layers", "30", "--kv", "k2v2", "--threads", "1,2", "--json"))
        self.assertEqual([(row["name"], row["threads"]) for row in report["rows"]], [("k2v2", 1), ("k2v2", 2)])
        for row in report["rows"]:
            self.assertAlmostEqual(row["layer_tokens_per_s"] / row["tokens_per_s"], 30)
            self.assertAlmostEqual(row["share_of_prefill"], row["prefill_tokens_per_s"] / row["tokens_per_s"])


class Memory(Bench):
    def test_what_is_held_is_what_was_promised(self):
        report = self.report(bench("memory", "--shape", "4/2/128", "--tokens", "64k", "--layers", "2", "--kv", "k2v2", "--json"))
        self.assertEqual([row["name"] for row in report["rows"]], ["f16", "k2v2"])
        f16, packed = report["rows"]
        self.assertGreater(f16["peak_bytes"], 0.98 * 2 * 65536 * 256 * 4)
        self.assertLess(packed["counted_bytes"], packed["planned_bytes"] * 1.01)
        self.assertGreater(packed["saving_peak"], 4)


class Video(Bench):
    def test_few_frames_of_a_long_video(self):
        report = self.report(bench("video", "--size", "192x108", "--minutes", "20", "--frames", "16", "--json"))
        self.assertEqual((report["minutes"], report["frames"]), (20, 16))
        self.assertLess(report["packets_decoded"], 16 * 60)  # of 30,000
        self.assertLess(report["processor_seconds"], report["processor_seconds_of_all"])
        self.assert_fails(bench("video", "--size", "wide"), "ffmpeg failed", 1)


class Model(Bench):
    def test_json(self):
        report = self.report(bench("model", "-m", TINY, "--kv", "stock,k2v2", "-d", "0,256", "-p", "64", "-n", "4", "--repeat", "2", "--json"))
        self.assertEqual([(row["depth"], row["phase"], row["name"]) for row in report["rows"]],
                         [(depth, phase, name) for depth in (0, 256) for phase in ("prefill", "decode") for name in ("stock", "k2v2")])
        for row in report["rows"]:
            self.assertGreater(row["tokens_per_s"], 0)

    def test_bad_input(self):
        self.assert_fails(bench("model", "-m", "/nowhere.gguf"), "/nowhere.gguf", 1)
        self.assert_fails(bench("model", "-m", TINY, "--kv", "k9v9"), "k9v9", 2)
        self.assert_fails(bench("model"), "--model", 2)


class Files(Bench):
    def test_a_file_is_no_larger_than_the_cache_and_a_fork_is_free(self):
        report = self.report(bench("file", "--shape", "9/3/64", "--layers", "2", "--tokens", "2k", "--kv", "t1.65,f16", "--json"))
        self.assertEqual([row["name"] for row in report["rows"]], ["t1.65", "f16"])
        for row in report["rows"]:
            self.assertLessEqual(row["file_to_held"], 1.03)
            self.assertLess(row["fork_share"], 0.01)
            self.assertGreater(min(row[name] for name in ("save_s", "open_ms", "restore_ms", "verify_ms", "fork_ms")), 0)

    def test_bad_input(self):
        self.assert_fails(bench("file", "--kv", "k9"), "k9", 2)
        self.assert_fails(bench("file", "--folder", "/no/such/folder"), "/no/such/folder", 1)

    def test_no_folder_for_temporary_files(self):
        environment = {**os.environ, "TMPDIR": "/no/such/folder"}
        for name in ("file", "saved", "video"):
            with self.subTest(name):
                self.assert_fails(bench(name, env=environment), "no folder '/no/such/folder' for temporary files: set TMPDIR to one", 1)


class Saved(Bench):
    def test_all_in_one_run(self):
        report = self.report(bench("saved", "--shape", "9/3/64", "--layers", "2", "--tokens", "1k", "--clip", "none", "--json"))
        self.assertTrue(report["same_logits"] and report["slot_same_logits"] and report["host_fork_same_logits"], report)
        self.assertGreater(min(report["open_s"], report["restore_s"]), 0)
        self.assertLess(report["two_processes_pss"], report["two_processes_rss"])
        self.assertEqual([each["most"] for each in report["targets"]], [1.03, 0.5, 0.01, 0.001, 0.01, 0.2])
        for each in report["targets"]:
            self.assertEqual(each["met"], each["value"] <= each["most"], each)
        self.assertTrue(report["targets"][0]["met"] and report["targets"][4]["met"], report)

    def test_bad_input(self):
        self.assert_fails(bench("saved", "--clip", "wide"), "--clip", 2)
        self.assert_fails(bench("saved", "--kv", "k9"), "k9", 2)
        self.assert_fails(bench("saved", "--folder", "/no/such/folder"), "/no/such/folder", 1)


class Latency(Bench):
    def test_a_token_packs_one_store(self):
        done = bench("latency", "--shape", "4/2/64", "--layers", "2", "--depth", "200", "--tokens", "100", "--json")
        report = self.report(done)
        self.assertEqual([report[part]["tokens"] for part in ("all", "packing", "others")], [100, 4, 96])
        self.assertLessEqual(report["packing_alone"]["max_ms"], report["packing"]["max_ms"])
        for part in ("all", "packing", "packing_alone", "others"):
            self.assertTrue(0 < report[part]["p50_ms"] <= report[part]["p99_ms"] <= report[part]["max_ms"], report)

    def test_bad_input(self):
        self.assert_fails(bench("latency", "--kv", "nonsense"), "no preset 'nonsense'", 2)
        self.assert_fails(bench("latency", "-m", "missing.gguf"), "missing.gguf", 1)


class OtherEngines(unittest.TestCase):
    def run_script(self, *arguments):
        script = os.path.join(ROOT, "measure", "bench", "other_engines.py")
        return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env={**os.environ, "VIDKV": VIDKV})

    def test_torch_beside_vidkv(self):
        if importlib.util.find_spec("torch") is None:
            self.skipTest("torch is not installed (tests/e2e/requirements.txt)")
        done = self.run_script("attention", "--shape", "4/2/64", "--tokens", "256", "--engines", "torch-bf16-rows", "--rounds", "1", "--calls", "3", "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
        self.assertEqual(list(rows), ["ggml-f16", "t1.65", "torch-bf16-rows"])
        torch = rows["torch-bf16-rows"]
        self.assertTrue(0 < torch["error"] < 0.01, torch)
        self.assertAlmostEqual(torch["times_t1.65"], torch["us"] / rows["t1.65"]["us"], places=6)

    def test_what_is_missing_is_named(self):
        if importlib.util.find_spec("onnxruntime") is not None:
            self.skipTest("ONNX Runtime is installed: nothing is missing")
        done = self.run_script("attention", "--engines", "onnx-f32")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("onnxruntime is not installed (measure/bench/requirements.txt", done.stderr)

    def test_bad_input(self):
        for arguments, words in ((["attention", "--engines", "tensorflow"], "there is no engine tensorflow"), (["attention", "--tokens", "many"], "many")):
            done = self.run_script(*arguments)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stdout, "")
            self.assertIn(words, done.stderr.splitlines()[-1])
            self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    unittest.main()
