"""A KV connector that keeps packed blocks beyond this process: in a folder or in Redis.

    --kv-transfer-config '{"kv_connector": "VidKVConnector", "kv_role": "kv_both",
                           "kv_connector_extra_config": {"store": "/var/cache/vidkv", "max_bytes": 100000000000, "ttl": 86400}}'

An entry is a block of 128 tokens of all layers. With a packed KV cache (VIDKV_PRESET) its bytes leave and come back as they are; other
caches are packed with `preset` (t2.2) on their way out, and come back as rows.
"""
import logging
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.kv_cache_interface import FullAttentionSpec

from .. import Params
from . import entries, keys, options
from .store import open_store

logger = logging.getLogger("vllm.vidkv")
BLOCK = options.BLOCK


@dataclass
class Metadata(KVConnectorMetadata):
    loads: list[tuple[bytes, int]] = field(default_factory=list)  # (key of a block, block)
    saves: list[tuple[bytes, int, bool]] = field(default_factory=list)  # (key, block, whether it begins the text)


@dataclass
class Seen:
    """What the scheduler's side knows of a request."""

    request: object
    keys: list[bytes] = field(default_factory=list)
    loads: int = 0  # tokens to be loaded by the next step
    saved: int = 0  # blocks that need not be saved any more


class VidKVConnector(KVConnectorBase_V1):
    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        if not extra.get("store"):
            raise ValueError('VidKVConnector: kv_connector_extra_config needs "store": a folder or redis://host:port/0')
        unknown = set(extra) - {"store", "ttl", "max_bytes", "preset"}
        if unknown:
            raise ValueError(f"VidKVConnector: unknown options {', '.join(sorted(unknown))}; there are store, ttl, max_bytes, preset")
        self._store = open_store(extra["store"], extra.get("ttl"), extra.get("max_bytes"))
        self._kv_transfer_config.kv_load_failure_policy = "recompute"  # an entry that went away is computed again
        packed = options.preset_asked_for(vllm_config)
        self._preset = packed or extra.get("preset", "t2.2")
        self._params = Params.from_preset(self._preset)
        self._reason = self._unfit()
        if self._reason:
            logger.warning("VidKVConnector: nothing is stored: %s; vLLM goes on without it", self._reason)
            return
        self._about = self._describe(packed is not None)
        self._fingerprint = keys.model_fingerprint(vllm_config.model_config)
        self._ranks = vllm_config.parallel_config.tensor_parallel_size
        self._seen: dict[str, Seen] = {}
        self._caches, self._order, self._packers = {}, [], {}
        self._parts: dict[bytes, dict[str, bytes]] = {}
        self._failed: set[int] = set()

    def _unfit(self):
        config, parallel = self._vllm_config, self._vllm_config.parallel_config
        if config.cache_config.block_size != BLOCK:
            return f"a block must have {BLOCK} tokens, not {config.cache_config.block_size} (--block-size {BLOCK})"
        if config.cache_config.cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
            return f"--kv-cache-dtype {config.cache_config.cache_dtype} quantizes by itself"
        if self._params.protect > 0:
            return f"preset {self._preset} makes blocks of unequal size"
        if parallel.pipeline_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
            return "pipeline and context parallelism are not known to it"
        if self._kv_cache_config is None:
            return None
        groups = self._kv_cache_config.kv_cache_groups
        if len(groups) != 1 or type(groups[0].kv_cache_spec) is not FullAttentionSpec or groups[0].kv_cache_spec.sliding_window is not None:
            return "this model has layers without full attention (MLA, sliding windows, hybrid)"
        return None

    def _describe(self, packed):
        """What must be equal between two processes that share entries; ranks differ in their names."""
        group = self._kv_cache_config.kv_cache_groups[0]
        spec = group.kv_cache_spec
        self._kv_heads, self._head_dim = spec.num_kv_heads, spec.head_size
        return {"preset": self._preset, "layers": len(group.layer_names), "kv_heads": spec.num_kv_heads, "head_dim": spec.head_size,
                "by_queries": packed}

    def _name(self, key, rank):
        if not hasattr(self, "_roots"):
            layers = [self._about["layers"], self._kv_heads, self._head_dim, self._about["by_queries"]]
            self._roots = [keys.root(self._fingerprint, self._preset, layers, r, self._ranks) for r in range(self._ranks)]
        return keys.entry_name(self._roots[rank], key)

    # ---- the scheduler's side ----

    def on_new_request(self, request):
        if not self._reason:
            self._seen[request.request_id] = Seen(request)

    def _keys(self, seen, blocks):
        if len(seen.keys) < blocks:
            seen.keys = keys.of_request(seen.request, blocks, generate_block_hash_extra_keys)
        return seen.keys[:blocks]

    def _is_whole(self, key):
        """Whether all ranks' entries are there and say what they should: read here, so that no load fails for a damaged one."""
        return all(
            entries.read(self._store.get(name), name, self._about) is not None for name in (self._name(key, rank) for rank in range(self._ranks))
        )

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        if self._reason or num_computed_tokens % BLOCK != 0:
            return 0, False
        seen = self._seen.setdefault(request.request_id, Seen(request))
        wanted = self._keys(seen, (request.num_tokens - 1) // BLOCK)
        found = num_computed_tokens // BLOCK
        while found < len(wanted) and self._is_whole(wanted[found]):
            found += 1
        return found * BLOCK - num_computed_tokens, False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        if not self._reason:
            self._seen.setdefault(request.request_id, Seen(request)).loads = num_external_tokens

    def build_connector_meta(self, scheduler_output):
        meta = Metadata()
        if self._reason:
            return meta
        cached = scheduler_output.scheduled_cached_reqs
        computed = {r.req_id: r.num_computed_tokens for r in scheduler_output.scheduled_new_reqs}
        computed.update(zip(cached.req_ids, cached.num_computed_tokens))
        for request, before in computed.items():
            if request in self._seen:
                self._plan(meta, scheduler_output, request, before)
        for request in scheduler_output.finished_req_ids:
            self._seen.pop(request, None)
        return meta

    def _plan(self, meta, output, request, before):
        seen = self._seen[request]
        table = output.kv_connector_block_state.get_block_ids(request)[0]
        if seen.loads:
            last = before // BLOCK  # what is loaded counts as computed
            first = (before - seen.loads) // BLOCK
            meta.loads += list(zip(self._keys(seen, last)[first:], table[first:last]))
            seen.loads = 0
        drafts = len(output.scheduled_spec_decode_tokens.get(request, ()))
        full = (before + output.num_scheduled_tokens[request] - drafts) // BLOCK
        first = max(seen.saved, before // BLOCK)
        if full > first:
            names = self._keys(seen, full)
            meta.saves += [(names[i], table[i], i == 0) for i in range(first, full)]
            seen.saved = full

    def request_finished(self, request, block_ids):
        return False, None

    # ---- the worker's side ----

    def register_kv_caches(self, kv_caches):
        if self._reason:
            return
        self._caches = dict(kv_caches)
        self._order = sorted(self._caches, key=lambda name: [int(p) if p.isdigit() else p for p in name.split(".")])
        from vllm.distributed import get_tensor_model_parallel_rank

        self._rank = get_tensor_model_parallel_rank()

    def _layer(self, name):
        """(bytes of a block, a block from bytes) for one layer."""
        from . import backend, layers

        cache = self._caches[name]
        if backend.VidKVAttentionImpl.packed(cache):
            native = layers.blocks_of(cache, self._kv_heads, self._head_dim)
            return (lambda block, begins: native.export_block(block)), (lambda block, data: native.import_block(block, data))
        if name not in self._packers:
            from .dense import Packer

            shared = next(iter(self._packers.values()), None)
            self._packers[name] = shared or Packer(self._kv_heads, self._head_dim, self._params, cache.dtype, cache.device.type == "cpu")
        packer = self._packers[name]
        return (lambda block, begins: packer.pack(cache[block], begins)), (lambda block, data: packer.unpack(data, cache[block]))

    def start_load_kv(self, forward_context, **kwargs):
        if self._reason:
            return
        for key, block in self._get_connector_metadata().loads:
            name = self._name(key, self._rank)
            parts = entries.read(self._store.get(name), name, self._about)
            if parts is None or len(parts) != len(self._order):
                self._failed.add(block)
                continue
            try:
                for layer, data in zip(self._order, parts):
                    self._layer(layer)[1](block, data)
            except ValueError as error:
                logger.warning("VidKVConnector: an entry cannot be used: %s", error)
                self._failed.add(block)

    def wait_for_layer_load(self, layer_name):
        return

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        return  # all layers of a block are one entry: wait_for_save

    def wait_for_save(self):
        if self._reason or not self.has_connector_metadata():
            return
        for key, block, begins in self._get_connector_metadata().saves:
            name = self._name(key, self._rank)
            if entries.read(self._store.get(name), name, self._about) is not None:
                continue  # another process was earlier; a damaged entry is replaced
            parts = [self._layer(layer)[0](block, begins) for layer in self._order]
            if all(part is not None for part in parts):
                self._store.put(name, entries.write(name, self._about, parts))

    def get_block_ids_with_load_errors(self):
        if self._reason:
            return set()
        failed, self._failed = self._failed, set()
        return failed


__all__ = ["KVConnectorRole", "VidKVConnector"]
