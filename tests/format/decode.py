"""Reads a VidKV file: a decoder written from docs/format.md alone, for tests.

Tables are taken from that page. rows() gives every cell of every layer; a file that the page tells a reader to refuse raises BadFile.
"""

import ctypes
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
CODE_OF_BITS = {1.0: 1, 1.5: 7, 2.0: 2, 3.0: 3, 4.0: 4}  # of trellis values
NARROWER = {1.0: 0, 1.5: 1, 2.0: 1, 3.0: 2, 4.0: 3}


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
    """What a part of a file is decoded by: the file's parameters, and the shape of one store."""

    def __init__(self, params):
        (self.key_bits, self.value_bits, self.key_codec, self.value_codec, self.group, self.residual, self.sinks, self.protect) = params
        require(self.key_codec in (PAPER, TRELLIS) and self.value_codec in (PAPER, TRELLIS), "unknown codec")
        require(self.key_bits == 16 or (1 <= self.key_bits <= 2 if self.key_codec == PAPER else 0.5 <= self.key_bits <= 5), "key bits")
        require(self.group in (32, 64, 128) and 0 <= self.sinks <= 32, "impossible parameters")

    def take(self, channels, dim):
        require(0 < dim <= 512 and dim % 8 == 0 and 0 < channels <= 1 << 20 and channels % dim == 0, "impossible shape")
        self.dim, self.heads = dim, channels // dim
        return self

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


def shared_vector(scale, numbers, dim):
    upper = struct.unpack_from(f"<{dim}b", numbers)
    lower = numbers[dim:dim + dim // 2]
    lower = [x & 15 for x in lower] + [x >> 4 for x in lower]
    return [log_scale(scale) / 2048 * (16 * u + v) for u, v in zip(upper, lower)]


def halves_with_sign(data):
    return [(x & 7) - (x & 8) for x in (*(byte & 15 for byte in data), *(byte >> 4 for byte in data))]


def what_is_shared(codes, dim):
    """How many bytes it takes at the end of a still head's codes, the last slot's scale, the mean, the direction, places along it."""
    mean_size, direction_size = 2 + 3 * dim // 2, 2 + 3 * dim // 2 + 64
    block = codes[-mean_size:]
    if block[1] != 0:
        return mean_size, block[0], shared_vector(block[1], block[2:], dim), [0.0] * dim, [0] * PAGE
    require(len(codes) >= mean_size + direction_size, "a direction without room")
    more = codes[-mean_size - direction_size:-mean_size]
    mean, direction = shared_vector(more[0], block[2:], dim), shared_vector(more[1], more[2:], dim)
    return mean_size + direction_size, block[0], mean, direction, halves_with_sign(more[-64:])


def trellis_values(shape, data):
    dim = shape.dim
    tokens, protected, begin = slots_of(shape, data)
    plain, narrow = CODE_OF_BITS[shape.value_bits], NARROWER[shape.value_bits]
    numbers = [(2 if shape.value_bits < 2 else 3) if 4 * q < protected else plain for q in range(PAGE // 4)]
    codes_size = sum(CODES[number][0].size(dim) for number in numbers)
    saved = CODES[plain][0].size(dim) - CODES[narrow][0].size(dim)
    require(len(data) == begin + shape.heads * (codes_size + PAGE), "size of a value page")
    rows = [[0.0] * shape.channels for _ in range(PAGE)]
    for head in range(shape.heads):
        at, meta = begin + head * codes_size, begin + shape.heads * codes_size + head * PAGE
        scales, mean, direction, along, of_head = list(data[meta:meta + PAGE]), [0.0] * dim, [0.0] * dim, [0] * PAGE, numbers
        if scales[-1] == 255:
            size, scales[-1], mean, direction, along = what_is_shared(data[at:at + codes_size], dim)
            wanted = 1 if size == 2 + 3 * dim // 2 else 5
            require(shape.needs & wanted == wanted, "a still head that the file does not announce")
            fewer = -(-size // saved)
            require(fewer <= PAGE // 4 - protected // 4, "a direction without room")
            of_head = numbers[:-fewer] + [narrow] * fewer
        for quad, number in enumerate(of_head):
            packing, step, offset = CODES[number]
            levels = packing.levels(data[at:at + packing.size(dim)], dim)
            at += packing.size(dim)
            for lane in range(4):
                slot = 4 * quad + lane
                scale = log_scale(scales[slot]) * step
                row = undo_rotation([mean[c] + along[slot] * direction[c] + scale * (levels[c][lane] - offset) for c in range(dim)])
                rows[tokens[slot]][head * dim:(head + 1) * dim] = row
    return rows


# ---- the file ----

HEADER = "<8sII2f5ifQQQQ40sQ"
ENTRY = "<32sIiiiQQQQQQ"
STORE = "<iiIIQqif24s"
PAGE_ENTRY = "<qQIHBBq16s16s"
xxhash = ctypes.CDLL("libxxhash.so.0")  # Debian: libxxhash0
xxhash.XXH3_64bits.restype = ctypes.c_uint64


def checksum(data):
    return xxhash.XXH3_64bits(data, ctypes.c_size_t(len(data)))


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        require(n <= len(self.data) - self.at, "cut off")
        self.at += n
        return self.data[self.at - n:self.at]

    def numbers(self, fields):
        return struct.unpack("<" + fields.lstrip("<"), self.take(struct.calcsize("<" + fields.lstrip("<"))))


def read_plans(shape, reader, count):
    sets = []
    for _ in range(count):
        plans = []
        for _ in range(shape.heads):
            order = reader.numbers(f"{shape.dim}H")
            require(sorted(order) == list(range(shape.dim)), "a plan is no permutation")
            plans.append((order, reader.numbers(f"{shape.dim}e") if shape.key_codec == TRELLIS else ()))
        sets.append(plans)
    return sets


def sealed_rows(shape, keys, plans, data):
    if keys:
        return (trellis_keys if shape.key_codec == TRELLIS else paper_keys)(shape, plans, data)
    return (trellis_values if shape.value_codec == TRELLIS else paper_values)(shape, data)


def tidy(x):
    return max(-65504.0, min(65504.0, x)) if math.isfinite(x) else 0.0


def aligned(n):
    return -(-n // 64) * 64


def read_shifts(shape, reader, count):
    """{number of the entry: [(first, step, apart, angles, [(positions, gain, cells)])]}."""
    shifts, last = {}, -1
    pages, = reader.numbers("Q")
    require(1 <= pages <= count, "pages whose keys moved")
    for _ in range(pages):
        entry, first, step, apart, pairs = reader.numbers("Qiiii")
        require(last < entry < count and first >= 0 and 1 <= pairs and first + 2 * pairs <= shape.dim, "a rotation")
        require((step, apart) in ((2, 1), (1, pairs)), "a rotation")
        angles = reader.numbers(f"{pairs}d")
        moves, taken = [], 0
        ways, = reader.numbers("Q")
        require(all(abs(x) < 1000 for x in angles) and 1 <= ways <= 4, "a rotation")
        for _ in range(ways):
            positions, gain, *cells = reader.numbers("ifQQ")
            cells = cells[0] | cells[1] << 64
            require(abs(positions) <= 2**30 and 1e-6 < gain < 1e6 and cells & taken == 0, "keys that moved")
            taken |= cells
            moves.append((positions, gain, cells))
        shifts[entry], last = (first, step, apart, angles, moves), entry
    return shifts


def turn(shape, row, token, shift):
    """A row of keys at the position that it has moved to."""
    first, step, apart, angles, moves = shift
    row = list(row)
    for positions, gain, cells in moves:
        if not cells >> token & 1:
            continue
        for head in range(0, shape.channels, shape.dim):
            for i, angle in enumerate(angles):
                a = head + first + i * step
                c, s = gain * math.cos(positions * angle), gain * math.sin(positions * angle)
                row[a], row[a + apart] = row[a] * c - row[a + apart] * s, row[a] * s + row[a + apart] * c
    return row


def read_page(shape, keys, sets, entry, pages, shift=None):
    """Rows of a page; cells never written are zero."""
    _, at, size, plan, state, begins, _, written, _ = entry
    written = int.from_bytes(written, "little")
    if state == 0:
        require(size == 0 and written == 0, "an empty page that holds something")
        return [[0.0] * shape.channels] * PAGE
    require(at % 64 == 0 and at + size <= len(pages), "where a page lies")
    data = pages[at:at + size]
    if state == 1:
        rows = size // (2 * shape.channels)
        require(size % (2 * shape.channels) == 0 and rows <= PAGE and written >> rows == 0, "size of an open page")
        return [list(halves(data, 2 * shape.channels * t, shape.channels)) for t in range(rows)] + [[0.0] * shape.channels] * (PAGE - rows)
    require((shape.key_bits if keys else shape.value_bits) != 16 and (not keys or plan < len(sets)), "a sealed page without plans")
    decoded = sealed_rows(shape, keys, sets[plan] if keys else None, data)
    if shift:
        decoded = [turn(shape, row, token, shift) for token, row in enumerate(decoded)]
    sinks = shape.sinks if begins else 0
    start = aligned(at + size)
    require(sinks == 0 or start + 2 * sinks * shape.channels <= len(pages), "a sealed page without sink rows")
    rows = [[tidy(x) for x in decoded[t]] if written >> t & 1 else [0.0] * shape.channels for t in range(PAGE)]
    for t in range(sinks):
        if written >> t & 1:
            rows[t] = list(halves(pages, start + 2 * shape.channels * t, shape.channels))
    return rows


def read_store(params, needs, keys, state, pages):
    """(shape, {page number: rows})."""
    reader = Reader(state)
    channels, dim, flags, plan_sets, count, writes, current, bits, zeros = reader.numbers(STORE)
    require(bits == 0 or needs & 8, "bits of a store's own that the file does not announce")
    params = list(params)
    if bits != 0:
        params[0 if keys else 1] = bits
    shape = Shape(params).take(channels, dim)
    shape.needs = needs
    require(flags < 16 and writes >= 0 and not any(zeros), "head of a store")
    require(count <= len(state) // struct.calcsize(PAGE_ENTRY), "cut off")
    entries = [reader.numbers(PAGE_ENTRY) for _ in range(count)]
    require(plan_sets == 0 or (keys and shape.key_bits != 16 and 0 <= current < plan_sets), "number of channel plans")
    sets = read_plans(shape, reader, plan_sets)
    if flags & 4:
        _, seen, sampled = reader.numbers("dqq")
        require(keys and 0 <= sampled <= seen, "query statistics")
        sums = reader.numbers(f"{shape.heads * (dim * (dim + 1) // 2 + dim)}f")
        require(all(abs(x) < math.inf for x in sums), "query statistics")
    shifts = read_shifts(shape, reader, count) if flags & 8 else {}
    require(reader.at == len(state) and (keys or not shifts), "bytes left over")
    out, last = {}, -1
    for index, entry in enumerate(entries):
        number, _, _, _, page_state, begins, last_write, _, _ = entry
        require(number > last and page_state <= 2 and begins <= 1 and 0 <= last_write <= writes, "entry of a page")
        require(page_state == 2 or index not in shifts, "keys that moved in a page that is not packed")
        out[number], last = read_page(shape, keys, sets, entry, pages, shifts.get(index)), number
    return shape, out


def part(data, at, size, wanted, table_at):
    require(at % 64 == 0 and 128 <= at <= table_at and size <= table_at - at, "a range that lies outside")
    require(checksum(data[at:at + size]) == wanted, "checksum")
    return data[at:at + size]


def require_zeros_between(data, ranges):
    ranges.sort()
    for (_, end), (start, _) in zip(ranges, ranges[1:]):
        require(0 <= start - end < 64 and not any(data[end:start]), "something between the ranges")


def read_file(path):
    """({name: section}, {(layer, side, sequence): (shape, {page number: rows})})."""
    data = pathlib.Path(path).read_bytes()
    require(len(data) >= struct.calcsize(HEADER), "cut off")
    magic, needs, _, *params, size, table_at, count, table_checksum, _, own = struct.unpack_from(HEADER, data)
    require(magic == b"VIDKVKV3" and needs < 16, "not a file of this version")
    require(own == checksum(data[:120]), "checksum of the header")
    require(size == len(data) and 128 <= table_at <= size and size - table_at == 96 * count, "where the table lies")
    require(checksum(data[table_at:]) == table_checksum, "checksum of the table")
    sections, stores, ranges = {}, {}, [(0, 128), (table_at, size)]
    for i in range(count):
        name, kind, layer, side, sequence, *numbers = struct.unpack_from(ENTRY, data, table_at + 96 * i)
        require(kind in (0, 1), "kind of an entry")
        content = part(data, *numbers[:3], table_at)
        ranges.append((numbers[0], numbers[0] + numbers[1]))
        if kind == 0:
            name = name.rstrip(b"\0").decode()
            require(name and name not in sections, "name of a section")
            sections[name] = content
            continue
        key = layer, side, sequence
        require(layer >= 0 and side in (0, 1) and sequence >= 0 and key not in stores, "which store it is")
        pages = part(data, *numbers[3:], table_at)
        ranges.append((numbers[3], numbers[3] + numbers[4]))
        stores[key] = read_store(params, needs, side == 0, content, pages)
    require_zeros_between(data, ranges)
    return sections, stores
