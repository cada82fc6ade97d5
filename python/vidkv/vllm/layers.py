"""The native blocks of each layer, found by the memory that vLLM gave it."""
from .. import _core
from . import options

_blocks = {}


def blocks_of(kv_cache, kv_heads, head_dim):
    """kv_cache: uint8 [blocks, 1, 1, bytes of a block], vLLM's own memory."""
    key = kv_cache.data_ptr()
    found = _blocks.get(key)
    if found is None or found[0] != kv_cache.shape:
        state = options.state()
        native = _core.Blocks(kv_cache[:, 0, 0, :], kv_heads, head_dim, state.params, state.spare)
        found = _blocks[key] = (kv_cache.shape, native)
    return found[1]


def all_blocks():
    return [native for _, native in _blocks.values()]


def clear():
    """Forgets the blocks of engines that are gone."""
    _blocks.clear()
