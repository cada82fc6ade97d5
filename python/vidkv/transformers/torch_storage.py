"""Layers whose keys are not in CPU memory: sealed pages lie on the device of the keys as bytes, and CUDA kernels or plain torch operations
read them.

A store of libvidkv on the CPU packs: it gets the rows of a page when the page is old enough, hands over the packed bytes and forgets
them; it keeps the statistics of the queries. So the bytes are those of any other VidKV cache."""
import copy
import math
from dataclasses import dataclass, field, replace

import torch
from transformers.utils import logging

from .. import Store
from . import cuda
from .storage import NativeStorage
from .torch_codes import PAGE, ChannelPlans, decode_keys, decode_values

logger = logging.get_logger(__name__)
CHUNK_ELEMENTS = 1 << 20  # decoded at once and side: what reading takes beside the codes
QUERIES_AT_ONCE = 64  # that wait on the device until the host counts them
SLOWER = "VidKVCache: {}: the codes lie on the device and are read with plain torch operations, which is slower; memory is saved all the same."


@dataclass
class SealedPage:
    data: torch.Tensor  # uint8 [bytes], on the device; never written to, so copies of a sequence share it
    protected: int      # tokens with more bits


@dataclass
class Rows:
    """One sequence: sealed pages, then rows that are not packed."""
    tail: torch.Tensor                        # float16 [kv_heads, n, head_dim]
    pages: list = field(default_factory=list)
    sinks: torch.Tensor = None                # float16 [kv_heads, sink_tokens, head_dim] of the first page, once it is sealed
    plans: ChannelPlans = None                # keys, once a page is sealed
    writes: int = 0                           # rows written so far
    aged: int = 0                             # pages that have been old enough: sealed, or f16 for good
    last_writes: list = field(default_factory=list)  # of each page behind those: `writes` after its newest row
    addresses: torch.Tensor = None            # of the pages, int64 on the device; None: not known

    def start(self):
        """The first cell of the tail."""
        return PAGE * len(self.pages)

    def page_addresses(self, device):
        if self.addresses is None:
            self.addresses = torch.tensor([page.data.data_ptr() for page in self.pages], dtype=torch.int64, device=device)
        return self.addresses

    def copy(self):
        return replace(self, pages=list(self.pages), last_writes=list(self.last_writes))

    def note_written(self, first, last):
        del self.last_writes[first // PAGE - self.aged:]
        self.last_writes += [self.writes + min(last, end) - first for end in range(first // PAGE * PAGE + PAGE, last + PAGE, PAGE)]
        self.writes += last - first

    def note_truncated(self, cells):
        """A page that is cut through ages anew."""
        reopened = self.aged > cells // PAGE
        self.aged = min(self.aged, cells // PAGE)
        pages = -(-cells // PAGE) - self.aged
        self.last_writes = [self.writes] * pages if reopened else self.last_writes[:pages]
        if cells % PAGE:
            self.last_writes[-1] = self.writes

    def due(self, age):
        """How many more pages are old enough."""
        return sum(self.writes - newest >= age for newest in self.last_writes)


@dataclass
class Held:
    """What a store holds, as vidkv.Stats says it."""
    bytes: int
    cells_written: int
    cells_sealed: int


class DeviceStore:
    """Keys or values of one layer, with the calls of vidkv.Store."""

    def __init__(self, side, kv_heads, head_dim, params, cells, sequences, device):
        self.side, self.kv_heads, self.head_dim, self.params, self.device = side, kv_heads, head_dim, params, device
        self.age = max(params.residual_length, PAGE)
        bits = params.key_bits if side == "keys" else params.value_bits
        self.packer_wants_rows = bits != 16 or (side == "keys" and params.protect > 0)
        packing = copy.copy(params)
        packing.residual_length = 0  # what the packer is given is old enough
        self.packer = Store(side, kv_heads * head_dim, head_dim, packing, cells + PAGE, sequences)
        self.rows = [self._empty() for _ in range(sequences)]
        self.queries = []  # (sequence, q) that the packer has not counted yet

    def _empty(self):
        return Rows(torch.empty(self.kv_heads, 0, self.head_dim, dtype=torch.float16, device=self.device))

    # ---- writing

    def write(self, sequence, first_cell, states):
        """states: [kv_heads, n, head_dim], on the device, behind the rows that are there."""
        rows = self.rows[sequence]
        rows.tail = torch.cat((rows.tail[:, : first_cell - rows.start()].to(states.device), states.to(torch.float16)), 1)
        rows.note_written(first_cell, first_cell + states.shape[1])

    def give_due_pages(self):
        """Hands the pages that are old enough to the packer, with rows behind them that make them so there."""
        if not self.packer_wants_rows:
            return
        for sequence, rows in enumerate(self.rows):
            if pages := rows.due(self.age):
                first = PAGE * rows.aged - rows.start()
                given = rows.tail[:, first:first + PAGE * pages]
                later = torch.zeros_like(given[:, :1]).expand(-1, PAGE, -1)
                self.packer.write(sequence, PAGE * rows.aged, torch.cat((given, later), 1).transpose(0, 1).flatten(1).cpu())

    def seal(self, threads):
        """Takes what the packer makes of the pages that it was given."""
        if not any(rows.due(self.age) for rows in self.rows):
            return
        self.count_queries()
        self.packer.seal(threads)
        for sequence, rows in enumerate(self.rows):
            if pages := rows.due(self.age):
                self._take_sealed(sequence, range(rows.aged, rows.aged + pages))
                rows.aged += pages
                del rows.last_writes[:pages]

    def _take_sealed(self, sequence, pages):
        rows = self.rows[sequence]
        packed = [page for page in (self.packer.sealed_page(sequence, index) for index in pages) if page is not None]
        if packed and not rows.pages:
            rows.sinks = rows.tail[:, : self.params.sink_tokens].clone()
            rows.plans = self._read_plans(sequence) if self.side == "keys" else None
        if self.packer_wants_rows:
            for index in (*pages, pages.stop):  # and the rows behind them
                self.packer.release_page(sequence, index)
        if packed:
            rows.tail = rows.tail[:, PAGE * len(packed):].clone()
        rows.pages += [SealedPage(torch.frombuffer(bytearray(page), dtype=torch.uint8).to(self.device), self._protected(page)) for page in packed]
        rows.addresses = None

    def _protected(self, page):
        counts = self.side == "values" and self.params.protect > 0
        return bin(int.from_bytes(page[:16], "little")).count("1") if counts else 0

    def _read_plans(self, sequence):
        order, means = (bytearray(part) for part in self.packer.channel_plan(sequence))
        order = torch.frombuffer(order, dtype=torch.int16).view(self.kv_heads, -1).long()
        return ChannelPlans(order, torch.frombuffer(means, dtype=torch.float16).view(self.kv_heads, -1), self.device)

    def truncate(self, sequence, cells):
        rows = self.rows[sequence]
        if cells < rows.start():  # what is left of a page that is cut through is packed again later
            rows.tail = self.decode(sequence, cells // PAGE * PAGE, cells).half()
            del rows.pages[cells // PAGE:]
            rows.addresses = None
        else:
            rows.tail = rows.tail[:, : cells - rows.start()]
        if not rows.pages:
            rows.sinks = rows.plans = None
        rows.note_truncated(cells)
        self.count_queries()
        self.packer.truncate(sequence, cells)

    def clear(self):
        self.queries.clear()
        self.packer.clear()
        self.rows = [self._empty() for _ in self.rows]

    # ---- what the packer knows

    def observe_queries(self, sequence, q):
        """q: [n, heads, head_dim]. A few tokens wait on their device, so that decoding need not wait for it."""
        self.queries.append((sequence, q))
        if q.shape[0] > QUERIES_AT_ONCE or len(self.queries) >= QUERIES_AT_ONCE:
            self.count_queries()

    def count_queries(self):
        if not self.queries:
            return
        sequences, parts = zip(*self.queries)
        self.queries.clear()
        for sequence, q in zip(sequences, torch.cat(parts).cpu().split([q.shape[0] for q in parts])):
            self.packer.observe_queries(sequence, q)

    def protect(self, sequence, cells):
        self.packer.protect(sequence, cells)

    def protect_by_queries(self, keys, scale):
        keys.count_queries()
        self.packer.protect_by_queries(keys.packer, scale)

    def load(self, file, layer, row, sequence):
        """Takes what a vidkv.File has: sealed pages to the device as bytes, the rows behind them as they are."""
        cells = max(part.cells for part in file.stores if (part.layer, part.side, part.sequence) == (layer, self.side, row))
        self.packer.resize(max(cells, PAGE) + PAGE, len(self.rows))
        file.load(layer, row, self.packer, sequence)
        rows = self.rows[sequence] = self._empty()
        last = -(-cells // PAGE)
        packed = [page for page in (self.packer.sealed_page(sequence, index) for index in range(last)) if page is not None]
        rows.pages = [SealedPage(torch.frombuffer(bytearray(page), dtype=torch.uint8).to(self.device), self._protected(page)) for page in packed]
        rows.tail = self._read_rows(sequence, rows.start(), cells)
        rows.aged, rows.writes = len(packed), rows.start()
        rows.note_written(rows.start(), cells)
        if packed:
            rows.sinks = self._read_rows(sequence, 0, self.params.sink_tokens)
            rows.plans = self._read_plans(sequence) if self.side == "keys" else None
        for index in range(last):
            self.packer.release_page(sequence, index)

    def _read_rows(self, sequence, first, last):
        rows = torch.empty(last - first, self.kv_heads * self.head_dim, dtype=torch.float16)
        self.packer.read(sequence, first, rows)
        return rows.view(-1, self.kv_heads, self.head_dim).transpose(0, 1).to(self.device)

    # ---- reading

    def decode(self, sequence, first, last):
        """Cells first .. last - 1: float32 [kv_heads, last - first, head_dim]. first: a multiple of 128, or beyond the sealed pages."""
        rows, parts = self.rows[sequence], []
        start = rows.start()
        if first < start:
            pages = rows.pages[first // PAGE: -(-min(last, start) // PAGE)]
            sealed = self._decode_pages(rows, pages)
            if first == 0:
                sealed[:, : self.params.sink_tokens] = rows.sinks.to(sealed.device)
            parts.append(sealed[:, : last - first])
        if last > start:
            parts.append(rows.tail[:, max(0, first - start): last - start].to(self.device).float())
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0] if parts else self._empty().tail.float()

    def _decode_pages(self, rows, pages):
        """[kv_heads, 128 * pages, head_dim]; pages of one size are decoded together."""
        out = torch.empty(len(pages), self.kv_heads, PAGE, self.head_dim, device=self.device)
        kinds = {}
        for index, page in enumerate(pages):
            kinds.setdefault((page.data.numel(), page.protected), []).append(index)
        for (_, protected), members in kinds.items():
            data = torch.stack([pages[i].data.to(self.device) for i in members])
            if self.side == "keys":
                out[members] = decode_keys(self.params, self.kv_heads, self.head_dim, rows.plans, data)
            else:
                out[members] = decode_values(self.params, self.kv_heads, self.head_dim, protected, data)
        return out.transpose(0, 1).flatten(1, 2)

    def sealed_page(self, sequence, page):
        """The packed bytes of a page; None if it is not sealed."""
        pages = self.rows[sequence].pages
        return pages[page].data.cpu().numpy().tobytes() if page < len(pages) else None

    # ---- sequences

    def copy_sequence(self, source, target):
        self.count_queries()
        self.packer.copy_sequence(source, target)
        self.rows[target] = self.rows[source].copy()

    def resize(self, cells, sequences):
        self.packer.resize(cells + PAGE, sequences)
        self.rows += [self._empty() for _ in range(sequences - len(self.rows))]

    def clone(self):
        self.count_queries()
        clone = copy.copy(self)
        clone.queries = []
        clone.packer, clone.rows = self.packer.clone(), [rows.copy() for rows in self.rows]
        return clone

    def to(self, device):
        for rows in self.rows:
            rows.addresses = None
            rows.pages = [SealedPage(page.data.to(device), page.protected) for page in rows.pages]
            rows.tail = rows.tail.to(device)
            rows.sinks = None if rows.sinks is None else rows.sinks.to(device)

    def stats(self):
        tensors = {page.data.data_ptr(): page.data for rows in self.rows for page in rows.pages}  # shared pages count once
        for rows in self.rows:
            plans = (rows.plans.place, rows.plans.means) if rows.plans else ()
            tensors.update({t.data_ptr(): t for t in (rows.tail, rows.sinks, *plans) if t is not None})
        tensors.update({q.data_ptr(): q for _, q in self.queries})
        held = sum(t.numel() * t.element_size() for t in tensors.values()) + self.packer.stats().bytes
        sealed = sum(rows.start() for rows in self.rows)
        return Held(held, sealed + sum(rows.tail.shape[1] for rows in self.rows), sealed)


class TorchStorage(NativeStorage):
    """The storage of a layer on any torch device."""

    def __init__(self, params, batch, kv_heads, key_dim, value_dim, cells, device):
        self.device = device
        super().__init__(params, batch, kv_heads, key_dim, value_dim, cells, device)
        reason = cuda.why_not(params, key_dim, value_dim, device)
        self.has_kernels = not reason
        if reason:
            logger.warning_once(SLOWER.format(reason))

    def load(self, file, layer):
        for row, sequence in enumerate(self.rows):
            for store in (self.keys, self.values):
                store.load(file, layer, row, sequence)

    def _make_store(self, side, head_dim):
        return DeviceStore(side, self.kv_heads, head_dim, self.params, self.cells, self.batch, self.device)

    def write(self, row, first_cell, keys, values):
        self._reserve_for(first_cell + keys.shape[1])
        self.keys.write(self.rows[row], first_cell, keys)
        self.values.write(self.rows[row], first_cell, values)

    def read(self, row, side, cells, dtype, device):
        store = self.keys if side == "keys" else self.values
        chunks = [store.decode(self.rows[row], first, last).to(device, dtype) for first, last in self._chunks(cells)]
        return torch.cat(chunks, 1)

    def seal(self, scale):
        for store in (self.keys, self.values):
            store.give_due_pages()
        super().seal(scale)

    def _chunks(self, cells):
        """Ranges of cells that are decoded at once."""
        step = PAGE * max(1, CHUNK_ELEMENTS // (self.kv_heads * max(self.key_dim, self.value_dim) * PAGE))
        return [(first, min(first + step, cells)) for first in range(0, cells, step)]

    def attend_batch(self, q, out, cells, causal, scale, softcap, sinks):
        """All rows at once, without a mask, where the kernels can: q [batch, heads, n, key_dim], out [batch, n, heads, value_dim]."""
        if not self._kernels_read(q, self.rows, cells):
            return False
        cuda.attention(self.keys, self.values, self.rows, q, out, cells, None, causal, scale, softcap, sinks)
        return True

    def _kernels_read(self, q, sequences, cells):
        return self.has_kernels and q.is_cuda and q.stride(-1) == 1 and all(
            cuda.can_read(self.keys, self.values, sequence, n, q.device) for sequence, n in zip(sequences, cells))

    def attend(self, row, q, cells, mask, causal, scale, softcap, sinks):
        if self._kernels_read(q, [self.rows[row]], [cells]):
            out = torch.empty(1, q.shape[1], q.shape[0], self.value_dim, device=q.device)
            mask = None if mask is None else mask.to(torch.float16).contiguous()
            return cuda.attention(self.keys, self.values, [self.rows[row]], q[None], out, [cells], mask, causal, scale, softcap, sinks)[0]
        return self._attend_by_torch(row, q, cells, mask, causal, scale, softcap, sinks)

    def _attend_by_torch(self, row, q, cells, mask, causal, scale, softcap, sinks):
        heads, n, _ = q.shape
        q = (q * scale).reshape(self.kv_heads, -1, self.key_dim)  # query heads that share keys stand together
        running = _RunningSoftmax(q, self.value_dim, None if sinks is None else sinks.to(q.device).repeat_interleave(n).view(q.shape[:2]))
        newest = torch.arange(n, device=q.device)[:, None] + cells - n
        for first, last in self._chunks(cells):
            scores = q @ self.keys.decode(self.rows[row], first, last).transpose(1, 2)
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.view(self.kv_heads, -1, n, last - first)
            if mask is not None:
                scores = scores + mask[:, first:last]
            if causal:
                scores = scores.masked_fill(torch.arange(first, last, device=q.device) > newest, -math.inf)
            running.add(scores.flatten(1, 2), self.values.decode(self.rows[row], first, last))
        return running.result().view(heads, n, self.value_dim).transpose(0, 1)

    def observe(self, row, q):
        self.keys.observe_queries(self.rows[row], q.transpose(0, 1))

    def to(self, device):
        self.keys.to(device)
        self.values.to(device)


class _RunningSoftmax:
    """softmax(scores) values over chunks of cells, each seen once. Queries that see nothing give zeros."""

    def __init__(self, q, value_dim, sinks):
        self.top = torch.full(q.shape[:2], -math.inf, device=q.device) if sinks is None else sinks
        self.total = torch.zeros(q.shape[:2], device=q.device) if sinks is None else torch.ones_like(sinks)
        self.sums = torch.zeros(*q.shape[:2], value_dim, device=q.device)

    def add(self, scores, values):
        """scores [kv_heads, queries, n], values [kv_heads, n, value_dim]."""
        top = torch.maximum(self.top, scores.amax(-1))
        reference = top.clamp_min(torch.finfo(top.dtype).min)  # -inf - -inf would be no number
        shrink, weights = torch.exp(self.top - reference), torch.exp(scores - reference.unsqueeze(-1))
        self.total = self.total * shrink + weights.sum(-1)
        self.sums = self.sums * shrink.unsqueeze(-1) + weights @ values
        self.top = top

    def result(self):
        return self.sums / self.total.clamp_min(torch.finfo(self.total.dtype).tiny).unsqueeze(-1)
