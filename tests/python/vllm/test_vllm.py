"""vLLM with packed pages, run as a user would run it: one engine in a process of its own for each configuration.

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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def run(folder, preset, ask, **engine):
    """What engine.py printed, and all that vLLM said."""
    plan = json.dumps({"ask": ask, "engine": engine})
    env = {**os.environ, "VIDKV_PRESET": preset}
    done = subprocess.run([sys.executable, ENGINE, str(folder), plan], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr


@pytest.fixture(scope="session")
def stock(folder):
    return run(folder, "", ASK)[0]


def tokens(answers):
    return [a["tokens"] for a in answers]


def test_preset_f16_gives_the_tokens_of_vllm(folder, stock):
    packed, _ = run(folder, "f16", ASK)
    for mine, its in zip(packed["answers"], stock["answers"]):
        assert tokens(mine) == tokens(its)
        for a, b in zip(mine, its):
            assert max(abs(x - y) for x, y in zip(a["logprobs"], b["logprobs"])) < 0.02


def test_packed_blocks_hold_more_and_are_shared(folder, stock):
    packed, said = run(folder, "t1.65", [{}, {}, {"seed": 5, "prefix": 600, "lengths": [40]}, {"seed": 6, "prefix": 600, "lengths": [30]}])
    assert "times less than f16" in said and "KV cache size" in said
    assert packed["capacity"] > 6 * 2 * stock["capacity"]  # stock holds float32 here, half as much as f16
    assert [a["cached"] for a in packed["answers"][1]] == [640, 256, 1024, 0]
    assert packed["answers"][3][0]["cached"] == 512
    assert tokens(packed["answers"][0])[3] == tokens(stock["answers"][0])[3]  # 64 tokens: nothing is packed yet
    assert all(layer["packed"] > 10 for layer in packed["held"])


def test_four_at_once_are_four_one_by_one(folder):
    asked, _ = run(folder, "t1.65", ASK, enable_prefix_caching=False, max_num_batched_tokens=4096)
    assert tokens(asked["answers"][0]) == tokens(asked["answers"][1])


def connector(store, **extra):
    return {"kv_connector": "VidKVConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"store": str(store), **extra}}


@pytest.mark.parametrize("preset", ["t1.65", ""])
def test_a_second_process_reads_what_the_first_has_packed(folder, tmp_path, preset):
    ask = [{"lengths": [700, 300]}]
    first, _ = run(folder, preset, ask, kv_transfer_config=connector(tmp_path))
    files = sorted(tmp_path.rglob("*.vidkvblock"))
    assert [a["cached"] for a in first["answers"][0]] == [0, 0] and len(files) >= 7
    spoiled = files[0].read_bytes()
    files[0].write_bytes(spoiled[:-40] + bytes(40))  # one entry is altered: never a hit
    second, _ = run(folder, preset, ask, kv_transfer_config=connector(tmp_path))
    cached = [a["cached"] for a in second["answers"][0]]
    assert sum(cached) in range(128, 640 + 256) and all(c % 128 == 0 for c in cached)
    mended = files[0].read_bytes()
    assert hashlib.sha256(mended[:-32]).digest() == mended[-32:]


@pytest.mark.parametrize(
    "preset,engine,line",
    [
        ("t1.65", {"block_size": 64}, "a block must have 128 tokens, not 64"),
        ("t1.65", {"block_size": 128, "kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 quantizes by itself"),
    ],
)
def test_what_cannot_be_packed_is_one_line_and_vllm_goes_on(folder, preset, engine, line):
    answers, said = run(folder, preset, [{"lengths": [200]}], **engine)
    assert line in said and len(answers["answers"][0][0]["tokens"]) == 24
    assert answers["held"] == []
