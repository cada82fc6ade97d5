"""An installation, moved elsewhere: another user asks a video, C and C++ programs use the library, a Debian package holds it all."""
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

BUILD = os.environ["VIDKV_BUILD"]
CMAKE, CPACK = os.environ["CMAKE"], os.environ["CPACK"]
CONSUMER = pathlib.Path(__file__).parent / "consumer"
COMPILED_IN = {"llama.cpp", "cpp-httplib", "nlohmann-json", "rotate-bits", "xxhash", "cli11"}  # whose licences want their texts beside a copy
BITS_OF_KEYS = r"^1\.6\d\d\n$"  # of t1.65 at head_dim 128


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def another_user():
    """A prefix for commands: `nobody`, who cannot read root's folders; for a user who may not change, none."""
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []


def ask_a_clip(prefix, folder):
    """Asks the clip's first question with nothing of this user's environment; what came out and what should have."""
    folder.mkdir()
    folder.chmod(0o777)
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OMP_WAIT_POLICY": "passive"}
    vidkv = prefix / "bin" / "vidkv"
    run([*another_user(), vidkv, "data", "--seed", "3", "--split", "short", "--count", "1", folder / "clips"], env=bare, cwd="/")
    clip = next((folder / "clips").rglob("*.mp4"))
    return run([*another_user(), vidkv, "ask", clip, "What colour is the circle?", "--kv", "t1.65", "--threads", "1"], env=bare, cwd="/")


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="vidkv-install-"))
        cls.folder.chmod(0o755)
        run([CMAKE, "--install", BUILD, "--prefix", cls.folder / "first"])
        cls.prefix = cls.folder / "moved"
        (cls.folder / "first").rename(cls.prefix)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_another_user_asks_a_video(self):
        answer = ask_a_clip(self.prefix, self.folder / "ask")
        self.assertRegex(answer, "^[a-z]+\n$")

    @unittest.skipUnless(os.getuid() == 0, "only root can become another user, who is refused root's files")
    def test_what_another_user_may_not_touch(self):
        """One line, exit code 1, and everything is as it was."""
        folder = self.folder / "refused"
        ask_a_clip(self.prefix, folder)
        clip = next(folder.rglob("*.mp4"))
        bare = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OMP_WAIT_POLICY": "passive", "VIDKV_VIDEOS_MAX_SIZE": "0"}
        vidkv, question = self.prefix / "bin" / "vidkv", "What colour is the circle?"
        secret, closed, shared = folder / "secret.vidkv", folder / "closed", folder / "shared"
        run([vidkv, "ask", clip, question, "--save-cache", secret], env=bare)
        closed.mkdir()
        shared.mkdir()
        for path, mode in ((closed, 0o755), (shared, 0o1777), (secret, 0o600)):
            path.chmod(mode)
        shutil.copy(secret, shared / "of_root.vidkv")
        shutil.copyfile(clip, folder / "secret.mp4")
        (folder / "secret.mp4").chmod(0o600)
        before = secret.read_bytes()
        for arguments in (["ask", folder / "secret.mp4", question], ["ask", clip, question, "--save-cache", closed / "new.vidkv"],
                          ["ask", clip, question, "--save-cache", shared / "of_root.vidkv"], ["ask", "--load-cache", secret, question],
                          ["chat", "--load-cache", secret], ["chat", clip, "--save-cache", closed / "new.vidkv"], ["show", secret], ["verify", secret],
                          ["pack", secret, folder / "new.vidkv"], ["unpack", secret, folder / "new"]):
            done = subprocess.run([*another_user(), vidkv, *arguments], env=bare, cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), f"{arguments}: {done.stderr}")
            self.assertRegex(done.stderr, "(?i)permi", arguments)
        self.assertEqual((secret.read_bytes(), (shared / "of_root.vidkv").read_bytes(), list(closed.iterdir())), (before, before, []))
        self.assertEqual([path.name for path in folder.iterdir() if path.name.startswith("new")], [])
        # An answer does not depend on a place to keep the video.
        answer = subprocess.run([*another_user(), vidkv, "ask", clip, question], cwd="/", capture_output=True, text=True,
                                env={**bare, "VIDKV_VIDEOS_MAX_SIZE": "1G", "VIDKV_VIDEOS_DIR": str(closed)})
        self.assertRegex(answer.stdout, "^[a-z]+\n$", answer.stderr)
        self.assertEqual(list(closed.iterdir()), [])

    def test_nothing_is_searched_for_on_the_machine_that_built_it(self):
        files = [path for path in self.prefix.rglob("*") if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]
        self.assertGreater(len(files), 6)
        for path in files:
            for line in run(["readelf", "--dynamic", path]).splitlines():
                if "RUNPATH" in line or "RPATH" in line:
                    self.assertIn(line[line.index("["):], ("[$ORIGIN]", "[$ORIGIN/../lib/vidkv]"), path)

    def test_find_package(self):
        build = self.folder / "consumer"
        run([CMAKE, "-S", CONSUMER, "-B", build, f"-DCMAKE_PREFIX_PATH={self.prefix}"])
        run([CMAKE, "--build", build])
        self.assertRegex(run([build / "in_c"]), BITS_OF_KEYS)
        self.assertRegex(run([build / "in_cpp"]), BITS_OF_KEYS)

    def test_pkg_config(self):
        library = next(self.prefix.rglob("vidkv.pc")).parent
        environment = {**os.environ, "PKG_CONFIG_PATH": str(library)}
        flags = run(["pkg-config", "--cflags", "--libs", "vidkv"], env=environment).split()
        self.assertIn(self.prefix.resolve(), [pathlib.Path(flag[2:]).resolve().parent for flag in flags if flag.startswith("-I")])
        for compiler, source in (("cc", "main.c"), ("c++", "main.cpp")):
            program = self.folder / f"with_{compiler}"
            run([compiler, CONSUMER / source, *flags, "-o", program])
            self.assertRegex(run([program], env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)}), BITS_OF_KEYS)

    @unittest.skipUnless(shutil.which("dpkg-deb") and shutil.which("dpkg-shlibdeps"), "dpkg-deb or dpkg-shlibdeps is missing (Debian: dpkg-dev)")
    def test_debian_package(self):
        run([CPACK, "-G", "DEB", "-B", self.folder / "package"], cwd=BUILD)
        package = next((self.folder / "package").glob("*.deb"))
        depends = run(["dpkg-deb", "--field", package, "Depends"])
        self.assertRegex(depends, r"libc6 \(>= 2\.\d+\)")
        self.assertNotIn("llama", depends)
        run(["dpkg-deb", "--extract", package, self.folder / "root"])
        documents = self.folder / "root" / "usr" / "share" / "doc" / "vidkv"
        self.assertIn("Permission is hereby granted", (documents / "copyright").read_text())
        texts = {path.name: path.read_text() for path in (documents / "licences").iterdir()}
        self.assertEqual(set(texts), {*COMPILED_IN, "README"})
        for name in COMPILED_IN:
            self.assertIn(name, texts["README"])
            self.assertRegex(texts[name], "(?i)copyright")
        self.assertRegex(ask_a_clip(self.folder / "root" / "usr", self.folder / "ask-package"), "^[a-z]+\n$")


if __name__ == "__main__":
    unittest.main()
