"""Tensors on a GPU: codes that lie there, the CUDA kernels and plain torch operations that read them. Skipped where there is none."""
import copy

import pytest
import torch
from common import text_model
from test_device import HEADS, KV_HEADS, PRESETS, TOKENS, append, codes, states

import vidkv
from vidkv.transformers import VidKVCache, torch_storage
from vidkv.transformers.names import as_arguments
from vidkv.transformers.storage import NativeStorage
from vidkv.transformers.torch_storage import TorchStorage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false")
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
WITH_KERNELS = ["t2.2", "t1.65", "t1.15", "t1.0", "t4.2"]


def filled(kind, preset, head_dim, device, rows=1):
    """A storage with a prefill of 700 tokens and single chunks of 50."""
    storage = kind(vidkv.Params.from_preset(preset), rows, KV_HEADS, head_dim, head_dim, 1024, device)
    part = [states.to(device) for states in states(head_dim)]
    for row in range(rows):
        for first, last in [(0, 700), *((n, n + 50) for n in range(700, TOKENS, 50))]:
            append(storage, row, part, first, last)
    return storage


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_bits_read_alike(preset, head_dim):
    library, ours = filled(NativeStorage, preset, head_dim, CPU), filled(TorchStorage, preset, head_dim, GPU)
    assert codes(ours) == codes(library)
    for side in ("keys", "values"):
        want, got = (storage.read(0, side, TOKENS, torch.float32, CPU) for storage in (library, ours))
        assert (got - want).abs().max() < 2**-10 * want.abs().max()


def close(got, want):
    return torch.allclose(got.double(), want.double(), atol=1e-4 * want.abs().max())


@pytest.mark.parametrize("preset", PRESETS)
def test_plain_torch_reads_as_on_the_cpu(preset):
    gpu, cpu = filled(TorchStorage, preset, 72, GPU), filled(TorchStorage, preset, 72, CPU)
    q, sinks = states(72)[2][:, :9], torch.linspace(-1, 1, HEADS)
    want = cpu.attend(0, q, TOKENS, None, True, 0.1, 3.0, sinks)
    got = gpu.attend(0, q.to(GPU), TOKENS, None, True, 0.1, 3.0, sinks.to(GPU))
    assert got.device.type == "cuda" and close(got.cpu(), want)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("preset", WITH_KERNELS)
def test_kernels_and_plain_torch_agree(preset, head_dim):
    """Kernels round queries and weights to int8 (docs/numerics.md): they differ by that much, and not more."""
    storage = filled(TorchStorage, preset, head_dim, GPU)
    assert storage.has_kernels
    mask = torch.zeros(9, TOKENS, dtype=torch.float16, device=GPU)
    mask[:, 200:300], mask[0] = -torch.inf, -torch.inf
    sinks = torch.linspace(-1, 1, HEADS, device=GPU)
    for tokens, arguments in ((1, (None, False, 0.1, 0.0, None)), (9, (None, True, 0.1, 0.0, sinks)), (9, (mask, False, 0.1, 5.0, None))):
        q = states(head_dim)[2][:, :tokens].to(GPU)
        got, want = storage.attend(0, q, TOKENS, *arguments), storage._attend_by_torch(0, q, TOKENS, *arguments)
        assert ((got - want).square().mean() / want.square().mean()).sqrt() < 0.03
        assert (got[0] == 0).all() == (want[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_rows_at_once(dtype):
    storage, q = filled(TorchStorage, "t1.65", 64, GPU, rows=3), states(64)[2][:, :2].to(GPU)
    storage.truncate(1, 300)
    cells = [TOKENS, 300, TOKENS]
    batch = torch.stack([q, 2 * q, -q]).to(dtype)
    out = torch.empty(3, 2, HEADS, 64, dtype=dtype, device=GPU)
    assert storage.attend_batch(batch, out, cells, True, 0.125, 0.0, None)
    for row in range(3):
        want = storage.attend(row, batch[row].float(), cells[row], None, True, 0.125, 0.0, None)
        assert (out[row].float() - want).abs().max() <= 2**-7 * want.abs().max()


def test_decoding_does_not_wait_for_the_device():
    storage, part = filled(TorchStorage, "t1.65", 64, GPU), [states.to(GPU) for states in states(64)]
    out = torch.empty(1, 1, HEADS, 64, device=GPU)
    storage.attend_batch(part[2][None, :, :1], out, [TOKENS], False, 0.125, 0.0, None)  # the first call may
    torch.cuda.set_sync_debug_mode("error")
    try:
        for n in range(20):
            storage.write(0, TOKENS + n, part[0][:, :1], part[1][:, :1])
            storage.attend_batch(part[2][None, :, :1], out, [TOKENS + n + 1], False, 0.125, 0.0, None)
            storage.observe(0, part[2][:, :1])
            storage.seal(0.125)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run(model, ids, preset, device, force_torch=False, steps=6):
    """The logits of greedy steps behind a prompt."""
    cache, rows = VidKVCache(model.config, preset, force_torch=force_torch), []
    with torch.no_grad():
        for n in range(steps):
            part = ids[:, :-steps] if n == 0 else ids[:, n - steps - 1:n - steps]
            rows.append(model(part.to(device), **as_arguments(cache)).logits[:, -1].float().cpu())
    return torch.stack(rows), cache


@pytest.mark.parametrize("preset", ["f16", "k2v2", "t1.65"])
def test_a_model_gives_what_it_gives_on_the_cpu(preset):
    model = text_model("qwen2", hidden_size=256)
    model.set_attn_implementation("vidkv")
    ids = torch.randint(3, 280, (2, 420), generator=torch.Generator().manual_seed(5))
    want, _ = run(model, ids, preset, "cpu")
    got, cache = run(copy.deepcopy(model).to(GPU), ids, preset, GPU)
    assert cache.packed_layers[0].storage.has_kernels == (preset == "t1.65")
    assert (got - want).abs().max() < 0.05 * want.abs().max()
    assert cache.bytes_held() > 0


@pytest.mark.parametrize("options", [{}, dict(num_beams=3), dict(prompt_lookup_num_tokens=3), dict(do_sample=True, num_return_sequences=2)])
def test_generation(options):
    model = text_model("qwen2", hidden_size=256).to(GPU).half()
    model.set_attn_implementation("vidkv")
    ids = torch.randint(3, 280, (1, 420), generator=torch.Generator().manual_seed(5)).to(GPU)
    out = model.generate(input_ids=ids, cache=VidKVCache(model.config, "t1.65"), max_new_tokens=150, **{"do_sample": False, **options})
    assert out.shape == (options.get("num_return_sequences", 1), 570)


def test_left_padding_copies_and_crops():
    model = text_model("qwen2", hidden_size=256).to(GPU)
    model.set_attn_implementation("vidkv")
    ids = torch.randint(3, 280, (2, 420), generator=torch.Generator().manual_seed(5)).to(GPU)
    mask = torch.ones_like(ids)
    mask[0, :60] = 0
    cache = VidKVCache(model.config, "t1.65")
    with torch.no_grad():
        model(ids, attention_mask=mask, **as_arguments(cache))
        other, longer = copy.deepcopy(cache), torch.cat((mask, mask[:, -1:]), 1)
        want = model(ids[:, :1], attention_mask=longer, **as_arguments(cache)).logits
        other.offload(0)
        other.prefetch(0)
        assert torch.equal(model(ids[:, :1], attention_mask=longer, **as_arguments(other)).logits, want)
        cache.crop(-1)
        assert close(model(ids[:, :1], attention_mask=longer, **as_arguments(cache)).logits, want)


def test_it_says_once_what_it_cannot_read(caplog):
    type(torch_storage.logger).warning_once.cache_clear()
    for preset in ("t1.65", "k2v2", "k2v2"):
        filled(TorchStorage, preset, 64, GPU)
    assert [record.message.count("CUDA kernels read trellis codes") for record in caplog.records if "plain torch" in record.message] == [1]
