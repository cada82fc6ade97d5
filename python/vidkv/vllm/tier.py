"""A tier of packed pages behind vLLM's offloading to host memory (`--kv-transfer-config` with OffloadingConnector and TieringOffloadingSpec):

    {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 8589934592, "block_size": 128,
     "secondary_tiers": [{"type": "vidkv", "store": "redis://cache-host:6379/0", "ttl": 86400, "preset": "t2.2"}]}

A chunk of 128 tokens leaves host memory as packed pages, named by vLLM's own block hash, and comes back as rows. Where vLLM does not load
plug-ins, "type": "VidKVTier" with "module_path": "vidkv.vllm.tier" finds the class."""
import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import numpy as np
import torch
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from .. import Params, _core
from . import entries, keys
from .dense import BLOCK, _aligned
from .store import open_store

logger = logging.getLogger("vllm.vidkv")
LAYOUTS = ("LBHNC", "LBNHC", "BLHNC", "BLNHC")  # orders of vLLM's memory: layers, blocks, heads, tokens, keys then values
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def head_dim_of(model):
    """As the model's configuration says; None if there is none at hand."""
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError):
        return None
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


class Chunks:
    """The rows of a chunk in host memory: [workers][layers][128 tokens]."""

    def __init__(self, config, view, row_bytes, head_dim):
        if len(config.groups) != 1:
            raise ValueError("vidkv: this model has layers of several kinds (sliding windows, hybrid), which the tier does not pack")
        group, blocks = config.groups[0], config.cache.blocks_per_chunk
        if group.tokens_per_block * blocks != BLOCK:
            raise ValueError(f'vidkv: a chunk must have {BLOCK} tokens, not {group.tokens_per_block * blocks} ("block_size": {BLOCK})')
        if config.model.dtype.removeprefix("torch.") not in DTYPES:
            raise ValueError(f"vidkv: a KV cache of {config.model.dtype} quantizes by itself (leave --kv-cache-dtype out)")
        self.layout = config.kv_cache_layout or "LBHNC"
        if self.layout not in LAYOUTS:
            raise ValueError(f"vidkv: the KV cache layout {self.layout} is not known to the tier (there are {', '.join(LAYOUTS)})")
        self.dtype = DTYPES[config.model.dtype.removeprefix("torch.")]
        self.layers, self.workers = len(group.layer_names), 1 if config.replicated_layout else config.parallel.world_size
        self.blocks, self.tokens = blocks, group.tokens_per_block
        self.worker_bytes = config.worker_kv_bytes_per_block * blocks
        self.head_dim = head_dim
        per_token = self.worker_bytes // (self.layers * BLOCK * self.dtype.itemsize)
        self.heads = per_token // (2 * head_dim)
        if self.heads * 2 * head_dim * self.layers * BLOCK * self.dtype.itemsize != self.worker_bytes:
            raise ValueError(f'vidkv: blocks of {config.worker_kv_bytes_per_block} bytes are not those of head_dim {head_dim} ("head_dim": N says it)')
        self.memory = torch.frombuffer(view.cast("B"), dtype=torch.uint8).view(-1, row_bytes)

    def sides(self, chunk, worker, layer):
        """Views of keys and values, [blocks, heads, tokens, head_dim]."""
        at = worker * self.worker_bytes
        raw = self.memory[chunk, at : at + self.worker_bytes].view(self.dtype)
        inner = (self.heads, self.tokens) if self.layout.endswith("HNC") else (self.tokens, self.heads)
        if self.layout.startswith("LB"):
            rows = raw.view(self.layers, self.blocks, *inner, 2 * self.head_dim)[layer]
        else:
            rows = raw.view(self.blocks, self.layers, *inner, 2 * self.head_dim)[:, layer]
        return (rows if self.layout.endswith("HNC") else rows.transpose(1, 2)).split(self.head_dim, dim=-1)

    def take(self, *place):
        """Keys and values as rows [128, heads, head_dim]."""
        return tuple(x.permute(0, 2, 1, 3).reshape(BLOCK, self.heads, self.head_dim).float().contiguous() for x in self.sides(*place))

    def put(self, *place, rows):
        for side, found in zip(self.sides(*place), rows):
            side.copy_(found.view(self.blocks, self.tokens, self.heads, self.head_dim).permute(0, 2, 1, 3))


class Page:
    """One block of scratch, for one thread."""

    def __init__(self, chunks, params):
        memory = _aligned(_core.block_bytes(params, chunks.heads, chunks.head_dim))
        self.shape = (BLOCK, chunks.heads * chunks.head_dim)
        self.native = _core.Blocks(memory.view(1, -1), chunks.heads, chunks.head_dim, params, 0)

    def pack(self, k, v, begins):
        """begins: it is the first of a text, whose first tokens stay f16."""
        as_int, pages = lambda *x: np.array(x, np.int32), 1 if begins else 2
        self.native.write(k, v, as_int(0, BLOCK), as_int(pages * BLOCK), np.zeros((1, pages), np.int32))
        return self.native.export_block(0)

    def unpack(self, data):
        self.native.import_block(0, data)
        rows = []
        for side in ("keys", "values"):
            rows.append(torch.empty(self.shape, dtype=torch.float16))
            self.native.read(side, 0, rows[-1])
        return rows


class Lookup(AsyncLookupManager):
    def __init__(self, tier):
        super().__init__(tier_type=tier.tier_type)
        self._tier = tier

    def batch_lookup(self, keys, req_context):
        return [self._tier.read(key) is not None for key in keys]


class VidKVTier(SecondaryTierManager):
    medium = Medium.STORAGE

    def __init__(self, offloading_spec, primary_kv_view, tier_type, store, preset="t2.2", ttl=None, max_bytes=None, head_dim=None, threads=2,
                 locality=None, backpressure_detector=None):
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        config = offloading_spec.config
        self._params = Params.from_preset(preset)
        if self._params.protect > 0:
            raise ValueError(f"vidkv: preset {preset} makes blocks of unequal size")
        head_dim = head_dim or head_dim_of(config.model.name)
        if head_dim is None:
            raise ValueError(f'vidkv: {config.model.name} does not say its head_dim: "head_dim": N says it')
        self._chunks = Chunks(config, primary_kv_view, self.block_size_bytes, head_dim)
        self._about = {"preset": preset, "layers": self._chunks.layers, "kv_heads": self._chunks.heads, "head_dim": head_dim,
                       "workers": self._chunks.workers}
        self._root = hashlib.sha256(json.dumps([self._fingerprint(config), self._about], sort_keys=True).encode()).digest()
        self._store = open_store(store, ttl, max_bytes)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="vidkv-tier")
        self._jobs = {}
        self._lookup = Lookup(self)

    @staticmethod
    def _fingerprint(config):
        """Which model: its weights where they are files, as other processes see them too."""
        model = SimpleNamespace(model=config.model.name, hf_config=SimpleNamespace(to_dict=dict), dtype=config.model.dtype, quantization=None,
                                revision=None, seed=0)
        return [keys.model_fingerprint(model) if os.path.isdir(config.model.name) else config.model.name, config.model.dtype]

    def _name(self, key):
        return keys.entry_name(self._root, bytes(key))

    def read(self, key):
        """The packed bytes of each worker's layers; None: not there, altered or foreign."""
        name = self._name(key)
        parts = entries.read(self._store.get(name), name, self._about)
        return parts if parts is not None and len(parts) == self._chunks.workers * self._chunks.layers else None

    def _places(self, chunk):
        return [(chunk, worker, layer) for worker in range(self._chunks.workers) for layer in range(self._chunks.layers)]

    def _save(self, names, chunks, ends):
        page, size = Page(self._chunks, self._params), 0
        for key, chunk in zip(names, chunks):
            if self.read(key) is None:
                parts = [page.pack(*self._chunks.take(*place), ends.get(key) == BLOCK) for place in self._places(chunk)]
                data = entries.write(self._name(key), self._about, parts)
                if not self._store.put(self._name(key), data):
                    raise OSError("not stored")
                size += len(data)
        return names, size

    def _load(self, names, chunks, ends):
        page, done, size = Page(self._chunks, self._params), [], 0
        for key, chunk in zip(names, chunks):
            parts = self.read(key)
            if parts is None:
                break
            try:
                for place, data in zip(self._places(chunk), parts):
                    self._chunks.put(*place, rows=page.unpack(data))
            except ValueError as error:
                logger.warning("VidKV: an entry cannot be used: %s", error)
                break
            done.append(key)
            size += sum(map(len, parts))
        return done, size

    def _submit(self, work, job):
        names, chunks = list(job.keys), [int(c) for c in job.chunk_ids]
        ends = getattr(job.req_context, "_offload_key_positions", {})  # where in its text a chunk ends, if vLLM says so
        self._jobs[job.job_id] = (self._pool.submit(work, names, chunks, dict(ends)), names, time.monotonic())

    def submit_store(self, job_metadata):
        self._submit(self._save, job_metadata)

    def submit_load(self, job_metadata):
        self._submit(self._load, job_metadata)

    def lookup(self, key, req_context):
        found = self._lookup.lookup(key, req_context)
        return LookupResult.RETRY if found is None else LookupResult.HIT if found else LookupResult.MISS

    def get_finished_jobs(self):
        finished = [number for number, (future, _, _) in self._jobs.items() if future.done()]
        return [self._result(number, *self._jobs.pop(number)) for number in finished]

    def _result(self, number, future, names, began):
        done, size = ([], 0) if future.exception() else future.result()
        if len(done) < len(names):
            self._lookup.mark_miss(names[len(done) :])
        return JobResult(job_id=number, success=len(done) == len(names), successful_keys=tuple(done) or None,
                         transfer_time=time.monotonic() - began, transfer_bytes=size)

    def on_new_request(self, req_context):
        return RequestOffloadingContext()

    def on_request_finished(self, req_context):
        self._lookup.cleanup(req_context.req_id)

    def on_schedule_end(self, context):
        self._lookup.flush()

    def drain_jobs(self):
        wait([future for future, _, _ in self._jobs.values()])

    def shutdown(self):
        self._lookup.shutdown()
        self._pool.shutdown(wait=True)
