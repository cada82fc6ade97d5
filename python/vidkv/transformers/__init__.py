"""VidKV for Hugging Face transformers 5.

Importing this module switches VidKV on (`enable()`): the attention implementation "vidkv" is registered, and `generate` knows
the published cache configurations. Two ways to use it:

    cache = VidKVCache(model.config, "t1.65")
    model.generate(**inputs, cache=cache)

    model.generate(**inputs, cache_implementation="quantized",
                   cache_config={"backend": "QuantizedCacheVLM", "nbits": [1.5, 1.58], "q_group_size": 32,
                                 "residual_length": 128, "axis_key": -1, "axis_value": -1})
"""
from . import requirements  # noqa: F401 (first: what is missing is told in one line)
from .attention import register_attention
from .cache import VidKVCache
from .generate import disable, enable
from .names import as_arguments, cache_of
from .options import BACKENDS, params_from_cache_config

enable()

__all__ = ["BACKENDS", "VidKVCache", "as_arguments", "cache_of", "disable", "enable", "params_from_cache_config", "register_attention"]
