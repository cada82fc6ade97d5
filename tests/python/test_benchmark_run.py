"""The paper's suite end to end through lmms-eval: made-up sets in the benchmarks' own layouts, the small model, a stub judge. No network."""
import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
from common import ROOT

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (measure/benchmarks/requirements.txt)")
BENCHMARKS = os.path.join(ROOT, "measure", "benchmarks")


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
                           *arguments], capture_output=True, text=True)


def test_the_papers_suite(data, judge, tmp_path):
    if shutil.which("java") is None:
        tasks = ["--tasks", "video_dc499,tempcompass_multi_choice,tempcompass_captioning,videochatgpt_gen,moviechat_global,worldqa_gen"]
    else:
        tasks = ["--suite", "paper"]
    done = run(data, tmp_path, judge, "--kv", "f16,t1.65", *tasks)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        rows = {row["cache"]: row for row in csv.DictReader(file)}
    assert {"f16", "t1.65"} <= set(rows)
    for name, figure in rows["t1.65"].items():
        assert figure or name == "± from first", name
    assert float(rows["t1.65"]["true bits"]) == pytest.approx(1.6, abs=.1) and float(rows["f16"]["true bits"]) == 16
    assert float(rows["t1.65"]["KiB held"]) < float(rows["f16"]["KiB held"])
    cells = sorted((tmp_path / "cells" / "t1.65").glob("*.json"))
    answers = [line for file in cells for line in json.loads(file.read_text())["answers"]]
    assert all(line["visual_tokens"] > 0 and line["bytes_held"] > 0 and line["seconds"] > 0 for line in answers)
    # Started again with everything there, nothing is asked; a cell that is lost is made from answers and verdicts alone.
    before = (tmp_path / "table.csv").read_text()
    assert run(data, tmp_path, "http://127.0.0.1:9/nobody", "--kv", "f16,t1.65", *tasks).returncode == 1  # another judge, other results
    assert run(data, tmp_path, judge, "--kv", "f16,t1.65", *tasks).returncode == 0 and (tmp_path / "table.csv").read_text() == before


def test_llava_onevision_with_the_published_protection(data, judge, tmp_path):
    folder = tmp_path / "llava"
    subprocess.run([sys.executable, os.path.join(BENCHMARKS, "random_llava_onevision.py"), str(folder)], check=True)
    done = run(data, tmp_path / "out", judge, "--kv", "k1.5v1.58-stp0.2", "--frames", "16", "--max-new-tokens", "4", "--tasks", "video_dc499",
               model=folder)
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "out" / "cells" / "k1.5v1.58-stp0.2" / "video_dc499.json").read_text())["answers"]
    assert len(answers) == 2 and all(line["frames"] == 16 and line["visual_tokens"] == 16 * 9 + 1 for line in answers)  # one newline at the end


@pytest.mark.parametrize("judge, says", [("mute", "503"), ("nonsense", "no verdict")], indirect=["judge"])
def test_a_judge_that_fails_ends_the_run(data, judge, says, tmp_path):
    done = run(data, tmp_path, judge, "--kv", "t1.65", "--tasks", "moviechat_global")
    assert done.returncode == 1 and "did not answer" in done.stderr and says in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("cells/*/*.json")) and (tmp_path / "unfinished" / "t1.65" / "answers.jsonl").exists()


def test_a_row_without_its_video(data, judge, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "moviechat_1k_test" / "Test_Videos" / "clip-00001.mp4").unlink()
    done = run(copy, tmp_path / "out", judge, "--kv", "t1.65", "--tasks", "moviechat_global")
    assert done.returncode == 1 and "clip-00001.mp4 is missing" in done.stderr and "Traceback" not in done.stderr
