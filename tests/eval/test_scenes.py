"""What stands behind the events of a clip: still, noisy, panning and cutting cameras."""
import sys
import unittest
from pathlib import Path

try:
    import numpy as np
except ImportError:
    print("skipped: this Python has no numpy")
    sys.exit(77)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models" / "clips"))
sys.dont_write_bytecode = True
import generate  # noqa: E402
import scenes  # noqa: E402

SIZE = 84


def background(scene, frames=200, seed=4):
    return scenes.background(np.random.default_rng(seed), scene, frames, SIZE)


def changes(frames):
    """Mean difference of each frame from the one before."""
    return np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))


class Scenes(unittest.TestCase):
    def test_a_still_camera_sees_a_texture_that_stays(self):
        frames = background(scenes.STILL)
        self.assertEqual(changes(frames).max(), 0)
        self.assertGreater(frames[0].std(axis=(0, 1)).min(), 3)

    def test_a_panning_camera_moves_it_a_little_in_every_frame(self):
        moved = changes(background(scenes.PANNING))
        self.assertGreater(moved.min(), 0)
        self.assertLess(moved.max(), 5)

    def test_a_cutting_camera_jumps_on_even_frames(self):
        jumps = np.flatnonzero(changes(background(scenes.CUTTING, 600))) + 1
        self.assertGreater(len(jumps), 5)
        self.assertTrue((jumps % 2 == 0).all())
        self.assertGreaterEqual(np.diff(jumps).min(), scenes.CUTTING.shots[0])

    def test_noise_is_new_in_every_frame(self):
        image = np.zeros((300, SIZE, SIZE, 3), np.float32)
        scenes.add_noise(np.random.default_rng(1), image, np.linspace(2, 20, 300, dtype=np.float32))
        self.assertAlmostEqual(float(image[0].std()), 2, delta=0.1)
        self.assertAlmostEqual(float(image[-1].std()), 20, delta=0.5)
        self.assertLess(abs(np.corrcoef(image[10].ravel(), image[11].ravel())[0, 1]), 0.05)


class Clips(unittest.TestCase):
    def test_every_split_is_the_same_for_the_same_seed(self):
        for split in ("still", "noise", "pan", "cuts"):
            frames, asked, pairs = generate.user_clip(3, split, 0)
            again, _, _ = generate.user_clip(3, split, 0)
            self.assertTrue(np.array_equal(frames, again), split)
            self.assertEqual(len(frames), 2 * pairs)
            self.assertTrue(2000 <= pairs * generate.TOKENS_PER_PAIR <= 4000)
            self.assertTrue(4 <= len(asked) <= generate.QUESTIONS_PER_CLIP)

    def test_all_scenes_come_in_a_mixed_clip(self):
        image, noise = scenes.several(np.random.default_rng(2), scenes.EVERY, 400, SIZE)
        self.assertEqual(sorted(set(noise.tolist())), sorted({float(scene.noise) for scene in scenes.EVERY}))
        quiet = changes(image) == 0
        self.assertTrue(150 < quiet.sum() < 300)  # still, noisy before its noise, and between cuts

    def test_what_the_model_was_trained_on_keeps_its_numbers(self):
        self.assertEqual({name: number for name, (number, _, _) in generate.SPLITS.items()},
                         {"long": 0, "short": 1, "still": 2, "noise": 3, "pan": 4, "cuts": 5, "mixed": 6})


if __name__ == "__main__":
    unittest.main()
