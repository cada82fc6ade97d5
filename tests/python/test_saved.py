"""Saved caches: generation goes on bit for bit, beams and batches share pages, and what does not fit is said in one line."""
import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from common import text_model, vision_model

import vidkv
from vidkv.transformers import VidKVCache
from vidkv.transformers.names import as_arguments


def prompt_of(model, batch=1, n=300, seed=3):
    return torch.randint(3, 280, (batch, n), generator=torch.Generator().manual_seed(seed))


def go_on(model, cache, tokens, n=12):
    return model.generate(tokens, cache=cache, max_new_tokens=n, do_sample=False, output_scores=True, return_dict_in_generate=True)


def same(a, b):
    return torch.equal(a.sequences, b.sequences) and all(torch.equal(x, y) for x, y in zip(a.scores, b.scores))


def read_through(model, preset, tokens, **options):
    model.set_attn_implementation("vidkv")
    cache = VidKVCache(model.config, preset, **options)
    with torch.no_grad():
        model(tokens, **as_arguments(cache), use_cache=True)
    return cache


@pytest.mark.parametrize("kind, preset", [("llama", "t1.65"), ("llama", "f16"), ("qwen3", "k1.5v1.58-stp0.2"), ("llama", "t1.65-stp0.2"),
                                          ("gemma3", "t1.65"), ("mqa, head_dim 80", "t2.2")])
def test_goes_on_as_if_it_had_never_stopped(tmp_path, kind, preset):
    model, path = text_model(kind), tmp_path / "text.vidkv"
    tokens = prompt_of(model)
    cache = read_through(model, preset, tokens)
    cache.save(path, tokens=tokens, facts={"title": "three hundred tokens"})
    question = torch.cat((tokens, prompt_of(model, n=5, seed=8)), 1)
    loaded = VidKVCache.load(path, model.config)
    assert torch.equal(loaded.tokens, tokens)
    assert loaded.get_seq_length() == 300 and loaded.preset == preset
    assert loaded.bytes_held() == pytest.approx(cache.bytes_held(), rel=0.02)
    assert same(go_on(model, loaded, question), go_on(model, cache, question))
    manifest = json.loads(vidkv.File(str(path)).section("manifest"))
    assert manifest["title"] == "three hundred tokens" and manifest["preset"] == preset


def test_a_saved_cache_is_saved_again_to_the_same_bytes(tmp_path):
    model = text_model("llama")
    cache = read_through(model, "t1.65", prompt_of(model))
    cache.save(tmp_path / "a.vidkv")
    VidKVCache.load(tmp_path / "a.vidkv", model.config).save(tmp_path / "b.vidkv")
    assert (tmp_path / "a.vidkv").read_bytes() == (tmp_path / "b.vidkv").read_bytes()
    assert (tmp_path / "a.vidkv").stat().st_size <= 1.03 * cache.bytes_held()


def test_bits_by_layer(tmp_path):
    """PRESET@FILE: layers have bits of their own, come back with them from a file, and hold no more."""
    model, path, losses = text_model("llama"), tmp_path / "text.vidkv", tmp_path / "model.layers"
    layers = model.config.num_hidden_layers
    losses.write_text("".join(f"{layer} {1e-2 if layer == 0 else 1e-4} 1e-4\n" for layer in range(layers)))
    tokens = prompt_of(model)
    even, cache = read_through(model, "t1.65", tokens), read_through(model, f"t1.65@{losses}", tokens)
    bits = [(layer.params.key_bits, layer.params.value_bits) for layer in cache.packed_layers]
    assert bits[0][0] > 1.5 > bits[1][0] and sum(map(sum, bits)) <= 3 * layers
    assert cache.bytes_held() <= even.bytes_held()
    cache.save(path, tokens=tokens)
    losses.unlink()  # the file has the bits
    loaded = VidKVCache.load(path, model.config)
    assert [(layer.params.key_bits, layer.params.value_bits) for layer in loaded.packed_layers] == bits
    question = torch.cat((tokens, prompt_of(model, n=5, seed=8)), 1)
    assert same(go_on(model, loaded, question), go_on(model, cache, question))
    with pytest.raises(Exception, match="cannot open the layers file"):
        VidKVCache(model.config, f"t1.65@{losses}")
    losses.write_text("0 1 1\n")
    with pytest.raises(ValueError, match="trellis"):
        VidKVCache(model.config, f"k2v2@{losses}")
    published = {"backend": "vidkv", "preset": f"t1.65@{losses}"}
    assert VidKVCache(model.config, cache_config=published).params.key_bits == 1.5


def test_a_video_goes_on(tmp_path):
    model, inputs = vision_model("qwen2_5_vl")
    model.get_decoder().set_attn_implementation("vidkv")
    cache = VidKVCache(model.config, "t1.65")
    seen = model.generate(**inputs, cache=cache, max_new_tokens=8, do_sample=False)
    cache.save(tmp_path / "video.vidkv", model=model)
    more = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}  # they were seen
    more |= {"input_ids": seen, "attention_mask": torch.ones_like(seen)}
    if "mm_token_type_ids" in more:
        more["mm_token_type_ids"] = torch.nn.functional.pad(more["mm_token_type_ids"], (0, 8))
    straight = model.generate(**more, cache=cache, max_new_tokens=16, do_sample=False)
    another, _ = vision_model("qwen2_5_vl")  # as in another process
    another.get_decoder().set_attn_implementation("vidkv")
    loaded = VidKVCache.load(tmp_path / "video.vidkv", another.config, model=another)
    assert torch.equal(another.generate(**more, cache=loaded, max_new_tokens=16, do_sample=False), straight)


def test_batches_with_padding_and_many_questions(tmp_path):
    model = text_model("llama")
    model.set_attn_implementation("vidkv")
    tokens = prompt_of(model, batch=2)
    mask = torch.ones_like(tokens)
    mask[1, :40] = 0
    cache = VidKVCache(model.config, "t1.65")
    model.generate(tokens, attention_mask=mask, cache=cache, max_new_tokens=1, do_sample=False)
    cache.save(tmp_path / "batch.vidkv")
    loaded = VidKVCache.load(tmp_path / "batch.vidkv", model.config)
    held = loaded.bytes_held()
    loaded.batch_repeat_interleave(32)  # 64 questions on two texts hold two texts
    assert loaded.bytes_held() < 1.3 * held
    layer, first = loaded.packed_layers[0], cache.packed_layers[0]
    assert layer._padding == [0] * 32 + [40] * 32
    for row in (0, 31, 32, 63):
        assert torch.equal(layer.materialize("keys", 300)[row], first.materialize("keys", 300)[row // 32])


def test_codes_on_a_device_are_loaded_too(tmp_path):
    model = text_model("llama")
    tokens = prompt_of(model)
    cache = read_through(model, "t1.65", tokens)
    cache.save(tmp_path / "text.vidkv")
    loaded = VidKVCache.load(tmp_path / "text.vidkv", model.config, force_torch=True)
    for ours, theirs in zip(loaded.packed_layers, cache.packed_layers):
        for side in ("keys", "values"):
            assert torch.allclose(ours.materialize(side, 300), theirs.materialize(side, 300), atol=2e-3)
    question = torch.cat((tokens, prompt_of(model, n=5, seed=8)), 1)
    assert go_on(model, loaded, question, 200).sequences.shape[1] == 505  # packs what follows
    with pytest.raises(ValueError, match="only a cache on the CPU"):
        loaded.save(tmp_path / "again.vidkv")


def test_what_does_not_fit_is_said(tmp_path):
    model, path = text_model("llama"), tmp_path / "text.vidkv"
    read_through(model, "t1.65", prompt_of(model)).save(path)
    good = path.read_bytes()
    with pytest.raises(ValueError, match="another model: model_type is 'llama' there and 'qwen2' here"):
        VidKVCache.load(path, text_model("qwen2").config)
    with pytest.raises(ValueError, match="another model: num_hidden_layers is 3 there and 2 here"):
        VidKVCache.load(path, text_model("llama", num_hidden_layers=2).config)
    with pytest.raises(ValueError, match="saved with t1.65, not k2v2"):
        VidKVCache.load(path, model.config, preset="k2v2")
    assert VidKVCache.load(path, model.config, preset="t1.65").get_seq_length() == 300
    for cut in (0, 100, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match="cut off or altered|no VidKV file"):
            VidKVCache.load(path, model.config)
    with pytest.raises(OSError, match="cannot open"):
        VidKVCache.load(tmp_path / "none.vidkv", model.config)
    with pytest.raises(OSError, match="cannot write"):
        read_through(model, "t1.65", prompt_of(model)).save(tmp_path / "no" / "folder.vidkv")
    rows = np.ones((10, 2, 64), np.float32)
    plain = vidkv.Cache(1, 2, 64, 100, vidkv.Params.from_preset("t1.65"))
    plain.append(0, 0, rows, rows)
    plain.save(str(path))
    with pytest.raises(ValueError, match="was not saved by VidKVCache.save"):
        VidKVCache.load(path, model.config)


def test_forged_manifests_are_refused_in_a_line(tmp_path):
    model, path = text_model("llama"), tmp_path / "text.vidkv"
    cache = read_through(model, "t1.65", prompt_of(model))
    cache.save(path)
    manifest = json.loads(vidkv.File(str(path)).section("manifest"))
    about = manifest["layers"][0]
    for wrong in ({"layers": []}, {"layers": [None] * 2}, {"layers": [{}] * 3}, {"layers": 7}, {"model": None},
                  {"layers": [{**about, "kv_heads": 3}] * 3}, {"layers": [{**about, "padding": None}] * 3},
                  {"layers": [{**about, "dtype": "int9"}] * 3}, {"layers": [{**about, "length": 301}] * 3}):
        writer = vidkv.FileWriter(str(path), cache.params)
        for index, layer in enumerate(cache.packed_layers):
            writer.add_store(index, 0, layer.storage.keys)
            writer.add_store(index, 0, layer.storage.values)
        writer.add_section("manifest", json.dumps({**manifest, **wrong}).encode())
        writer.finish()
        with pytest.raises(ValueError) as raised:
            VidKVCache.load(path, model.config)
        assert "\n" not in str(raised.value)


def test_killed_while_it_saves(tmp_path):
    """The older file is there, or the new one: each is whole."""
    model, path = text_model("llama"), tmp_path / "text.vidkv"
    tokens = prompt_of(model, n=600)
    caches = [read_through(model, preset, tokens) for preset in ("t1.65", "t2.2")]
    caches[0].save(path)
    seen = set()
    for _ in range(10):
        before = path.stat().st_ino
        child = os.fork()
        if child == 0:
            while True:
                for cache in caches:
                    cache.save(path)
        while path.stat().st_ino == before:
            pass
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        seen.add(VidKVCache.load(path, model.config).preset)
        vidkv.File(str(path)).verify()
    assert seen <= {"t1.65", "t2.2"}
    caches[0].save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["text.vidkv"]
