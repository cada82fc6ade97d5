"""What transformers calls a cache that it is given or hands back: `cache` from 5.24 on, `past_key_values` before."""
import inspect

from transformers import GenerationMixin

NEW, OLD = "cache", "past_key_values"
CACHE = NEW if NEW in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters else OLD


def given_cache(arguments):
    """The cache among a forward's keyword arguments, whichever name it came by; None without one."""
    return next((arguments[name] for name in (CACHE, NEW, OLD) if arguments.get(name) is not None), None)


def as_arguments(cache):
    """A cache as this transformers wants to be given it: model(**inputs, **as_arguments(cache))."""
    return {CACHE: cache}


def cache_of(outputs):
    """The cache that a model's or generate's outputs carry."""
    return getattr(outputs, CACHE)
