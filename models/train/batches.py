"""Training batches: the token layout that libmtmd gives a video, questions in parallel, and symbol targets.

A symbol is a fixed vector for one attribute value (a colour, a shape, ...). What a frame pair shows is a sum of
symbols. The language model first learns recall on these sums; the vision tower learns to produce them from pixels;
then the two are joined. Fixed orthonormal symbols let both be trained at the same time.
"""
from dataclasses import dataclass

import numpy as np
import torch

from clips import generate as g
import tokens

GROUPS = [("kind", 5), ("shape", 6), ("colour", 6), ("motion", 4), ("digit", 10)]
FIRST = dict(zip([name for name, _ in GROUPS], np.cumsum([0] + [n for _, n in GROUPS]).tolist()))
SYMBOLS = sum(n for _, n in GROUPS)
SYMBOL_RMS = 0.3
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def symbol_table(width):
    """[SYMBOLS, width], orthogonal rows of root mean square SYMBOL_RMS."""
    gauss = g.generator("vidkv symbols v1", width).standard_normal((width, SYMBOLS))
    return torch.tensor(np.linalg.qr(gauss)[0].T * SYMBOL_RMS * width ** 0.5, dtype=torch.float32)


def name_symbols(model, symbols, encode):
    """Start words at the symbols they name, keys at queries, and outputs at transposed values: attention then begins
    as "find what the question names, copy what is there". Without it the model settles on naming any candidate."""
    words = model.model.embed_tokens.weight
    names = {"kind": ["", " shape", " digit", " frame", " flash"], "shape": g.SHAPES, "colour": g.COLOUR_NAMES,
             "motion": g.DIRECTIONS, "digit": [str(d) for d in range(10)]}
    with torch.no_grad():
        for group, labels in names.items():
            for i, label in enumerate(labels):
                forms = {label, " " + label} | ({" " + g.PLURALS[i]} if group == "shape" else set())
                for form in forms:
                    ids = encode(form)
                    if label.strip() and (len(ids) == 1 or group == "digit"):
                        words[ids[-1]] = words[ids[-1]] * 0.3 + symbols[FIRST[group] + i] / 3
        for layer in model.model.layers:
            attention = layer.self_attn
            if attention.c.heads == attention.c.kv_heads:
                attention.k_proj.weight.copy_(attention.q_proj.weight)
                attention.o_proj.weight.copy_(attention.v_proj.weight.T)


def frame_symbols(table):
    """Frame table [n, COLUMNS] -> weights [n, SYMBOLS] without motion, which takes two frames."""
    out = np.zeros((len(table), SYMBOLS), np.float32)
    kind = table[:, g.KIND]

    def put(rows, group, column):
        at = np.flatnonzero(rows)
        out[at, FIRST[group] + table[at, column].astype(int)] = 1

    put(kind >= 0, "kind", g.KIND)
    put(kind == g.IS_SHAPE, "shape", g.SHAPE)
    put(kind != g.BACKGROUND, "colour", g.COLOUR)          # of the shape, digit, frame or flash: kind tells which
    put((kind == g.IS_DIGIT) | (kind == g.IS_MOMENT), "digit", g.DIGIT)
    return out


def pair_symbols(table, pairs):
    """Frame table and frame indexes [p, 2] -> weights [p, SYMBOLS] of what each pair shows."""
    frames = frame_symbols(table)
    first, second = table[pairs[:, 0]], table[pairs[:, 1]]
    out = (frames[pairs[:, 0]] + frames[pairs[:, 1]]) / 2
    moving = np.flatnonzero((first[:, g.EVENT] == second[:, g.EVENT]) & (first[:, g.KIND] == g.IS_SHAPE) & (pairs[:, 0] != pairs[:, 1]))
    out[moving, FIRST["motion"] + first[moving, g.DIRECTION].astype(int)] = 1
    return out


# What a pair's tokens should know of earlier pairs after the second layer: (name, number of classes).
LINKS = [("after", 7), ("ordinal", g.MAX_COUNT)]


def link_labels(table, pairs):
    """Per pair [p, 2], -1 for no label. after: for a shape or digit, the colour of the flash just before it (6: none);
    ordinal: for a shape, how often it has been seen before. Questions of order and count need these links; training names them so that they are found."""
    seen = table[pairs[:, 0]]
    kind, event = seen[:, g.KIND], seen[:, g.EVENT]
    out = np.full((len(pairs), 2), -1, np.int64)
    counts, known = {}, {}
    for i in np.flatnonzero(event >= 0):
        row, last = seen[i], seen[i - 1] if i else None
        first = last is None or last[g.EVENT] != row[g.EVENT]
        if kind[i] in (g.IS_SHAPE, g.IS_DIGIT) and first:
            out[i, 0] = last[g.COLOUR] if last is not None and last[g.KIND] == g.IS_FLASH else 6
        if kind[i] == g.IS_SHAPE:
            if event[i] not in known:
                known[event[i]] = counts[row[g.SHAPE]] = counts.get(row[g.SHAPE], -1) + 1
            out[i, 1] = min(known[event[i]], g.MAX_COUNT - 1)
    return out


@dataclass
class Layout:
    """One video prefix followed by `questions` segments of `segment` tokens."""
    ids: list                   # prefix token ids
    pairs: np.ndarray           # [p, 2] frame indexes of each merged pair
    visual_at: torch.Tensor     # [9p] where visual tokens stand
    positions: torch.Tensor     # [3, n] M-RoPE
    mask: torch.Tensor          # [questions*segment, n] True where a question row may look
    prefix: int


def group_frames(frames, stamps):
    """What libmtmd merges: [("text", str) or ("pair", i, j)]. With its default timestamps, one every 5 s after a
    frame, frame 0 stands alone and the pairs after it are shifted by one frame."""
    out, waiting, next_stamp = [("text", tokens.VIDEO)], None, 0.0
    for f in range(frames):
        if waiting is None:
            waiting = f
        else:
            out.append(("pair", waiting, f))
            waiting = None
        seconds = f / g.FPS
        if stamps and seconds >= next_stamp:
            if waiting is not None:
                out.append(("pair", waiting, waiting))
                waiting = None
            out.append(("text", f"[{int(seconds // 60)}m{seconds % 60:.2f}s]"))
            next_stamp += 5
    if waiting is not None:
        out.append(("pair", waiting, waiting))
    return out


def make_layout(encode, grid, frames, stamps, questions, segment):
    start, end, pad = (encode.special(s) for s in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"))
    ids = list(encode(tokens.TURN))
    positions = [[i] * 3 for i in range(len(ids))]
    pairs, at = [], []
    p = len(ids)
    for item in group_frames(frames, stamps):
        if item[0] == "text":
            text = encode(item[1])
            ids += text
            positions += [[p + i] * 3 for i in range(len(text))]
            p += len(text)
            continue
        pairs.append(item[1:])
        at += range(len(ids) + 1, len(ids) + 1 + grid * grid)
        ids += [start] + [pad] * (grid * grid) + [end]
        positions += [[p] * 3] + [[p + 1, p + 1 + y, p + 1 + x] for y in range(grid) for x in range(grid)] + [[p + 1 + grid] * 3]
        p += grid + 2
    prefix = len(ids)
    positions += [[p + i] * 3 for i in range(segment)] * questions
    block = torch.ones(segment, segment, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(questions * segment, prefix, dtype=torch.bool), torch.block_diag(*[block] * questions)], 1)
    return Layout(ids, np.array(pairs), torch.tensor(at), torch.tensor(positions).T.contiguous(), mask, prefix)


def key_index(encode, question_ids):
    """Index of the last token that names a shape, a colour or a digit."""
    if not hasattr(encode, "keys"):
        encode.keys = {encode(form)[-1] for word in g.SHAPES + g.PLURALS + g.COLOUR_NAMES for form in (" " + word,)}
        encode.keys |= {encode(str(d))[0] for d in range(10)}
    return max(i for i, token in enumerate(question_ids) if token in encode.keys)


def sample_questions(rng, pool, count):
    """`count` questions, types evenly but counting twice as often, as it is slowest; repeats
    allowed; most of the counting ones with the clip's largest answer."""
    by_type = {}
    for q in pool:
        by_type.setdefault(q[0], []).append(q)
    out = []
    while len(out) < count:
        for name in rng.permutation([*sorted(by_type), *(["count"] if "count" in by_type else [])]):
            group = by_type[name]
            if name == "count" and rng.random() < 0.8:
                best = max(q[2] for q in group)
                group = [q for q in group if q[2] == best]
            out.append(group[rng.integers(len(group))])
    return out[:count]


@dataclass
class Batch:
    layout: Layout
    tables: list                # frame tables, one per clip
    ids: torch.Tensor           # [b, n]
    outputs: torch.Tensor       # [b, 3*questions] three positions per question: the key word, and those that predict answer and end
    targets: torch.Tensor       # [b, 3*questions] answer, answer, end
    questions: list             # [b][questions] (type, question, answer, candidates, evidence)
    evidence: torch.Tensor      # [b, questions, prefix] where the key word's attention should go, rows sum to 1


def evidence(config, layout, tables, asked):
    """Target attention [b, questions, prefix] of each question's key word: the visual tokens of its events (of order
    the first pair, which knows of the flash). For counting, the first token is to hold as much as two events,
    so that what remains for the events tells their number."""
    out = torch.zeros(len(tables), len(asked[0]), layout.prefix)
    per_pair = config.grid ** 2
    for b, (table, questions) in enumerate(zip(tables, asked)):
        shown = np.maximum(table[layout.pairs[:, 0], g.EVENT], table[layout.pairs[:, 1], g.EVENT])
        for k, (kind, _, _, _, events) in enumerate(questions):
            pairs = np.flatnonzero(np.isin(shown, events))
            if kind == "order":
                pairs = pairs[:1]
            at = layout.visual_at.view(-1, per_pair)[torch.tensor(pairs)].flatten()
            out[b, k, at] = 1
            if kind == "count":
                out[b, k, 0] = 4 * per_pair
    return out / out.sum(-1, keepdim=True)


def make_batch(rng, encode, config, clips, pairs, questions, stamps=False):
    """`clips` clips of `pairs` frame pairs, `questions` questions each."""
    tables, asked = [], []
    while len(tables) < clips:
        table, events = g.make_clip(rng, pairs)
        pool = g.questions(events)
        if pool:
            tables.append(table)
            asked.append(sample_questions(rng, pool, questions))
    lead = "\n" if rng.random() < 0.05 else ""
    rows = [[(encode(lead + q[1] + tokens.REPLY), encode(q[2] + tokens.END)) for q in qs] for qs in asked]
    segment = max(len(q) + len(a) for row in rows for q, a in row)
    layout = make_layout(encode, config.grid, 2 * pairs, stamps, questions, segment)
    ids = torch.zeros(clips, layout.prefix + questions * segment, dtype=torch.long)
    ids[:, :layout.prefix] = torch.tensor(layout.ids)
    outputs = torch.zeros(clips, 3 * questions, dtype=torch.long)
    targets = torch.zeros_like(outputs)
    for b, row in enumerate(rows):
        for k, (q, a) in enumerate(row):
            assert len(a) == 2, "answers are one token and the end"
            at = layout.prefix + k * segment
            ids[b, at:at + len(q) + 2] = torch.tensor(q + a)
            # The answer is also asked for at the question's key word ("circle"): matching it there takes one step of
            # attention, and the end of the prompt then learns to copy. Without this, matching is hardly found.
            outputs[b, 3 * k:3 * k + 3] = torch.tensor([at + key_index(encode, q), at + len(q) - 1, at + len(q)])
            targets[b, 3 * k:3 * k + 3] = torch.tensor([a[0], *a])
    return Batch(layout, tables, ids, outputs, targets, asked, evidence(config, layout, tables, asked))


def symbol_tokens(batch, symbols, config, noise):
    """Stand-ins for the vision tower's output: [b, 9p, hidden], every token of a pair alike but for noise."""
    weights = torch.tensor(np.stack([pair_symbols(t, batch.layout.pairs) for t in batch.tables]))
    visual = (weights @ symbols).repeat_interleave(config.grid ** 2, 1)
    return visual + torch.randn_like(visual) * noise


def normalise(frames):
    """uint8 or float frames [..., 3, s, s] in 0..255 -> the processor's scale."""
    return (frames.float() / 255 - MEAN[:, None, None]) / STD[:, None, None]
