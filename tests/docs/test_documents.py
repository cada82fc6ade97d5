"""The documents against the tree: commands parse, the first ones run; paths, links, variables, presets and their bits exist."""
import os
import re
import shlex
import subprocess
import tempfile
import unittest
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VIDKV = os.environ["VIDKV"]
DOCUMENTS = ["README.md", "HACKING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))), "plugins/ggml/README.md",
             "models/README.md", "models/tiny/MODEL_CARD.md"]
SKIPPED_FOLDERS = re.compile(r"^(\.git|build.*|dist|.*\.egg-info|__pycache__)$")
# Made by a command, or names in other projects.
ELSEWHERE = {"ggml-backend-impl.h", "ggml-impl.h", "llama-kv-cache.cpp", "libggml-vidkv.so", "libggml-vidkv-api2.so", "libggml-cpu-avx2.so",
             "libvidkv.so", "kl.json", "far.json", "video.json", "kl-near.png", "index.html", "model.gguf", "mmproj.gguf"}
FILE = re.compile(r"^[\w{}.,*/+-]+\.(h|hpp|cpp|c|py|md|inc|txt|json|sh|png|gguf|csv|pc\.in|yml|toml)$")


def read(document):
    return (ROOT / document).read_text(encoding="utf-8")


def commands(text):
    """Lines of code blocks (indented, or fenced without a language) with continued lines joined and comments cut off."""
    fenced = "\n".join(re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    lines = re.sub(r"\\\n\s*", " ", fenced + "\n" + indented).splitlines()
    return [re.split(r"\s+#\s", line)[0].strip() for line in lines]


def vidkv_arguments(line):
    """What the command vidkv gets in this line, if the line calls it."""
    match = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:build/bin/)?vidkv ((?!=).*)", line)
    return shlex.split(re.sub(r" > \S+| &$| \.\.\.", "", match[1])) if match else None


def vidkv_lines():
    for document in DOCUMENTS:
        for line in commands(read(document)):
            if vidkv_arguments(line):
                yield document, line
    for chosen in all_subcommands():
        for line in help_text(chosen).splitlines():
            if line.startswith("  vidkv ") and "COMMAND" not in line:
                for part in re.split(r"\s{3,}", line.strip())[0].split(" && "):
                    yield " ".join(("vidkv", *chosen, "--help")), part


def all_subcommands(above=()):
    found = [above]
    for section in re.findall(r"(?m)^[A-Za-z' ]+:\n((?:  .*\n)+)", help_text(above)):
        for name in re.findall(r"(?m)^  ([a-z]+) ", section):
            if help_text((*above, name)) not in (None, help_text(above)):
                found += all_subcommands((*above, name))
    return found


@cache
def help_text(subcommands):
    done = subprocess.run([VIDKV, *subcommands, "--help"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def subcommands_of(arguments):
    found = []
    for argument in arguments:
        if argument.startswith("-") or help_text((*found, argument)) in (None, help_text(tuple(found))):
            break
        found.append(argument)
    return tuple(found)


def preset_names(arguments):
    return [name for flag, value in zip(arguments, arguments[1:]) if flag == "--kv" for name in value.split(",")]


class Commands(unittest.TestCase):
    def test_there_are_commands_to_check(self):
        self.assertGreater(len(list(vidkv_lines())), 30)

    def test_options_exist_and_take_these_values(self):
        for document, line in vidkv_lines():
            with self.subTest(document=document, line=line):
                arguments = vidkv_arguments(line)
                chosen = subcommands_of(arguments)
                self.assertTrue(chosen or arguments[0].startswith("-"), "no such command")
                text = help_text(chosen)
                for option in (argument.split("=")[0] for argument in arguments if re.match(r"--?[a-zA-Z]", argument)):
                    self.assertRegex(text, rf"(?m)(^|[\s,]){re.escape(option)}([\s,]|$)", "no such option")
                # Values are checked before --help is answered; what follows -- is a question.
                end = arguments.index("--") if "--" in arguments else len(arguments)
                arguments[end:end] = ["--help"]
                done = subprocess.run([VIDKV, *arguments], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_codecs_exist(self):
        others = set(re.findall(r"[\w.-]+", help_text(("eval", "kl")))) | {"all", "stock", "q8_0", "q4_0"}
        # What stands behind an @ is a file of the reader's.
        names = {name.partition("@")[0] for _, line in vidkv_lines() for name in preset_names(vidkv_arguments(line))} - others
        bench = ["bench", "memory", "--shape", "2/1/64", "--layers", "1", "--tokens", "256", "--kv"]
        for name in sorted(names):
            with self.subTest(preset=name):
                done = subprocess.run([VIDKV, *bench, name], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_first_commands_of_the_readme_run(self):
        run = [line for line in commands(read("README.md")) if re.match(r"build/bin/vidkv (data|presets|ask clips/)", line)]
        self.assertEqual([line.split()[1] for line in run][:2], ["data", "ask"])
        with tempfile.TemporaryDirectory() as folder:
            for line in run:
                done = subprocess.run([VIDKV, *vidkv_arguments(line)], capture_output=True, text=True, cwd=folder, check=False,
                                      env={**os.environ, "VIDKV_THREADS": "1"})
                self.assertEqual(done.returncode, 0, line + "\n" + done.stderr)


class Names(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = set()
        for folder, below, files in os.walk(ROOT):
            below[:] = [name for name in below if not SKIPPED_FOLDERS.match(name)]
            cls.files |= {str((Path(folder) / name).relative_to(ROOT)) for name in files}

    def exists(self, name, document):
        """From the root, from the document's folder, or, for the end of a path, anywhere. {a,b} and * stand for several."""
        pattern = re.escape(name).replace(r"\*", "[^/]*").replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
        beside = os.path.normpath(os.path.join(os.path.dirname(document), name))
        return beside in self.files or any(re.search(rf"(^|/){pattern}$", file) for file in self.files)

    def test_files(self):
        for document in DOCUMENTS:
            for name in re.findall(r"`([^`\s]+)`", re.sub(r"^```.*?^```", "", read(document), flags=re.MULTILINE | re.DOTALL)):
                if FILE.match(name) and name not in ELSEWHERE and not name.startswith(("build/", "/")):
                    with self.subTest(document=document, name=name):
                        self.assertTrue(self.exists(name, document), "no such file")

    def test_folders(self):
        for document in DOCUMENTS:
            for name in re.findall(r"`([\w./-]+/)`", read(document)):
                if not name.startswith(("build", "dist", "/")):
                    with self.subTest(document=document, name=name):
                        self.assertTrue(any(f"/{file}".find(f"/{name}") >= 0 for file in self.files), "no such folder")

    def test_links(self):
        for document in DOCUMENTS:
            for target in re.findall(r"\]\(([^)#\s]+)", read(document)):
                if "://" not in target:
                    with self.subTest(document=document, target=target):
                        self.assertTrue((ROOT / document).parent.joinpath(target).exists(), "no such file")

    def test_variables(self):
        code = "\n".join((ROOT / file).read_text(encoding="utf-8", errors="ignore") for file in self.files
                         if file.endswith((".cpp", ".h", ".py", ".txt", ".sh", ".cmake", ".inc")) or file.startswith("scripts/"))
        for document in DOCUMENTS:
            for name in set(re.findall(r"\bVIDKV_[A-Z0-9_]*[A-Z0-9]", read(document))):
                with self.subTest(document=document, name=name):
                    self.assertIn(name, code)


class Presets(unittest.TestCase):
    def test_true_bits_of_the_readme(self):
        listed = subprocess.run([VIDKV, "presets"], capture_output=True, text=True, check=True).stdout
        bits = {line.split()[0]: [float(x) for x in line.split()[1:5]] for line in listed.splitlines() if re.match(r"\s*\S+(\s+\d+\.\d+){4}", line)}
        rows = re.findall(r"^\| `([^`]+)` \| ([\d.]+), ([\d.]+)(?: \(([\d.]+), ([\d.]+)\))? \|", read("README.md"), re.MULTILINE)
        self.assertGreater(len(rows), 4)
        for name, k64, v64, k128, v128 in rows:
            with self.subTest(preset=name):
                for stated, exact in zip((k64, v64, k128 or k64, v128 or v64), bits[name]):
                    self.assertAlmostEqual(float(stated), exact, delta=0.006 if stated.count(".") else 0)


if __name__ == "__main__":
    unittest.main()
