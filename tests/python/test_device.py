"""Layers on devices without kernels: the codes lie there as bytes, and plain torch operations read them. That runs on the CPU here
(force_torch), and torch's fake CUDA tensors check that nothing is mixed with tensors of another device; test_cuda.py has a GPU."""
import copy

import pytest
import torch
from common import text_model, vision_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import vidkv
from vidkv.transformers import VidKVCache, torch_codes, torch_storage
from vidkv.transformers.names import as_arguments
from vidkv.transformers.storage import NativeStorage
from vidkv.transformers.torch_storage import TorchStorage

PRESETS = ["f16", "k2v2", "k1.5v1.58", "k1.25v1.58-g64", "k1.5v1.58-g128", "t2.2", "t1.65", "t1.0", "kt4vt3", "kt1.5v16", "k16vt1.5-stp0.2",
           "k1.5v1.58-stp0.2", "k1.5v1.58-g64-stp0.2", "t1.65-stp0.2", "t2.2-stp0.3", "t4.2", "t3.2", "t1.15"]
KV_HEADS, HEADS, TOKENS = 2, 4, 900
CPU = torch.device("cpu")


def states(head_dim):
    """Keys, values and queries [heads, tokens, head_dim]; some channels of keys are large, as in models."""
    random = torch.Generator().manual_seed(20261125)
    draw = lambda heads, tokens=TOKENS: torch.randn(heads, tokens, head_dim, generator=random)
    keys, values, queries = draw(KV_HEADS) * draw(KV_HEADS, 1).exp() + 2 * draw(KV_HEADS, 1), draw(KV_HEADS), 0.3 * draw(HEADS)
    values[1] = 0.2 * values[1] + values[1, :1]  # hardly moves
    return keys, values, queries


def append(storage, row, part, first, last):
    keys, values, queries = (states[:, first:last] for states in part)
    storage.write(row, first, keys, values)
    storage.observe(row, queries)
    storage.seal(keys.shape[-1] ** -0.5)


def filled(kind, preset, head_dim, rows=1):
    """A storage with a prefill of 700 tokens and single chunks of 50."""
    storage = kind(vidkv.Params.from_preset(preset), rows, KV_HEADS, head_dim, head_dim, 1024, CPU)
    part = states(head_dim)
    for row in range(rows):
        for first, last in [(0, 700), *((n, n + 50) for n in range(700, TOKENS, 50))]:
            append(storage, row, part, first, last)
    return storage


def codes(storage, row=0):
    return [store.sealed_page(storage.rows[row], page) for store in (storage.keys, storage.values) for page in range(TOKENS // 128 + 1)]


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_bits_read_alike(preset, head_dim):
    """Codes are those of the library's stores, bit for bit, and decode to the same rows (which it rounds to f16)."""
    library, ours = filled(NativeStorage, preset, head_dim), filled(TorchStorage, preset, head_dim)
    assert codes(ours) == codes(library)
    assert sum(page is not None for page in codes(ours)) == 6 * (("16" not in preset) + (preset != "f16"))
    for side in ("keys", "values"):
        want, got = (storage.read(0, side, TOKENS, torch.float32, CPU) for storage in (library, ours))
        assert (got - want).abs().max() < 2**-10 * want.abs().max()
    assert ours.bytes() <= library.bytes() + (preset.startswith("k16") and ours.values.stats().bytes)


@pytest.mark.parametrize("preset", ["f16", "k1.5v1.58", "t1.65-stp0.2"])
@pytest.mark.parametrize("causal, masked, softcap, with_sinks", [(True, False, 0.0, False), (False, True, 0.0, True), (True, False, 3.0, True)])
def test_attention_by_chunks(monkeypatch, preset, causal, masked, softcap, with_sinks):
    """Against softmax over all rows at once; the smallest chunks, so that they are many."""
    monkeypatch.setattr(torch_storage, "CHUNK_ELEMENTS", 1)
    storage, n = filled(TorchStorage, preset, 64), 9
    q = states(64)[2][:, :n]
    mask = torch.zeros(n, TOKENS, dtype=torch.float16)
    mask[:, 200:300] = -torch.inf
    mask[0] = -torch.inf  # sees nothing
    mask = mask if masked else None
    sinks = torch.linspace(-1, 1, HEADS) if with_sinks else None
    got = storage.attend(0, q, TOKENS, mask, causal, 0.125, softcap, sinks)
    keys, values = (storage.read(0, side, TOKENS, torch.float64, CPU).repeat_interleave(HEADS // KV_HEADS, 0) for side in ("keys", "values"))
    scores = q.double() @ keys.transpose(1, 2) * 0.125
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores + mask.double() if masked else scores
    if causal:
        scores = scores.masked_fill(torch.ones(n, TOKENS, dtype=torch.bool).triu(TOKENS - n + 1), -torch.inf)
    if with_sinks:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, n, 1)], -1)
    want = (scores.softmax(-1)[..., :TOKENS] @ values).nan_to_num(0).transpose(0, 1)
    assert torch.allclose(got.double(), want, atol=1e-4 * want.abs().max())


class Largest(TorchDispatchMode):
    """The most elements that an operation returned, and what they were of."""
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.elements = max(self.elements, out.numel())
        return out


def test_a_layer_is_never_decoded_in_full(monkeypatch):
    monkeypatch.setattr(torch_storage, "CHUNK_ELEMENTS", 1)
    storage = filled(TorchStorage, "t1.65", 64)
    q = states(64)[2][:, -1:]
    with Largest() as seen:
        storage.attend(0, q, TOKENS, None, True, 0.125, 0.0, None)
    assert 0 < seen.elements <= 3 * KV_HEADS * 128 * 64 < KV_HEADS * TOKENS * 64


def test_reading_leaves_the_host_alone():
    storage = filled(TorchStorage, "t1.65", 64)
    q = states(64)[2][:, -1:]
    want = storage.attend(0, q, TOKENS, None, True, 0.125, 0.0, None)
    held = storage.keys.packer.stats()
    assert held.cells_sealed == held.cells_written == 0  # pages are handed over, rows wait on the device
    storage.keys.packer = storage.values.packer = None
    assert torch.equal(storage.attend(0, q, TOKENS, None, True, 0.125, 0.0, None), want)


def on_fake_cuda(storage):
    """Every tensor of a storage as a fake one on a GPU; call it within FakeTensorMode."""
    fake = lambda tensor: None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    for store in (storage.keys, storage.values):
        store.device = torch.device("cuda:0")
        for rows in store.rows:
            rows.tail, rows.sinks = fake(rows.tail), fake(rows.sinks)
            for page in rows.pages:
                page.data = fake(page.data)
            if rows.plans:
                rows.plans.place, rows.plans.means = fake(rows.plans.place), fake(rows.plans.means)


@pytest.mark.parametrize("preset", ["f16", "k1.5v1.58-stp0.2", "k2v2", "t1.65-stp0.2"])
def test_no_device_is_mixed_with_another(preset):
    storage = filled(TorchStorage, preset, 72)
    caches = (torch_codes.quad_tables, torch_codes.scale_table, torch_codes.dft_basis, torch_codes.unrotation)
    try:
        with FakeTensorMode():
            on_fake_cuda(storage)
            q, mask = torch.empty(HEADS, 5, 72, device="cuda"), torch.empty(5, TOKENS, dtype=torch.float16, device="cuda")
            for arguments in ((None, True, 0.1, 0.0, None), (mask, False, 0.1, 30.0, torch.empty(HEADS))):
                out = storage.attend(0, q, TOKENS, *arguments)
                assert out.device.type == "cuda" and out.shape == (5, HEADS, 72)
            assert storage.read(0, "keys", TOKENS, torch.bfloat16, torch.device("cuda")).device.type == "cuda"
            storage.to(torch.device("cpu"))
            assert storage.keys.rows[0].tail.device.type == "cpu"
    finally:
        for cached in caches:  # fake tables must not meet real codes
            cached.cache_clear()


@pytest.mark.parametrize("preset", ["k1.5v1.58", "t1.65", "t1.65-stp0.2"])
def test_a_cut_through_sealed_pages(preset):
    """What is cut is gone, what is kept reads as before, and what is written again is packed again as the library does it."""
    library, ours = filled(NativeStorage, preset, 64), filled(TorchStorage, preset, 64)
    part = states(64)
    for cells in (850, 700, 300, 128, 40):
        for storage in (library, ours):
            storage.truncate(0, cells)
        want, got = (storage.read(0, "keys", cells, torch.float32, CPU) for storage in (library, ours))
        assert (got - want).abs().max() < 2**-9 * want.abs().max()
        assert [page is None for page in codes(ours)] == [page is None for page in codes(library)]
        for storage in (library, ours):
            for first in range(cells, min(cells + 400, TOKENS - 50), 50):
                append(storage, 0, part, first, first + 50)
            storage.truncate(0, cells)
    for storage in (library, ours):
        storage.truncate(0, 0)
        append(storage, 0, part, 0, 600)
    assert codes(ours) == codes(library) and codes(ours)[0] is not None


@pytest.mark.parametrize("preset", ["k1.5v1.58-stp0.2", "t1.65-stp0.2"])
def test_marks_wait_for_their_pages(preset):
    """Cells that are marked before they are written, or while they wait in the window, are protected when their page is packed."""
    storages = [kind(vidkv.Params.from_preset(preset), 1, KV_HEADS, 64, 64, 1024, CPU) for kind in (NativeStorage, TorchStorage)]
    for storage in storages:
        append(storage, 0, states(64), 0, 400)
        storage.protect(0, list(range(230, 290)) + list(range(600, 640)))
        for first in range(400, TOKENS, 50):
            append(storage, 0, states(64), first, first + 50)
    library, ours = (codes(storage) for storage in storages)
    assert ours == library
    marked = [int.from_bytes(page[:16], "little") for page in library if page is not None][6:]
    assert marked[2] and marked[4]


def test_forks_share_their_pages():
    storage = filled(TorchStorage, "t1.65", 64, rows=2)
    alone = storage.bytes()
    storage.select([0, 0, 1, 0])
    assert codes(storage, 3) == codes(storage, 0) and storage.bytes() < 2 * alone
    page = storage.keys.rows[storage.rows[0]].pages[0]
    assert all(storage.keys.rows[storage.rows[row]].pages[0].data is page.data for row in (1, 3))
    before = codes(storage, 1)
    part = states(64)
    storage.truncate(3, 500)
    append(storage, 3, part, 500, 640)
    assert codes(storage, 1) == before and storage.keys.rows[storage.rows[3]].start() != storage.keys.rows[storage.rows[1]].start()


WAYS = {"greedy": {}, "beams": dict(num_beams=3), "assisted": dict(assistant=True), "prompt lookup": dict(prompt_lookup_num_tokens=3),
        "sampled several": dict(do_sample=True, num_return_sequences=2)}


@pytest.mark.parametrize("way", WAYS)
def test_generation(way):
    """f16 rows give the tokens of the library's storage; codes those of greedy decoding where cropping must change nothing."""
    model, options = text_model("llama"), dict(WAYS[way])
    model.set_attn_implementation("vidkv")
    if options.pop("assistant", False):
        options["assistant_model"] = text_model("llama", num_hidden_layers=1)
    ids = torch.randint(3, 280, (1, 420), generator=torch.Generator().manual_seed(5))

    def run(preset, force_torch, **options):
        torch.manual_seed(11)
        cache = VidKVCache(model.config, preset, force_torch=force_torch)
        return model.generate(input_ids=ids, cache=cache, max_new_tokens=12, **{"do_sample": False, **options})

    assert torch.equal(run("f16", True, **options), run("f16", False, **options))
    if "assistant_model" in options or "prompt_lookup_num_tokens" in options:
        assert torch.equal(run("k2v2", True, **options), run("k2v2", True))


def test_visual_tokens_are_protected():
    model, inputs = vision_model("qwen2_5_vl")
    model.set_attn_implementation("vidkv")
    caches = [VidKVCache(model.config, "t1.65-stp0.2", force_torch=force) for force in (False, True)]
    for cache in caches:
        model.generate(**inputs, cache=cache, max_new_tokens=4, do_sample=False)
    pages = [cache.packed_layers[0].storage.values.sealed_page(0, 0) for cache in caches]
    assert pages[0] is not None and pages[0] == pages[1]


def test_copies_offload_and_reset():
    model = text_model("qwen2")
    model.set_attn_implementation("vidkv")
    ids = torch.randint(3, 280, (2, 420), generator=torch.Generator().manual_seed(5))
    cache = VidKVCache(model.config, "t1.65", force_torch=True)
    with torch.no_grad():
        model(ids, **as_arguments(cache))
        other = copy.deepcopy(cache)
        want = model(ids[:, :9], **as_arguments(cache)).logits
        for layer in range(len(other)):
            other.offload(layer)
            other.prefetch(layer)
        assert torch.equal(model(ids[:, :9], **as_arguments(other)).logits, want)
        cache.reset()
        assert cache.bytes_held() == 0
        model(ids[:1], **as_arguments(cache))


def test_it_says_once_that_it_is_slower(caplog):
    type(torch_storage.logger).warning_once.cache_clear()
    for _ in range(2):
        filled(TorchStorage, "k2v2", 64)
    assert sum("plain torch operations" in record.message for record in caplog.records) == 1
