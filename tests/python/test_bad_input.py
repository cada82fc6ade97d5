"""Bad input gives a Python exception that names the key and what is allowed."""
import pytest
import torch
import transformers
from common import PUBLISHED, text_model

import vidkv
from vidkv.transformers import VidKVCache, params_from_cache_config
from vidkv.transformers.names import as_arguments

GOOD = {"backend": "QuantizedCacheVLMSTP", **PUBLISHED}


@pytest.mark.parametrize("change, says", [
    ({"nbit": 2}, r"unknown key 'nbit'; allowed: backend, nbits"),
    ({"backend": "quanto2"}, r"\['backend'\] must be one of QuantizedCacheLM"),
    ({"nbits": 3}, r"\['nbits'\] must be 2 or a pair"),
    ({"nbits": [1.5, 1.7]}, r"\['nbits'\] must be 2 or a pair"),
    ({"nbits": [1.5]}, r"\['nbits'\] must be 2 or a pair"),
    ({"nbits": "2"}, r"\['nbits'\] must be 2 or a pair"),
    ({"q_group_size": 48}, r"\['q_group_size'\] must be 32, 64 or 128, not 48"),
    ({"q_group_size": None}, r"\['q_group_size'\]"),
    ({"residual_length": -1}, r"\['residual_length'\] must be a whole number"),
    ({"residual_length": 1.5}, r"\['residual_length'\] must be a whole number"),
    ({"axis_key": 0}, r"\['axis_key'\] must be -1"),
    ({"axis_value": 1}, r"\['axis_value'\] must be -1"),
    ({"vidkv_stp": 0.9}, r"\['vidkv_stp'\] must be a number from 0 to 0.5"),
    ({"backend": "QuantizedCacheVLM", "vidkv_stp": 0.9}, r"\['vidkv_stp'\] must be a number from 0 to 0.5"),
    ({"backend": "QuantizedCacheLM", "vidkv_stp": "much"}, r"\['vidkv_stp'\] must be a number from 0 to 0.5"),
    ({"preset": "t1.65"}, r"\['nbits'\] does not go with"),
])
def test_cache_config(change, says):
    with pytest.raises(ValueError, match=says):
        params_from_cache_config({**GOOD, **change})


def test_generate_names_the_key_too():
    model = text_model("llama")
    with pytest.raises(ValueError, match="q_group_size"):
        model.generate(input_ids=torch.ones(1, 4, dtype=torch.long), max_new_tokens=2, cache_implementation="quantized",
                       cache_config={**GOOD, "q_group_size": 31})
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("config, fields", [
    ({"backend": "QuantizedCacheLM", "nbits": 2}, dict(key_bits=2, value_bits=2, protect=0)),
    ({"backend": "QuantizedCacheVLM", "nbits": [1.5, 2]}, dict(key_bits=1.5, value_bits=2)),
    ({"backend": "QuantizedCacheVLM", "nbits": [1.25, 1.58]}, dict(key_bits=1.25)),
    (GOOD, dict(key_bits=1.5, protect=0.2, group_size=32, residual_length=128)),
    ({**GOOD, "q_group_size": 128, "residual_length": 256, "vidkv_stp": 0.1}, dict(group_size=128, residual_length=256, protect=0.1)),
    ("{'backend': 'QuantizedCacheVLM', 'nbits': [1.5, 1.58]}", dict(key_bits=1.5)),
    ('{"backend": "QuantizedCacheVLM", "nbits": 2}', dict(key_bits=2)),
    ({"backend": "vidkv", "preset": "t1.15"}, dict(key_codec=1, value_codec=1)),
])
def test_every_key_has_an_effect(config, fields):
    params = params_from_cache_config(config)
    for name, value in fields.items():
        assert getattr(params, name) == pytest.approx(value)


def test_a_share_without_its_backend_is_said():
    with pytest.warns(UserWarning, match=r"\['vidkv_stp'\].*'QuantizedCacheVLM' protects none"):
        assert params_from_cache_config({**GOOD, "backend": "QuantizedCacheVLM"}).protect == 0


def test_presets():
    config = text_model("llama").config
    with pytest.raises(ValueError, match="t9.*presets: f16"):
        VidKVCache(config, "t9")
    with pytest.raises(TypeError, match="preset must be a name"):
        VidKVCache(config, 2)
    with pytest.raises(ValueError, match="not both"):
        VidKVCache(config, "t1.65", GOOD)
    with pytest.raises(ValueError, match="max_length"):
        VidKVCache(config, max_length=0)
    with pytest.raises(TypeError, match="model.config"):
        VidKVCache("llama")


@pytest.mark.parametrize("config, says", [
    (transformers.GPT2Config(), "rope_parameters"),
    (transformers.T5Config(), "is_encoder_decoder"),
    (transformers.DeepseekV3Config(), "kv_lora_rank"),
    (transformers.MllamaConfig(), "cross-attention"),
])
def test_models_that_cannot_be_cached(config, says):
    with pytest.raises(ValueError, match=says):
        VidKVCache(config)


def layer_states(batch=1, heads=2, n=4, dim=64, dtype=torch.float32, device="cpu"):
    return [torch.zeros(batch, heads, n, dim, dtype=dtype, device=device) for _ in range(2)]


def test_states():
    cache = VidKVCache(text_model("llama").config, "t1.65")
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        cache.update(*layer_states(dtype=torch.float64), 0)
    with pytest.raises(ValueError, match="head_dim must be a multiple of 8 from 8 to 512, not 20"):
        cache.update(*layer_states(dim=20), 0)
    with pytest.raises(ValueError, match="one device"):
        cache.update(layer_states()[0], layer_states(device="meta")[1], 0)
    cache.update(*layer_states(), 0)
    with pytest.raises(ValueError, match="batch of 1, but got a batch of 2"):
        cache.update(*layer_states(batch=2), 0)
    with pytest.raises(ValueError, match="KV heads"):
        cache.update(*layer_states(heads=4), 0)
    with pytest.raises(ValueError, match="float16"):
        cache.update(*layer_states(dtype=torch.float16), 0)
    cache.reset()
    cache.update(*layer_states(batch=2), 0)


def test_a_cache_used_with_another_batch():
    model = text_model("qwen2")
    cache = VidKVCache(model.config, "t1.65")
    model.generate(input_ids=torch.full((1, 8), 7), cache=cache, max_new_tokens=2)
    with pytest.raises(ValueError, match="batch of 1, but got a batch of 2"):
        model(torch.full((2, 3), 7), **as_arguments(cache))


def test_arrays():
    store = vidkv.Store("keys", 128, 64, vidkv.Params.from_preset("t1.65"), 512)
    with pytest.raises(ValueError, match="float32 or float16"):
        store.write(0, 0, torch.zeros(3, 128, dtype=torch.float64))
    with pytest.raises(ValueError, match="128 channels, not 64"):
        store.write(0, 0, torch.zeros(3, 64))
    with pytest.raises(ValueError, match="do not fit|cell"):
        store.write(0, 511, torch.zeros(3, 128))
    with pytest.raises(ValueError, match="'keys' or 'values'"):
        vidkv.Store("key", 128, 64, vidkv.Params.from_preset("t1.65"), 512)
    with pytest.raises(ValueError, match="head_dim of 64, not 3"):
        store.observe_queries(0, torch.zeros(1, 2, 3))
