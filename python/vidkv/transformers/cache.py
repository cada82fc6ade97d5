"""VidKVCache: what `generate(cache=...)` takes."""
from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, get_layer_types_and_kwargs

from .. import Params
from . import saved
from .layer import VidKVLayer
from .options import layers_file, params_from_cache_config, params_from_preset, parse_cache_config

PACKED_TYPES = ("full_attention",)
PLAIN_TYPES = ("sliding_attention", "chunked_attention", "dummy")


def check_model(config):
    """ValueError if a model cannot be cached here, naming what its config has and what is allowed."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("VidKVCache: is_encoder_decoder=True: cross-attention caches are not supported; allowed: decoder-only models")
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None) or getattr(text, "add_cross_attention", False):
        raise ValueError("VidKVCache: the model has cross-attention layers, which are not supported; allowed: self-attention")
    if getattr(text, "kv_lora_rank", None):
        raise ValueError(f"VidKVCache: kv_lora_rank={text.kv_lora_rank}: latent attention (MLA) keeps no keys and values per head; "
                         "allowed: multi-head and grouped-query attention")
    if getattr(text, "rope_parameters", None) is None and getattr(text, "rope_theta", None) is None:
        raise ValueError(f"VidKVCache: model_type={text.model_type!r} has no rope_parameters; allowed: models with rotary keys")
    return text


class VidKVCache(Cache):
    """A cache of packed codes for one batch of sequences.

    Args:
        config: the model's config (`model.config`).
        preset: a name such as "t1.65", "k1.5v1.58" or "k1.5v1.58-stp0.2" (see vidkv.presets()), or vidkv.Params. "t1.65@FILE" spreads the
            bits over the layers by a file of `vidkv eval layers`.
        cache_config: instead of a preset, a published configuration (dict or text) with the backends QuantizedCacheLM,
            QuantizedCacheVLM and QuantizedCacheVLMSTP.
        max_length: tokens at most; None: it grows.
        force_torch: read the codes with plain torch operations on the CPU too, as is done on other devices.

    Layers with sliding windows stay as transformers keeps them; they are short. update() returns stand-ins for keys and values
    [batch, kv_heads, tokens, head_dim]; with attn_implementation="vidkv" attention reads the codes, with any other one the layer is
    decoded when it is read, and that is said once.
    """

    def __init__(self, config: PreTrainedConfig, preset: str | Params | None = None, cache_config: Mapping | str | None = None,
                 max_length: int | None = None, force_torch: bool = False) -> None:
        if preset is not None and cache_config is not None:
            raise ValueError("VidKVCache takes a preset or a cache_config, not both")
        if not hasattr(config, "get_text_config"):
            raise TypeError(f"VidKVCache: config must be a model's config (model.config), not {type(config).__name__}")
        if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
            raise ValueError(f"VidKVCache: max_length must be a whole number, 1 or more, or None, not {max_length!r}")
        text = check_model(config)
        self.model = saved.describe_model(config)
        self.tokens = None  # of a loaded cache that was saved with them
        self.params = params_from_cache_config(cache_config) if cache_config is not None else params_from_preset(preset or "t1.65")
        losses = layers_file(preset if cache_config is None else parse_cache_config(cache_config).get("preset"))
        self.preset = preset if isinstance(preset, str) else None
        shared = bool(getattr(text, "num_kv_shared_layers", 0)) or getattr(text, "kv_sharing_modes", None) is not None
        types, arguments = get_layer_types_and_kwargs(text)
        packed = [index for index, kind in enumerate(types) if kind in PACKED_TYPES]
        by_layer = self.params.by_layer(losses, packed) if losses is not None else {}
        layers = []
        for index, (kind, kwargs) in enumerate(zip(types, arguments)):
            if kind in PACKED_TYPES:
                # Layers that lend their keys to later layers are packed at their next update, when all have read them.
                layers.append(VidKVLayer(by_layer.get(index, self.params), max_length, seal_at_once=not shared, force_torch=force_torch))
            elif kind in PLAIN_TYPES:
                layers.append(DYNAMIC_LAYER_TYPE_MAPPING[kind](**kwargs))
            else:
                raise ValueError(f"VidKVCache: layer type {kind!r} is not supported; allowed: {', '.join(PACKED_TYPES + PLAIN_TYPES)}")
        if not any(isinstance(layer, VidKVLayer) for layer in layers):
            raise ValueError("VidKVCache: the model has sliding-window layers alone, and they are not packed: DynamicCache is as small")
        super().__init__(layers=layers)

    @property
    def packed_layers(self) -> list[VidKVLayer]:
        """The layers whose codes are packed; sliding-window layers are not among them."""
        return [layer for layer in self.layers if isinstance(layer, VidKVLayer)]

    @torch.compiler.disable(reason="VidKV packs and reads codes outside of the graph")
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes new states [batch, kv_heads, n, head_dim] of a layer; returns stand-ins for all its keys and values."""
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def protect(self, row: int, positions: Iterable[int]) -> None:
        """Marks tokens of a batch row (positions as in input_ids): the values of all layers get more bits for them. Call it before
        the tokens are 128 tokens old; it has an effect where the preset protects (-stp)."""
        positions = [int(p) for p in positions]
        for layer in self.packed_layers:
            layer.protect(row, positions)

    def save(self, path, tokens: torch.Tensor | None = None, facts: Mapping | None = None, model: torch.nn.Module | None = None) -> None:
        """Writes the cache to a .vidkv file: beside it first, so that what was there stays until all is written.

        tokens: the ids of what it holds [batch, n], if they are to come back with it (as `tokens`). facts: more to be said about it, as
        JSON takes it (`vidkv show` prints it). model: needed by models that count positions of pictures (Qwen2-VL and its kin), here and
        for `load`: they keep a number beside the cache. Only a cache on the CPU can be saved."""
        saved.save(self, path, tokens, facts, model)

    @classmethod
    def load(cls, path, config: PreTrainedConfig, preset: str | Params | None = None, max_length: int | None = None, force_torch: bool = False,
             device: torch.device | str = "cpu", model: torch.nn.Module | None = None) -> "VidKVCache":
        """The cache that `save` wrote, for the same model (`model.config`); generation goes on bit for bit. ValueError, in one line, for
        another model, another preset than the one asked for, or a file that is cut off or altered."""
        file, manifest = saved.open_file(path, config)
        if preset is not None and str(params_from_preset(preset)) != str(file.params):
            raise ValueError(f"VidKVCache.load: '{path}' was saved with {manifest.get('preset') or file.params}, not {preset}: leave preset out")
        cache = cls(config, file.params, max_length=max_length, force_torch=force_torch)
        cache.preset = manifest.get("preset")
        saved.fill(cache, path, file, manifest, torch.device(device), model)
        return cache

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Moves a layer's codes to the CPU."""
        self.layers[layer_idx].offload()

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Moves a layer's codes back to the device of its keys; layer_idx may run past the last layer."""
        self.layers[layer_idx % len(self.layers)].prefetch()

    def bytes_held(self) -> int:
        """Bytes that keys and values take now: codes, windows, tables; sliding-window layers included."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, VidKVLayer):
                total += layer.storage.bytes() if layer.storage is not None else 0
                total += sum(t.numel() * t.element_size() for t in layer._pending or ())
            elif getattr(layer, "keys", None) is not None:
                total += sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
        return total

    def __repr__(self):
        return f"VidKVCache({self.params}, layers={len(self.layers)}, packed={len(self.packed_layers)}, tokens={self.get_seq_length()})"
