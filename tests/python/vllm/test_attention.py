"""The attention backend as vLLM calls it, against a softmax in double precision: batches of prefill and decoding, KV heads shared by queries, soft
caps, sinks, scattered blocks, and sliding windows, which are vLLM's own."""
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")

import torch
from test_bad_input import configuration
from vidkv import _core
from vidkv.vllm import backend, layers, options
from vidkv.vllm.dense import _aligned
from vllm import _custom_ops as ops
from vllm.v1.attention.backends import cpu_attn

BLOCK = 128
DECODING = [(1, 213), (1, 1), (1, 312), (1, 7), (1, 1412)]  # (new tokens, all tokens) of each text
PREFILL = [(345, 345), (5, 5), (3, 16), (134, 531)]
MIXED = [(192, 456), (1, 384), (98, 145), (1, 1162), (130, 130), (1, 129)]
BATCHES = {"decoding": DECODING, "prefill": PREFILL, "mixed": MIXED}


@pytest.fixture
def make(monkeypatch):
    """make(preset, heads, KV heads, head_dim, ...): an attention layer as a model makes it."""

    def layer(preset, heads, kv_heads, head_dim, window=None, cap=None, sinks=None, dtype=torch.float32):
        config = configuration({"vidkv": preset}, model_config__dtype=dtype)
        for module in (backend, cpu_attn):
            monkeypatch.setattr(module, "get_current_vllm_config", lambda: config)
        return backend.VidKVAttentionImpl(heads, head_dim, head_dim**-0.5, kv_heads, None, window, "auto", logits_soft_cap=cap, sinks=sinks)

    return layer


class Texts:
    """Queries, keys and values of some texts, in blocks that lie anywhere."""

    def __init__(self, batch, heads, kv_heads, head_dim, dtype, seed=0):
        self.new, self.all = ([pair[i] for pair in batch] for i in (0, 1))
        generator = torch.Generator().manual_seed(seed)
        draw = lambda n, h: torch.randn(n, h, head_dim, generator=generator).to(dtype)
        self.q, self.k, self.v = ([draw(n, h) for n in self.all] for h in (heads, kv_heads, kv_heads))
        pages = [-(-n // BLOCK) for n in self.all]
        self.blocks = 2 * sum(pages) + 3
        places = iter(torch.randperm(self.blocks, generator=generator).tolist())
        self.table = torch.full((len(batch), max(pages) + 2), 1 << 20, dtype=torch.int32)  # what lies behind a text's blocks is not looked at
        for row, count in zip(self.table, pages):
            row[:count] = torch.tensor([next(places) for _ in range(count)])

    def metadata(self, first, end, **more):
        """For a step that computes tokens first[i] to end[i] of each text."""
        start = torch.tensor([0] + [b - a for a, b in zip(first, end)]).cumsum(0, dtype=torch.int32)
        slots = [int(self.table[i, t // BLOCK]) * BLOCK + t % BLOCK for i, (a, b) in enumerate(zip(first, end)) for t in range(a, b)]
        return cpu_attn.CPUAttentionMetadata(
            num_actual_tokens=int(start[-1]), max_query_len=0, query_start_loc=start, max_seq_len=max(end), block_table=self.table,
            seq_lens=torch.tensor(end, dtype=torch.int32), slot_mapping=torch.tensor(slots), scheduler_metadata=None, **more)

    def rows(self, first, end):
        """Padded behind, as vLLM's batches may be."""
        return [torch.nn.functional.pad(torch.cat([x[a:b] for x, a, b in zip(side, first, end)]), (0, 0, 0, 0, 0, 3)) for side in (self.q, self.k, self.v)]


def softmax(q, k, v, window=None, cap=None, sinks=None):
    """The newest len(q) tokens of a text, in double precision."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    scores = cap * np.tanh(scores / cap) if cap else scores
    ahead = np.arange(len(k))[None, :] - np.arange(len(k) - len(q), len(k))[:, None]
    scores[:, (ahead > 0) | (ahead <= -window if window else False)] = -np.inf
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks.double().numpy()[:, None, None], (*scores.shape[:2], 1))], axis=2)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights = (weights / weights.sum(axis=2, keepdims=True))[:, :, : len(k)]
    return np.einsum("hqk,khd->qhd", weights, v)


def packed_cache(texts, kv_heads, head_dim):
    size = options.room_of_block(kv_heads, head_dim)
    return _aligned(texts.blocks * size).view(texts.blocks, 1, 1, size)


def attend(impl, texts, cache, steps, **more):
    """All steps; the outputs of the last."""
    for first, end in zip(steps, steps[1:]):
        rows = texts.rows(first, end)
        out = torch.full(rows[0].shape, 7.0, dtype=rows[0].dtype)
        layer = SimpleNamespace(layer_name="layer", isa=more.get("isa"), _k_scale_float=1.0, _v_scale_float=1.0)
        meta = texts.metadata(first, end)
        if "isa" in more:
            meta.scheduler_metadata = ops.cpu_attn_get_scheduler_metadata(
                num_reqs=len(end), num_heads=impl.num_heads, num_kv_heads=impl.num_kv_heads, head_dim=impl.head_size, seq_lens=meta.seq_lens,
                dtype=rows[0].dtype, query_start_loc=meta.query_start_loc, causal=True, sliding_window_size=impl.sliding_window, isa=more["isa"],
                enable_kv_split=True)
            n = meta.num_actual_tokens
            impl.do_kv_cache_update(layer, rows[1][:n], rows[2][:n], cache, meta.slot_mapping)
        impl.forward(layer, *rows, cache, meta, out)
        assert (out[meta.num_actual_tokens :] == 7).all()  # padding is not written
    return out[: meta.num_actual_tokens].split([b - a for a, b in zip(steps[-2], steps[-1])])


def steps_of(texts):
    """Everything but the newest tokens in one step, then these."""
    before = [b - a for a, b in zip(texts.new, texts.all)]
    return [[0] * len(before), before, texts.all] if any(before) else [before, texts.all]


def worst(outs, texts, **more):
    found = 0.0
    for out, q, k, v, new in zip(outs, texts.q, texts.k, texts.v, texts.new):
        wanted = softmax(q[-new:], k, v, **more)
        found = max(found, float(np.sqrt(np.square(out.double().numpy() - wanted).mean() / np.square(wanted).mean())))
    return found


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", [(4, 4, 64), (8, 2, 128), (9, 3, 96), (14, 2, 64), (5, 1, 256)], ids=str)
def test_f16_blocks_against_double(make, batch, shape):
    impl, texts = make("f16", *shape), Texts(BATCHES[batch], *shape, torch.float32)
    outs = attend(impl, texts, packed_cache(texts, *shape[1:]), steps_of(texts))
    assert worst(outs, texts) < 1e-3


@pytest.mark.parametrize("dtype,bound", [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("preset", ["f16", "t1.65"])
def test_types_of_models(make, preset, dtype, bound):
    """Nothing is packed yet in short texts."""
    batch = MIXED if preset == "f16" else [(77, 77), (1, 100), (3, 127), (40, 60)]
    impl, texts = make(preset, 8, 2, 64, dtype=dtype), Texts(batch, 8, 2, 64, dtype)
    outs = attend(impl, texts, packed_cache(texts, 2, 64), steps_of(texts))
    assert outs[0].dtype is dtype and worst(outs, texts) < bound


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("preset", ["f16", "t2.2"])
def test_soft_caps_and_sinks(make, preset, sunk, cap):
    sinks = torch.linspace(-2, 4, 8) if sunk else None
    impl, texts = make(preset, 8, 2, 64, cap=cap, sinks=sinks), Texts(MIXED if preset == "f16" else [(1, 127), (50, 120)], 8, 2, 64, torch.float32)
    outs = attend(impl, texts, packed_cache(texts, 2, 64), steps_of(texts))
    assert worst(outs, texts, cap=cap, sinks=sinks) < 1e-3
    assert not sunk or worst(outs, texts, cap=cap) > 0.05  # they matter


@pytest.mark.parametrize("preset", ["t1.15", "t1.65", "t2.2", "t3.2", "k2v2"])
@pytest.mark.parametrize("shape", [(8, 2, 64), (4, 4, 128), (9, 3, 96)], ids=str)
def test_packed_blocks_against_double(make, preset, shape):
    """Against a softmax over what the codes say where codes are read, over the rows themselves where rows are."""
    impl, texts = make(preset, *shape), Texts(MIXED, *shape, torch.float32)
    cache = packed_cache(texts, *shape[1:])
    attend(impl, texts, cache, steps_of(texts)[:2])
    native = layers.blocks_of(cache, *shape[1:])
    for i, (new, length) in enumerate(zip(texts.new, texts.all)):
        for page in range(max(length - new - 128, 0) // BLOCK):
            at, block = slice(page * BLOCK, page * BLOCK + BLOCK), int(texts.table[i, page])
            data, one = native.export_block(block), _core.Blocks(_aligned(cache.shape[3]).view(1, -1), *shape[1:], options.state().params, 0)
            one.import_block(0, data)  # without its rows
            for name, side in (("keys", texts.k), ("values", texts.v)):
                rows = torch.empty(BLOCK, shape[1] * shape[2], dtype=torch.float16)
                one.read(name, 0, rows)
                side[i][at] = rows.view(BLOCK, *shape[1:]).float()
    before = steps_of(texts)[1]
    outs = attend(impl, texts, cache, [before, texts.all])
    assert worst(outs, texts) < 0.02


@pytest.mark.parametrize("preset", ["f16", "t1.65"])
def test_what_a_step_attends_does_not_depend_on_the_other_texts(make, preset):
    shape = (8, 2, 64)
    together, cut = Texts(MIXED, *shape, torch.float32), []
    impl = make(preset, *shape)
    outs = attend(impl, together, packed_cache(together, 2, 64), steps_of(together))
    for i in range(len(MIXED)):
        alone = Texts(MIXED, *shape, torch.float32)
        for name in ("q", "k", "v", "new", "all"):
            setattr(alone, name, getattr(alone, name)[i : i + 1])
        alone.table = alone.table[i : i + 1]
        cut.append(attend(impl, alone, packed_cache(alone, 2, 64), steps_of(alone))[0])
    for a, b in zip(outs, cut):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("window", [32, 256])
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_sliding_windows_are_those_of_vllm(make, window, dtype, bound):
    shape = (8, 2, 64)
    impl, texts = make("t1.65", *shape, window=window, dtype=dtype), Texts(MIXED, *shape, dtype)
    cache = torch.zeros(texts.blocks, 2, BLOCK, 2 * 64, dtype=dtype)
    outs = attend(impl, texts, cache, steps_of(texts), isa=cpu_attn._get_attn_isa(dtype, BLOCK, 64))
    assert worst(outs, texts, window=window) < bound < worst(outs, texts)


def test_a_quantized_output_is_refused(make):
    impl, texts = make("t1.65", 4, 2, 64), Texts([(5, 5)], 4, 2, 64, torch.float32)
    rows, cache = texts.rows([0], [5]), packed_cache(texts, 2, 64)
    with pytest.raises(NotImplementedError, match="VidKV: the output of attention is not quantized"):
        impl.forward(SimpleNamespace(layer_name="x"), *rows, cache, texts.metadata([0], [5]), rows[0], output_scale=torch.ones(1))


def test_blocks_that_were_never_written_are_not_read(make):
    impl, texts = make("t1.65", 4, 2, 64), Texts([(5, 300)], 4, 2, 64, torch.float32)
    with pytest.raises(ValueError, match=r"blocks: block \d+ holds 0 tokens"):
        attend(impl, texts, packed_cache(texts, 2, 64), [[295], [300]])
