"""Blocks that are not packed in vLLM <-> the bytes of packed blocks."""
import numpy as np
import torch

from .. import _core

BLOCK = 128


def _aligned(size):
    raw = torch.zeros(size + 64, dtype=torch.uint8)
    at = -raw.data_ptr() % 64
    return raw[at : at + size]


class CpuOrder:
    """Where CPU_ATTN puts an element of a key or value inside a block: found by writing numbers, because it depends on the machine."""

    def __init__(self, kv_heads, head_dim, dtype):
        from vllm import _custom_ops as ops
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        isa = _get_attn_isa(dtype, BLOCK, head_dim)
        count = BLOCK * kv_heads * head_dim
        self.at = []
        for side in range(2):
            found = torch.zeros(2 * count, dtype=torch.int64)
            for shift in (0, 8, 16, 24):  # every dtype holds 0 .. 255
                number = (torch.arange(count) >> shift & 255).to(dtype).view(BLOCK, kv_heads, head_dim)
                rows = [torch.zeros_like(number), torch.zeros_like(number)]
                rows[side] = number
                block = torch.zeros((1, kv_heads, 2 * BLOCK, head_dim), dtype=dtype)
                k, v = block.chunk(2, dim=2)
                ops.cpu_attn_reshape_and_cache(rows[0], rows[1], k, v, torch.arange(BLOCK), isa)
                found |= block.flatten().to(torch.int64) << shift
            # the side's half of each head, in the order of memory
            half = found.view(kv_heads, 2, BLOCK * head_dim)[:, side].flatten()
            places = torch.arange(2 * count).view(kv_heads, 2, BLOCK * head_dim)[:, side].flatten()
            at = torch.empty(count, dtype=torch.int64)
            at[half] = places
            self.at.append(at)

    def take(self, block):
        flat = block.flatten()
        return flat[self.at[0]], flat[self.at[1]]

    def put(self, block, keys, values):
        flat = torch.empty(block.numel(), dtype=block.dtype)
        flat[self.at[0]], flat[self.at[1]] = keys.to(block.dtype), values.to(block.dtype)
        block.copy_(flat.view(block.shape))


class PlainOrder:
    """[kv_heads, tokens, keys then values], as on GPUs."""

    def take(self, block):
        rows = block.permute(1, 0, 2).cpu()
        keys, values = rows.chunk(2, dim=2)
        return keys.flatten(), values.flatten()

    def put(self, block, keys, values):
        heads, tokens, both = block.shape
        sides = [x.view(tokens, heads, both // 2) for x in (keys, values)]
        block.copy_(torch.cat(sides, dim=2).permute(1, 0, 2).to(block.dtype))


class Packer:
    """One block of scratch that packs f16 or bf16 rows and reads them back. Queries are not known here: keys are packed without them."""

    def __init__(self, kv_heads, head_dim, params, dtype, on_cpu):
        self.shape = (BLOCK, kv_heads, head_dim)
        memory = _aligned(_core.block_bytes(params, kv_heads, head_dim))
        self.native = _core.Blocks(memory.view(1, -1), kv_heads, head_dim, params, 0)
        self.order = CpuOrder(kv_heads, head_dim, dtype) if on_cpu else PlainOrder()

    def pack(self, block, begins):
        keys, values = (x.float().reshape(self.shape).contiguous() for x in self.order.take(block))
        pages = 1 if begins else 2
        as_int = lambda *x: np.array(x, np.int32)
        table = np.zeros((1, pages), np.int32)
        self.native.write(keys, values, as_int(0, BLOCK), as_int(pages * BLOCK), table)
        return self.native.export_block(0)

    def unpack(self, data, block):
        self.native.import_block(0, data)
        rows = []
        for side in ("keys", "values"):
            out = torch.empty((BLOCK, self.shape[1] * self.shape[2]), dtype=torch.float16)
            self.native.read(side, 0, out)
            rows.append(out.flatten())
        self.order.put(block, *rows)
