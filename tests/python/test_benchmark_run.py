"""The benchmarks end to end through lmms-eval: made-up sets in the benchmarks' own layouts, the small model, a stub judge. No network.
VIDKV_NIGHTLY=1 runs every task of every suite with three models, a stop in the middle, a mute judge and rows that are not as they should be too."""
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from common import ROOT

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (measure/benchmarks/requirements.txt)")
from vidkv.benchmark.suites import SUITES, tasks_of  # noqa: E402
from vidkv.video import read_video  # noqa: E402

BENCHMARKS = os.path.join(ROOT, "measure", "benchmarks")
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


def command(data, out, judge, *arguments, model="small"):
    return [sys.executable, "-m", "vidkv.benchmark", "--model", str(model), "--data", str(data), "--out", str(out), "--judge", judge, *SHORT, *arguments]


def run(*arguments, **options):
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True)


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
        assert figure or name.endswith("±"), name  # of one sample there is none
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


def test_vidkv_serve(data, tmp_path):
    """vidkv_gguf through stock llama-server with the plug-in, as `vidkv serve` starts it: a server has one cache."""
    vidkv = os.environ.get("VIDKV", "")
    if not os.path.exists(vidkv):
        pytest.skip("VIDKV names no command: the build has none")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([vidkv, "serve", "--kv", "t1.65", "--port", str(port), "-c", "2048", "-t", "2", "-np", "1", "--cache-ram", "0"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = server.stdout.readline().strip()
        assert address.startswith("http://"), "vidkv serve ended"
        done = subprocess.run([sys.executable, "-m", "vidkv.benchmark", "--server", address + "/v1", "--kv", "t1.65", "--data", str(data),
                               "--out", str(tmp_path), "--tasks", "mvbench_state_change", "--frames", "16", *SHORT], capture_output=True, text=True)
    finally:
        server.terminate()
        server.wait()
    assert done.returncode == 0, done.stderr
    lines = answers(tmp_path, "t1.65")
    assert len(lines) == 1 and lines[0]["frames"] == 16 and lines[0]["prompt_tokens"] > 16 * 9 and lines[0]["kv"] == "t1.65" and lines[0]["seconds"] > 0


EVERY_TASK = list(dict.fromkeys(task for suite in SUITES.values() for task in tasks_of(suite)))


@nightly
@pytest.mark.parametrize("structure, caches", [("small", "f16,kivi2,t1.65"), ("llava_onevision", "k1.5v1.58-stp0.2"), ("qwen2_5_vl", "t1.65")])
def test_every_task(data, judge, tmp_path, structure, caches):
    """Of all suites, each with its own figure for its column of the table."""
    folder = "small"
    if structure != "small":
        folder = tmp_path / "model"
        subprocess.run([sys.executable, os.path.join(BENCHMARKS, "random_model.py"), str(folder), "--structure", structure], check=True)
    done = run(data, tmp_path / "out", judge, "--kv", caches, "--tasks", ",".join(EVERY_TASK), model=folder)
    assert done.returncode == 0, done.stderr
    skipped = done.stderr.count("is skipped: Java")
    for kv in caches.split(","):
        assert len(list((tmp_path / "out" / "cells" / kv).glob("*.json"))) == len(EVERY_TASK) - skipped
        assert all(line["visual_tokens"] > 0 and line["seconds"] > 0 for line in answers(tmp_path / "out", kv))
    assert [name for name, figure in table(tmp_path / "out")[caches.split(",")[0]].items()
            if not figure and not name.endswith("±") and " - " not in name and "VATEX" not in name] == []
    if structure == "llava_onevision":
        assert {(line["visual_tokens"] - 1) % 9 for line in answers(tmp_path / "out", caches)} == {0}  # one newline at the end


@nightly
@pytest.mark.parametrize("structure", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_sees_the_frames_and_their_times(data, tmp_path, structure):
    """Processors of transformers choose frames again, as if 24 were shown a second, unless they are told."""
    from vidkv import demo
    subprocess.run([sys.executable, os.path.join(BENCHMARKS, "random_model.py"), str(tmp_path), "--structure", structure], check=True)
    clip = str(data / "clips" / "clip-00000.mp4")
    model, reader, small = demo.load(demo.parse([clip, "", "--model", str(tmp_path)]))
    inputs, frames = demo.prepare(model, reader, small, demo.parse([clip, "What colour?", "--model", str(tmp_path), "--frames", "16"]))
    seconds = read_video(clip, 16)[1]
    assert frames == 16 and inputs["video_grid_thw"][0].tolist() == [8, 6, 6]
    if structure == "qwen2_5_vl":
        assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2 * (seconds[-1] - seconds[0]) / 15, rel=1e-3)
    else:
        stated = re.findall(r"<([0-9.]+) seconds>", reader.decode(inputs["input_ids"][0]))
        assert [float(one) for one in stated] == pytest.approx([(a + b) / 2 for a, b in zip(seconds[::2], seconds[1::2])], abs=0.06)


@nightly
def test_killed_in_the_middle(data, judge, tmp_path):
    """The same command goes on: nothing is asked twice, nothing is lost, the table is that of a run in one go."""
    arguments = ("--kv", "f16,t1.65", "--tasks", "video_dc499,tempcompass_yes_no,videochatgpt_consistency,worldqa_mc_ppl,egoschema_subset")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(data, whole, judge, *arguments).returncode == 0
    asked = sum(len(answers(whole, kv)) for kv in ("f16", "t1.65"))
    for stop in (2, 5, 10):  # answers that were given by then
        part = subprocess.Popen(command(data, parts, judge, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while part.poll() is None and given(parts) < stop:
            time.sleep(0.01)
        part.send_signal(signal.SIGKILL)
        assert part.wait() == -signal.SIGKILL, "the run ended before it was killed"
    with open(parts / "unfinished" / ("t1.65" if (parts / "cells" / "f16").exists() else "f16") / "answers.jsonl", "a", encoding="utf-8") as log:
        log.write('{"task": "video_dc499", "doc_id": 0, "quest')  # as a full disk leaves it
    before = given(parts)
    done = run(data, parts, judge, *arguments)
    assert done.returncode == 0, done.stderr
    assert sum(len(answers(parts, kv)) for kv in ("f16", "t1.65")) == asked > before > 0
    judged = [json.loads(line)["question"] for line in (parts / "verdicts.jsonl").read_text().splitlines()]
    assert len(judged) == len(set(judged))
    scores = lambda out: {(kv, name): figure for kv, row in table(out).items() for name, figure in row.items() if name != "s an answer"}
    assert scores(parts) == scores(whole)


def given(out):
    """Answers in the logs and the finished cells."""
    logs = [file.read_text().count("\n") for file in out.glob("unfinished/*/answers.jsonl")]
    return sum(logs) + sum(len(json.loads(file.read_text())["answers"]) for file in out.glob("cells/*/*.json"))


def changed(data, folder, name, change):
    """The data with the rows of one set changed."""
    shutil.copytree(data, folder, symlinks=True)
    file = next((folder / "rows" / name).glob("*.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        change(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@nightly
@pytest.mark.parametrize("task, rows, change, says", [
    ("moviechat_global", "Enxin/lmms_MovieChat_test", lambda row: row.update(video_name="none.mp4"), "none.mp4 is missing"),
    ("videomme", "lmms-eval/Video-MME", lambda row: row.pop("task_type"), "a row of videomme has no 'task_type'"),
    ("egoschema_subset", "lmms-eval/egoschema", lambda row: row.update(option=["A. x", "B. y"]), "a row of egoschema is not as the task wants it"),
])
def test_rows_that_are_not_as_they_should_be(data, judge, tmp_path, task, rows, change, says):
    changed(data, tmp_path / "data", rows, change)
    done = run(tmp_path / "data", tmp_path / "out", judge, "--kv", "t1.65", "--tasks", task)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr  # what it began with, and why it ended


@nightly
def test_videos_in_other_containers(data, judge, tmp_path):
    """Tasks look for .mp4; a download that ends otherwise is found, names of any letters too."""
    copy = tmp_path / "data"
    changed(data, copy, "Enxin/lmms_MovieChat_test", lambda row: row.update(video_name="Zürich 视频/" + row["video_name"]))
    videos = copy / "moviechat_1k_test" / "Test_Videos"
    (videos / "Zürich 视频").mkdir()
    for number, end in enumerate((".MKV", ".webm")):
        (videos / f"clip-0000{number}.mp4").rename(videos / "Zürich 视频" / f"clip-0000{number}{end}")
    done = run(copy, tmp_path / "out", judge, "--kv", "t1.65", "--tasks", "moviechat_global,moviechat_breakpoint")
    assert done.returncode == 0, done.stderr
    lines = {line["task"]: line for line in answers(tmp_path / "out", "t1.65") if line["doc_id"] == 1}
    assert lines["moviechat_breakpoint"]["frames"] < lines["moviechat_global"]["frames"]
