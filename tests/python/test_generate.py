"""Every way of generating: beams, sampling, assistants, padding, several turns, copies, compilation."""
import copy

import pytest
import torch
from common import text_model, vision_model

from transformers import DynamicCache
from vidkv.transformers import VidKVCache
from vidkv.transformers.names import as_arguments


@pytest.fixture(scope="module")
def llama():
    model = text_model("llama")
    model.set_attn_implementation("vidkv")
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 280, (2, 420), generator=torch.Generator().manual_seed(5))


def generate(model, ids, cache, **options):
    torch.manual_seed(11)
    return model.generate(input_ids=ids, cache=cache, max_new_tokens=12, **{"do_sample": False, **options})


WAYS = {
    "greedy": {},
    "sampling": dict(do_sample=True, top_k=20),
    "beams": dict(num_beams=4),
    "beam sampling": dict(num_beams=3, do_sample=True),
    "several returned": dict(num_beams=4, num_return_sequences=3),
    "sampled several": dict(do_sample=True, num_return_sequences=3),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attention", ["vidkv", "sdpa"])
def test_f16_rows_give_the_tokens_of_a_dynamic_cache(llama, ids, way, attention):
    llama.set_attn_implementation("sdpa")
    want = generate(llama, ids, DynamicCache(config=llama.config), **WAYS[way])
    llama.set_attn_implementation(attention)
    got = generate(llama, ids, VidKVCache(llama.config, "f16"), **WAYS[way])
    llama.set_attn_implementation("vidkv")
    assert torch.equal(got, want)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset", ["t1.65", "k1.5v1.58-stp0.2"])
def test_codes_give_the_same_tokens_through_any_attention(llama, ids, way, preset):
    read = generate(llama, ids, VidKVCache(llama.config, preset), **WAYS[way])
    again = generate(llama, ids, VidKVCache(llama.config, preset), **WAYS[way])
    assert torch.equal(read, again)
    assert read.shape[1] == ids.shape[1] + 12


@pytest.mark.parametrize("preset", ["f16", "k2v2"])
def test_assisted_decoding_crops(llama, ids, preset):
    assistant = text_model("llama", num_hidden_layers=1)
    want = generate(llama, ids[:1], VidKVCache(llama.config, preset))
    cache = VidKVCache(llama.config, preset)
    got = generate(llama, ids[:1], cache, assistant_model=assistant)
    assert torch.equal(got, want)
    assert cache.get_seq_length() < got.shape[1] + 1


def test_prompt_lookup(llama, ids):
    want = generate(llama, ids[:1], VidKVCache(llama.config, "k2v2"))
    assert torch.equal(generate(llama, ids[:1], VidKVCache(llama.config, "k2v2"), prompt_lookup_num_tokens=4), want)


@pytest.mark.parametrize("preset", ["f16", "k2v2", "t1.65"])
def test_left_padding_changes_nothing(llama, ids, preset):
    short = ids[:1, :300]
    alone = generate(llama, short, VidKVCache(llama.config, preset), return_dict_in_generate=True, output_logits=True)
    padded = torch.zeros(2, 420, dtype=torch.long)
    padded[0, 120:], padded[1] = short, ids[1]
    mask = (padded != 0).long()
    both = generate(llama, padded, VidKVCache(llama.config, preset), attention_mask=mask, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(both.sequences[0, 120:], alone.sequences[0])
    for a, b in zip(both.logits, alone.logits):
        assert torch.allclose(a[0], b[0], atol=2e-3)


def test_several_turns_and_chunks(llama, ids):
    whole, parts = VidKVCache(llama.config, "f16"), VidKVCache(llama.config, "f16")
    with torch.no_grad():
        want = llama(ids, **as_arguments(whole)).logits
        got = torch.cat([llama(part, **as_arguments(parts)).logits for part in ids.split([150, 1, 200, 69], dim=1)], 1)
    assert torch.allclose(got, want, atol=2e-3)
    cache = VidKVCache(llama.config, "t1.65")
    first = generate(llama, ids[:1], cache)
    second = generate(llama, torch.cat([first, ids[1:, :50]], 1), cache)
    assert second.shape[1] == first.shape[1] + 50 + 12 and cache.get_seq_length() == second.shape[1] - 1


def test_crop_reorder_repeat_select(llama, ids):
    cache = VidKVCache(llama.config, "k2v2")
    with torch.no_grad():
        llama(ids, **as_arguments(cache))
        want = llama(ids[:, :5], **as_arguments(cache)).logits
        cache.crop(-5)
        assert cache.get_seq_length() == 420
        assert torch.allclose(llama(ids[:, :5], **as_arguments(cache)).logits, want, atol=1e-4)
        cache.crop(-5)
        cache.reorder_cache(torch.tensor([1, 0]))
        assert torch.allclose(llama(ids[[1, 0], :5], **as_arguments(cache)).logits, want[[1, 0]], atol=1e-4)
        cache.crop(-5)
        cache.batch_repeat_interleave(3)
        rows = [1, 1, 1, 0, 0, 0]
        assert torch.allclose(llama(ids[rows, :5], **as_arguments(cache)).logits, want[rows], atol=1e-4)
        cache.crop(-5)
        cache.batch_select_indices(torch.tensor([4, 0]))
        assert torch.allclose(llama(ids[:, :5], **as_arguments(cache)).logits, want, atol=1e-4)
        cache.crop(-5)
        cache.reorder_cache(torch.tensor([1, 1]))
        assert torch.allclose(llama(ids[[1, 1], :5], **as_arguments(cache)).logits, want[[1, 1]], atol=1e-4)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)


def test_a_prompt_is_reused_by_a_copy(llama, ids):
    cache = VidKVCache(llama.config, "t1.65")
    with torch.no_grad():
        llama(ids[:1], **as_arguments(cache))
        other = copy.deepcopy(cache)
        want = llama(ids[1:, :9], **as_arguments(cache)).logits
        got = llama(ids[1:, :9], **as_arguments(other)).logits
    assert torch.equal(got, want)


def test_static_length_and_reset(llama, ids):
    cache = VidKVCache(llama.config, "k2v2", max_length=440)
    assert cache.get_max_length() == 440
    want = generate(llama, ids, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(generate(llama, ids, cache), want)
    with pytest.raises(ValueError, match="max_length=440"):
        generate(llama, torch.cat([want, ids[:, :60]], 1), cache)


def test_offload_and_prefetch(llama, ids):
    cache = VidKVCache(llama.config, "k2v2")
    with torch.no_grad():
        llama(ids, **as_arguments(cache))
        for layer in range(len(cache)):
            cache.offload(layer)
            cache.prefetch(layer + 1)
        assert torch.isfinite(llama(ids[:, :3], **as_arguments(cache)).logits).all()


def test_torch_compile(llama, ids):
    want = generate(llama, ids, VidKVCache(llama.config, "t1.65"))
    compiled = torch.compile(llama, backend="eager")
    cache, plain = VidKVCache(llama.config, "t1.65"), VidKVCache(llama.config, "t1.65")
    with torch.no_grad():
        for part in (want[:, :420], want[:, 420:421], want[:, 421:422]):
            assert torch.allclose(compiled(part, **as_arguments(cache)).logits, llama(part, **as_arguments(plain)).logits, atol=1e-4)
    assert not cache.is_compileable


def test_several_videos_in_a_batch():
    model, inputs = vision_model("qwen2_5_vl")
    model.set_attn_implementation("vidkv")
    twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
    one = model.generate(**inputs, cache=VidKVCache(model.config, "t1.65-stp0.2"), max_new_tokens=8, do_sample=False)
    two = model.generate(**twice, cache=VidKVCache(model.config, "t1.65-stp0.2"), max_new_tokens=8, do_sample=False)
    assert torch.equal(two, one.expand(2, -1))


def test_attention_says_once_that_it_decodes(llama, ids, caplog):
    from vidkv.transformers import packed
    llama.set_attn_implementation("sdpa")
    type(packed.logger).warning_once.cache_clear()
    generate(llama, ids, VidKVCache(llama.config, "k2v2"))
    llama.set_attn_implementation("vidkv")
    assert sum("cannot read the codes" in record.message for record in caplog.records) == 1
