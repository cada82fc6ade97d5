"""vidkv report: what it shows, what it keeps, and one line for what is no measurement. The plots' own rules are tested in Python."""
import json
import os
import subprocess
import tempfile
import unittest

from test_cli import ROOT, vidkv

PYTHON = os.environ.get("VIDKV_PYTHON", "python3")
HAVE_MATPLOTLIB = subprocess.run([PYTHON, "-c", "import matplotlib"], capture_output=True, check=False).returncode == 0
RUN = {"version": "1.2.3", "cpu": "A Processor", "date": "2026-01-02 03:04 UTC", "command": "vidkv eval --json"}


def kl(protocol="near", **more):
    presets = [{"name": name, "kld": kld, "kld_se": kld / 10, "ppl": 9.5, "top1": 0.9, "k_bits": bits, "v_bits": bits, "kv_bytes": 1000}
               for name, kld, bits in (("f16", 0, 16), ("t1.65", 0.01, 1.6), ("q4_0", 0.02, 4.5))]
    return {"run": RUN, "model": "m.gguf", "text": "a.txt", "protocol": protocol, "windows": 3, "window_length": 2048, "presets": presets, **more}


def video(**more):
    presets = [{"name": name, "accuracy": accuracy, "kld": 0.1, "kv_bytes": size, "true_bits": 1.6}
               for name, accuracy, size in (("f16", 1.0, 9 << 20), ("t1.65", 0.95, 2 << 20))]
    return {"run": RUN, "clips": 3, "questions": 21, "visual_tokens_mean": 2980, "blank_accuracy": 0.16, "presets": presets, **more}


@unittest.skipUnless(HAVE_MATPLOTLIB, f"{PYTHON} has no matplotlib")
class Report(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.page = os.path.join(self.scratch.name, "page")

    def tearDown(self):
        self.scratch.cleanup()

    def write(self, name, document):
        path = os.path.join(self.scratch.name, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(document if isinstance(document, str) else json.dumps(document))
        return path

    def report(self, *options):
        done = vidkv("report", *options, self.page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(os.path.join(self.page, "index.html"), encoding="utf-8") as f:
            return f.read()

    def test_machine_date_version_and_command(self):
        page = self.report("--kl", self.write("kl.json", kl()))
        self.assertIn("vidkv 1.2.3 on A Processor, 2026-01-02 03:04 UTC: vidkv eval --json", page)
        old = kl()
        del old["run"]
        self.assertIn("not in this file", self.report("--kl", self.write("kl.json", old)))

    def test_a_second_report_keeps_the_first_ones_sections(self):
        self.report("--kl", self.write("kl.json", kl()))
        page = self.report("--video", self.write("video.json", video()))
        for words in ("Divergence on text, near", "kl-near.png", "Video questions", "accuracy.png"):
            self.assertIn(words, page)
        for name in ("kl-near.png", "accuracy.png"):
            self.assertGreater(os.path.getsize(os.path.join(self.page, name)), 1000)

    def test_what_is_no_measurement(self):
        no_error = kl()
        del no_error["presets"][1]["kld_se"]
        for words, option, document in (("no 'model'", "--kl", video()), ("no 'clips'", "--video", kl()), ("protocol is far", "--kl", kl("far")),
                                        ("protocol is near", "--far", kl()), ("a preset has no 'kld_se'", "--kl", no_error), ("it is no object", "--kl", "[1]"),
                                        ("is not what vidkv eval kl", "--kl", "words"), ("it has no presets", "--kl", kl(presets=[])),
                                        ("no number", "--video", video(clips="three"))):
            done = vidkv("report", option, self.write("wrong.json", document), self.page)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done.stderr)
            self.assertIn(words, done.stderr)
            self.assertFalse(os.path.exists(self.page))

    def test_all_is_no_folder(self):
        done = vidkv("report", "all", cwd=self.scratch.name)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done.stderr)
        self.assertIn("vidkv report page", done.stderr)
        self.assertEqual(os.listdir(self.scratch.name), [])

    def plotting(self, code):
        """Runs code after `import report`; its JSON."""
        done = subprocess.run([PYTHON, "-c", f"import json, sys\nsys.path.insert(0, {os.path.join(ROOT, 'measure', 'eval')!r})\nimport report\n{code}"],
                              capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_accuracy_axis_ends_at_100(self):
        low, high, left = self.plotting(f"document = json.loads({json.dumps(json.dumps(video()))})\naxes = report.plot_accuracy(document).axes[0]\n"
                                        "print(json.dumps([*axes.get_ylim(), axes.get_xlim()[0]]))")
        self.assertEqual((high, left), (100, 0))
        self.assertLess(low, 95)

    def test_error_bars_of_shares(self):
        down, up = (side[0] for side in self.plotting("print(json.dumps(report.wilson(0.9, 100)))"))
        self.assertAlmostEqual(down, 3.3, delta=0.4)  # a standard error is 3 points
        self.assertAlmostEqual(up, 2.6, delta=0.4)
        self.assertEqual(self.plotting("print(json.dumps(report.wilson(1.0, 20)))")[1][0], 0)  # not beyond 100 %

    def test_a_spike_does_not_squash_the_plot(self):
        low, high, cut = self.plotting("from matplotlib import pyplot\naxes = pyplot.figure().add_subplot()\n"
                                       "cut = report.without_outliers(axes, [i / 100 for i in range(300)] + [40.0])\nprint(json.dumps([*axes.get_ylim(), cut]))")
        self.assertTrue(cut)
        self.assertLess(high, 4)
        self.assertLess(low, 0.1)

    def test_colours_are_stable(self):
        colours = self.plotting("print(json.dumps([report.line_colour(n) for n in ['t1.65', 't2.2', 'kt2vt1-stp0.3', 'kt2vt1-stp0.3']]))")
        self.assertEqual(colours[2], colours[3])
        self.assertNotEqual(colours[0], colours[1])


if __name__ == "__main__":
    unittest.main()
