"""The tier behind vLLM's own TieringOffloadingManager: its spec, its host memory (shared pages), its evictions and promotions. The test takes the
worker's place, which copies between a GPU and host memory with CUDA's streams: that is all of it that a machine without a GPU cannot run."""
import time
import uuid

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")

from dataclasses import replace

import vidkv.vllm
from test_tier import DIM, configuration
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class Instance:
    """One vLLM's scheduler with host memory for some chunks."""

    def __init__(self, store, chunks=2, **tier):
        vidkv.vllm.register()
        config = configuration()
        self.used = config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk * config.parallel.world_size
        tiers = [{"type": "vidkv", "store": str(store), "head_dim": DIM, **tier}]
        extra = {"cpu_bytes_to_use": chunks * -(-self.used // 4096) * 4096, "secondary_tiers": tiers}
        self.spec = TieringOffloadingSpec(replace(config, engine_id=uuid.uuid4().hex, extra_config=extra))
        self.manager = self.spec.get_manager()
        self.rows = np.frombuffer(self.manager.primary_tier.get_kv_memoryview(), np.uint8).reshape(self.spec.num_chunks, -1)
        self.requests = 0

    def request(self):
        self.requests += 1
        context = ReqContext(f"request {self.requests}")
        self.manager.on_new_request(context)
        return context

    def step(self):
        self.manager.on_schedule_end(ScheduleEndContext((), ()))

    def settle(self):
        while self.manager.has_pending_work():
            self.step()
            time.sleep(0.001)

    def store(self, keys, seeds):
        """A request whose chunks leave the GPU."""
        context = self.request()
        stored = self.manager.prepare_store(keys, context)
        for chunk, seed in zip(stored.store_spec.chunk_ids, seeds):
            self.rows[chunk, : self.used] = numbers(seed, self.used // 2).view(np.uint8)
        self.manager.complete_store(keys, context, True)
        self.manager.on_request_finished(context)
        self.settle()
        return stored.keys_to_store

    def load(self, keys):
        """What a request finds of these chunks, as the GPU would get it: numbers, or None from the first that is not there."""
        context, found = self.request(), []
        for key in keys:
            while (result := self.manager.lookup(key, context)) in (LookupResult.RETRY, LookupResult.HIT_PENDING):
                self.step()
            if result is not LookupResult.HIT:
                break
            (chunk,) = self.manager.prepare_load([key], context).chunk_ids
            found.append(self.rows[chunk, : self.used].view(np.float16).astype(np.float32))
            self.manager.complete_load([key], context)
        self.manager.on_request_finished(context)
        return found + [None] * (len(keys) - len(found))

    def close(self):
        del self.rows
        self.manager.shutdown()


def numbers(seed, count):
    return np.random.default_rng(seed).normal(size=count).astype(np.float16)


def error(found, seed):
    wanted = numbers(seed, len(found)).astype(np.float32)
    return float(((found - wanted) ** 2).mean() / (wanted**2).mean())


KEYS = [b"chunk %d" % i for i in range(4)]


def test_chunks_that_left_host_memory_come_back(tmp_path):
    one = Instance(tmp_path)
    for first in (0, 2):  # there is room for two: the second pair drives the first one out
        assert list(one.store(KEYS[first : first + 2], [first, first + 1])) == KEYS[first : first + 2]
    assert len(list(tmp_path.rglob("*.vidkvblock"))) == 4
    for i, found in enumerate(one.load(KEYS)):
        assert error(found, i) < 0.1
    one.close()


def test_another_instance_takes_what_is_there_and_no_more(tmp_path):
    one, other, stranger = Instance(tmp_path), Instance(tmp_path, chunks=4), Instance(tmp_path, preset="t1.65")
    one.store(KEYS[:2], [0, 1])
    found = other.load(KEYS[:3])
    assert [error(x, i) < 0.1 for i, x in enumerate(found[:2])] == [True, True] and found[2] is None
    assert stranger.load(KEYS[:1]) == [None]
    for file in tmp_path.rglob("*.vidkvblock"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    fresh = Instance(tmp_path)
    assert fresh.load(KEYS[:2]) == [None, None]
    for instance in (one, other, stranger, fresh):
        instance.close()


def test_a_store_that_is_away_is_no_hit_and_keeps_nothing_waiting(tmp_path):
    one = Instance("redis://127.0.0.1:1/0")
    one.store(KEYS[:2], [0, 1])
    assert error(one.load(KEYS[:1])[0], 0) == 0  # host memory has it
    assert one.load(KEYS[2:3]) == [None]
    one.close()
