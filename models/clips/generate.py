#!/usr/bin/env python3
"""Procedural video clips with questions: the one data generator, for training and for `vidkv data`.

    python3 generate.py --seed S --split SPLIT --count N [--blank] OUT

writes OUT/clip-00000.mp4 ... (H.264, 4 frames per second, 84x84) and OUT/questions.jsonl. Needs numpy and the
ffmpeg program; no torch. The same seed gives the same clips.

A clip is a timeline of events on a dark, noisy background with drifting grey clutter:
  shape   a coloured shape moving in one of four directions, 4 frames
  digit   a coloured digit standing still, 4 frames
  moment  a white digit inside a coloured frame, 2 frames
  flash   the whole screen in one colour, 2 frames, directly before (often also directly after) a shape or digit
Every question has at least two candidates in the clip, so it can be answered only by finding its moment.
Events start on even frames: a video model that merges frames in pairs sees whole pairs.

Splits: short and long are what the small model was trained on. The same events stand before a textured background under a
camera that stands still (still), pans slowly (pan), cuts to another place every 4 to 20 seconds (cuts) or is noisy (noise), all as
long as long; mixed has these four one after the other, and 19,000 to 20,000 visual tokens (scenes.py).
"""
import argparse
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # until there is something to tidy up

try:
    import numpy as np
except ImportError:
    sys.exit("vidkv: numpy is missing: install python3-numpy")

import scenes

SIZE = 84                 # pixels per side: 6x6 patches of 14, merged 2x2 -> 9 visual tokens per frame pair
TOKENS_PER_PAIR = 9
FPS = 4
LEAST_SPACE = 1 << 20     # bytes: with less, a clip that cannot be written is taken for a full disk
COLOURS = {"red": (225, 40, 40), "green": (40, 190, 60), "blue": (60, 90, 245),
           "yellow": (235, 215, 50), "purple": (190, 60, 215), "white": (240, 240, 240)}
COLOUR_NAMES = list(COLOURS)
SHAPES = ["circle", "square", "triangle", "cross", "diamond", "ring"]
PLURALS = ["circles", "squares", "triangles", "crosses", "diamonds", "rings"]
DIRECTIONS = ["left", "right", "up", "down"]
TYPES = ["colour", "shape", "motion", "order", "count", "digit", "moment"]
# (number, least and most frame pairs, scenes behind the events; none: as in training). 126..297, 2007..3996 and 19,000..19,999
# visual tokens. A number is part of a clip's seed and stays.
LONG = (223, 444)
SPLITS = {"long": (0, LONG, ()), "short": (1, (14, 33), ()), "still": (2, LONG, (scenes.STILL,)), "noise": (3, LONG, (scenes.NOISY,)),
          "pan": (4, LONG, (scenes.PANNING,)), "cuts": (5, LONG, (scenes.CUTTING,)), "mixed": (6, (2112, 2222), scenes.EVERY)}
QUESTIONS_PER_CLIP = 7
MAX_COUNT = 3

# Columns of a frame table [frames, COLUMNS], float32. -1 where an attribute does not apply.
KIND, COLOUR, SHAPE, DIRECTION, DIGIT, CX, CY, RADIUS, EVENT = range(9)
COLUMNS = 9
BACKGROUND, IS_SHAPE, IS_DIGIT, IS_MOMENT, IS_FLASH = range(5)   # values of KIND
LENGTH = {IS_SHAPE: 4, IS_DIGIT: 4, IS_MOMENT: 2, IS_FLASH: 2}   # frames

_FONT = ["01110 10001 10011 10101 11001 10001 01110", "00100 01100 00100 00100 00100 00100 01110",
         "01110 10001 00001 00010 00100 01000 11111", "11111 00010 00100 00010 00001 10001 01110",
         "00010 00110 01010 10010 11111 00010 00010", "11111 10000 11110 00001 00001 10001 01110",
         "00110 01000 10000 11110 10001 10001 01110", "11111 00001 00010 00100 01000 01000 01000",
         "01110 10001 10001 01110 10001 10001 01110", "01110 10001 10001 01111 00001 00010 01100"]
GLYPHS = np.array([[[int(bit) for bit in row] for row in glyph.split()] for glyph in _FONT], np.float32)  # [10,7,5]
PALETTE = np.array(list(COLOURS.values()), np.float32)


def generator(domain, *key):
    """A numpy generator for (domain, key...). User sets and training use different domains, so no seed of one
    can reproduce a clip of the other."""
    tag = int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8], "little")
    return np.random.default_rng(np.random.SeedSequence([tag, *(int(k) for k in key)]))


# ---------------------------------------------------------------- timeline

def draw_events(rng, pairs):
    """Events of a clip of `pairs` frame pairs, in order, grouped into units that play without a gap.
    Returns a list of units, each a list of dicts with "kind" and its attributes."""
    room = pairs - 3
    same = int(rng.integers(1, MAX_COUNT + 1))             # how often the counted shape appears
    others = int(rng.integers(1, 4))
    digits, moments, flashes = (int(rng.integers(low, 5)) for low in (2, 2, 2))
    if pairs > 60:
        flashes, moments = max(flashes, 2), max(moments, 2)
    # A short clip has no room for everything: drop what does not fit, at random, but never to a single candidate.
    while True:
        units = 2 * (same + others) + 2 * digits + moments + flashes + (same + others + digits + moments - flashes) * 0.5
        if units <= room:
            break
        drop = rng.choice(5, p=[0.24, 0.24, 0.24, 0.22, 0.06])
        if drop == 0:
            moments = moments - 1 if moments > 2 else 0
        elif drop == 1:
            flashes = flashes - 1 if flashes > 2 else 0
        elif drop == 2:
            digits = digits - 1 if digits > 2 else (0 if same + others else 2)
        elif drop == 3 and others > 1:
            others -= 1
        elif drop == 4 and same > 1:
            same -= 1
    order = rng.permutation(6)
    kinds = [int(order[0])] * same + [int(s) for s in order[1:1 + others]]
    count = len(kinds)
    hues = rng.permutation(6)[:count] if count <= 6 and rng.random() < 0.5 else rng.integers(0, 6, count)
    events = [{"kind": IS_SHAPE, "shape": s, "colour": int(c), "direction": int(rng.integers(4))} for s, c in zip(kinds, hues)]
    numerals = rng.permutation(10)
    events += [{"kind": IS_DIGIT, "digit": int(n), "colour": int(c)} for n, c in zip(numerals[:digits], rng.permutation(5))]
    framed = [{"kind": IS_MOMENT, "digit": int(n), "colour": int(c)} for n, c in zip(numerals[digits:digits + moments], rng.permutation(6))]
    events = [events[i] for i in rng.permutation(len(events))]
    units, hues = [], list(rng.permutation(6)[:flashes])
    while events:
        unit = [events.pop()]
        if hues and (len(hues) > len(events) // 2 or rng.random() < 0.5):
            flash = {"kind": IS_FLASH, "colour": int(hues.pop())}
            unit = [flash] + unit
            if events and len(hues) < len(events) and rng.random() < 0.6:
                unit = [events.pop()] + unit
        units.append(unit)
    units += [[m] for m in framed]
    return [units[i] for i in rng.permutation(len(units))]


def place(rng, event, table, start):
    """Write an event's frames into the frame table."""
    n = LENGTH[event["kind"]]
    rows = table[start:start + n]
    rows[:, KIND] = event["kind"]
    rows[:, COLOUR] = event["colour"]
    if event["kind"] == IS_FLASH:
        return
    if event["kind"] == IS_SHAPE:
        radius = rng.uniform(0.15, 0.21) * SIZE
        step = rng.uniform(0.07, 0.11) * SIZE
        travel = step * (n - 1)
        along = rng.uniform(radius, SIZE - radius - travel) + step * np.arange(n)
        across = rng.uniform(radius, SIZE - radius)
        if event["direction"] in (0, 2):
            along = along[::-1]
        horizontal = event["direction"] < 2
        rows[:, CX], rows[:, CY] = (along, across) if horizontal else (across, along)
        rows[:, SHAPE], rows[:, DIRECTION] = event["shape"], event["direction"]
    else:
        radius = rng.uniform(0.24, 0.34) * SIZE
        low, high = (radius, SIZE - radius) if event["kind"] == IS_DIGIT else (SIZE * 0.45, SIZE * 0.55)
        rows[:, CX], rows[:, CY] = rng.uniform(low, high), rng.uniform(low, high)
        rows[:, DIGIT] = event["digit"]
    rows[:, RADIUS] = radius


def make_clip(rng, pairs):
    """A timeline of `pairs` frame pairs. Returns (table [2*pairs, COLUMNS] float32, events in order);
    each event gets "start" (frame) and "joined" (it follows the event before it without a gap)."""
    units = draw_events(rng, pairs)
    spare = pairs - sum(LENGTH[e["kind"]] // 2 for unit in units for e in unit)
    gaps = np.ones(len(units) + 1, int)                    # at least one empty pair between units
    gaps[[0, -1]] = 0
    spare = max(0, spare - gaps.sum())
    cuts = np.sort(rng.integers(0, spare + 1, len(units)))
    gaps += np.diff(np.concatenate([[0], cuts, [spare]]))
    table = np.full((2 * pairs, COLUMNS), -1, np.float32)
    table[:, KIND] = BACKGROUND
    events, at = [], 0
    for gap, unit in zip(gaps, units):
        at += 2 * int(gap)
        for i, event in enumerate(unit):
            if at + LENGTH[event["kind"]] > 2 * pairs:
                break
            event["start"], event["joined"] = at, i > 0
            place(rng, event, table, at)
            table[at:at + LENGTH[event["kind"]], EVENT] = len(events)
            events.append(event)
            at += LENGTH[event["kind"]]
    return table, events


# ---------------------------------------------------------------- questions

def questions(events):
    """Every question the clip answers, as (type, question, answer, candidates, evidence). Evidence: indexes of the events
    to look at."""
    where = {id(e): i for i, e in enumerate(events)}
    shapes, digits, moments, flashes = ([e for e in events if e["kind"] == k] for k in (IS_SHAPE, IS_DIGIT, IS_MOMENT, IS_FLASH))
    out = []
    if len(shapes) > 1:
        for e in shapes:
            name, hue = SHAPES[e["shape"]], COLOUR_NAMES[e["colour"]]
            if sum(x["shape"] == e["shape"] for x in shapes) == 1:
                out.append(("colour", f"What colour is the {name}?", hue, len(shapes), [where[id(e)]]))
                out.append(("motion", f"Which way does the {name} move?", DIRECTIONS[e["direction"]], len(shapes), [where[id(e)]]))
            if sum(x["colour"] == e["colour"] for x in shapes) == 1:
                out.append(("shape", f"Which shape is {hue}?", name, len(shapes), [where[id(e)]]))
        for s in sorted({e["shape"] for e in shapes}):
            n = sum(e["shape"] == s for e in shapes)
            if n <= MAX_COUNT:
                out.append(("count", f"How many {PLURALS[s]} appear?", str(n), len(shapes), [where[id(e)] for e in shapes if e["shape"] == s]))
    if len(digits) > 1:
        for e in digits:
            hue = COLOUR_NAMES[e["colour"]]
            out.append(("colour", f"What colour is the digit {e['digit']}?", hue, len(digits), [where[id(e)]]))
            out.append(("digit", f"Which digit is {hue}?", str(e["digit"]), len(digits), [where[id(e)]]))
    if len(moments) > 1:
        for e in moments:
            out.append(("moment", f"Which digit is inside the {COLOUR_NAMES[e['colour']]} frame?", str(e["digit"]), len(moments) + len(digits), [where[id(e)]]))
    if len(flashes) > 1:
        for i, e in enumerate(events):
            if e["kind"] != IS_FLASH:
                continue
            follower = events[i + 1] if i + 1 < len(events) else None
            if follower and follower["joined"]:
                what, answer = ("shape", SHAPES[follower["shape"]]) if follower["kind"] == IS_SHAPE else ("digit", str(follower["digit"]))
                out.append(("order", f"Which {what} comes right after the {COLOUR_NAMES[e['colour']]} flash?", answer, len(flashes), [i + 1]))
    return out


def pick(rng, pool, count):
    """`count` questions of the pool (or all of them, when fewer), types spread evenly. Counting questions are drawn
    by answer first, so that the answer 1, which every single shape offers, does not crowd out the others."""
    by_type = {}
    for q in pool:
        by_type.setdefault(q[0], []).append(q)
    if "count" in by_type:
        by_answer = {}
        for q in by_type["count"]:
            by_answer.setdefault(q[2], []).append(q)
        best = max(by_answer)
        by_type["count"] = by_answer[best] + (by_answer["1"] if best != "1" and rng.random() < 0.08 else [])
    for group in by_type.values():
        rng.shuffle(group)
    chosen = []
    while by_type and len(chosen) < count:
        for name in rng.permutation(sorted(by_type)):
            if len(chosen) < count:
                chosen.append(by_type[name].pop())
            if not by_type[name]:
                del by_type[name]
    return chosen


# ---------------------------------------------------------------- pixels

def _inside(rows):
    """Coverage 0..1 of shapes and digits: rows [n, COLUMNS] -> [n, SIZE, SIZE]."""
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    x = grid[None, None, :] - rows[:, CX, None, None]
    y = grid[None, :, None] - rows[:, CY, None, None]
    r = np.maximum(rows[:, RADIUS, None, None], 1)
    out = np.zeros((len(rows), SIZE, SIZE), np.float32)
    ax, ay = np.abs(x), np.abs(y)
    for s in range(len(SHAPES)):
        on = np.flatnonzero((rows[:, KIND] == IS_SHAPE) & (rows[:, SHAPE] == s))
        if not len(on):
            continue
        X, Y, AX, AY, R = x[on], y[on], ax[on], ay[on], r[on]
        distance = [lambda: np.sqrt(X * X + Y * Y) - R,
                    lambda: np.maximum(AX, AY) - R * 0.85,
                    lambda: np.maximum(Y - R * 0.8, AX * 0.87 - Y * 0.5 - R * 0.45),
                    lambda: np.minimum(np.maximum(AX - R * 0.3, AY - R), np.maximum(AY - R * 0.3, AX - R)),
                    lambda: (AX * 1.35 + AY * 0.9) - R,
                    lambda: np.abs(np.sqrt(X * X + Y * Y) - R * 0.78) - R * 0.22][s]()
        out[on] = np.clip(0.5 - distance, 0, 1)
    on = np.flatnonzero(rows[:, DIGIT] >= 0)
    if len(on):
        u = np.floor((x[on] / (r[on] * 0.8) + 1) * 2.5).astype(int)
        v = np.floor((y[on] / r[on] + 1) * 3.5).astype(int)
        hit = (u >= 0) & (u < 5) & (v >= 0) & (v < 7)
        glyph = GLYPHS[rows[on, DIGIT].astype(int)[:, None, None], np.clip(v, 0, 6), np.clip(u, 0, 4)]
        out[on] = glyph * hit
    return out


def plain_background(rng, n):
    """float32 [n, SIZE, SIZE, 3]: one dark tint that swings a little, and dim clutter."""
    tint = rng.uniform(5, 45, 3).astype(np.float32)
    swing = rng.uniform(0, 8) * np.sin(np.arange(n) * rng.uniform(0.01, 0.1) + rng.uniform(0, 6))
    image = np.empty((n, SIZE, SIZE, 3), np.float32)
    image[:] = tint + swing[:, None, None, None].astype(np.float32)
    for _ in range(int(rng.integers(0, 4))):               # dim grey boxes that drift and wrap around
        w, h = rng.integers(8, 30, 2)
        shade = rng.uniform(-15, 30)
        xs = (rng.uniform(0, SIZE) + np.arange(n) * rng.uniform(-1.5, 1.5)) % (SIZE + w) - w
        ys = (rng.uniform(0, SIZE) + np.arange(n) * rng.uniform(-1.5, 1.5)) % (SIZE + h) - h
        for f in range(n):
            x, y = int(xs[f]), int(ys[f])
            image[f, max(y, 0):max(y + h, 0), max(x, 0):max(x + w, 0)] += shade
    return image


def draw_events_into(rng, table, image):
    """The events of a frame table over the background."""
    flash = np.flatnonzero(table[:, KIND] == IS_FLASH)
    image[flash] = PALETTE[table[flash, COLOUR].astype(int)][:, None, None] * 0.85
    moment = np.flatnonzero(table[:, KIND] == IS_MOMENT)
    if len(moment):
        edge = int(rng.integers(7, 11))
        border = np.ones((SIZE, SIZE), bool)
        border[edge:-edge, edge:-edge] = False
        image[moment[:, None], border.nonzero()[0], border.nonzero()[1]] = PALETTE[table[moment, COLOUR].astype(int)][:, None]
    drawn = np.flatnonzero(table[:, RADIUS] > 0)
    if len(drawn):
        rows = table[drawn]
        hue = np.where(rows[:, KIND] == IS_MOMENT, COLOUR_NAMES.index("white"), rows[:, COLOUR]).astype(int)
        cover = _inside(rows)[..., None]
        image[drawn] = image[drawn] * (1 - cover) + PALETTE[hue][:, None, None] * cover


def render(rng, table):
    """Frame table [n, COLUMNS] -> uint8 frames [n, SIZE, SIZE, 3], as the small model was trained on them."""
    image = plain_background(rng, len(table))
    draw_events_into(rng, table, image)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, 5)
    return np.clip(image, 0, 255).astype(np.uint8)


def render_scenes(rng, table, chosen):
    """The same before these scenes."""
    image, noise = scenes.several(rng, chosen, len(table), SIZE)
    draw_events_into(rng, table, image)
    scenes.add_noise(rng, image, noise)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def blank(frames):
    """The same number of frames with nothing on them."""
    return np.full_like(frames, 25)


def write_video(path, frames, crf=20):
    """uint8 frames [n, h, w, 3] -> an H.264 mp4 at FPS; raises RuntimeError with ffmpeg's last line."""
    h, w = frames.shape[1:3]
    command = ["ffmpeg", "-y", "-nostdin", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(FPS),
               "-i", "-", "-c:v", "libx264", "-threads", "1", "-crf", str(crf), "-pix_fmt", "yuv420p", "-fflags", "+bitexact", "-flags:v", "+bitexact",
               "-movflags", "+faststart", path]
    command.remove("-nostdin")                             # frames arrive on standard input
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
    if done.returncode:
        raise RuntimeError((done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"])[-1])


def user_clip(seed, split, index):
    """Clip `index` of a user's set: (frames, chosen questions, pairs)."""
    number, (low, high), behind = SPLITS[split]
    rng = generator("vidkv data v1", seed, number, index)
    while True:
        pairs = int(rng.integers(low, high + 1))
        table, events = make_clip(rng, pairs)
        chosen = pick(rng, questions(events), QUESTIONS_PER_CLIP)
        if len(chosen) >= 4:
            return render_scenes(rng, table, behind) if behind else render(rng, table), chosen, pairs


# ---------------------------------------------------------------- command

class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"vidkv: {message}", file=sys.stderr)
        sys.exit(2)


def whole(low, high):
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {low} to {high}")
        return value
    return parse


def fail(message):
    print(f"vidkv: {message}", file=sys.stderr)
    sys.exit(1)


def interrupted(*_):
    raise KeyboardInterrupt


def show_progress(done, count):
    if sys.stderr.isatty():
        print(f"\r\033[K{f'making clips {done}/{count}' if done < count else ''}", end="", file=sys.stderr, flush=True)


def reason(error, folder):
    """One line, and the right one where ffmpeg only says that it could not write."""
    if error.errno == errno.ENOSPC if isinstance(error, OSError) else shutil.disk_usage(folder).free < LEAST_SPACE:
        return f"no space left for clips in '{folder}': free some, or name another place"
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def main():
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    try:
        make_set()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


def make_set():
    parser = Parser(description="Write video clips (H.264) with questions and answers.")
    parser.add_argument("--seed", type=whole(0, 2 ** 63 - 1), required=True)
    parser.add_argument("--split", choices=list(SPLITS), required=True,
                        help="short: up to 300 visual tokens; long: 2,000 to 4,000; still, noise, pan, cuts: as long, before a texture under a "
                             "still, noisy, panning or cutting camera; mixed: these four in 20,000")
    parser.add_argument("--count", type=whole(1, 100000), required=True, help="number of clips")
    parser.add_argument("--blank", action="store_true", help="the same questions over empty frames")
    parser.add_argument("out", metavar="OUT", help="a new or empty directory")
    args = parser.parse_args()
    if not shutil.which("ffmpeg"):
        fail("the ffmpeg program is missing: install ffmpeg")
    work = None
    parent = os.path.dirname(os.path.abspath(args.out))
    try:
        if os.path.exists(args.out) and os.listdir(args.out):
            fail(f"{args.out} is not empty: name a new directory")
        os.makedirs(parent, exist_ok=True)
        work = tempfile.mkdtemp(prefix=".vidkv-data-", dir=parent)           # a set appears whole or not at all
        lines = []
        for i in range(args.count):
            show_progress(i, args.count)
            frames, chosen, pairs = user_clip(args.seed, args.split, i)
            name = f"clip-{i:05d}.mp4"
            write_video(os.path.join(work, name), blank(frames) if args.blank else frames)
            lines += [json.dumps({"video": name, "question": q, "answer": a, "type": t, "candidates": n,
                                  "visual_tokens": pairs * TOKENS_PER_PAIR}) + "\n" for t, q, a, n, _ in chosen]
        show_progress(args.count, args.count)
        with open(os.path.join(work, "questions.jsonl"), "w", encoding="utf-8") as f:
            f.writelines(lines)
        os.makedirs(args.out, exist_ok=True)
        for name in sorted(os.listdir(work)):                                # questions.jsonl comes last
            os.replace(os.path.join(work, name), os.path.join(args.out, name))
    except (OSError, RuntimeError) as e:
        fail(reason(e, parent))
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
