"""The tier of packed pages, given jobs as vLLM's tiering manager gives them. (vLLM copies chunks into host memory on GPUs alone.)"""
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")

from vllm.v1.kv_offload.base import LookupResult, ReqContext
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

LAYERS, HEADS, DIM, PER_BLOCK, WORKERS = 3, 2, 32, 16, 2


def configuration(layout="LBHNC", name="small", per_chunk=8):
    worker_bytes = LAYERS * PER_BLOCK * HEADS * 2 * DIM * 2
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(PER_BLOCK, tuple(f"layers.{i}" for i in range(LAYERS)), 0),), worker_kv_bytes_per_block=worker_bytes,
        enable_kv_cache_events=False, extra_config={}, engine_id="test", model=OffloadingModelConfig(name, "float16"),
        cache=OffloadingCacheConfig(PER_BLOCK, per_chunk), kv_cache_layout=layout,
        parallel=OffloadingParallelConfig(rank=0, world_size=WORKERS, tp_size=WORKERS, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0,
                                          data_parallel_size=1, data_parallel_rank_local=None, is_parallelism_agnostic=False))


class Host:
    """Host memory of some chunks, and a tier behind it."""

    def __init__(self, store, layout="LBHNC", chunks=4, **more):
        config = configuration(layout, **{k: more.pop(k) for k in ("name", "per_chunk") if k in more})
        row = config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk * WORKERS
        self.rows = np.zeros((chunks, -(-row // 4096) * 4096), np.uint8)
        self.used = row
        tier = {"type": "VidKVTier", "module_path": "vidkv.vllm.tier", "store": str(store), "head_dim": DIM, **more}
        self.tier = SecondaryTierFactory.create_secondary_tier(tier, memoryview(self.rows), SimpleNamespace(config=config))
        self.jobs = 0

    def fill(self, chunk, seed):
        numbers = np.random.default_rng(seed).normal(size=self.used // 2).astype(np.float16)
        self.rows[chunk, : self.used] = numbers.view(np.uint8)
        return numbers.astype(np.float32)

    def numbers(self, chunk):
        return self.rows[chunk, : self.used].view(np.float16).astype(np.float32)

    def run(self, submit, keys, chunks, promotes=False):
        self.jobs += 1
        submit(TransferJob(self.jobs, keys, np.array(chunks), promotes, ReqContext("a request")))
        self.tier.drain_jobs()
        (result,) = self.tier.get_finished_jobs()
        assert result.job_id == self.jobs
        return result

    def store(self, keys, chunks):
        return self.run(self.tier.submit_store, keys, chunks)

    def load(self, keys, chunks):
        return self.run(self.tier.submit_load, keys, chunks, True)

    def lookup(self, key):
        context = ReqContext("another request")
        while (found := self.tier.lookup(key, context)) is LookupResult.RETRY:
            self.tier.on_schedule_end(None)
        self.tier.on_request_finished(context)
        return found


def error(found, wanted):
    return np.square(found - wanted).mean() / np.square(wanted).mean()


@pytest.mark.parametrize("layout", ["LBHNC", "LBNHC", "BLHNC", "BLNHC"])
def test_chunks_come_back_to_another_process(tmp_path, layout):
    one, other = Host(tmp_path, layout), Host(tmp_path, layout)
    wanted = [one.fill(chunk, chunk) for chunk in range(2)]
    stored = one.store([b"key 0", b"key 1"], [0, 1])
    assert stored.success and stored.transfer_bytes < one.used * 2 / 6
    assert [other.lookup(k) for k in (b"key 0", b"key 1", b"key 2")] == [LookupResult.HIT, LookupResult.HIT, LookupResult.MISS]
    assert other.load([b"key 1", b"key 0"], [3, 2]).success
    assert max(error(other.numbers(2), wanted[0]), error(other.numbers(3), wanted[1])) < 0.1
    assert error(other.numbers(2), wanted[1]) > 1
    for host in (one, other):
        host.tier.shutdown()


def test_altered_and_foreign_entries_are_computed_again(tmp_path):
    host = Host(tmp_path)
    host.fill(0, 0), host.fill(1, 1)
    host.store([b"key 0", b"key 1"], [0, 1])
    strangers = [Host(tmp_path, name="another"), Host(tmp_path, preset="t1.65")]
    assert [s.lookup(b"key 0") for s in strangers] == [LookupResult.MISS] * 2
    for file in tmp_path.rglob("*.vidkvblock"):
        if host.tier._name(b"key 1") in file.name:
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    loaded = host.load([b"key 0", b"key 1"], [2, 3])
    assert not loaded.success and loaded.successful_keys == (b"key 0",)
    assert host.lookup(b"key 1") is LookupResult.MISS
    for h in [host, *strangers]:
        h.tier.shutdown()


@pytest.mark.parametrize(
    "more,line",
    [
        ({"per_chunk": 4}, 'a chunk must have 128 tokens, not 64 ("block_size": 128)'),
        ({"head_dim": 48}, "are not those of head_dim 48"),
        ({"layout": "LHBNC"}, "the KV cache layout LHBNC is not known to the tier"),
        ({"preset": "t1.65-stp0.2"}, "makes blocks of unequal size"),
    ],
)
def test_what_cannot_be_packed_is_one_line(tmp_path, more, line):
    with pytest.raises(ValueError, match=line.replace("(", r"\(").replace(")", r"\)")):
        Host(tmp_path, **more)
