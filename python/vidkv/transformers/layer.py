"""One layer of a VidKVCache: pending rows -> storage (f16 rows, then codes) -> attention."""
import math

import torch
from transformers.cache_utils import CacheLayerMixin

from .dense import dense_attention
from .packed import PackedTensor
from .storage import NativeStorage
from .torch_storage import TorchStorage

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class VidKVLayer(CacheLayerMixin):
    """Keys and values of one layer.

    update() keeps the new rows aside; the attention function writes them once it has seen the mask, because leading masked
    columns are left padding, which gets no cell: the first real token of every row is its first cell.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, params, max_length=None, seal_at_once=True, force_torch=False):
        self.params, self.max_length, self.seal_at_once, self.force_torch = params, max_length, seal_at_once, force_torch
        self.storage = None
        self._forget()
        self.is_initialized = False

    def _forget(self):
        self.length = 0             # tokens, padding included
        self._pending = None        # (keys, values) of the newest update, not written yet
        self._padding = None        # tokens of left padding per row; None until known
        self._marks = []            # (row, positions) to protect, not handed to the storage yet
        self._scale = None

    # ---- what transformers asks of a layer

    def lazy_initialization(self, key_states, value_states):
        """key_states, value_states: [batch, kv_heads, n, head_dim]."""
        batch, kv_heads, tokens, key_dim = key_states.shape
        value_dim = value_states.shape[-1]
        for head_dim in (key_dim, value_dim):
            if head_dim % 8 or not 8 <= head_dim <= 512:
                raise ValueError(f"VidKVCache: head_dim must be a multiple of 8 from 8 to 512, not {head_dim}")
            self.params.check(head_dim)
        self.batch_size, self.kv_heads, self.key_dim, self.value_dim = batch, kv_heads, key_dim, value_dim
        self.dtype, self.device = key_states.dtype, key_states.device
        kind = NativeStorage if self.device.type == "cpu" and not self.force_torch else TorchStorage
        self.storage = kind(self.params, batch, kv_heads, key_dim, value_dim, self.max_length or max(1024, 2 * tokens), self.device)
        if self.force_torch:
            self.storage.has_kernels = False
        self.is_initialized = True

    def _check(self, keys, values):
        if keys.dtype not in DTYPES or values.dtype != keys.dtype:
            raise ValueError(f"VidKVCache: keys and values must be float32, float16 or bfloat16, both the same, not {keys.dtype} and {values.dtype}")
        if keys.device != values.device or (self.is_initialized and keys.device != self.device):
            raise ValueError(f"VidKVCache: this layer lives on {getattr(self, 'device', keys.device)}, but got keys on {keys.device} and values "
                             f"on {values.device}: one device per layer is allowed")
        if keys.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise ValueError(f"VidKVCache: keys and values must be [batch, kv_heads, n, head_dim], not {tuple(keys.shape)} and {tuple(values.shape)}")
        if not self.is_initialized:
            return
        if keys.shape[0] != self.batch_size:
            raise ValueError(f"VidKVCache: the cache holds a batch of {self.batch_size}, but got a batch of {keys.shape[0]}: "
                             "use a new cache, or call reset() first")
        if keys.shape[1] != self.kv_heads or keys.shape[3] != self.key_dim or values.shape[3] != self.value_dim:
            raise ValueError(f"VidKVCache: the layer holds {self.kv_heads} KV heads of {self.key_dim} and {self.value_dim}, "
                             f"but got {tuple(keys.shape)} and {tuple(values.shape)}")
        if keys.dtype != self.dtype:
            raise ValueError(f"VidKVCache: the cache holds {self.dtype}, but got {keys.dtype}: use a new cache, or call reset() first")

    def update(self, key_states, value_states, *args, **kwargs):
        """Takes new states [batch, kv_heads, n, head_dim]; returns stand-ins for all keys and values (PackedTensor)."""
        self._check(key_states, value_states)
        tokens = key_states.shape[2]
        if self.max_length and self.length + tokens > self.max_length:
            raise ValueError(f"VidKVCache: {self.length} of max_length={self.max_length} tokens are taken, {tokens} more do not fit")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.flush()
        self._seal()
        self._pending = (key_states.detach(), value_states.detach())
        self.length += tokens
        return self._stand_in("keys"), self._stand_in("values")

    def _stand_in(self, side):
        head_dim = self.key_dim if side == "keys" else self.value_dim
        return PackedTensor(self, side, (self.batch_size, self.kv_heads, self.length, head_dim), self.dtype, self.device)

    @property
    def keys(self):
        return self._stand_in("keys") if self.length else None

    @property
    def values(self):
        return self._stand_in("values") if self.length else None

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_seq_length(self):
        return self.length

    def get_max_length(self):
        return self.max_length or -1

    def crop(self, tokens_to_remove):
        """Forgets the newest tokens: -3 forgets three. Positive numbers are refused as transformers 5 does."""
        if tokens_to_remove > 0:
            raise ValueError(f"Calling `crop` with a positive value (`{tokens_to_remove}`) is not supported. "
                             "Please use a negative integer to remove that number of tokens from the cache instead.")
        if tokens_to_remove == 0 or not self.length:
            return
        self.flush()
        self.length = max(0, self.length + tokens_to_remove)
        for row, padding in enumerate(self._padding):
            self.storage.truncate(row, max(0, self.length - padding))
            self._padding[row] = min(padding, self.length)

    def reset(self):
        if self.storage is not None:
            self.storage.clear()
        self.storage, self.is_initialized = None, False
        self._forget()

    def reorder_cache(self, beam_idx):
        """Row i becomes what row beam_idx[i] was."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats):
        if self.is_initialized:
            self._select([row for row in range(self.batch_size) for _ in range(repeats)])

    def batch_select_indices(self, indices):
        """indices: row numbers, or one bool per row."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        self._select(indices.tolist())

    def _select(self, indices):
        if not self.length:
            return
        self.flush()
        self.storage.select(indices)
        self._padding = [self._padding[i] for i in indices]
        self.batch_size = len(indices)

    def offload(self):
        if self.storage is not None:
            self.flush()
            self.storage.to(torch.device("cpu"))

    def prefetch(self):
        if self.storage is not None:
            self.storage.to(self.device)

    def __deepcopy__(self, memo):
        self.flush()
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.params = self.params.__copy__()
        copy._marks = list(self._marks)
        if self.storage is not None:
            copy.storage = self.storage.clone()
            copy._padding = list(self._padding) if self._padding else None
        return copy

    # ---- writing

    def protect(self, row, positions):
        """Marks tokens (positions count padding) of a batch row: their values get more bits once they are packed."""
        self._marks.append((row, positions))

    def flush(self, visible=None):
        """Writes the pending rows. visible: bool [batch, length], what the newest query of each row may see, or None: all."""
        if self._pending is None:
            return
        keys, values = self._pending
        past = self.length - keys.shape[2]
        if self._padding is None or past == 0:
            self._padding = [0] * self.batch_size if visible is None else [self._leading_hidden(row) for row in visible]
        for row, positions in self._marks:
            if row < self.batch_size:
                self.storage.protect(row, [p - self._padding[row] for p in positions if p >= self._padding[row]])
        self._marks = []
        for row, padding in enumerate(self._padding):
            skip = max(0, padding - past)
            self.storage.write(row, past + skip - padding, keys[row, :, skip:], values[row, :, skip:])
        self._pending = None

    @staticmethod
    def _leading_hidden(row):
        seen = row.nonzero()
        return int(seen[0]) if len(seen) else 0

    def _seal(self):
        if self.storage is not None and self.length:
            self.storage.seal(self._scale or 1 / math.sqrt(self.key_dim))

    # ---- reading

    @property
    def wants_queries(self):
        return self.params.key_codec == 1 and self.params.key_bits != 16 or self.params.protect > 0

    def materialize(self, side, tokens):
        """The first `tokens` keys or values, decoded: [batch, kv_heads, tokens, head_dim]; zeros where padding was."""
        if self._pending is not None and self._pending[0].shape[2] == tokens == self.length:
            return self._pending[0 if side == "keys" else 1]
        self.flush()
        head_dim = self.key_dim if side == "keys" else self.value_dim
        out = torch.zeros(self.batch_size, self.kv_heads, tokens, head_dim, dtype=self.dtype, device=self.device)
        for row, padding in enumerate(self._padding):
            if tokens > padding:
                out[row, :, padding:] = self.storage.read(row, side, tokens - padding, self.dtype, self.device)
        return out

    def observe_decoded(self, q):
        """Queries that another attention implementation reads the decoded keys with: [batch, heads, n, head_dim]."""
        if q.dim() == 4 and q.shape[0] == self.batch_size and q.shape[3] == self.key_dim and q.shape[1] % self.kv_heads == 0:
            self.flush()
            self._observe(q)

    def _observe(self, q):
        if not self.wants_queries:
            return
        past = self.length - q.shape[2]
        for row, padding in enumerate(self._padding):
            self.storage.observe(row, q[row, :, max(0, padding - past):].detach().float())

    def attend(self, q, tokens, mask, causal, scale, softcap, sinks):
        """q [batch, heads, n, head_dim] over the first `tokens` tokens; mask: bool or added, [batch or 1, heads or 1, n, tokens],
        or None -> [batch, n, heads, value_dim]."""
        if tokens != self.length:
            raise RuntimeError("VidKVCache: these keys are older than the cache's last crop or update")
        self._scale = scale
        fresh = self._pending
        self.flush(self._visible(mask))
        if fresh is not None and fresh[0].shape[2] == tokens:  # nothing before them: exact attention on the new rows themselves
            out = dense_attention(q, *fresh, mask, causal, scale, softcap, sinks)
        else:
            out = self._attend_codes(q, mask, causal, scale, softcap, sinks)
        self._observe(q)
        if self.seal_at_once:
            self._seal()
        return out

    def _visible(self, mask):
        if mask is None or self._pending is None:
            return None
        newest = mask[:, :, -1]
        newest = newest if newest.dtype == torch.bool else newest > torch.finfo(newest.dtype).min / 2
        return newest.any(1).expand(self.batch_size, -1)

    def _attend_codes(self, q, mask, causal, scale, softcap, sinks):
        out = torch.empty(self.batch_size, q.shape[2], q.shape[1], self.value_dim, dtype=q.dtype, device=q.device)
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        cells = [self.length - padding for padding in self._padding]
        if mask is None and self.storage.attend_batch(q.detach(), out, cells, causal, scale, softcap, sinks):
            return out
        for row, padding in enumerate(self._padding):
            cells = self.length - padding
            row_mask = None if mask is None else _row_mask(mask, row, padding, cells)
            queries = q[row].detach().float()
            if row_mask is not None and row_mask.shape[0] > 1:  # one mask per head
                self._attend_by_head(out[row], queries, row, cells, row_mask, causal, scale, softcap, sinks)
                continue
            shared = None if row_mask is None else row_mask[0]
            out[row] = self.storage.attend(row, queries, cells, shared, causal, scale, softcap, sinks)
        return out

    def _attend_by_head(self, out, q, row, cells, mask, causal, scale, softcap, sinks):
        for head in range(q.shape[0]):  # all heads are computed, one is taken: head-wise masks are rare
            every = self.storage.attend(row, q, cells, mask[head], causal, scale, softcap, sinks)
            out[:, head] = every[:, head]


def _row_mask(mask, row, padding, cells):
    """float16 [heads or 1, n, cells] to add to the scores of a batch row, or None if nothing is hidden."""
    part = mask[row if mask.shape[0] > 1 else 0, :, :, padding:padding + cells]
    if part.dtype == torch.bool:
        if bool(part.all()):
            return None
        return torch.zeros(part.shape, dtype=torch.float16, device=part.device).masked_fill_(~part, -math.inf)
    hidden = part <= torch.finfo(part.dtype).min / 2
    if not bool(hidden.any()) and not bool(part.any()):
        return None
    return part.to(torch.float16).masked_fill(hidden, -math.inf).contiguous()
