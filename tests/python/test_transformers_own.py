"""What transformers' own tests of generation and of caches ask, asked of ours. They came out of trying these calls with every kind of cache:
what a cache must get right is to be fed in pieces, to be rolled back by negative counts after it was told to remember, to serve two
prompts of one generate (guidance) and two models (assistants), and to stand for tensors of its shape where it is looked at."""
import pytest
import torch
from common import text_model, vision_model

from transformers import CompileConfig, DynamicCache
from transformers.cache_utils import Cache
from vidkv.transformers import VidKVCache
from vidkv.transformers.names import as_arguments, cache_of


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request):
    model = text_model(request.param)
    model.set_attn_implementation("vidkv")
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 280, (1, 330), generator=torch.Generator().manual_seed(9))


def test_continuing_from_a_returned_cache(model, ids):
    """Generating 5 and then 5 more with the returned cache gives the tokens of generating 10."""
    whole = model.generate(ids, cache=VidKVCache(model.config, "k2v2"), max_new_tokens=10, do_sample=False)
    first = model.generate(ids, cache=VidKVCache(model.config, "k2v2"), max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert isinstance(cache_of(first), Cache)
    more = model.generate(first.sequences, cache=cache_of(first), max_new_tokens=5, do_sample=False)
    assert torch.equal(more, whole)


CALLS = {
    "a prompt in pieces": dict(prefill_chunk_size=100),
    "penalties": dict(repetition_penalty=1.2, no_repeat_ngram_size=2),
    "guidance": dict(guidance_scale=1.5),
    "sampling with an assistant": dict(do_sample=True, assistant=True),
    "a prefix of the model as assistant": dict(assistant_early_exit=1),
    "several of the beams": dict(num_beams=3, num_return_sequences=2, early_stopping=True, length_penalty=2.0),
    "an end that is met": dict(eos_token_id=list(range(150))),
    "compiled decoding": dict(compile_config=CompileConfig(backend="eager")),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("force_torch", [False, True])
def test_f16_rows_give_the_tokens_of_a_dynamic_cache(model, ids, call, force_torch):
    options = dict(CALLS[call])
    if options.pop("assistant", False):
        options["assistant_model"] = text_model("llama", num_hidden_layers=1)

    def run(cache):
        torch.manual_seed(5)
        return model.generate(ids, cache=cache, max_new_tokens=8, **{"do_sample": False, **options})

    assert torch.equal(run(VidKVCache(model.config, "f16", force_torch=force_torch)), run(DynamicCache(config=model.config)))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_rolling_back_what_was_recorded(kind, ids):
    """activate_past_recording, then crop: windows included, the cache is as if the tokens had never been."""
    model = text_model(kind)
    model.set_attn_implementation("vidkv")
    with torch.no_grad():
        caches = [VidKVCache(model.config, "k2v2") for _ in range(2)]
        for cache in caches:
            model(ids, **as_arguments(cache))
        caches[0].activate_past_recording()
        model(ids[:, :7], **as_arguments(caches[0]))
        caches[0].crop(-7)
        caches[0].crop(0)
        assert caches[0].is_croppable and caches[0].get_seq_length() == ids.shape[1]
        got, want = (model(ids[:, 20:25], **as_arguments(cache)).logits for cache in caches)
        assert torch.allclose(got, want, atol=1e-4)


def test_inputs_embeds(model, ids):
    want = model.generate(ids, cache=VidKVCache(model.config, "t1.65"), max_new_tokens=8, do_sample=False)
    got = model.generate(inputs_embeds=model.get_input_embeddings()(ids), cache=VidKVCache(model.config, "t1.65"), max_new_tokens=8,
                         do_sample=False)
    assert torch.equal(got, want[:, ids.shape[1]:])


def test_quantized_cache_generation(model, ids):
    """cache_implementation="quantized" with a backend of ours; the cache it returns has the right shapes and holds fewer bytes."""
    out = model.generate(ids, cache_implementation="quantized", cache_config={"backend": "QuantizedCacheLM", "nbits": 2}, max_new_tokens=8,
                         do_sample=False, return_dict_in_generate=True)
    cache, config = cache_of(out), model.config
    assert cache.get_seq_length() == ids.shape[1] + 7 and len(cache) == config.num_hidden_layers
    for layer in cache.layers:
        head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        assert layer.keys.shape == layer.values.shape == (1, config.num_key_value_heads, cache.get_seq_length(), head_dim)
        assert torch.isfinite(layer.keys + 0).all()


def test_passing_both_kinds_of_cache_is_refused(model, ids):
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(ids, cache=VidKVCache(model.config), cache_implementation="quantized", cache_config={"backend": "QuantizedCacheLM"},
                       max_new_tokens=2)


def test_without_a_cache(model, ids):
    want = model.generate(ids[:, :60], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(ids[:, :60], **as_arguments(DynamicCache(config=model.config)), max_new_tokens=4, do_sample=False), want)


def test_output_attentions_and_hidden_states():
    model, inputs = vision_model("qwen2_5_vl")
    model.set_attn_implementation("eager")
    out = model.generate(**inputs, cache=VidKVCache(model.config, "k2v2"), max_new_tokens=3, do_sample=False, output_attentions=True,
                         output_hidden_states=True, return_dict_in_generate=True)
    assert out.attentions[1][0].shape[-1] == inputs["input_ids"].shape[1] + 1 and len(out.hidden_states) == 3
