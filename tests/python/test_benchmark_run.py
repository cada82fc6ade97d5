"""The benchmarks end to end through lmms-eval: made-up sets in the benchmarks' own layouts, the small model, a stub judge. No network.
VIDKV_NIGHTLY=1 runs the paper's whole suite, LLaVA-OneVision's structure, and a row without its video too."""
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from common import ROOT

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (measure/benchmarks/requirements.txt)")
from vidkv.benchmark.suites import SUITES, tasks_of  # noqa: E402

BENCHMARKS = os.path.join(ROOT, "measure", "benchmarks")
TINY = os.path.join(ROOT, "models", "tiny")
nightly = pytest.mark.skipif(not os.environ.get("VIDKV_NIGHTLY"), reason="takes minutes: VIDKV_NIGHTLY=1 runs it")
# One of each kind: asked and judged in each way, a video up to a moment, likelihoods, Java.
QUICK = "video_dc499,tempcompass_multi_choice,videochatgpt_temporal,moviechat_breakpoint,worldqa_gen,worldqa_mc_ppl,mvbench_state_change"
SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, os.path.join(BENCHMARKS, "made_up_sets.py"), str(folder), "--count", "2"], check=True)
    return folder


@pytest.fixture
def judge(request):
    stub = subprocess.Popen([sys.executable, os.path.join(BENCHMARKS, "stub_judge.py"), "--behave", getattr(request, "param", "well")],
                            stdout=subprocess.PIPE, text=True)
    yield stub.stdout.readline().strip()
    stub.kill()
    stub.wait()


def run(data, out, judge, *arguments, model="small"):
    return subprocess.run([sys.executable, "-m", "vidkv.benchmark", "--model", str(model), "--data", str(data), "--out", str(out), "--judge", judge,
                           *SHORT, *arguments], capture_output=True, text=True)


def table(out):
    with open(out / "table.csv", encoding="utf-8") as file:
        return {row["cache"]: row for row in csv.DictReader(file)}


def answers(out, kv):
    return [line for file in sorted((out / "cells" / kv).glob("*.json")) for line in json.loads(file.read_text())["answers"]]


def java(tasks):
    """With the task that needs Java, where it is."""
    return f"{tasks},vatex_test" if shutil.which("java") else tasks


def test_caches_beside_each_other(data, judge, tmp_path):
    tasks = ["--tasks", java(QUICK), "--limit", "1"]
    done = run(data, tmp_path, judge, "--kv", "f16,kivi2,t1.65", *tasks)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    for name, figure in rows["t1.65"].items():
        assert figure or name == "± from first", name
    bits = {kv: float(rows[kv]["true bits"]) for kv in rows if not kv.startswith("paper")}
    assert bits["t1.65"] == pytest.approx(1.6, abs=.1) and bits["f16"] == 16 and bits["kivi2"] == 3
    assert float(rows["t1.65"]["KiB held"]) < float(rows["f16"]["KiB held"])
    for line in answers(tmp_path, "t1.65"):
        assert line["visual_tokens"] > 0 and line["bytes_held"] > 0 and line["true_bits"] < 2 and line["seconds"] > 0, line
    # A video up to a moment is less of it; a choice is measured, not written.
    lines = {line["task"]: line for line in answers(tmp_path, "t1.65")}
    assert lines["moviechat_breakpoint"]["frames"] < lines["video_dc499"]["frames"] and lines["worldqa_mc_ppl"]["loss"] > 0
    # Started again with everything there, nothing is asked; another judge would give other results.
    before = (tmp_path / "table.csv").read_text()
    assert run(data, tmp_path, "http://127.0.0.1:9/nobody", "--kv", "f16,kivi2,t1.65", *tasks).returncode == 1
    assert run(data, tmp_path, judge, "--kv", "f16,kivi2,t1.65", *tasks).returncode == 0 and (tmp_path / "table.csv").read_text() == before


@pytest.mark.parametrize("judge, says", [pytest.param("mute", "503", marks=nightly), ("nonsense", "no verdict")], indirect=["judge"])
def test_a_judge_that_fails_ends_the_run(data, judge, says, tmp_path):
    done = run(data, tmp_path, judge, "--kv", "t1.65", "--tasks", "moviechat_global")
    assert done.returncode == 1 and "did not answer" in done.stderr and says in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("cells/*/*.json")) and (tmp_path / "unfinished" / "t1.65" / "answers.jsonl").exists()


def test_llama_server_with_the_plug_in(data, tmp_path):
    """vidkv_gguf: a server has one cache."""
    tools, plugin = os.environ.get("VIDKV_TOOLS", ""), os.environ.get("VIDKV_PLUGIN", "")
    if not os.path.exists(os.path.join(tools, "llama-server")):
        pytest.skip("VIDKV_TOOLS names no folder with llama-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [os.path.join(tools, "llama-server"), "--host", "127.0.0.1", "--port", str(port), "-m", f"{TINY}/vidkv-tiny.gguf", "--mmproj",
         f"{TINY}/mmproj-vidkv-tiny.gguf", "-c", "2048", "-np", "1", "--cache-ram", "0", "-t", "2", "-fa", "on", "--device", "VIDKV"],
        env={**os.environ, "GGML_BACKEND_PATH": plugin, "VIDKV_PRESET": "t1.65"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not healthy(port):
            assert server.poll() is None, "llama-server ended"
            time.sleep(0.1)
        done = subprocess.run([sys.executable, "-m", "vidkv.benchmark", "--server", f"http://127.0.0.1:{port}/v1", "--kv", "t1.65", "--data", str(data),
                               "--out", str(tmp_path), "--tasks", "mvbench_state_change", "--frames", "16", *SHORT], capture_output=True, text=True)
    finally:
        server.terminate()
        server.wait()
    assert done.returncode == 0, done.stderr
    lines = answers(tmp_path, "t1.65")
    assert len(lines) == 1 and lines[0]["frames"] == 16 and lines[0]["prompt_tokens"] > 16 * 9 and lines[0]["kv"] == "t1.65" and lines[0]["seconds"] > 0


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return answer.status == 200
    except OSError:
        return False


@nightly
def test_the_papers_suite(data, judge, tmp_path):
    done = run(data, tmp_path, judge, "--kv", "f16,kivi2,t1.65", "--suite", "paper")
    assert done.returncode == 0, done.stderr
    skipped = done.stderr.count("is skipped: Java")
    assert len(list((tmp_path / "cells" / "kivi2").glob("*.json"))) == len(tasks_of(SUITES["paper"])) - skipped


@nightly
def test_llava_onevision_with_the_published_protection(data, judge, tmp_path):
    folder = tmp_path / "llava"
    subprocess.run([sys.executable, os.path.join(BENCHMARKS, "random_llava_onevision.py"), str(folder)], check=True)
    done = run(data, tmp_path / "out", judge, "--kv", "k1.5v1.58-stp0.2", "--frames", "16", "--tasks", "video_dc499", model=folder)
    assert done.returncode == 0, done.stderr
    lines = answers(tmp_path / "out", "k1.5v1.58-stp0.2")
    assert len(lines) == 2 and all(line["frames"] == 16 and line["visual_tokens"] == 16 * 9 + 1 for line in lines)  # one newline at the end


@nightly
def test_a_row_without_its_video(data, judge, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "moviechat_1k_test" / "Test_Videos" / "clip-00001.mp4").unlink()
    done = run(copy, tmp_path / "out", judge, "--kv", "t1.65", "--tasks", "moviechat_global")
    assert done.returncode == 1 and "clip-00001.mp4 is missing" in done.stderr and "Traceback" not in done.stderr
