"""The same bits everywhere: codes made through Python, by transformers' cache and by a C++ program."""
import os
import subprocess

import numpy as np
import pytest
import torch
from common import text_model

import vidkv
from vidkv.transformers import VidKVCache

PACK_ROWS = os.environ.get("VIDKV_PACK_ROWS", "")
LAYERS, KV_HEADS, HEAD_DIM, HEADS, TOKENS = 3, 2, 64, 4, 700
PRESETS = ["f16", "k2v2", "k1.5v1.58", "k1.5v1.58-g128", "t2.2", "t1.65", "t1.0", "kt1.5v2", "k1.5v1.58-stp0.2", "t1.65-stp0.2"]


@pytest.fixture(scope="module")
def rows():
    """[(keys, values, queries)] per layer: float32 [tokens, heads, head_dim], as f16 holds them."""
    random = np.random.default_rng(20261123)
    spread = np.exp(random.normal(size=HEAD_DIM)).astype(np.float32)
    draw = lambda heads, scale: (random.standard_normal((TOKENS, heads, HEAD_DIM)).astype(np.float32) * scale).astype(np.float16).astype(np.float32)
    return [(draw(KV_HEADS, spread) + 2, draw(KV_HEADS, 1), draw(HEADS, 1)) for _ in range(LAYERS)]


def packed_by_python(preset, rows):
    cache = vidkv.Cache(LAYERS, KV_HEADS, HEAD_DIM, 1024, vidkv.Params.from_preset(preset))
    for layer, (keys, values, queries) in enumerate(rows):
        cache.append(layer, 0, keys, values)
        cache.observe_queries(layer, 0, queries)
    cache.seal()
    return cache


@pytest.mark.skipif(not os.path.exists(PACK_ROWS), reason="VIDKV_PACK_ROWS does not name the C++ program (ctest sets it)")
@pytest.mark.parametrize("preset", PRESETS)
def test_python_and_cpp_write_the_same_file(preset, rows, tmp_path):
    with open(tmp_path / "rows", "wb") as f:
        for layer in rows:
            for part in layer:
                f.write(part.tobytes())
    shape = [str(n) for n in (LAYERS, KV_HEADS, HEAD_DIM, HEADS, TOKENS)]
    subprocess.run([PACK_ROWS, preset, *shape, str(tmp_path / "rows"), str(tmp_path / "cpp")], check=True)
    packed_by_python(preset, rows).save(str(tmp_path / "python"))
    assert (tmp_path / "python").read_bytes() == (tmp_path / "cpp").read_bytes()
    loaded = vidkv.Cache(LAYERS, KV_HEADS, HEAD_DIM, 1024, vidkv.Params.from_preset(preset))
    loaded.load(str(tmp_path / "cpp"))
    loaded.save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "cpp").read_bytes()


@pytest.mark.parametrize("attention", ["vidkv", "sdpa", "eager"])
@pytest.mark.parametrize("preset", PRESETS[1:])
def test_transformers_cache_has_the_same_codes(preset, attention, rows):
    """Prefill through the layers of a VidKVCache, then the pages of its stores against those of stores filled by hand."""
    from transformers import AttentionInterface
    from transformers.models.llama.modeling_llama import eager_attention_forward
    config = text_model("llama", hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS).config
    cache = VidKVCache(config, preset)
    module = torch.nn.Module().eval()
    module.num_key_value_groups, module.is_causal, module.head_dim = HEADS // KV_HEADS, True, HEAD_DIM
    attend = AttentionInterface().get_interface(attention, eager_attention_forward)
    mask = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1)[None, None] if attention == "eager" else None
    for layer, (keys, values, queries) in enumerate(rows):
        keys, values, queries = (torch.from_numpy(part).transpose(0, 1)[None] for part in (keys, values, queries))
        k, v = cache.update(keys, values, layer)
        with torch.no_grad():
            attend(module, queries, k, v, mask, scaling=HEAD_DIM ** -0.5)
    for layer, (keys, values, queries) in enumerate(rows):
        ours = cache.layers[layer]
        ours.flush()
        ours._seal()
        params = vidkv.Params.from_preset(preset)
        by_hand = [vidkv.Store(side, KV_HEADS * HEAD_DIM, HEAD_DIM, params, 1024) for side in ("keys", "values")]
        by_hand[0].write(0, 0, keys.reshape(TOKENS, -1))
        by_hand[1].write(0, 0, values.reshape(TOKENS, -1))
        by_hand[0].observe_queries(0, queries)
        by_hand[1].protect_by_queries(by_hand[0], HEAD_DIM ** -0.5)
        for store, mine in zip(by_hand, (ours.storage.keys, ours.storage.values)):
            store.seal()
            pages = [store.sealed_page(0, page) for page in range(6)]
            assert sum(page is not None for page in pages) == 4
            assert [mine.sealed_page(0, page) for page in range(6)] == pages


def test_attention_reads_what_read_decodes(rows):
    """vidkv.attention on codes against softmax on the rows that the same stores decode to."""
    for preset in PRESETS:
        cache = packed_by_python(preset, rows)
        q = rows[0][2][:7] * 0.25  # scores of a size that occurs; the kernels round queries to int8 (docs/numerics.md)
        out = np.empty_like(q)
        cache.attend(0, q, out, causal=False)
        decoded = [np.empty((TOKENS, KV_HEADS * HEAD_DIM), np.float16) for _ in range(2)]
        for side, array in zip(("keys", "values"), decoded):
            cache.read(0, side, 0, 0, array)
        k, v = (torch.from_numpy(a.astype(np.float32)).view(TOKENS, KV_HEADS, HEAD_DIM).transpose(0, 1).repeat_interleave(2, 0) for a in decoded)
        want = torch.nn.functional.scaled_dot_product_attention(torch.from_numpy(q).transpose(0, 1), k, v).transpose(0, 1).numpy()
        error = np.sqrt(((out - want) ** 2).mean() / (want ** 2).mean())
        assert error < 0.05, (preset, error)
