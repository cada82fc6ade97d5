"""vidkv show and vidkv verify, on the golden files of the format and on damaged ones."""
import json
import pathlib
import tempfile
import unittest

from test_cli import vidkv

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "format" / "golden"


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.good = GOLDEN / "good" / "t1.65-stp0.2.vidkv"

    def refused(self, path, says, command="verify"):
        done = vidkv(command, str(path))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn(says, done.stderr)

    def test_verify_says_that_a_file_is_whole(self):
        for path in sorted((GOLDEN / "good").glob("*.vidkv")):
            done = vidkv("verify", str(path))
            self.assertEqual((done.returncode, done.stdout), (0, f"{path}: whole, {path.stat().st_size} bytes\n"), done.stderr)

    def test_verify_sees_any_changed_byte(self):
        data = self.good.read_bytes()
        changed = self.folder / "changed.vidkv"
        for at in (9, 130, 300, len(data) // 2, len(data) - 100):
            changed.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1:])
            self.refused(changed, "cut off or altered")
        changed.write_bytes(data[:-1])
        self.refused(changed, "cut off or altered")
        self.refused(changed, "cut off or altered", "show")

    def test_what_is_no_file_of_this_version_is_named(self):
        self.refused(GOLDEN / "bad" / "version2.vidkv", "another version of the format")
        self.refused(pathlib.Path(__file__), "is no VidKV file")
        self.refused(self.folder, "is no file")
        self.refused(self.folder / "none.vidkv", "No such file", "show")

    def test_show(self):
        done = vidkv("show", str(self.good))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("256 tokens, 1 layers of 48 channels (head_dim 24)", done.stdout)
        self.assertIn("golden", done.stdout)
        about = json.loads(vidkv("show", str(self.good), "--json").stdout)
        self.assertEqual(about["manifest"], {"kind": "golden"})
        self.assertEqual((about["cells"], about["layers"], about["stores"], about["format"]), (256, 1, 2, 3))
        self.assertEqual((about["key_bits"], about["value_bits"]), (1.5, 1.5))
        self.assertEqual(about["sections"], {"manifest": 18})
        self.assertEqual(about["bytes"], self.good.stat().st_size)
        self.assertEqual(json.loads(vidkv("show", str(GOLDEN / "good" / "k2v2.vidkv"), "--json").stdout)["preset"], "k2v2")


if __name__ == "__main__":
    unittest.main()
