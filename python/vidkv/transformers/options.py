"""The published cache_config -> parameters. Every key has an effect or an error that names it and what is allowed."""
import ast
import json
import warnings
from collections.abc import Mapping

from .. import Params, presets

BACKENDS = ("QuantizedCacheLM", "QuantizedCacheVLM", "QuantizedCacheVLMSTP", "vidkv")
KEYS = ("backend", "nbits", "q_group_size", "residual_length", "axis_key", "axis_value", "vidkv_stp", "preset")
GROUP_SIZES = (32, 64, 128)
PROTECTED_BITS = 2  # of values, what the paper gives to salient tokens
STP_DEFAULT = 0.2


def parse_cache_config(cache_config):
    """A dict from a mapping, or from the text of one (JSON, or Python as the published scripts print it)."""
    if isinstance(cache_config, Mapping):
        return dict(cache_config)
    if not isinstance(cache_config, str):
        raise TypeError(f"cache_config must be a dict or its text, not {type(cache_config).__name__}")
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(cache_config)
        except (ValueError, SyntaxError):
            continue
        if isinstance(parsed, dict):
            return parsed
    raise ValueError(f"cache_config is neither JSON nor a Python dict: {cache_config!r}")


def is_published(cache_config):
    """Whether a cache_config (dict, text or None) asks for one of our backends."""
    if cache_config is None:
        return False
    if isinstance(cache_config, str):
        return any(f"'{name}'" in cache_config or f'"{name}"' in cache_config for name in BACKENDS)
    return isinstance(cache_config, Mapping) and cache_config.get("backend") in BACKENDS


def _number(key, value, allowed):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"cache_config['{key}'] must be {allowed}, not {value!r}")
    return value


def _whole(key, value, allowed):
    if _number(key, value, allowed) != int(value):
        raise ValueError(f"cache_config['{key}'] must be {allowed}, not {value!r}")
    return int(value)


def _bits(nbits):
    """(key bits, value bits) of nbits: one number for both sides, or a pair."""
    allowed = "2 or a pair [key bits, value bits] with key bits 1 to 2 and value bits 1.58 or 2, as in [1.5, 1.58]"
    pair = list(nbits) if isinstance(nbits, (list, tuple)) else [nbits, nbits]
    if len(pair) != 2:
        raise ValueError(f"cache_config['nbits'] must be {allowed}, not {nbits!r}")
    key_bits, value_bits = (_number("nbits", bits, allowed) for bits in pair)
    if not 1 <= key_bits <= 2 or value_bits not in (1.58, 2):
        raise ValueError(f"cache_config['nbits'] must be {allowed}, not {nbits!r}")
    return key_bits, value_bits


def _check_axes(config):
    for key in ("axis_key", "axis_value"):
        axis = config.pop(key, -1)
        if axis != -1:
            raise ValueError(f"cache_config['{key}'] must be -1 (one scale per channel), not {axis!r}: keys and values have no other axis here")


def _protected_share(config, backend):
    allowed = "a number from 0 to 0.5"
    given = config.pop("vidkv_stp", None)
    share = STP_DEFAULT if given is None else _number("vidkv_stp", given, allowed)
    if not 0 <= share <= 0.5:
        raise ValueError(f"cache_config['vidkv_stp'] must be {allowed}, not {given!r}")
    if backend == "QuantizedCacheVLMSTP":
        return float(share)
    # The published configuration carries the key with every backend: an error would break its calls.
    if given:
        warnings.warn(f"cache_config['vidkv_stp'] protects tokens with the backend 'QuantizedCacheVLMSTP' alone; '{backend}' protects none",
                      stacklevel=2)
    return 0.0


def params_from_cache_config(cache_config: Mapping | str) -> Params:
    """Params of a published cache_config (dict or text). Keys: backend, nbits, q_group_size, residual_length, axis_key,
    axis_value, vidkv_stp; and preset, a name in the place of nbits and q_group_size, with the backend 'vidkv'."""
    config = parse_cache_config(cache_config)
    unknown = sorted(set(config) - set(KEYS), key=str)
    if unknown:
        raise ValueError(f"cache_config has the unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}")
    backend = config.pop("backend", "QuantizedCacheVLM")
    if backend not in BACKENDS:
        raise ValueError(f"cache_config['backend'] must be one of {', '.join(BACKENDS)}, not {backend!r}")
    _check_axes(config)
    share = _protected_share(config, backend)
    preset = config.pop("preset", "t1.65" if backend == "vidkv" else None)
    if preset is not None:
        for key in ("nbits", "q_group_size"):
            if key in config:
                raise ValueError(f"cache_config['{key}'] does not go with cache_config['preset'] ({preset!r}): give one of them")
        params = params_from_preset(preset)
    else:
        key_bits, value_bits = _bits(config.pop("nbits", 2))
        group = _whole("q_group_size", config.pop("q_group_size", 32), "32, 64 or 128")
        if group not in GROUP_SIZES:
            raise ValueError(f"cache_config['q_group_size'] must be 32, 64 or 128, not {group}")
        params = Params.from_preset(f"k{key_bits:g}v{value_bits:g}-g{group}")
        if share and value_bits == PROTECTED_BITS:
            warnings.warn("cache_config['vidkv_stp'] protects nothing: protected values get 2 bits, and nbits gives 2 to all", stacklevel=2)
            share = 0
    if share:
        params.protect = share
    residual = _whole("residual_length", config.pop("residual_length", 128), "a whole number, 0 or more")
    if residual < 0:
        raise ValueError(f"cache_config['residual_length'] must be a whole number, 0 or more, not {residual}")
    params.residual_length = residual
    params.check()
    return params


def layers_file(preset):
    """The FILE of "PRESET@FILE", by which bits are spread over layers; None for other presets."""
    return preset.partition("@")[2] or None if isinstance(preset, str) else None


def params_from_preset(preset: str | Params) -> Params:
    """Params of a preset's name, without its @FILE, or a copy of the Params given."""
    if isinstance(preset, Params):
        preset.check()
        return preset.__copy__()
    if not isinstance(preset, str):
        raise TypeError(f"preset must be a name or vidkv.Params, not {type(preset).__name__}")
    try:
        return Params.from_preset(preset.partition("@")[0])
    except ValueError as error:
        raise ValueError(f"preset {preset!r}: {error}; presets: {', '.join(presets())}") from None
