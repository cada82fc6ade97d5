"""Several Python threads on one store or cache: they wait for each other, nothing crashes, and what is read is what was written."""
import threading

import numpy as np
import pytest
import torch
from common import text_model

import vidkv
from vidkv.transformers import VidKVCache

HEADS, DIM, CELLS = 2, 32, 1024
ROUNDS = 60


def together(*jobs):
    """Runs each job in a thread of its own; raises what they raise."""
    failures, start = [], threading.Barrier(len(jobs))

    def run(job):
        start.wait()
        try:
            job()
        except BaseException as failure:  # noqa: BLE001 (told to the test)
            failures.append(failure)
    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def rows(cells):
    """What each cell always holds, so that a reader can tell."""
    return np.repeat(np.arange(cells, dtype=np.float16)[:, None] % 100, HEADS * DIM, 1)


@pytest.mark.parametrize("preset", ["f16", "t1.65", "k2v2"])
def test_stores_are_hammered(preset):
    params = vidkv.Params.from_preset(preset)
    keys, values = (vidkv.Store(side, HEADS * DIM, DIM, params, CELLS, 2) for side in ("keys", "values"))
    content = rows(CELLS)

    def write():
        for turn in range(ROUNDS):
            for store in (keys, values):
                store.truncate(0, 0)
                store.write(0, 0, content[: 300 + 10 * turn])
                store.seal(2)

    def attend():
        q, out = np.ones((2, HEADS, DIM), np.float32), np.zeros((2, HEADS, DIM), np.float32)
        for _ in range(10 * ROUNDS):
            vidkv.attention(keys, values, q, out, cells=300, scale=0.1, threads=2)
            assert np.isfinite(out).all() and abs(out).max() < 1000

    def reshape():
        for turn in range(ROUNDS):
            for store in (keys, values):
                store.copy_sequence(0, 1)
                store.resize(CELLS + 128 * (turn % 3), 2)
                store.clone().clear()

    def read():
        out = np.zeros((300, HEADS * DIM), np.float16)
        for _ in range(5 * ROUNDS):
            values.read(0, 0, out)
            if preset == "f16":  # a write is seen whole or not at all
                assert (out == content[:300]).all() or not out.any()
            assert values.stats().cells_written <= 2 * CELLS

    together(write, attend, reshape, read)
    keys.truncate(0, 0)
    keys.write(0, 0, content[:300])
    out = np.zeros((300, HEADS * DIM), np.float16)
    keys.read(0, 0, out)
    assert (out == content[:300]).all()


def test_a_cache_is_hammered(tmp_path):
    cache = vidkv.Cache(2, HEADS, DIM, CELLS, vidkv.Params.from_preset("t1.65"), 2)
    content = rows(64).astype(np.float32).reshape(64, HEADS, DIM)
    path = str(tmp_path / "cache.vidkv")
    cache.save(path)

    def write():
        for _ in range(ROUNDS):
            if cache.length(0) + 64 > CELLS:
                cache.clear()
            for layer in range(2):
                cache.append(layer, 0, content, content)
            cache.seal(1)

    def attend():
        q, out = np.ones((1, HEADS, DIM), np.float32), np.zeros((1, HEADS, DIM), np.float32)
        for turn in range(5 * ROUNDS):
            cache.attend(turn % 2, q, out, causal=False)
            assert np.isfinite(out).all()

    def keep():
        for _ in range(ROUNDS // 4):
            cache.save(path)
            cache.copy_sequence(0, 1)
            vidkv.Cache(2, HEADS, DIM, CELLS, vidkv.Params.from_preset("t1.65"), 2).load(path)
            assert cache.stats().bytes > 0

    together(write, attend, keep)


def test_a_generating_model_is_copied_by_another_thread():
    model = text_model("llama")
    model.set_attn_implementation("vidkv")
    prompt = torch.randint(0, model.config.vocab_size, (1, 200), generator=torch.Generator().manual_seed(1))
    alone = model.generate(prompt, cache=VidKVCache(model.config, "t1.65"), max_new_tokens=40, do_sample=False)
    cache, done = VidKVCache(model.config, "t1.65"), threading.Event()
    result = []

    def generate():
        try:
            result.append(model.generate(prompt, cache=cache, max_new_tokens=40, do_sample=False))
        finally:
            done.set()

    def look():
        while not done.is_set():
            cache.bytes_held()
            for layer in cache.packed_layers:
                if layer.storage is not None:
                    assert layer.storage.keys.stats().bytes > 0
                    layer.storage.values.clone()
    together(generate, look)
    assert torch.equal(result[0], alone)
