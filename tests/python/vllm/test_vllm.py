"""vLLM with packed pages: many engines, forked from one process (importing vLLM takes long), each with a configuration of its own.

With scripts/vllm-environment's interpreter; a visible skip elsewhere."""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")
ENGINE = Path(__file__).with_name("engine.py")
ASK = [{}, {"one_by_one": True}]
REPEATED = [{"repeat": 7, "tokens": 48}]
DRAWN = [{"seed": 11, "lengths": [900, 40, 600], "drawn": 7}]
DRAFTS = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 2}}
MANY = [{"lengths": [300] * 6, "tokens": 150}]
FEW_BLOCKS = {"num_gpu_blocks_override": 13, "max_model_len": 1024}
SEEN = [{"pictures": 40, "questions": ["count ?", "order ?"]}]
PICTURES = {"limit_mm_per_prompt": {"image": 40, "video": 0}}
FILM = [{"pictures": 3, "questions": ["What?"]}]
LLAVA = {"limit_mm_per_prompt": {"image": 0, "video": 1}, "max_num_batched_tokens": 1024}
WINDOWS = [{"lengths": [100, 64, 1500]}, {"lengths": [100, 64, 1500]}]
RANKS = {"tensor_parallel_size": 2}
PLANS = {
    "stock": {"ask": ASK + REPEATED + DRAWN},
    "f16": {"preset": "f16", "ask": ASK},
    "f16 in chunks": {"preset": "f16", "ask": [{}] + DRAWN, "engine": {"max_num_batched_tokens": 256}},
    "f16 with drafts": {"preset": "f16", "ask": REPEATED, "engine": DRAFTS},
    "stock, much space": {"ask": MANY},
    "f16, little space": {"preset": "f16", "ask": MANY, "engine": FEW_BLOCKS},
    "t1.65": {
        "preset": "t1.65",
        "ask": [{}, {}, {"seed": 5, "prefix": 600, "lengths": [40]}, {"seed": 6, "prefix": 600, "lengths": [30]}],
    },
    "t1.65, nothing shared": {"preset": "t1.65", "ask": ASK, "engine": {"enable_prefix_caching": False, "max_num_batched_tokens": 4096}},
    "t1.65 with drafts": {"preset": "t1.65", "ask": REPEATED, "engine": DRAFTS},
    "t1.65, little space": {"preset": "t1.65", "ask": MANY, "engine": FEW_BLOCKS},
    "fp8": {"preset": "t1.65", "ask": [{"lengths": [200]}], "engine": {"block_size": 128, "kv_cache_dtype": "fp8"}},
    "hybrid": {"model": "hybrid", "preset": "t1.65", "ask": [{"lengths": [200]}]},
    "windows, stock": {"model": "windows", "ask": WINDOWS},
    "windows, t1.65": {"model": "windows", "preset": "t1.65", "ask": WINDOWS},
    "f16, two ranks": {"preset": "f16", "ask": [{}], "engine": RANKS},
    "t1.65, two ranks": {"preset": "t1.65", "ask": [{}, {"forget": True}], "engine": RANKS},
    "pictures, stock": {"model": "tiny", "ask": SEEN, "engine": PICTURES},
    "pictures, f16": {"model": "tiny", "preset": "f16", "ask": SEEN, "engine": PICTURES},
    "pictures, t1.65": {"model": "tiny", "preset": "t1.65", "ask": SEEN + SEEN, "engine": PICTURES},
    "llava, stock": {"model": "llava", "ask": FILM, "engine": LLAVA},
    "llava, f16": {"model": "llava", "preset": "f16", "ask": FILM, "engine": LLAVA},
    "llava, t1.65": {"model": "llava", "preset": "t1.65", "ask": FILM, "engine": LLAVA},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def run(folder, plans, **more):
    """What engine.py printed, and all that vLLM said."""
    done = subprocess.run([sys.executable, ENGINE, str(folder), json.dumps(plans)], env={**os.environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr


@pytest.fixture(scope="session")
def everything(folder):
    ranks = {**RANKS, "kv_transfer_config": connector(folder / "ranks")}
    return run(folder, {**PLANS, "t1.65, two ranks": {**PLANS["t1.65, two ranks"], "engine": ranks}})


@pytest.fixture(scope="session")
def found(everything):
    """found(NAME): what the engine of that name answered."""

    def of(name):
        assert "error" not in everything[0][name], everything[0][name]["error"]
        return everything[0][name]

    return of


@pytest.fixture(scope="session")
def said(everything):
    return everything[1]


def tokens(answers):
    return [a["tokens"] for a in answers]


def assert_same(mine, its, bound=0.02):
    assert tokens(mine) == tokens(its)
    for a, b in zip(mine, its):
        assert max(abs(x - y) for x, y in zip(a["logprobs"], b["logprobs"])) < bound


def test_preset_f16_gives_the_tokens_of_vllm(found):
    for mine, its in zip(found("f16")["answers"], found("stock")["answers"]):
        assert_same(mine, its)


def test_chunks_of_a_prompt_change_nothing_in_f16(found):
    assert_same(found("f16 in chunks")["answers"][0], found("stock")["answers"][0])


def test_tokens_drawn_with_a_seed_do_not_depend_on_chunks(found):
    assert_same(found("f16 in chunks")["answers"][1], found("stock")["answers"][3])


def test_rejected_drafts_change_nothing(found):
    drafted = found("f16 with drafts")
    assert_same(drafted["answers"][0], found("stock")["answers"][2])
    for name in ("f16 with drafts", "t1.65 with drafts"):
        counted = found(name)["counted"]
        accepted, made = counted["vllm:spec_decode_num_accepted_tokens"], counted["vllm:spec_decode_num_draft_tokens"]
        assert 0 < accepted < made, counted


def test_preempted_requests_are_computed_again(found):
    squeezed = found("f16, little space")
    assert squeezed["counted"]["vllm:num_preemptions"] > 0
    assert_same(squeezed["answers"][0], found("stock, much space")["answers"][0])
    packed = found("t1.65, little space")
    assert packed["counted"]["vllm:num_preemptions"] > 0
    assert [len(t) for t in tokens(packed["answers"][0])] == [150] * 6


def test_packed_blocks_hold_more_and_are_shared(found, said):
    packed, stock = found("t1.65"), found("stock")
    assert "times less than f16" in said and "KV cache size" in said
    assert packed["capacity"] > 6 * 2 * stock["capacity"]  # stock holds float32 here, half as much as f16
    assert [a["cached"] for a in packed["answers"][1]] == [640, 256, 1024, 0]
    assert packed["answers"][3][0]["cached"] == 512
    assert tokens(packed["answers"][0])[3] == tokens(stock["answers"][0])[3]  # 64 tokens: nothing is packed yet
    assert all(layer["packed"] > 10 for layer in packed["held"])


def test_four_at_once_are_four_one_by_one(found):
    answers = found("t1.65, nothing shared")["answers"]
    assert tokens(answers[0]) == tokens(answers[1])


def test_pictures_are_packed(found):
    stock, f16, packed = (found(f"pictures, {kind}") for kind in ("stock", "f16", "t1.65"))
    assert_same(f16["answers"][0], stock["answers"][0])
    first, again = packed["answers"]
    assert first[0]["prompt"] > 400 and all(layer["packed"] > 2 for layer in packed["held"])
    assert [a["cached"] for a in again] == [a["prompt"] // 128 * 128 for a in again]  # by the hashes of the pictures
    assert first[0]["tokens"][:2] == stock["answers"][0][0]["tokens"][:2]


def test_llava_onevision_is_packed(found):
    stock, f16, packed = (found(f"llava, {kind}") for kind in ("stock", "f16", "t1.65"))
    assert_same(f16["answers"][0], stock["answers"][0])
    assert all(layer["packed"] > 2 for layer in packed["held"])


def test_two_ranks_pack_their_own_heads(found, folder):
    """With f16 they answer as one does; with t1.65 what has not read a code yet is the same: heads of a page share its bits, and here two ranks
    have pages of their own."""
    assert_same(found("f16, two ranks")["answers"][0], found("stock")["answers"][0])
    one, two = found("t1.65"), found("t1.65, two ranks")
    assert tokens(two["answers"][0])[3] == tokens(one["answers"][0])[3]  # 64 tokens
    assert [a["tokens"][0] for a in two["answers"][0]] == [a["tokens"][0] for a in one["answers"][0]]
    assert two["capacity"] > 1.9 * one["capacity"]  # each rank has the memory of one, and half of the heads
    assert len(list((folder / "ranks").rglob("*.vidkvblock"))) == 2 * (5 + 2 + 8)
    assert [a["cached"] for a in two["answers"][1]] == [640, 256, 1024, 0]


def test_beside_sliding_windows_full_attention_is_packed(found):
    stock, packed = found("windows, stock"), found("windows, t1.65")
    assert_same(packed["answers"][0][:2], stock["answers"][0][:2])  # nothing is packed yet in so short texts
    assert packed["capacity"] > 1.7 * stock["capacity"] and all(layer["packed"] > 10 for layer in packed["held"])
    assert [a["cached"] for a in packed["answers"][1]] == [0, 0, 1024]  # eight packed blocks are one of vLLM's here


@pytest.mark.parametrize(
    "name,line", [("hybrid", "this model has layers that are not attention (hybrid)"), ("fp8", "--kv-cache-dtype fp8 quantizes by itself")]
)
def test_what_cannot_be_packed_is_one_line_and_vllm_goes_on(found, said, name, line):
    answers = found(name)
    assert line in said and len(answers["answers"][0][0]["tokens"]) == 24
    assert answers["held"] == []


def connector(store, **extra):
    return {"kv_connector": "VidKVConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"store": str(store), **extra}}


@pytest.mark.parametrize("preset", ["t1.65", ""])
def test_a_second_process_reads_what_the_first_has_packed(folder, tmp_path, preset):
    plan = {"one": {"preset": preset, "ask": [{"lengths": [700, 300]}], "engine": {"kv_transfer_config": connector(tmp_path)}}}
    first = run(folder, plan)[0]["one"]
    files = sorted(tmp_path.rglob("*.vidkvblock"))
    assert [a["cached"] for a in first["answers"][0]] == [0, 0] and len(files) >= 7
    spoiled = files[0].read_bytes()
    files[0].write_bytes(spoiled[:-40] + bytes(40))  # one entry is altered: never a hit
    second = run(folder, plan)[0]["one"]
    cached = [a["cached"] for a in second["answers"][0]]
    assert sum(cached) in range(128, 640 + 256) and all(c % 128 == 0 for c in cached)
    mended = files[0].read_bytes()
    assert hashlib.sha256(mended[:-32]).digest() == mended[-32:]
