"""The decoder written from docs/format.md against the core, on golden files."""

import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

import decode

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = os.environ["VIDKV_GOLDEN"]


def read_by_core(path):
    """(exit status, f16 rows as one list, what it says)."""
    result = subprocess.run([GOLDEN, "read", str(path)], capture_output=True, check=False)
    return result.returncode, struct.unpack(f"<{len(result.stdout) // 2}e", result.stdout), result.stderr.decode()


def read_by_document(path):
    """Keys, then values of each layer and sequence, up to the last page that any has."""
    _, stores = decode.read_file(path)
    pages = 1 + max(number for _, rows in stores.values() for number in rows)
    out = []
    for layer in range(1 + max(layer for layer, _, _ in stores)):
        for side in (0, 1):
            for sequence in range(1 + max(sequence for _, _, sequence in stores)):
                shape, rows = stores[layer, side, sequence]
                empty = [[0.0] * shape.channels] * decode.PAGE
                out += [x for number in range(pages) for row in rows.get(number, empty) for x in row]
    return out


class GoodFiles(unittest.TestCase):
    def test_decoder_gives_what_the_core_reads(self):
        files = sorted((HERE / "golden" / "good").glob("*.vidkv"))
        self.assertGreaterEqual(len(files), 16)
        for path in files:
            with self.subTest(path.name):
                status, core, said = read_by_core(path)
                self.assertEqual(status, 0, said)
                document = read_by_document(path)
                self.assertEqual(len(core), len(document))
                largest = max(abs(x) for x in core)
                for i, (a, b) in enumerate(zip(core, document)):
                    # The core rounds to f16 after sums in f32, which lose up to a few units of 2^-24 of the largest element.
                    bound = abs(b) * 2**-11 + 2**-25 + largest * 2**-20
                    self.assertLessEqual(abs(a - b), bound, f"element {i}: {a} in the core, {b} by the document")

    def test_sections_are_as_written(self):
        sections, _ = decode.read_file(HERE / "golden" / "good" / "k2v2.vidkv")
        self.assertEqual(sections, {"manifest": b'{"kind": "golden"}'})

    def test_files_stay_small(self):
        for path in (HERE / "golden").rglob("*.vidkv"):
            self.assertLess(path.stat().st_size, 48 * 1024, path.name)


class BadFiles(unittest.TestCase):
    def refused(self, path):
        status, _, said = read_by_core(path)
        self.assertEqual(status, 1, f"{path.name}: {said}")
        self.assertEqual(said.count("\n"), 1, said)
        with self.assertRaises(decode.BadFile, msg=path.name):
            decode.read_file(path)

    def test_both_readers_refuse_them(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([GOLDEN, "forge", str(HERE / "golden"), folder], check=True)
            files = sorted([*pathlib.Path(folder).glob("*.vidkv"), *(HERE / "golden" / "bad").glob("*.vidkv")])
            self.assertGreaterEqual(len(files), 25)
            for path in files:
                with self.subTest(path.name):
                    self.refused(path)

    def test_the_version_before_is_named(self):
        _, _, said = read_by_core(HERE / "golden" / "bad" / "version2.vidkv")
        self.assertIn("of another version", said)

    def test_cut_anywhere(self):
        data = (HERE / "golden" / "good" / "t1.0.vidkv").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "cut.vidkv"
            for size in (0, 1, 8, 63, 64, 127, 128, 500, len(data) // 2, len(data) - 1):
                with self.subTest(size):
                    path.write_bytes(data[:size])
                    self.refused(path)


if __name__ == "__main__":
    unittest.main()
