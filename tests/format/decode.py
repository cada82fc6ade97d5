"""Reads a saved VidKV cache: a decoder written from docs/format.md alone, for tests.

Tables are taken from that page. rows() gives every cell of every layer; a file that the page tells a reader to refuse raises BadFile.
"""

import math
import pathlib
import struct

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "format.md"
PAGE = 128
PAPER, TRELLIS = 0, 1


class BadFile(Exception):
    pass


def require(condition, what):
    if not condition:
        raise BadFile(what)


# ---- the document's tables ----


def blocks():
    """(name, lines) of the fenced blocks that have a name."""
    name, lines, out = None, [], []
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if name is None:
                name, lines = line[3:], []
            else:
                out.append((name, lines))
                name = None
        elif name is not None:
            lines.append(line)
    return out


class Trellis:
    def __init__(self, number, lines):
        self.bits, self.samples = {1: (1, 1), 7: (3, 2), 2: (2, 1), 3: (3, 1)}[number]
        self.values = []
        for line in lines:
            word, *rest = line.split()
            if word == "step":
                self.step = float(rest[0])
            elif word == "mix":
                self.mix = [int(x) for x in rest]
            else:
                self.values.append([int(x) for x in rest])
        self.planes = 3 if self.bits == 3 else 1
        self.per_word = 8 * self.planes // self.bits

    def words(self, rows):
        return -(-rows // (self.per_word * self.samples))

    def size(self, rows):
        return 4 * self.planes * self.words(rows)

    def levels(self, data, rows):
        n = self.words(rows)
        out = [[0] * 4 for _ in range(rows)]
        for lane in range(4):
            ring = 0
            for word in range(n):
                for byte in range(self.planes):
                    ring |= data[4 * n * byte + 4 * word + lane] << (8 * (word * self.planes + byte))
            length = 8 * self.planes * n
            ring |= ring << length  # past the end the ring begins again
            for step in range(n * self.per_word):
                state = ring >> (self.bits * step) & 255
                for sample in range(self.samples):
                    row = (step % self.per_word * self.samples + sample) * n + step // self.per_word
                    if row < rows:
                        out[row][lane] = self.values[sample][(state % 16) ^ self.mix[state // 16]]
        return out


class Uniform:
    def __init__(self, bits):
        self.bits = bits
        self.planes = [bits] if bits in (1, 2, 4) else [4, bits - 4]

    def size(self, rows):
        return rows * self.bits // 2

    def levels(self, data, rows):
        out = [[0] * 4 for _ in range(rows)]
        at = 0
        for width in self.planes:
            n = rows * width // 8
            for row in range(rows):
                for lane in range(4):
                    field = data[at + 4 * (row % n) + lane] >> (width * (row // n)) & ((1 << width) - 1)
                    out[row][lane] = out[row][lane] << width | field
            at += 4 * n
        return out


class Nothing:
    def size(self, rows):
        return 0

    def levels(self, data, rows):
        return [[0] * 4 for _ in range(rows)]


def read_codes():
    """Code number -> (how levels are packed, step, offset)."""
    codes = {0: (Nothing(), 0.0, 0.0), 8: (Uniform(1), 2.0, 0.5), 9: (Uniform(2), 1.0, 0.0)}
    for name, lines in blocks():
        if name.startswith("trellis "):
            table = Trellis(int(name.split()[1]), lines)
            codes[int(name.split()[1])] = (table, table.step, 7.5)
        if name == "uniform":
            for line in lines:
                bits, step, offset = line.split()
                codes[int(bits)] = (Uniform(int(bits)), float(step), float(offset))
    return codes


CODES = read_codes()
TRELLIS_OF_BITS = {1.0: 1, 1.5: 7, 2.0: 2, 3.0: 3}


# ---- transforms and scales ----


def log_scale(u):
    return 2.0 ** ((u - 128) / 8) if u else 0.0


def dft_basis(n):
    """basis[k][i] of the orthonormal real DFT."""
    out = []
    for k in range(n):
        alone = k == 0 or (n % 2 == 0 and k == n - 1)
        wave = math.cos if alone or k % 2 == 1 else math.sin
        norm = math.sqrt((1 if alone else 2) / n)
        out.append([norm * wave(2 * math.pi * ((k + 1) // 2) * i / n) for i in range(n)])
    return out


def undo_dft(y):
    basis = dft_basis(len(y))
    return [sum(basis[k][i] * y[k] for k in range(len(y))) for i in range(len(y))]


def signs(n):
    state, out = 1, []
    for _ in range(n):
        state = (1664525 * state + 1013904223) % 2**32
        out.append(-1.0 if state >> 31 else 1.0)
    return out


def undo_rotation(x):
    n = len(x)
    even = n & -n
    odd = n // even
    x = list(x)
    if odd > 1:
        for place in range(even):
            x[place::even] = undo_dft(x[place::even])
    for block in range(odd):
        half = 1
        while half < even:
            for i in range(block * even, (block + 1) * even, 2 * half):
                for j in range(i, i + half):
                    x[j], x[j + half] = x[j] + x[j + half], x[j] - x[j + half]
            half *= 2
    return [v * s / math.sqrt(even) for v, s in zip(x, signs(n))]


def halves(data, at, n):
    return struct.unpack_from(f"<{n}e", data, at)


# ---- pages ----


class Shape:
    """The header of a file."""

    FIELDS = "<8sffiiiiifiiiiq"

    def __init__(self, data):
        require(len(data) >= struct.calcsize(self.FIELDS), "cut off")
        (magic, self.key_bits, self.value_bits, self.key_codec, self.value_codec, self.group, self.residual, self.sinks, self.protect,
         self.layers, self.heads, self.dim, self.sequences, self.cells) = struct.unpack_from(self.FIELDS, data)
        require(magic == b"VIDKVKV2", "not a saved cache of this version")
        require(self.key_codec in (PAPER, TRELLIS) and self.value_codec in (PAPER, TRELLIS), "unknown codec")
        require(0 < self.dim <= 512 and self.dim % 8 == 0 and self.heads > 0 and self.layers > 0, "impossible shape")
        require(self.sequences > 0 and self.cells > 0 and self.group in (32, 64, 128) and 0 <= self.sinks <= 32, "impossible shape")

    @property
    def channels(self):
        return self.heads * self.dim

    @property
    def wide(self):
        return (math.floor(self.dim * (self.key_bits - 1) + 0.5) + 2) // 4 * 4


def paper_keys(shape, plans, data):
    dim, wide, group = shape.dim, shape.wide, shape.group
    narrow = dim - wide
    codes_size = wide // 4 * 128 + narrow // 4 * 64
    group_meta = 2 * (2 * wide + narrow)
    meta_size = PAGE // group * group_meta
    require(len(data) == shape.heads * (codes_size + meta_size), "size of a key page")
    rows = [[0.0] * shape.channels for _ in range(PAGE)]
    for head, (order, _) in enumerate(plans):
        at, meta = head * codes_size, shape.heads * codes_size + head * meta_size
        planned = [[0.0] * dim for _ in range(PAGE)]
        for quad in range(dim // 4):
            packing = CODES[9 if 4 * quad < wide else 8][0]
            levels = packing.levels(data[at:at + packing.size(PAGE)], PAGE)
            at += packing.size(PAGE)
            for t in range(PAGE):
                first = meta + t // group * group_meta
                for lane in range(4):
                    c = 4 * quad + lane
                    if c < wide:
                        scale, minimum = halves(data, first + 2 * c, 1)[0], halves(data, first + 2 * wide + 2 * c, 1)[0]
                        planned[t][c] = minimum + scale * levels[t][lane]
                    else:
                        scale = halves(data, first + 4 * wide + 2 * (c - wide), 1)[0]
                        planned[t][c] = scale if levels[t][lane] else -scale
        for t in range(PAGE):
            natural = planned[t][:wide] + (undo_dft(planned[t][wide:]) if narrow else [])
            for c in range(dim):
                rows[t][head * dim + order[c]] = natural[c]
    return rows


def trellis_keys(shape, plans, data):
    dim, heads = shape.dim, shape.heads
    codes_size = 64 * math.floor(shape.key_bits * (dim // 4)) * heads
    meta_size = 2 * dim + dim // 8
    require(len(data) == codes_size + heads * (meta_size + 2), "size of a key page")
    starts = struct.unpack_from(f"<{heads}H", data, codes_size + heads * meta_size)
    rows = [[0.0] * shape.channels for _ in range(PAGE)]
    at = 0
    for head, (order, means) in enumerate(plans):
        require(64 * starts[head] == at, "code start")
        meta = codes_size + head * meta_size
        for quad in range(dim // 4):
            number = data[meta + 2 * dim + quad // 2] >> (4 * (quad % 2)) & 15
            require(number <= 6, "code of a quad")
            packing, step, offset = CODES[number]
            require(at + packing.size(PAGE) <= codes_size, "codes past their end")
            levels = packing.levels(data[at:at + packing.size(PAGE)], PAGE)
            at += packing.size(PAGE)
            for lane in range(4):
                c = 4 * quad + lane
                scale = log_scale(data[meta + c])
                mean = struct.unpack_from("<b", data, meta + dim + c)[0] / 8
                for t in range(PAGE):
                    rows[t][head * dim + order[c]] = means[c] + scale * (mean + (levels[t][lane] - offset) * step)
    require(at == codes_size, "codes do not fill their place")
    return rows


def slots_of(shape, data):
    """Tokens by slot, how many are protected, and where the codes begin."""
    if shape.protect <= 0:
        return list(range(PAGE)), 0, 0
    require(len(data) >= 16, "size of a value page")
    marked = [data[t // 8] >> (t % 8) & 1 for t in range(PAGE)]
    unit = shape.group if shape.value_codec == PAPER else 4
    require(sum(marked) % unit == 0, "mask of protected tokens")
    return [t for t in range(PAGE) if marked[t]] + [t for t in range(PAGE) if not marked[t]], sum(marked), 16


def ternary_digits(data, n):
    stride = -(-n // 5)
    out = [0] * (5 * stride)
    for j in range(stride):
        fraction = data[j]
        for d in range(5):
            fraction *= 3
            out[j + d * stride] = fraction >> 8
            fraction &= 255
    return out[:n]


def paper_values(shape, data):
    dim, group = shape.dim, shape.group
    tokens, protected, begin = slots_of(shape, data)
    two_bit = [g * group < protected or shape.value_bits == 2 for g in range(PAGE // group)]
    code_sizes = [group * dim // 4 if two else -(-group * dim // 5) for two in two_bit]
    meta_sizes = [dim * (4 if two else 2) for two in two_bit]
    require(len(data) == begin + shape.heads * (sum(code_sizes) + sum(meta_sizes)), "size of a value page")
    rows = [[0.0] * shape.channels for _ in range(PAGE)]
    quad_size = CODES[9][0].size(dim)
    for head in range(shape.heads):
        at = begin + head * sum(code_sizes)
        meta = begin + shape.heads * sum(code_sizes) + head * sum(meta_sizes)
        for g, two in enumerate(two_bit):
            scale = halves(data, meta, dim)
            if two:
                minimum = halves(data, meta + 2 * dim, dim)
                quads = [CODES[9][0].levels(data[at + q * quad_size:at + (q + 1) * quad_size], dim) for q in range(group // 4)]
            else:
                minimum = [-s for s in scale]
                digits = ternary_digits(data[at:at + code_sizes[g]], group * dim)
            for slot in range(group):
                row = rows[tokens[g * group + slot]]
                for c in range(dim):
                    level = quads[slot // 4][c][slot % 4] if two else digits[(slot // 4 * dim + c) * 4 + slot % 4]
                    row[head * dim + c] = minimum[c] + scale[c] * level
            at += code_sizes[g]
            meta += meta_sizes[g]
    return rows


def trellis_values(shape, data):
    dim = shape.dim
    tokens, protected, begin = slots_of(shape, data)
    plain = TRELLIS_OF_BITS[shape.value_bits]
    numbers = [(2 if shape.value_bits < 2 else 3) if 4 * q < protected else plain for q in range(PAGE // 4)]
    codes_size = sum(CODES[number][0].size(dim) for number in numbers)
    require(len(data) == begin + shape.heads * (codes_size + PAGE), "size of a value page")
    rows = [[0.0] * shape.channels for _ in range(PAGE)]
    for head in range(shape.heads):
        at, meta = begin + head * codes_size, begin + shape.heads * codes_size + head * PAGE
        for quad, number in enumerate(numbers):
            packing, step, offset = CODES[number]
            levels = packing.levels(data[at:at + packing.size(dim)], dim)
            at += packing.size(dim)
            for lane in range(4):
                slot = 4 * quad + lane
                scale = log_scale(data[meta + slot])
                row = undo_rotation([scale * (levels[c][lane] - offset) * step for c in range(dim)])
                rows[tokens[slot]][head * dim:(head + 1) * dim] = row
    return rows


# ---- the file ----


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        require(n <= len(self.data) - self.at, "cut off")
        self.at += n
        return self.data[self.at - n:self.at]

    def numbers(self, fields):
        return struct.unpack("<" + fields, self.take(struct.calcsize("<" + fields)))

    def number(self, field):
        return self.numbers(field)[0]


def read_plans(shape, reader, count, packs_keys):
    require(count in ((0, shape.heads) if packs_keys else (0,)), "number of channel plans")
    plans = []
    for _ in range(count):
        order = reader.numbers(f"{shape.dim}H")
        require(sorted(order) == list(range(shape.dim)), "a plan is no permutation")
        plans.append((order, reader.numbers(f"{shape.dim}e") if shape.key_codec == TRELLIS else ()))
    return plans


def sealed_rows(shape, keys, plans, data):
    if keys:
        return (trellis_keys if shape.key_codec == TRELLIS else paper_keys)(shape, plans, data)
    return (trellis_values if shape.value_codec == TRELLIS else paper_values)(shape, data)


def tidy(x):
    return max(-65504.0, min(65504.0, x)) if math.isfinite(x) else 0.0


def read_sequence(shape, reader, keys):
    """Rows of all cells; cells never written are zero."""
    packs = (shape.key_bits if keys else shape.value_bits) != 16
    writes, _, plan_count = reader.numbers("qBI")
    require(writes >= 0, "negative count")
    plans = read_plans(shape, reader, plan_count, keys and packs)
    if reader.number("B"):
        _, seen, sampled = reader.numbers("dqq")
        require(0 <= sampled <= seen, "query statistics")
        reader.take(2 * shape.heads * shape.dim * (shape.dim + 1) + 4 * shape.channels)
    sinks = []
    if reader.number("B"):
        sinks = [reader.numbers(f"{shape.channels}e") for _ in range(shape.sinks)]
    rows = []
    for page in range(-(-shape.cells // PAGE)):
        state, _ = reader.number("B"), reader.take(16)
        require(state <= 2, "state of a page")
        if state == 0:
            rows += [[0.0] * shape.channels] * PAGE
            continue
        last_write, written, size = reader.number("q"), int.from_bytes(reader.take(16), "little"), reader.number("I")
        require(0 <= last_write <= writes, "a page written after the last row")
        data = reader.take(size)
        if state == 1:
            require(size == 256 * shape.channels, "size of an open page")
            rows += [list(halves(data, 2 * shape.channels * t, shape.channels)) for t in range(PAGE)]
            continue
        require(packs and (not keys or plans), "a sealed page without plans")
        require(page > 0 or len(sinks) == shape.sinks, "a sealed page without sink rows")
        decoded = sealed_rows(shape, keys, plans, data)
        for t in range(PAGE):
            row = [tidy(x) for x in decoded[t]] if written >> t & 1 else [0.0] * shape.channels
            rows.append(list(sinks[t]) if page == 0 and t < shape.sinks and written >> t & 1 else row)
    return rows[:shape.cells]


def checksum(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return value


def read_cache(path):
    """The shape, and [layer]["keys" or "values"][sequence][cell][channel]."""
    data = pathlib.Path(path).read_bytes()
    shape = Shape(data)
    require(len(data) >= struct.calcsize(Shape.FIELDS) + 8, "cut off")
    require(checksum(data[:-8]) == int.from_bytes(data[-8:], "little"), "checksum")
    reader = Reader(data[:-8])
    reader.take(struct.calcsize(Shape.FIELDS))
    layers = []
    for _ in range(shape.layers):
        for length in reader.numbers(f"{shape.sequences}q"):
            require(0 <= length <= shape.cells, "length of a sequence")
        layer = {}
        for side in ("keys", "values"):
            dim, _ = reader.numbers("iB")
            require(dim in (0, shape.dim), "head_dim")
            layer[side] = [read_sequence(shape, reader, side == "keys") for _ in range(shape.sequences)]
        layers.append(layer)
    require(reader.at == len(reader.data), "bytes left over")
    return shape, layers
