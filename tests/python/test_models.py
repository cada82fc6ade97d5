"""Each model in its real structure with random weights: what it generates with a VidKVCache, and what the cache holds."""
import os
import re

import pytest
import torch
import transformers
from common import (IMAGE, NIGHTLY_VISION_MODELS, OTHER_MODELS, OTHER_VISION_MODELS, PRESETS, PUBLISHED, ROOT, TEXT_MODELS, VIDEO,
                    VISION_MODELS, text_model, vision_model)
from transformers import DynamicCache
from vidkv.transformers import VidKVCache
from vidkv.transformers.names import as_arguments, cache_of


def logits_after(model, inputs, cache, tokens):
    """Logits of `tokens` fed one by one after the prompt."""
    with torch.no_grad():
        out = model(**inputs, **as_arguments(cache), use_cache=True)
        rows = [out.logits[:, -1]]
        for token in tokens:
            rows.append(model(input_ids=token, **as_arguments(cache), use_cache=True).logits[:, -1])
    return torch.stack(rows, 1)


def generated_scores(model, inputs, **cache):
    """Logits [1, 24, vocabulary] of a greedy continuation; forced tokens keep two runs on one path."""
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False, return_dict_in_generate=True, output_logits=True,
                         prefix_allowed_tokens_fn=lambda batch, ids: [40 + len(ids) % 50], **cache)
    return torch.stack(out.logits, 1), out


@pytest.mark.parametrize("kind", TEXT_MODELS)
@pytest.mark.parametrize("attention", ["vidkv", "sdpa", "eager"])
def test_text_models_with_f16_rows_are_exact(kind, attention):
    model = text_model(kind)
    ids = torch.randint(3, 280, (1, 300), generator=torch.Generator().manual_seed(3))
    want, _ = generated_scores(model, {"input_ids": ids}, cache=DynamicCache(config=model.config))
    model.set_attn_implementation(attention)
    got, _ = generated_scores(model, {"input_ids": ids}, cache=VidKVCache(model.config, "f16"))
    assert (got - want).abs().max() < 2e-3 * want.abs().max()


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_models(kind):
    """f16 rows are exact, left padding and sliding windows included; codes are near, and the same read by the library and by torch."""
    model = text_model(kind)
    ids = torch.randint(3, 280, (2, 400), generator=torch.Generator().manual_seed(3))
    ids[0, :37] = 0
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    want, _ = generated_scores(model, inputs, cache=DynamicCache(config=model.config))
    model.set_attn_implementation("vidkv")
    got, _ = generated_scores(model, inputs, cache=VidKVCache(model.config, "f16"))
    assert (got - want).abs().max() < 5e-3 * want.abs().max()
    coded, by_torch = (generated_scores(model, inputs, cache=VidKVCache(model.config, "k2v2", force_torch=force))[0] for force in (False, True))
    assert 0 < torch.nn.functional.mse_loss(coded, want) / want.var() < 0.2
    assert torch.nn.functional.mse_loss(by_torch, coded) / want.var() < 1e-3


@pytest.mark.parametrize("kind", TEXT_MODELS)
@pytest.mark.parametrize("preset", PRESETS[1:])
def test_text_models_with_codes(kind, preset):
    model = text_model(kind)
    model.set_attn_implementation("vidkv")
    ids = torch.randint(3, 280, (1, 700), generator=torch.Generator().manual_seed(3))
    want, _ = generated_scores(model, {"input_ids": ids}, cache=DynamicCache(config=model.config))
    cache = VidKVCache(model.config, preset)
    got, _ = generated_scores(model, {"input_ids": ids}, cache=cache)
    assert cache.get_seq_length() == 700 + 23
    assert any(layer.storage.keys.stats().cells_sealed >= 384 for layer in cache.packed_layers)
    error = torch.nn.functional.mse_loss(got, want) / want.var()
    assert 0 < error < 0.25, f"relative error {error:.3f}"


nightly = pytest.mark.skipif(not os.environ.get("VIDKV_NIGHTLY"), reason="takes a minute: VIDKV_NIGHTLY=1 runs it")
AT_NIGHT = [pytest.param(kind, marks=nightly) for kind in NIGHTLY_VISION_MODELS]


@pytest.mark.parametrize("kind", VISION_MODELS + OTHER_VISION_MODELS + AT_NIGHT)
def test_vision_models_with_f16_rows_are_exact(kind):
    model, inputs = vision_model(kind)
    want, _ = generated_scores(model, inputs, cache=DynamicCache(config=model.config))
    for attention in ("vidkv", "sdpa"):
        model.set_attn_implementation(attention)
        got, _ = generated_scores(model, inputs, cache=VidKVCache(model.config, "f16"))
        assert (got - want).abs().max() < 5e-3 * want.abs().max(), attention


# Rows of docs/models.md: what runs here under which name, and what is refused for which kind of layer.
RUNS = {"Qwen2-VL": "qwen2_vl", "Qwen2.5-VL": "qwen2_5_vl", "Qwen3-VL": "qwen3_vl", "Qwen3-VL, experts": "qwen3_vl_moe", "SmolVLM2": "smolvlm2",
        "InternVL 3": "internvl", "Gemma 3": "gemma3_vl", "Gemma 4": "gemma4_vl", "GLM-4.1V": "glm4v", "GLM-4.5V, experts": "glm4v_moe",
        "GLM-OCR": "glm_ocr", "Mistral Small 3.1 (Pixtral)": "mistral3"}
REFUSED = {"Qwen3.5": ("Qwen3_5Config", "linear_attention"), "MiniCPM-V 4.6": ("MiniCPMV4_6Config", "linear_attention"),
           "LFM2-VL": ("Lfm2Config", "conv")}  # its language model
NOT_TRIED = {"Llama 4": "not tried"}
UNKNOWN = {"LLaVA-OneVision 1.5": "llavaonevision1_5"}  # to transformers: its type of model


def test_the_table_of_models():
    with open(os.path.join(ROOT, "docs", "models.md"), encoding="utf-8") as file:
        rows = dict(re.findall(r"^\| ([^|`]+) \| `.*\| ([^|]+) \|$", file.read(), re.MULTILINE))
    assert set(RUNS.values()) | {"llava_onevision"} == set(VISION_MODELS + OTHER_VISION_MODELS + NIGHTLY_VISION_MODELS)
    refused = {name: f"refused: `{layer}` layers" for name, (_, layer) in REFUSED.items()}
    unknown = {name: f"`{kind}` is unknown" for name, kind in UNKNOWN.items()}
    assert rows == {**dict.fromkeys(RUNS, "runs"), **refused, **unknown, **NOT_TRIED}


@pytest.mark.parametrize("kind", UNKNOWN.values())
def test_models_that_are_unknown(kind):
    with pytest.raises(ValueError, match=kind):
        transformers.AutoConfig.for_model(kind)


@pytest.mark.parametrize("config, layer", REFUSED.values())
def test_models_that_are_refused(config, layer):
    with pytest.raises(ValueError, match=f"layer type '{layer}' is not supported"):
        VidKVCache(getattr(transformers, config)(**({"layer_types": ["conv"] * 32} if layer == "conv" else {})))


@pytest.mark.parametrize("kind, backend", [
    *((kind, backend) for kind in VISION_MODELS for backend in ("QuantizedCacheLM", "QuantizedCacheVLM", "QuantizedCacheVLMSTP")),
    *((kind, "QuantizedCacheVLMSTP") for kind in OTHER_VISION_MODELS),
    *(pytest.param(kind, "QuantizedCacheVLMSTP", marks=nightly) for kind in NIGHTLY_VISION_MODELS)])
def test_published_calls(kind, backend, monkeypatch):
    model, inputs = vision_model(kind)
    protected = []
    protect = VidKVCache.protect
    monkeypatch.setattr(VidKVCache, "protect", lambda *arguments: (protected.append(arguments[2]), protect(*arguments)))
    before = model.config.get_text_config()._attn_implementation
    config = {"backend": backend, **PUBLISHED}
    got, out = generated_scores(model, inputs, cache_implementation="quantized", cache_config=config)
    assert isinstance(cache_of(out), VidKVCache)
    assert model.config.get_text_config()._attn_implementation == before
    assert config == {"backend": backend, **PUBLISHED}
    as_text, _ = generated_scores(model, inputs, cache_implementation="quantized", cache_config=str(config))
    assert torch.equal(got, as_text)
    values = cache_of(out).packed_layers[0].storage.values
    assert values.stats().cells_sealed > 0
    mask = int.from_bytes(values.sealed_page(0, 0)[:16], "little")
    assert cache_of(out).params.protect == pytest.approx(0.2 if backend.endswith("STP") else 0)
    if backend.endswith("STP"):
        visual = torch.isin(inputs["input_ids"][0], torch.tensor([IMAGE, VIDEO]))
        assert len(protected) == 2 and len(protected[0]) == max(32, int(0.2 * visual.sum()) // 32 * 32)  # a prefill each
        assert visual[protected[0]].all()
        in_first_page = sum(position < 128 for position in protected[0])
        assert abs(bin(mask).count("1") - in_first_page) < 32  # groups of 32 are protected as a whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["vidkv", "sdpa"])
def test_dtypes(dtype, attention):
    model = text_model("llama").to(dtype)
    ids = torch.randint(3, 280, (1, 400), generator=torch.Generator().manual_seed(3))
    want, _ = generated_scores(model, {"input_ids": ids}, cache=DynamicCache(config=model.config))
    model.set_attn_implementation(attention)
    got, _ = generated_scores(model, {"input_ids": ids}, cache=VidKVCache(model.config, "k2v2"))
    assert got.dtype == torch.float32 or got.dtype == dtype
    assert torch.nn.functional.mse_loss(got.float(), want.float()) / want.float().var() < 0.15


@pytest.mark.parametrize("preset", ["k1.5v1.58", "t1.65"])
def test_plain_torch_reads_the_same_codes(preset):
    """What other devices do, on the CPU: the same codes read with torch operations, left padding and beams included."""
    model = text_model("qwen2")
    model.set_attn_implementation("vidkv")
    ids = torch.randint(3, 280, (2, 400), generator=torch.Generator().manual_seed(3))
    ids[0, :50] = 0
    caches = [VidKVCache(model.config, preset, force_torch=force) for force in (False, True)]
    mask = (ids != 0).long()
    got = [generated_scores(model, {"input_ids": ids, "attention_mask": mask}, cache=cache)[0] for cache in caches]
    assert torch.nn.functional.mse_loss(got[1], got[0]) / got[0].var() < 1e-3
    first = [cache.packed_layers[0].storage.values.sealed_page(0, 0) for cache in caches]
    assert first[0] is not None and first[0] == first[1]
