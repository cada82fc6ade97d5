"""What stands behind the events of a clip, for clips that look like footage: textures under a camera that stands still or
pans slowly, cuts, and a sensor's noise. Numpy only.

Levels are as high as the small model of models/tiny, which was trained on flat backgrounds, bears without packing
(docs/fidelity.md has its accuracy on each)."""
from dataclasses import dataclass

import numpy as np

CHUNK = 256  # frames that are made at once: clips may be long


@dataclass(frozen=True)
class Scene:
    """One camera's look. Texture and noise in grey levels; speed in pixels per frame; shots in frames, (0, 0): no cuts."""
    texture: float = 0
    noise: float = 0
    speed: float = 0
    shots: tuple = (0, 0)


STILL = Scene(texture=14, noise=3)
NOISY = Scene(texture=7, noise=12)
PANNING = Scene(texture=14, noise=3, speed=0.5)
CUTTING = Scene(texture=14, noise=3, shots=(16, 80))
EVERY = (STILL, NOISY, PANNING, CUTTING)  # one after the other: "mixed"


def smooth(grid, height, width):
    """A periodic grid of numbers [rows, columns, 3], bilinear between them, at `height` x `width` pixels."""
    rows, columns = grid.shape[:2]
    y, x = np.arange(height) * rows / height, np.arange(width) * columns / width
    top, left = y.astype(int), x.astype(int)
    down, right = (y - top)[:, None, None], (x - left)[None, :, None]
    upper, lower = grid[top], grid[(top + 1) % rows]
    lines = upper * (1 - down) + lower * down
    return lines[:, left] * (1 - right) + lines[:, (left + 1) % columns] * right


def texture(rng, size, width, level):
    """A dim picture [size, width, 3] that goes on at its right edge where it began at its left: blotches and finer grain."""
    picture = rng.uniform(12, 38, 3).astype(np.float32) * np.ones((size, width, 1), np.float32)
    for cell, share in ((size // 4, 0.8), (size // 12, 0.6)):
        grey = rng.standard_normal((size // cell, width // cell, 1), dtype=np.float32)
        colour = rng.standard_normal((size // cell, width // cell, 3), dtype=np.float32)
        picture += level * share * smooth(0.8 * grey + 0.6 * colour, size, width)
    return np.clip(picture, 0, 90)


def seen(picture, at, size):
    """What a camera sees `at` pixels, not a whole number, from the left edge."""
    whole, part = int(at), at - int(at)
    columns = (whole + np.arange(size + 1)) % picture.shape[1]
    view = picture[:, columns]
    return view[:, :-1] * (1 - part) + view[:, 1:] * part


def shot(rng, scene, frames, size):
    """Frames of one shot [n, size, size, 3]."""
    picture = texture(rng, size, 4 * size, scene.texture)
    start, speed = rng.uniform(0, 4 * size), scene.speed * rng.uniform(0.5, 1.5) * rng.choice([-1, 1])
    if not speed:
        return np.broadcast_to(seen(picture, start, size), (frames, size, size, 3))
    return np.stack([seen(picture, (start + speed * i) % (4 * size), size) for i in range(frames)])


def background(rng, scene, frames, size):
    """float32 [n, size, size, 3], without noise. Cuts fall on even frames, as events do."""
    low, high = scene.shots
    parts, left = [], frames
    while left:
        length = min(left, 2 * int(rng.integers(low // 2, high // 2 + 1)) if high else left)
        parts.append(shot(rng, scene, length, size))
        left -= length
    return np.concatenate(parts)


def several(rng, scenes, frames, size):
    """The scenes one after the other, in an order of chance, each for an equal share: (background, noise of each frame)."""
    cuts = 2 * (np.linspace(0, frames // 2, len(scenes) + 1).astype(int))
    image, noise = np.empty((frames, size, size, 3), np.float32), np.empty(frames, np.float32)
    for which, first, last in zip(rng.permutation(len(scenes)), cuts, cuts[1:]):
        image[first:last] = background(rng, scenes[which], int(last - first), size)
        noise[first:last] = scenes[which].noise
    return image, noise


def add_noise(rng, image, noise):
    """Of a sensor: independent in each pixel, colour and frame. In place."""
    for first in range(0, len(image), CHUNK):
        part = image[first:first + CHUNK]
        part += rng.standard_normal(part.shape, dtype=np.float32) * noise[first:first + CHUNK, None, None, None]
