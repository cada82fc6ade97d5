"""What the user asked for, and whether this model can have it."""
import logging
import os
from dataclasses import dataclass, field

from .. import Params
from .._core import block_bytes

logger = logging.getLogger("vllm.vidkv")
BLOCK = 128  # tokens: a page of VidKV, and vLLM's default block on CPUs


@dataclass
class Layer:
    kv_heads: int
    head_dim: int


@dataclass
class State:
    """One for each process: its layers make themselves known while the model is built, before vLLM asks for the size of a block."""

    config: object = None  # vLLM's
    preset: str | None = None
    params: Params | None = None
    drafts: int = 0
    length: int = 0  # of the longest text
    spare: int = 16
    refused: str | None = None  # why nothing is packed
    layers: dict[str, Layer] = field(default_factory=dict)
    other_bytes: int = 0  # of the largest block among layers with a cache that is not packed (sliding windows)
    said: bool = False

    @property
    def packs(self):
        return self.params is not None and self.refused is None


_state = State()


def state():
    return _state


def _section(vllm_config):
    """What --additional-config says of VidKV, or None."""
    extra = vllm_config.additional_config
    return extra.get("vidkv") if isinstance(extra, dict) else None


def preset_asked_for(vllm_config):
    """--additional-config comes before the environment; None: nothing is packed."""
    section = _section(vllm_config)
    preset = section.get("preset") if isinstance(section, dict) else section
    return preset or os.environ.get("VIDKV_PRESET") or None


def check(vllm_config):
    """What can never be is refused before anything is loaded; returns the preset and its parameters."""
    section = _section(vllm_config)
    unknown = sorted(set(section) - {"preset"}) if isinstance(section, dict) else []
    if unknown:
        raise ValueError(f"VidKV: --additional-config vidkv has unknown options {', '.join(unknown)}; there is preset")
    preset = preset_asked_for(vllm_config)
    if preset is None:
        return None, None
    if not isinstance(preset, str):
        raise ValueError(f"VidKV: a preset is a name such as t1.65, not {preset!r}")
    try:
        params = Params.from_preset(preset)
    except ValueError as error:
        raise ValueError(f"VidKV: {error}") from None
    if params.protect > 0:
        raise ValueError(f"VidKV: preset {preset} protects tokens (-stp), which makes pages of unequal size: in vLLM use {preset.split('-stp')[0]}")
    return preset, params


def refuse(reason):
    if _state.refused is None:
        _state.refused = reason
        logger.warning("VidKV: %s is not used: %s; vLLM goes on with its own KV cache", _state.preset, reason)


def configure(vllm_config):
    """The state for this configuration; called by each layer as it is made, and by the worker when all are made."""
    global _state
    if vllm_config is _state.config:
        return _state
    preset, params = check(vllm_config)
    _state = State(config=vllm_config, preset=preset, params=params)
    if preset is None:
        return _state
    _state.length = vllm_config.model_config.max_model_len
    _state.drafts = vllm_config.num_speculative_tokens
    _state.spare = vllm_config.scheduler_config.max_num_seqs
    reason = unfit(vllm_config)
    if reason:
        refuse(reason)
    return _state


def unfit(vllm_config):
    """Why this configuration cannot be packed; None if it can."""
    cache, parallel, transfer = vllm_config.cache_config, vllm_config.parallel_config, vllm_config.kv_transfer_config
    if vllm_config.model_config.use_mla:
        return "this model has MLA"
    if vllm_config.model_config.is_hybrid:
        return "this model has layers that are not attention (hybrid)"
    if cache.block_size != BLOCK:
        return f"a block must have {BLOCK} tokens, not {cache.block_size} (leave --block-size out)"
    if cache.cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
        return f"--kv-cache-dtype {cache.cache_dtype} quantizes by itself (leave it out)"
    if parallel.decode_context_parallel_size > 1 or getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return "context parallelism splits blocks over ranks"
    if transfer is not None and transfer.kv_connector not in (None, "VidKVConnector"):
        return f"the KV connector {transfer.kv_connector} moves blocks that are not packed (VidKVConnector moves packed ones)"
    return None


def add_layer(name, kv_heads, head_dim):
    if not _state.packs:
        return
    try:
        block_bytes(_state.params, kv_heads, head_dim)
    except ValueError as error:
        return refuse(f"{kv_heads} KV heads of head_dim {head_dim}: {error}")
    _state.layers[name] = Layer(kv_heads, head_dim)


def add_other(kv_heads, head_dim):
    """A layer whose blocks are vLLM's own."""
    dtype = _state.config.cache_config.cache_dtype
    itemsize = {"float32": 4, "auto": _state.config.model_config.dtype.itemsize}.get(dtype, 2)
    _state.other_bytes = max(_state.other_bytes, BLOCK * kv_heads * head_dim * 2 * itemsize)


def room_of_block(kv_heads, head_dim):
    """Bytes from one packed block to the next. vLLM gives the blocks of all layers the same bytes: beside layers that are not packed, one of
    theirs has the bytes of a whole number of packed ones, so that it holds the tokens of all these. At most eight, as prefixes of less than
    one such block are not shared."""
    size = block_bytes(_state.params, kv_heads, head_dim)
    fitting = (n for n in range(min(_state.other_bytes // size, 8), 0, -1) if _state.other_bytes % (64 * n) == 0)
    count = next(fitting, None)
    return _state.other_bytes // count if count else size


def settle(vllm_config):
    """When all layers are made: says so if a preset was asked for and there is nothing to pack."""
    if configure(vllm_config).packs and not _state.layers:
        refuse("this model has no layers with full causal attention")


def f16_bytes(layer):
    return BLOCK * layer.kv_heads * layer.head_dim * 2 * 2


def beside(layer):
    """Bytes beside the packed blocks for one running sequence: f16 rows of its window and of the block that fills, statistics, sinks."""
    window = -(-(_state.params.residual_length + BLOCK - 1) // BLOCK)
    statistics = (layer.head_dim * (layer.head_dim + 1) // 2 + layer.head_dim) * layer.kv_heads * 4
    sinks = _state.params.sink_tokens * layer.kv_heads * layer.head_dim * 2 * 2
    return (window + 1) * f16_bytes(layer) + statistics + sinks


def reserve(vllm_config, available):
    """How much of the memory for the KV cache is kept for what lies beside the packed blocks; says what it comes to."""
    settle(vllm_config)
    if not _state.packs or (_state.params.key_bits == 16 and _state.params.value_bits == 16):
        return 0
    sequences = vllm_config.scheduler_config.max_num_seqs
    of_one = sum(beside(layer) for layer in _state.layers.values())
    wanted, most = sequences * of_one, available // 4
    packed = sum(room_of_block(layer.kv_heads, layer.head_dim) for layer in _state.layers.values())
    dense = sum(f16_bytes(layer) for layer in _state.layers.values())
    if not _state.said:
        _state.said = True
        logger.info(
            "VidKV: %s: %d bytes for a block of %d tokens (%.1f times less than f16); %.0f MiB kept for the f16 rows of %d running sequences",
            _state.preset, packed, BLOCK, dense / packed, min(wanted, most) / 2**20, sequences,
        )
        if wanted > most:
            logger.warning(
                "VidKV: %d running sequences may hold %.0f MiB of f16 rows beside the packed blocks, more than a quarter of the %.0f MiB for "
                "the KV cache: at most %d are counted in it (--max-num-seqs, or more VLLM_CPU_KVCACHE_SPACE)",
                sequences, wanted / 2**20, available / 2**20, most // of_one,
            )
    return min(wanted, most)
