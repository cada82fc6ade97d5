"""vidkv._core.Blocks: pages that a host addresses by number."""

import numpy as np
import pytest

from vidkv import _core

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 32


def aligned(blocks, stride):
    raw = np.zeros(blocks * stride + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + blocks * stride].reshape(blocks, stride)


class Layer:
    """Blocks of one layer and, for each text, its table and all it was given."""

    def __init__(self, preset, blocks=40, spare=16):
        params = _core.Params.from_preset(preset)
        self.memory = aligned(blocks, _core.block_bytes(params, KV_HEADS, HEAD_DIM))
        self.blocks = _core.Blocks(self.memory, KV_HEADS, HEAD_DIM, params, spare)

    def step(self, batch, drafts=0):
        """batch: [(table, length, q, k, v)], the newest tokens of each text; their outputs."""
        start = np.cumsum([0] + [len(q) for _, _, q, _, _ in batch]).astype(np.int32)
        lengths = np.array([length for _, length, *_ in batch], np.int32)
        width = max(len(table) for table, *_ in batch)
        table = np.array([list(t) + [0] * (width - len(t)) for t, *_ in batch], np.int32)
        q, k, v = (np.concatenate([b[i] for b in batch]) for i in (2, 3, 4))
        out = np.empty_like(q)
        self.blocks.attend(q, k, v, out, start, lengths, table, scale=HEAD_DIM**-0.5, drafts=drafts, threads=2)
        return np.split(out, start[1:-1])


def tokens(n, seed):
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=HEAD_DIM)).astype(np.float32)
    q = rng.normal(size=(n, HEADS, HEAD_DIM)).astype(np.float32) * scales * 0.3
    k, v = rng.normal(size=(2, n, KV_HEADS, HEAD_DIM)).astype(np.float32)
    return q, k * scales + 3, v


def expected(q, k, v):
    k, v = (np.repeat(x.astype(np.float16).astype(np.float64), HEADS // KV_HEADS, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5
    behind = np.arange(len(k))[None, :] > np.arange(len(k) - len(q), len(k))[:, None]
    scores = np.where(behind[None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=2, keepdims=True), v)


def error(out, q, k, v):
    want = expected(q, k, v)
    return np.sqrt(np.square(out - want).mean() / np.square(want).mean())


def read(layer, side, block):
    rows = np.empty((128, KV_HEADS * HEAD_DIM), np.float16)
    layer.blocks.read(side, block, rows)
    return rows


def decoded(layer, table, k, v, read_as_codes):
    """k and v as attention sees them: the first blocks as their codes say."""
    k, v = k.copy(), v.copy()
    for page in range(read_as_codes):
        at = slice(128 * page, 128 * page + 128)
        k[at] = read(layer, "keys", table[page]).reshape(128, KV_HEADS, HEAD_DIM)
        v[at] = read(layer, "values", table[page]).reshape(128, KV_HEADS, HEAD_DIM)
    return k, v


@pytest.mark.parametrize("preset", ["f16", "t2.2", "t1.65", "k2v2", "k1.5v1.58", "k16v2", "t1.0"])
def test_texts_in_scattered_blocks_against_a_plain_softmax(preset):
    layer = Layer(preset)
    texts = [(list(range(39, 29, -1)), tokens(700, 1)), ([3, 17, 5, 22, 9, 0], tokens(700, 2))]
    for first, end in [(0, 300), (300, 301), (301, 600)]:
        outs = layer.step([(table, end, *(x[first:end] for x in qkv)) for table, qkv in texts])
        for (_, (q, k, v)), out in zip(texts, outs):
            assert error(out, q[first:end], k[:end], v[:end]) < (0.001 if first == 0 or preset == "f16" else 0.7)
    assert (layer.blocks.stats().packed > 0) == (preset != "f16")
    for _ in range(6):
        layer.step([([29], 1, *tokens(1, 3))])  # the rows of the window go
    outs = layer.step([(table, 700, *(x[600:700] for x in qkv)) for table, qkv in texts])
    for (table, (q, k, v)), out in zip(texts, outs):
        seen = decoded(layer, table, k, v, 4)
        assert error(out, q[600:700], *seen) < 0.07, "attention and decoding disagree"


def test_a_sealed_block_does_not_depend_on_who_filled_it():
    q, k, v = tokens(400, 3)
    one, other = Layer("t1.65"), Layer("t1.65")
    one.step([([4, 5, 6, 7], 400, q, k, v)])
    stranger = tokens(200, 4)
    at = 0
    for n in (1, 3, 100, 60, 236):  # other batches, beside another text, in other blocks
        batch = [([30, 31, 32, 33], at + n, q[at : at + n], k[at : at + n], v[at : at + n])]
        if at == 4:
            batch.insert(0, ([8, 9], 200, *stranger))
        other.step(batch)
        at += n
    for mine, its in zip((4, 5, 6), (30, 31, 32)):
        assert one.blocks.export_block(mine) == other.blocks.export_block(its)
    assert one.blocks.export_block(7) is None  # not full


@pytest.mark.parametrize("preset,alike", [("t1.65", ["values"]), ("t3.2", ["values"]), ("k2v2", ["keys", "values"])])
def test_two_ranks_pack_their_own_heads(preset, alike):
    """Two processes with a head each pack what one with both does, but for trellis keys: heads of one page share its bits."""
    q, k, v = tokens(128, 8)
    both, half = Layer(preset), HEADS // KV_HEADS
    both.step([([4], 128, q, k, v)])
    both.blocks.import_block(4, both.blocks.export_block(4))
    for head in range(KV_HEADS):
        params = _core.Params.from_preset(preset)
        one = _core.Blocks(aligned(1, _core.block_bytes(params, 1, HEAD_DIM)), 1, HEAD_DIM, params, 0)
        own = [np.ascontiguousarray(x) for x in (q[:, half * head : half * (head + 1)], k[:, head : head + 1], v[:, head : head + 1])]
        as_int = lambda *x: np.array(x, np.int32)
        one.attend(*own, np.empty_like(own[0]), as_int(0, 128), as_int(128), as_int(0).reshape(1, 1), scale=HEAD_DIM**-0.5, threads=1)
        one.import_block(0, one.export_block(0))
        for side in alike:
            rows = np.empty((128, HEAD_DIM), np.float16)
            one.read(side, 0, rows)
            np.testing.assert_array_equal(rows, read(both, side, 4).reshape(128, KV_HEADS, HEAD_DIM)[:, head])


def packed_keys(preset, lesson=None, steps=(128,), forget=False, start=0):
    """The keys of a block, its tokens written in steps of these sizes, after a lesson of queries for blocks from `start` on."""
    layer, (q, k, v) = Layer(preset), tokens(128, 5)
    if lesson is not None:
        layer.blocks.learn(lesson, start)
    if forget:
        layer.blocks.forget()
    at = 0
    for n in steps:
        layer.step([([4], at + n, *(x[at : at + n] for x in (q, k, v)))])
        at += n
    data = layer.blocks.export_block(4)
    layer.blocks.import_block(4, data)  # without its f16 rows
    return k, read(layer, "keys", 4).reshape(k.shape).astype(np.float32)


def test_keys_are_packed_for_the_queries_of_a_lesson():
    lesson = np.random.default_rng(6).normal(size=(300, HEADS, HEAD_DIM)).astype(np.float32) * 0.05
    lesson[:, :, 7] *= 100  # all later queries look at one channel
    k, plain = packed_keys("t1.15")
    _, taught = packed_keys("t1.15", lesson)
    rest = slice(4, None)  # without the sinks
    error = lambda found: np.square(found - k)[rest, :, 7].mean()
    assert error(taught) < 0.3 * error(plain)
    for steps in [(1,) * 128, (60, 4, 64)]:
        np.testing.assert_array_equal(packed_keys("t1.15", lesson, steps)[1], taught)
    np.testing.assert_array_equal(packed_keys("t1.15", lesson, forget=True)[1], plain)
    np.testing.assert_array_equal(packed_keys("t1.15", lesson, start=512)[1], packed_keys("t1.15", lesson, forget=True, start=512)[1])
    np.testing.assert_array_equal(packed_keys("k2v2", lesson)[1], packed_keys("k2v2")[1])  # knows no queries


def test_a_block_is_shared_and_goes_to_another_process():
    q, k, v = tokens(500, 5)
    layer, second = Layer("t1.65"), Layer("t1.65")
    layer.step([([0, 1, 2, 3], 500, q, k, v)])
    for block in range(3):
        second.blocks.import_block(block + 10, layer.blocks.export_block(block))
        assert (read(layer, "keys", block)[:4] == k[128 * block : 128 * block + 4].reshape(4, -1).astype(np.float16)).all() or block
    tail = slice(384, 500)
    (shared,) = layer.step([([0, 1, 2, 4], 500, q[tail], k[tail], v[tail])])
    (far,) = second.step([([10, 11, 12, 20], 500, q[tail], k[tail], v[tail])])
    assert error(shared, q[tail], k, v) < 0.7 and error(far, q[tail], k, v) < 0.7
    for _ in range(8):  # the window has passed: from now on both read codes
        layer.step([([30], 1, q[:1], k[:1], v[:1])])
    (shared,) = layer.step([([0, 1, 2, 5], 500, q[tail], k[tail], v[tail])])
    assert (shared == far).all()


def test_drafts_are_taken_back():
    q, k, v = tokens(300, 6)
    wrong = tokens(300, 7)
    plain, drafting = Layer("f16"), Layer("t1.65")
    table = [1, 2, 3]
    for layer in (plain, drafting):
        layer.step([(table, 126, q[:126], k[:126], v[:126])], drafts=4)
        layer.step([(table, 131, wrong[0][:5], wrong[1][:5], wrong[2][:5])], drafts=4)  # into the next block; all but one are rejected
        (out,) = layer.step([(table, 130, q[126:130], k[126:130], v[126:130])], drafts=4)
        assert error(out, q[126:130], k[:130], v[:130]) < 1e-3  # nothing was packed in between
    (out,) = drafting.step([(table, 300, q[130:], k[130:], v[130:])])
    assert error(out, q[130:], k, v) < 0.7


def test_a_block_begins_anew_for_its_next_owner():
    layer = Layer("t1.65")
    layer.step([([1, 2], 200, *tokens(200, 8))])
    q, k, v = tokens(100, 9)
    (out,) = layer.step([([2], 100, q, k, v)])
    assert error(out, q, k, v) < 1e-3


def test_blocks_that_nobody_names_are_packed_and_can_go_on():
    layer = Layer("t1.65", spare=1)
    q, k, v = tokens(140, 10)
    layer.step([([1, 2], 70, q[:70], k[:70], v[:70])])
    for block in range(3, 9):
        layer.step([([block], 60, *tokens(60, block))])
    stats = layer.blocks.stats()
    assert stats.open <= 2 and stats.packed >= 5
    (out,) = layer.step([([1, 2], 140, q[70:], k[70:], v[70:])])
    assert error(out, q[70:], k, v) < 0.7


@pytest.mark.parametrize("spoil", ["cut", "longer", "magic", "order", "codes", "empty"])
def test_altered_bytes_are_refused_and_the_block_stays(spoil):
    layer = Layer("t1.65")
    layer.step([([0, 1], 256, *tokens(256, 11))])
    good = layer.blocks.export_block(1)
    bad = bytearray(good)
    params = _core.Params.from_preset("t1.65")
    if spoil == "cut":
        bad = bad[:-1]
    elif spoil == "longer":
        bad += b"\0"
    elif spoil == "magic":
        bad[0] ^= 1
    elif spoil == "order":
        at = 8 + _core.block_bytes(params, KV_HEADS, HEAD_DIM) - 64 - KV_HEADS * HEAD_DIM * 2
        bad[at : at + 64] = bytes(64)
        bad[at - 64 : at] = bytes(64)
    elif spoil == "codes":
        bad[8:] = b"\xff" * (len(bad) - 8)
    else:
        bad = bytearray()
    with pytest.raises(ValueError, match="not the bytes of a block"):
        layer.blocks.import_block(1, bytes(bad))
    assert layer.blocks.export_block(1) == good


def test_bad_calls_are_one_line():
    layer = Layer("t1.65")
    q, k, v = tokens(10, 12)
    with pytest.raises(ValueError, match="holds 0 tokens: token 5 cannot be written"):
        layer.step([([1], 15, q, k, v)])
    with pytest.raises(ValueError, match="no block 99"):
        layer.step([([99], 10, q, k, v)])
    with pytest.raises(ValueError, match="-stp"):
        _core.block_bytes(_core.Params.from_preset("k1.5v1.58-stp0.2"), 2, 32)
