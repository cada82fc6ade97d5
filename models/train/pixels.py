"""Rendered clips for training the vision tower: most pass through H.264, because that is what the model will see."""
import os
import subprocess
import tempfile

import numpy as np
import torch

import batches
from clips import generate as g


def through_h264(frames, crf):
    """Encode and decode: uint8 [n, s, s, 3] -> the same shape."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        g.write_video(path, frames, crf)
        raw = subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                             capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(frames.shape)


def draw(rng, table):
    """A clip's frames as training sees them: uint8 [n, 3, s, s]."""
    frames = g.render(rng, table)
    if rng.random() < (0.7 if len(table) < 100 else 0.4):  # long clips cost most
        frames = through_h264(frames, int(rng.integers(16, 33)))
    if rng.random() < 0.3:
        frames = np.clip(frames * np.float32(rng.uniform(0.9, 1.08)) + rng.uniform(-6, 6), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


def busy_table(rng, events=12):
    """Events back to back, mostly digits, which are hardest to read; now and then an empty pair."""
    kinds = rng.choice([g.IS_SHAPE, g.IS_DIGIT, g.IS_MOMENT, g.IS_FLASH], size=events, p=[0.25, 0.4, 0.3, 0.05])
    drawn = [dict(kind=int(k), shape=int(rng.integers(6)), colour=int(rng.integers(6)), direction=int(rng.integers(4)),
                  digit=int(rng.integers(10))) for k in kinds]
    lead = rng.integers(0, 2, events) * 2
    table = np.full((int(lead.sum()) + sum(g.LENGTH[e["kind"]] for e in drawn), g.COLUMNS), -1, np.float32)
    table[:, g.KIND] = g.BACKGROUND
    at = 0
    for i, (gap, event) in enumerate(zip(lead, drawn)):
        at += int(gap)
        g.place(rng, event, table, at)
        table[at:at + g.LENGTH[event["kind"]], g.EVENT] = i
        at += g.LENGTH[event["kind"]]
    return table


class Pool:
    """Frame pairs of recent short clips. Rendering costs more than a step of the tower, so each clip serves many steps;
    `refresh` replaces the oldest."""

    def __init__(self, rng, clips):
        self.rng, self.at = rng, 0
        self.clips = [self._clip() for _ in range(clips)]

    def _clip(self):
        table = busy_table(self.rng) if self.rng.random() < 0.75 else g.make_clip(self.rng, int(self.rng.integers(14, 30)))[0]
        return table, draw(self.rng, table)

    def refresh(self):
        self.clips[self.at % len(self.clips)] = self._clip()
        self.at += 1

    def pairs(self, count):
        """(normalised pixels [count, 2, 3, s, s], symbol weights [count, SYMBOLS])"""
        pixels, weights = [], []
        for i in self.rng.integers(len(self.clips), size=max(1, count // 16)):
            table, frames = self.clips[i]
            # Four in five pairs are aligned with the events, the others shifted by a frame as timestamps shift them.
            first = self.rng.integers(0, len(table) // 2 - 1, 16) * 2 + (self.rng.random(16) < 0.2)
            pairs = np.stack([first, first + (self.rng.random(16) > 0.02)], 1)
            pixels.append(frames[pairs])
            weights.append(batches.pair_symbols(table, pairs))
        return batches.normalise(torch.tensor(np.concatenate(pixels))), torch.tensor(np.concatenate(weights))
