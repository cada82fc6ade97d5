"""Layers whose keys are not in CPU memory: the codes are kept beside the CPU's stores and read with plain torch operations."""
import math

import torch
from transformers.utils import logging

from .dense import dense_attention
from .storage import NativeStorage

logger = logging.get_logger(__name__)


class TorchStorage(NativeStorage):
    """Packs and holds codes as NativeStorage does; what is read is decoded, moved to the device of the keys and attended to there."""

    def __init__(self, params, batch, kv_heads, key_dim, value_dim, cells):
        super().__init__(params, batch, kv_heads, key_dim, value_dim, cells)
        logger.warning_once("VidKVCache: there are no kernels for this device yet: codes are held in CPU memory, and a layer is decoded to the "
                            "device when it is read, which is slower; device memory is saved all the same.")

    def write(self, row, first_cell, keys, values):
        super().write(row, first_cell, keys.cpu(), values.cpu())

    def observe(self, row, q):
        super().observe(row, q.cpu())

    def attend(self, row, q, cells, mask, causal, scale, softcap, sinks):
        keys = self.read(row, "keys", cells, q.dtype, q.device)[None]
        values = self.read(row, "values", cells, q.dtype, q.device)[None]
        if mask is None and causal:
            n = q.shape[1]
            mask = torch.zeros(n, cells, device=q.device).masked_fill_(
                torch.ones(n, cells, dtype=torch.bool, device=q.device).triu(cells - n + 1), -math.inf)
        mask = None if mask is None else mask[None, None].to(q.dtype)
        return dense_attention(q[None], keys, values, mask, False, scale, softcap, sinks)[0]

    def clone(self):
        copy = super().clone()
        copy.__class__ = TorchStorage
        return copy
