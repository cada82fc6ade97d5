"""The connector between vLLM's own scheduler and blocks of one worker, step by step, without a model: keys and values of a token are numbers
that follow from the tokens up to it. What vLLM's tests of connectors ask: a request's life, chunks, shared prefixes, preemption, aborts, loads
that fail."""
import itertools
import os
import random

import engine
import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")

import torch
import vidkv.vllm
from vidkv import Params, _core
from vidkv.vllm import connector as its
from vidkv.vllm import keys, layers, options
from vidkv.vllm.dense import _aligned
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

HEADS, DIM, BLOCK, LAYERS = 2, 32, 128, ("model.layers.0.attn", "model.layers.1.attn")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    engine.make_model(folder)
    vidkv.vllm.register()
    init_none_hash(sha256)
    return folder


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    import vllm.distributed

    monkeypatch.setattr(vllm.distributed, "get_tensor_model_parallel_rank", lambda: 0)


def rows_of(tokens, first, end, layer):
    """Keys and values of tokens[first:end]: a draw of each token, and of how many came before."""
    rows = [torch.from_numpy(np.random.default_rng([layer, at, tokens[at], sum(tokens[:at])]).normal(size=(2, HEADS, DIM))) for at in range(first, end)]
    return (x.float().contiguous() for x in torch.stack(rows).unbind(1))


class Instance:
    """One vLLM: its scheduler with the scheduler's half of the connector, blocks, and the worker's half."""

    def __init__(self, model, store, blocks=40, batched=4096, preset="t1.65", **extra):
        self.config = self.configuration(model, store, batched, preset, extra)
        params = Params.from_preset(preset)
        size = _core.block_bytes(params, HEADS, DIM)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=HEADS, head_size=DIM, dtype=torch.uint8, num_head_slots=1, tokens_per_state=BLOCK,
                                 state_content_bytes=size)
        caches = KVCacheConfig(blocks, [], [KVCacheGroupSpec(list(LAYERS), spec)])
        self.config.cache_config.num_gpu_blocks = blocks
        self.scheduler = Scheduler(self.config, caches, StructuredOutputManager(self.config), BLOCK, log_stats=True)
        options.configure(self.config)
        memory = {name: _aligned(blocks * size).view(blocks, 1, 1, size) for name in LAYERS}
        self.native = [layers.blocks_of(memory[name], HEADS, DIM) for name in LAYERS]
        self.memory = memory  # it stays where it is
        self.worker = its.VidKVConnector(self.config, KVConnectorRole.WORKER, caches)
        self.worker.register_kv_caches(memory)
        self.computed = []  # (request, first token, end) of each step
        self.requests = {}

    @staticmethod
    def configuration(model, store, batched, preset, extra):
        transfer = KVTransferConfig(kv_connector="VidKVConnector", kv_role="kv_both", kv_connector_extra_config={"store": str(store), **extra})
        return VllmConfig(
            model_config=ModelConfig(model=model, dtype="float32", skip_tokenizer_init=True, max_model_len=4096),
            cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
            scheduler_config=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=batched, max_model_len=4096, enable_chunked_prefill=True,
                                             is_encoder_decoder=False),
            kv_transfer_config=transfer, device_config=DeviceConfig("cpu"), additional_config={"vidkv": {"preset": preset}},
        )

    def ask(self, tokens, name=None, answers=2, salt=None):
        how = SamplingParams(max_tokens=answers, ignore_eos=True)
        how.update_from_generation_config({}, 511)
        name = name or f"request {len(self.requests)}"
        request = Request(name, tokens, how, None, cache_salt=salt, block_hasher=get_request_block_hasher(BLOCK, sha256))
        self.requests[name] = request
        self.scheduler.add_request(request)
        return request

    def step(self, between=None):
        """between: called after the scheduler has looked entries up, before the worker loads them."""
        planned = self.scheduler.schedule()
        if between:
            between()
        self.worker.bind_connector_metadata(planned.kv_connector_metadata)
        self.worker.start_load_kv(None)
        failed = self.worker.get_block_ids_with_load_errors()
        before = {r.req_id: r.num_computed_tokens for r in planned.scheduled_new_reqs}
        before.update(zip(planned.scheduled_cached_reqs.req_ids, planned.scheduled_cached_reqs.num_computed_tokens))
        for name, n in planned.num_scheduled_tokens.items():
            self.write(name, before[name], before[name] + n, failed)
        self.worker.wait_for_save()
        self.worker.clear_connector_metadata()
        self.answer(planned, before, failed)

    def write(self, name, first, end, failed):
        request = self.requests[name]
        (table,) = self.scheduler.kv_cache_manager.get_block_ids(name)
        self.computed.append((name, first, end))
        if failed & set(table):
            return  # vLLM computes it again
        numbers = lambda *x: np.array(x, np.int32)
        for layer, native in enumerate(self.native):
            k, v = rows_of(list(request.all_token_ids), first, end, layer)
            native.write(k, v, numbers(0, end - first), numbers(end), np.array([table], np.int32))

    def answer(self, planned, before, failed):
        names = list(planned.num_scheduled_tokens)
        done = [before[n] + planned.num_scheduled_tokens[n] >= self.requests[n].num_tokens for n in names]
        sampled = [[7] if whole else [] for whole in done]
        report = KVConnectorOutput(invalid_block_ids=failed)
        self.scheduler.update_from_output(planned, ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, sampled, kv_connector_output=report))

    def run(self, most=2000):
        for _ in range(most):
            if not self.scheduler.has_unfinished_requests():
                break
            self.step()
        self.step()  # tells the connector who has finished
        return self.computed

    def held(self, tokens, salt=None):
        """The bytes of a text's full blocks, taken from the store."""
        request = Request("held", tokens, SamplingParams(max_tokens=1), None, cache_salt=salt)
        found = []
        for key in keys.of_request(request, len(tokens) // BLOCK, its.generate_block_hash_extra_keys):
            name = self.worker._name(key, 0)
            found.append(its.entries.read(self.worker._store.get(name), name, self.worker._about))
        return found

    def assert_nothing_is_left(self):
        scheduler = self.scheduler
        assert not scheduler.requests and not scheduler.running and not scheduler.waiting
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one is vLLM's own
        assert scheduler.connector._seen == {} and self.worker._failed == set()


def text(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(1, 500) for _ in range(length)]


def packed_alone(tokens, model, tmp_path):
    """What the blocks of a text are where nothing else ever happens."""
    alone = Instance(model, tmp_path / "alone")
    alone.ask(tokens)
    alone.run()
    return alone.held(tokens)


def test_a_request_is_stored_and_found_by_another_instance(model, tmp_path):
    tokens = text(700)
    first, second = Instance(model, tmp_path / "shared"), Instance(model, tmp_path / "shared")
    first.ask(tokens)
    assert first.run()[0] == ("request 0", 0, 700)
    second.ask(tokens)
    assert second.run()[0] == ("request 0", 640, 700)
    assert first.held(tokens) == second.held(tokens) and None not in first.held(tokens)
    for instance in (first, second):
        instance.assert_nothing_is_left()


def asked_after_another(model, folder, tokens, **how):
    """Of two instances that share a folder: the first, which has read the text, the second, which is asked about it, and that request."""
    first, second = Instance(model, folder), Instance(model, folder)
    first.ask(tokens)
    first.run()
    return first, second, second.ask(tokens, **how)


def test_loaded_blocks_are_those_that_were_stored(model, tmp_path):
    tokens = text(300)
    first, second, _ = asked_after_another(model, tmp_path, tokens, answers=4)
    second.step()
    (table,) = second.scheduler.kv_cache_manager.get_block_ids("request 0")
    for layer, native in enumerate(second.native):
        assert [native.export_block(b) for b in table[:2]] == [parts[layer] for parts in first.held(tokens)]
    second.run()


def test_the_last_token_is_always_computed(model, tmp_path):
    _, second, _ = asked_after_another(model, tmp_path, text(256))
    assert second.run()[0] == ("request 0", 128, 256)


def test_chunks_are_stored_once_each_and_alike(model, tmp_path):
    tokens, whole = text(900), Instance(model, tmp_path / "whole")
    whole.ask(tokens)
    whole.run()
    chunked, stored = Instance(model, tmp_path / "chunked", batched=200), []
    put = chunked.worker._store.put
    chunked.worker._store.put = lambda name, data: stored.append(name) or put(name, data)
    chunked.ask(tokens)
    assert [end for _, _, end in chunked.run()][:5] == [200, 400, 600, 800, 900]
    assert len(stored) == len(set(stored)) == 7
    assert chunked.held(tokens) == whole.held(tokens)


def test_the_store_goes_on_where_the_local_prefix_ends(model, tmp_path):
    tokens = text(800)
    first, second = Instance(model, tmp_path), Instance(model, tmp_path)
    first.ask(tokens)
    first.run()
    second.ask(tokens[:300] + text(50, 9))
    second.run()
    second.computed.clear()
    second.ask(tokens)
    assert second.run()[0] == ("request 1", 768, 800)
    second.assert_nothing_is_left()


def test_salt_and_other_tokens_are_no_hit(model, tmp_path):
    tokens, instance = text(400), Instance(model, tmp_path)
    instance.ask(tokens, salt="one")
    instance.run()
    other = Instance(model, tmp_path)
    other.ask(tokens), other.ask(tokens, salt="two"), other.ask([1 + tokens[0], *tokens[1:]])
    other.ask(tokens, salt="one")
    assert [first for _, first, _ in other.run()[:4]] == [0, 0, 0, 384]


@pytest.mark.parametrize("spoil", ["taken away", "altered", "cut off", "another block's"])
def test_a_load_that_fails_is_computed_again(model, tmp_path, spoil):
    tokens = text(700)
    expected = packed_alone(tokens, model, tmp_path)
    first, second, request = asked_after_another(model, tmp_path / "shared", tokens)
    names = [first.worker._name(key, 0) for key in first.worker._keys(its.Seen(request), 5)]
    path, other = (first.worker._store._path(names[i]) for i in (2, 3))

    def damage():
        data = open(path, "rb").read()
        if spoil == "taken away":
            return os.unlink(path)
        new = {"altered": data[:900] + bytes([data[900] ^ 1]) + data[901:], "cut off": data[:-100], "another block's": open(other, "rb").read()}
        open(path, "wb").write(new[spoil])

    second.step(damage)
    assert second.computed.pop() == ("request 0", 640, 700) and request.num_computed_tokens == 256
    second.run()
    assert second.computed[0] == ("request 0", 256, 700)
    assert second.held(tokens) == expected  # the damaged one is written again
    second.assert_nothing_is_left()


def test_preempted_requests_are_resumed(model, tmp_path):
    texts = [text(250, seed) for seed in range(3)]
    expected = [packed_alone(t, model, tmp_path / str(i)) for i, t in enumerate(texts)]
    small = Instance(model, tmp_path / "small", blocks=9)
    for tokens in texts:
        small.ask(tokens, answers=150)
    small.run()
    assert sum(r.num_preemptions for r in small.requests.values()) > 0
    again = [first for name in small.requests for first in [f for n, f, _ in small.computed if n == name][1:]]
    assert min(again) >= 249  # never from the beginning: the store has the full blocks
    assert [small.held(t) for t in texts] == expected
    assert all(r.num_output_tokens == 150 for r in small.requests.values())
    small.assert_nothing_is_left()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_aborted_requests_leave_nothing(model, tmp_path, steps):
    instance, tokens = Instance(model, tmp_path, batched=256), text(1000)
    instance.ask(tokens, "goes"), instance.ask(text(300, 2), "stays")
    for _ in range(steps):
        instance.step()
    instance.scheduler.finish_requests("goes", RequestStatus.FINISHED_ABORTED)
    instance.run()
    assert [r.num_output_tokens for r in instance.requests.values()] == [0, 2]
    instance.assert_nothing_is_left()
    whole = [block is not None for block in instance.held(tokens)]
    assert whole == sorted(whole, reverse=True) and sum(whole) == min(2 * steps, 7)


def test_a_store_that_is_away_changes_nothing_but_the_speed(model, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    instance = Instance(model, blocked / "inside")
    instance.ask(text(400))
    assert instance.run()[0] == ("request 0", 0, 400)
    instance.assert_nothing_is_left()


@pytest.mark.parametrize("extra,line", [
    ({"presset": "t2.2"}, "VidKVConnector: unknown options presset; there are store, ttl, max_bytes, preset"),
    ({"store": ""}, 'VidKVConnector: kv_connector_extra_config needs "store": a folder or redis://host:port/0'),
    ({"ttl": "1"}, "VidKV: ttl must be a number greater than 0, not '1'"),
])
def test_options_that_cannot_be_end_vllm(model, tmp_path, extra, line):
    with pytest.raises(ValueError) as found:
        Instance(model, extra.pop("store", tmp_path), **extra)
    assert str(found.value) == line


def test_models_that_it_does_not_know_are_left_alone(model, tmp_path):
    instance = Instance(model, tmp_path)
    spec = instance.scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    groups = [KVCacheGroupSpec([name], spec) for name in LAYERS]
    halves = [its.VidKVConnector(instance.config, role, KVCacheConfig(40, [], groups)) for role in (KVConnectorRole.SCHEDULER, KVConnectorRole.WORKER)]
    for half in halves:
        assert half._reason == "this model has layers without full attention (MLA, sliding windows, hybrid)"
        request = instance.ask(text(300), f"unknown {halves.index(half)}")
        half.on_new_request(request)
        assert half.get_num_new_matched_tokens(request, 0) == (0, False)
        half.update_state_after_alloc(request, None, 0)
        half.register_kv_caches(instance.memory), half.start_load_kv(None), half.wait_for_save()
        assert half.get_block_ids_with_load_errors() == set() and half.request_finished(request, []) == (False, None)
        assert half.build_connector_meta(None) == its.Metadata()


def test_two_writers_of_one_text_at_once(model, tmp_path):
    tokens = text(500)
    both = [Instance(model, tmp_path / "shared") for _ in range(2)]
    for instance in both:
        instance.ask(tokens)
    for instance in itertools.islice(itertools.cycle(both), 6):
        instance.step()
    third = Instance(model, tmp_path / "shared")
    third.ask(tokens)
    assert third.run()[0] == ("request 0", 384, 500)
    assert third.held(tokens)[:3] == packed_alone(tokens, model, tmp_path)[:3]
