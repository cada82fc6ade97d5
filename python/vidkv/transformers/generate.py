"""`generate` learns the published cache configurations, and protects visual tokens by their saliency where asked."""
import functools
import threading

from transformers import Cache, GenerationMixin

from .attention import NAME, register_attention
from .cache import VidKVCache
from .names import CACHE, NEW
from .options import is_published
from .saliency import watch_prefill

_original = {}
_running = threading.local()  # what to undo when the innermost generate of this thread ends


def _switch_attention(model, undo):
    """The text model reads the codes for as long as this generate runs."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    configs = [model.config.get_text_config(decoder=True)]
    if decoder is not None and getattr(decoder, "config", None) is not None:
        configs.append(decoder.config.get_text_config(decoder=True))
    for config in {id(c): c for c in configs}.values():
        undo.append(functools.partial(setattr, config, "_attn_implementation_internal", config._attn_implementation_internal))
        config._attn_implementation_internal = NAME


def _prepare_cache(self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length):
    cache = model_kwargs.get(CACHE)
    undo = getattr(_running, "undo", None)
    ours = cache is None and generation_config.cache_implementation == "quantized" and is_published(generation_config.cache_config)
    if ours and generation_config.use_cache is not False:
        cache = model_kwargs[CACHE] = VidKVCache(self.config, cache_config=generation_config.cache_config)
        if undo is not None and not generation_config.output_attentions:
            _switch_attention(self, undo)
    else:
        _original["_prepare_cache_for_generation"](self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
    if isinstance(cache, VidKVCache) and cache.params.protect > 0 and undo is not None:
        undo.append(watch_prefill(self, cache))


def _generate(self, *args, **kwargs):
    if CACHE not in kwargs and isinstance(kwargs.get(NEW), Cache):  # an older transformers is called as a newer one
        kwargs[CACHE] = kwargs.pop(NEW)
    outer, _running.undo = getattr(_running, "undo", None), []
    try:
        return _original["generate"](self, *args, **kwargs)
    finally:
        for action in reversed(_running.undo):
            action()
        _running.undo = outer


def enable() -> None:
    """Registers attn_implementation="vidkv" and the published cache configurations. Called by `import vidkv.transformers`."""
    register_attention()
    if _original:
        return
    for name, ours in (("generate", _generate), ("_prepare_cache_for_generation", _prepare_cache)):
        _original[name] = getattr(GenerationMixin, name)
        setattr(GenerationMixin, name, functools.wraps(_original[name])(ours))


def disable() -> None:
    """`generate` is transformers' own again; attn_implementation="vidkv" stays registered."""
    for name, theirs in _original.items():
        setattr(GenerationMixin, name, theirs)
    _original.clear()
