"""Sealed pages (docs/format.md) decoded with plain torch operations, on whatever device their bytes are.

Shapes: data uint8 [pages, bytes], all pages of one size; decoded f32 [pages, kv_heads, 128, head_dim]."""
import functools
import itertools
import math
from typing import NamedTuple

import torch

PAGE = 128
LANES = 4  # of a quad: four channels of keys, four tokens of values
NONE, SIGN, AFFINE = 0, 8, 9
# Code number -> (bits per step, step size, mix, values of each sample of a step), as in docs/format.md.
_MIX_A = (7, 10, 0, 5, 14, 14, 11, 14, 12, 8, 5, 2, 11, 15, 1, 4)
_MIX_B = (0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11)
TRELLIS = {
    1: (1, 0.40, _MIX_A, ((3, 8, 6, 9, 7, 12, 6, 9, 5, 9, 5, 10, 7, 10, 6, 8),)),
    7: (3, 0.30, _MIX_B, ((5, 8, 5, 8, 8, 2, 5, 6, 9, 9, 11, 11, 14, 12, 2, 6), (6, 5, 3, 1, 9, 10, 10, 13, 6, 10, 13, 8, 8, 4, 6, 8))),
    2: (2, 0.40, _MIX_A, ((2, 6, 8, 10, 5, 7, 9, 11, 4, 6, 8, 13, 5, 7, 10, 8),)),
    3: (3, 0.35, _MIX_B, ((1, 4, 6, 6, 9, 10, 7, 11, 3, 5, 7, 8, 8, 9, 12, 14),)),
}
# Code number -> (bits, step size, offset).
UNIFORM = {4: (4, 0.3352, 7.5), 5: (5, 0.1881, 15.5), 6: (6, 0.1041, 31.5), SIGN: (1, 2.0, 0.5), AFFINE: (2, 1.0, 0.0)}
CODE_OF_BITS = {1.0: 1, 1.5: 7, 2.0: 2, 3.0: 3, 4.0: 4}  # of trellis values
NARROWER = {1: NONE, 7: 1, 2: 1, 3: 2, 4: 3}  # than these codes, in still pages
STILL = 255  # in place of the last scale


class Read(NamedTuple):
    """How a row's code is read from the bytes of a lane: (byte[first] >> shift & mask) + (byte[second] >> shift2 & mask2) * factor."""
    first: int
    shift: int
    mask: int
    second: int = 0
    shift2: int = 0
    mask2: int = 0
    factor: int = 0
    sample: int = 0  # which of the step's values it means


def _trellis_code(number, rows):
    """(bytes a lane, a Read for each row, what each code stands for by sample) of a trellis code."""
    bits, step_size, mix, samples = TRELLIS[number]
    planes = 3 if bits == 3 else 1
    words = -(-rows * bits // (8 * planes * len(samples)))
    ring = planes * words
    place = lambda byte: byte % planes * words + byte // planes  # of a byte of the ring in its lane
    reads = []
    for row in range(rows):
        step, sample = divmod(row // words, len(samples))
        byte, shift = divmod(bits * (row % words * (8 * planes // bits) + step), 8)
        reads.append(Read(place(byte), shift, 255 >> shift, place((byte + 1) % ring), 0, (1 << shift) - 1, 1 << 8 - shift, sample))
    values = [[(table[state % 16 ^ mix[state // 16]] - 7.5) * step_size for state in range(256)] for table in samples]
    return ring, reads, values


def _uniform_code(number, rows):
    """Likewise of a uniform code: a plane of the upper four bits where there are more than four, then one of the lower bits."""
    bits, step_size, offset = UNIFORM[number]
    low, upper = (bits, 0) if bits <= 4 else (bits - 4, rows // 2)
    width = rows * low // 8
    reads = []
    for row in range(rows):
        high = (row % upper, 4 * (row // upper), 15, 1 << low) if upper else ()
        reads.append(Read(upper + row % width, low * (row // width), (1 << low) - 1, *high))
    return upper + width, reads, [[(level - offset) * step_size for level in range(1 << bits)]]


class QuadTables:
    """How quads of `rows` rows are read: each field of Read as int32 [10, rows] by code number, and what codes stand for."""

    def __init__(self, rows, device):
        reads = [[Read(0, 0, 0)] * rows for _ in range(10)]
        values = [[[0.0] * 256] * 2 for _ in range(10)]
        self.sizes = [0] * 10  # bytes of a quad
        for numbers, code in ((TRELLIS, _trellis_code), (UNIFORM, _uniform_code)):
            for number in numbers:
                lane, reads[number], meanings = code(number, rows)
                self.sizes[number] = LANES * lane
                values[number] = [meaning + [0.0] * (256 - len(meaning)) for meaning in meanings + meanings[:2 - len(meanings)]]
        self.reads = Read(*(torch.tensor([[getattr(read, name) for read in row] for row in reads], dtype=torch.int32, device=device)
                            for name in Read._fields))
        self.values = torch.tensor(values, device=device).flatten()

    def decode(self, data, start, number):
        """start, number: int [pages, quads], where each quad begins and its code -> f32 [pages, quads, rows, 4]."""
        pages, quads = start.shape
        lane = torch.arange(LANES, device=data.device)
        read = Read(*(table[number].unsqueeze(-1) for table in self.reads))  # [pages, quads, rows, 1]

        def byte(place):
            at = start[..., None, None] + LANES * place + lane
            return data.gather(1, at.flatten(1)).view(pages, quads, -1, LANES).int()

        code = (byte(read.first) >> read.shift & read.mask) + (byte(read.second) >> read.shift2 & read.mask2) * read.factor
        return self.values[code + 256 * read.sample + 512 * number[..., None, None]]


@functools.cache
def quad_tables(rows, device):
    return QuadTables(rows, device)


@functools.cache
def scale_table(device):
    """What a byte of a logarithmic scale stands for: f32 [256]."""
    scales = torch.exp2((torch.arange(256, dtype=torch.float64) - 128) / 8)
    scales[0] = 0
    return scales.float().to(device)


@functools.cache
def dft_basis(n, device):
    """The orthonormal real DFT as a matrix: y = basis x, x = y basis; f32 [n, n]."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi * torch.div(k + 1, 2, rounding_mode="floor") * i / n
    alone = (k == 0) | ((k == n - 1) & (n % 2 == 0))
    wave = torch.where(alone | (k % 2 == 1), angle.cos(), angle.sin())
    return (wave * torch.where(alone, 1 / n, 2 / n).sqrt()).float().to(device)


@functools.cache
def unrotation(n, device):
    """The matrix that undoes the rotation of values: x = rotated x matrix; f32 [n, n]."""
    even = n & -n
    odd = n // even
    x = torch.eye(n, dtype=torch.float64).view(n, odd, even)
    if odd > 1:
        x = torch.einsum("rke,ki->rie", x, dft_basis(odd, "cpu").double())
    half = 1
    while half < even:
        a, b = x.reshape(n, -1, 2, half).unbind(2)
        x, half = torch.stack((a + b, a - b), 2).view(n, odd, even), 2 * half
    state, signs = 1, []
    for _ in range(n):
        state = (1664525 * state + 1013904223) % 2**32
        signs.append(-1.0 if state >> 31 else 1.0)
    return (x.view(n, n) * torch.tensor(signs, dtype=torch.float64) / math.sqrt(even)).float().to(device)


def _halves(data):
    """uint8 [..., 2 n] -> f32 [..., n], read as f16."""
    return data.contiguous().view(torch.float16).float()


def _decode_same(tables, data, numbers):
    """Quads with these codes, one behind the other from the first byte of each page on: (f32 [pages, quads, rows, 4], bytes of them)."""
    ends = list(itertools.accumulate((tables.sizes[number] for number in numbers), initial=0))
    start = torch.tensor(ends[:-1], device=data.device).expand(data.shape[0], -1)
    return tables.decode(data, start, torch.tensor(numbers, device=data.device).expand_as(start)), ends[-1]


class ChannelPlans:
    """Of one sequence: which channel stands where in the codes, int16 [kv_heads, head_dim], where each channel stands, int64, and what is
    added to it, f32."""

    def __init__(self, order, means, device):
        self.order = order.to(torch.int16).to(device)
        self.place = order.argsort(-1).to(device)
        self.means = None if means is None else means.float().to(device)

    def natural(self, planned):
        """planned [pages, kv_heads, 128, head_dim] in plan order -> in the order of channels."""
        return planned.gather(-1, self.place[None, :, None].expand_as(planned))


def _quads_to_rows(quads, heads, lanes_are_channels):
    """[pages, heads * quads, rows, 4] -> [pages, heads, 128, head_dim]."""
    quads = quads.unflatten(1, (heads, -1))
    return quads.permute(0, 1, 3, 2, 4).flatten(3) if lanes_are_channels else quads.transpose(3, 4).flatten(2, 3)


def decode_keys(params, heads, head_dim, plans, data):
    decode = _trellis_keys if params.key_codec == 1 else _paper_keys
    return _tidy(decode(params, heads, head_dim, plans, data))


def decode_values(params, heads, head_dim, protected, data):
    """protected: tokens with more bits in each of these pages, the same number in all."""
    begin = 16 if params.protect > 0 else 0
    decode = _trellis_values if params.value_codec == 1 else _paper_values
    slots = decode(params, heads, head_dim, protected, data[:, begin:])
    if begin:
        marked = (data[:, :begin, None] >> torch.arange(8, device=data.device, dtype=torch.uint8) & 1).flatten(1).bool()
        slot_of_token = (~marked).int().argsort(dim=-1, stable=True).argsort(-1)
        slots = slots.gather(2, slot_of_token[:, None, :, None].expand_as(slots))
    return _tidy(slots)


def _tidy(x):
    """Numbers that are not finite count as 0, others are held within +-65504, as in the library."""
    return x.where(x.isfinite(), 0).clamp_(-65504, 65504)


def _trellis_keys(params, heads, head_dim, plans, data):
    pages, tables = data.shape[0], quad_tables(PAGE, data.device)
    codes = 64 * int(params.key_bits * (head_dim // LANES)) * heads
    meta = data[:, codes:codes + heads * (2 * head_dim + head_dim // 8)].view(pages, heads, -1)
    scale = scale_table(data.device)[meta[..., :head_dim].int()]
    mean = meta[..., head_dim:2 * head_dim].contiguous().view(torch.int8).float() / 8
    pairs = meta[..., 2 * head_dim:].int()
    number = torch.stack((pairs & 15, pairs >> 4), -1).view(pages, -1).long()
    start = 64 * (number.cumsum(-1) - number)  # a quad of b bits takes 64 b bytes
    levels = _quads_to_rows(tables.decode(data, start, number), heads, lanes_are_channels=True)
    planned = plans.means[:, None] + scale[:, :, None] * (mean[:, :, None] + levels)
    return plans.natural(planned)


def _paper_keys(params, heads, head_dim, plans, data):
    pages, tables, group = data.shape[0], quad_tables(PAGE, data.device), params.group_size
    wide = (math.floor(head_dim * (params.key_bits - 1) + 0.5) + 2) // 4 * 4
    narrow = head_dim - wide
    quads, codes = _decode_same(tables, data, ([AFFINE] * (wide // LANES) + [SIGN] * (narrow // LANES)) * heads)
    levels = _quads_to_rows(quads, heads, lanes_are_channels=True).view(pages, heads, PAGE // group, group, head_dim)
    meta = _halves(data[:, codes:]).view(pages, heads, PAGE // group, 1, -1)
    scale, minimum, magnitude = meta.split((wide, wide, narrow), -1)
    parts = [minimum + scale * levels[..., :wide], magnitude * levels[..., wide:]]
    if narrow:
        parts[1] = parts[1] @ dft_basis(narrow, data.device)
    return plans.natural(torch.cat(parts, -1).flatten(2, 3))


def _trellis_values(params, heads, head_dim, protected, data):
    pages, tables, scales = data.shape[0], quad_tables(head_dim, data.device), scale_table(data.device)
    plain, better = CODE_OF_BITS[params.value_bits], 2 if params.value_bits < 2 else 3
    usual = [better if slot < protected else plain for slot in range(0, PAGE, LANES)]
    head_bytes, vector_bytes = sum(tables.sizes[number] for number in usual), head_dim + head_dim // 2
    mean_bytes, direction_bytes = 2 + vector_bytes, 2 + vector_bytes + PAGE // 2
    saved = tables.sizes[plain] - tables.sizes[NARROWER[plain]]
    meta = data[:, heads * head_bytes:].view(pages, heads, PAGE)
    codes = data[:, :heads * head_bytes].view(pages, heads, head_bytes)
    block = codes[..., -mean_bytes:]
    still = meta[..., -1:] == STILL
    moves = still & (block[..., 1:2] == 0)
    more = torch.nn.functional.pad(codes, (direction_bytes, 0))[..., -mean_bytes - direction_bytes:-mean_bytes]  # even if there is no room
    per_head = lambda numbers: torch.tensor(numbers, device=data.device)
    number = per_head(usual)
    for kind, size in ((still, mean_bytes), (moves, mean_bytes + direction_bytes)):
        fewer = min(-(-size // saved), len(usual))
        number = torch.where(kind, per_head(usual[:-fewer] + [NARROWER[plain]] * fewer), number)
    size = per_head(tables.sizes)[number]
    start = size.cumsum(-1) - size + head_bytes * torch.arange(heads, device=data.device)[:, None]
    quads = tables.decode(data, start.flatten(1), number.flatten(1))
    scale = torch.cat((scales[meta[..., :-1].int()], scales[torch.where(still, block[..., :1], meta[..., -1:]).int()]), -1)
    mean_scale = scales[torch.where(moves, more[..., :1], block[..., 1:2]).int()]
    mean = torch.where(still, _shared_vector(mean_scale, block[..., 2:], head_dim), 0)
    direction = torch.where(moves, _shared_vector(scales[more[..., 1:2].int()], more[..., 2:2 + vector_bytes], head_dim), 0)
    along = torch.where(moves, _half_bytes_with_sign(more[..., -(PAGE // 2):]), 0)
    rows = scale.unsqueeze(-1) * _quads_to_rows(quads, heads, lanes_are_channels=False) + mean.unsqueeze(2)
    rows = rows + along.unsqueeze(-1) * direction.unsqueeze(2)
    return rows @ unrotation(head_dim, data.device)


def _shared_vector(scale, numbers, head_dim):
    """scale [pages, heads, 1], numbers: uint8 [pages, heads, bytes] -> f32 [pages, heads, head_dim]."""
    upper, lower = numbers[..., :head_dim].contiguous().view(torch.int8).int(), numbers[..., head_dim:].int()
    return scale / 2048 * (16 * upper + torch.cat((lower & 15, lower >> 4), -1))


def _half_bytes_with_sign(data):
    halves = torch.cat((data & 15, data >> 4), -1).int()
    return ((halves & 7) - (halves & 8)).float()


def _paper_values(params, heads, head_dim, protected, data):
    pages, group = data.shape[0], params.group_size
    affine = [first < protected or params.value_bits == 2 for first in range(0, PAGE, group)]
    code_sizes = [group * head_dim // 4 if two else -(-group * head_dim // 5) for two in affine]
    meta_sizes = [4 * head_dim if two else 2 * head_dim for two in affine]
    codes, meta = data.split((heads * sum(code_sizes), heads * sum(meta_sizes)), 1)
    codes = codes.view(pages, heads, -1).split(code_sizes, -1)
    meta = meta.view(pages, heads, -1).split(meta_sizes, -1)
    groups = [_affine_group(c, m, head_dim) if two else _ternary_group(c, m, head_dim) for two, c, m in zip(affine, codes, meta)]
    return torch.cat(groups, 2)


def _affine_group(codes, meta, head_dim):
    """codes [pages, heads, bytes], meta [pages, heads, 4 head_dim] -> f32 [pages, heads, group, head_dim]."""
    pages, heads, size = codes.shape
    tables = quad_tables(head_dim, codes.device)
    quads, _ = _decode_same(tables, codes.flatten(0, 1), [AFFINE] * (size // tables.sizes[AFFINE]))
    rows = _quads_to_rows(quads.view(pages, -1, *quads.shape[2:]), heads, lanes_are_channels=False)
    scale, minimum = _halves(meta).unsqueeze(2).chunk(2, -1)
    return minimum + scale * rows


def _ternary_group(codes, meta, head_dim):
    """codes [pages, heads, bytes], meta [pages, heads, 2 head_dim] -> f32 [pages, heads, group, head_dim]. Multiplying a byte by 3
    pushes its next digit out past 8 bits."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.int32, device=codes.device)
    digits = ((codes.int().unsqueeze(2) * powers[:, None] & 255) * 3 >> 8).flatten(2)
    whole = digits.shape[2] // (LANES * head_dim) * LANES * head_dim  # the last byte may have digits that stand for nothing
    rows = digits[..., :whole].view(*digits.shape[:2], -1, head_dim, LANES).transpose(3, 4).flatten(2, 3)
    return (rows - 1) * _halves(meta).unsqueeze(2)
