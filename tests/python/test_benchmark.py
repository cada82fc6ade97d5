"""The benchmark harness without lmms-eval: the judge that stands between, the log, the table."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import ROOT, text_model

from vidkv.benchmark.__main__ import BenchmarkError, check, columns_of, other_columns, parse, tasks_for
from vidkv.benchmark.answers_log import read_lines, read_log
from vidkv.benchmark.grid import _empty_rows, _reason
from vidkv.benchmark.http import Refused, post
from vidkv.benchmark.judge import Judge, readable
from vidkv.benchmark.kivi import KiviCache
from vidkv.benchmark.suites import FIGURES, PAPER, Column, tasks_of
from vidkv.benchmark.table import score, standard_error, value_of, write
from vidkv.transformers.names import as_arguments

SCORE = "generate the response in the form of a Python dictionary string\nCorrect Answer: red\nPredicted Answer: red\n"


@pytest.fixture(params=["well", "mute", "nonsense"])
def judge(request, tmp_path):
    stub = subprocess.Popen([sys.executable, os.path.join(ROOT, "measure", "benchmarks", "stub_judge.py"), "--behave", request.param],
                            stdout=subprocess.PIPE, text=True)
    judge = Judge(stub.stdout.readline().strip(), "any", memory=tmp_path / "verdicts.jsonl", pause=0)
    judge.behaves = request.param
    yield judge
    judge.close()
    stub.kill()
    stub.wait()


def question(text):
    return dict(model="gpt", messages=[dict(role="user", content=text)])


def test_a_judge_that_does_not_answer_is_an_error(judge):
    if judge.behaves == "well":
        reply = post(judge.address, question(SCORE))
        assert json.loads(reply["choices"][0]["message"]["content"].replace("'", '"')) == {"pred": "yes", "score": 5}
        assert judge.complaint is None
        return
    with pytest.raises(Refused, match="502"):
        post(judge.address, question(SCORE))
    assert judge.complaint.startswith("the judge at") and {"mute": "503", "nonsense": "no verdict"}[judge.behaves] in judge.complaint


@pytest.mark.parametrize("judge", ["well"], indirect=True)
def test_a_question_is_judged_once(judge):
    for _ in range(2):
        post(judge.address, question(SCORE))
    post(judge.address, question(SCORE + "?"))
    assert judge.asked == 2
    again = Judge("http://127.0.0.1:9/nobody", "any", memory=judge.memory, pause=0)
    assert post(again.address, question(SCORE))["choices"]
    again.close()


@pytest.mark.parametrize("prompt, reply, read", [
    (SCORE, "Sure! ```python\n{'score': 4.8}\n```", "{'score': 4.8}"),
    (SCORE, "{'score': 7}", None),
    (SCORE, "four", None),
    (SCORE + "'pred'", "{'pred': 'Yes', 'score': 3}", "{'pred': 'yes', 'score': 3}"),
    (SCORE + "'pred'", "{'score': 3}", None),
    ('respond "Correct"', "It is incorrect.", "Incorrect"),
    ('respond "Correct"', "perhaps", None),
    ("Keypoint in the ground truth", "Rationale:\nyes\nPoint:\n0.5", "Point:\n0.5"),
    ("Keypoint in the ground truth", "Point: 1", "Point:\n1"),
    ("Keypoint in the ground truth", "half a point", None),
    ("single uppercase character", "(B) because", "B"),
    ("single uppercase character", "Because", None),
    ("anything else", "  ", None),
])
def test_verdicts(prompt, reply, read):
    assert readable(prompt, reply) == read


def test_a_line_that_was_cut_off_is_dropped_and_the_rest_kept(tmp_path):
    log = tmp_path / "answers.jsonl"
    line = json.dumps(dict(task="t", doc_id=1, question="q", answer="a")) + "\n"
    log.write_text(line + line.replace("1", "2")[:20])
    assert list(read_log(log)) == [("t", 1, "q", "")] and log.read_text() == line
    assert read_lines(tmp_path / "none") == []


def cell(values):
    return {"task": dict(results={"metric": sum(values) / len(values)}, answers=[],
                         samples={"metric": {str(i): {"score": value} for i, value in enumerate(values)}})}


def test_standard_errors_are_of_the_paired_difference():
    column = Column("c", (("task", "metric"),), 100)
    reference = cell([0, 5, 0, 5] * 25)
    assert score(column, reference) == 250
    assert standard_error(column, cell([1, 6, 1, 6] * 25), reference) == 0  # the same difference everywhere: sure, however much answers vary
    lost = cell([0, 5, 0, 4] * 25)
    assert standard_error(column, lost, reference) == pytest.approx(100 * (.25 * .75 / 100) ** .5, rel=0.1)
    assert standard_error(column, {"task": dict(cell([1])["task"], samples={})}, reference) is None


@pytest.mark.parametrize("entry, value", [
    ({"score": 4}, 4), ({"rating": 1}, 100), ({"acc": "yes"}, 1), ({"eval_answer": "Point:\n0.5"}, .5), (.5, .5), ("text", None),
    ({"pred_answer": "A", "gt_answer": "B", "score": 1}, 100), ({"pred_answer": "A", "answer": "A", "duration": "short", "score": 1.0}, 100),
    ({"answer": "B", "parsed_pred": "A", "id": "0"}, 0), ({"pred": 2, "ground_truth": "2"}, 1)])
def test_what_one_sample_scores(entry, value):
    assert value_of(entry) == value


def kivi_by_loops(rows, along):
    """The same in plain Python: groups of 32 along an axis of [tokens, channels]."""
    out = rows.clone()
    for index in range(rows.shape[1 - along]):
        line = rows[:, index] if along == 0 else rows[index]
        for start in range(0, len(line), 32):
            group = line[start:start + 32]
            step, low = ((group.max() - group.min()) / 3).half().float(), group.min().half().float()
            codes = [min(max(round(float((x - low) / step)), 0), 3) for x in group]
            decoded = torch.tensor(codes) * step + low
            if along == 0:
                out[start:start + 32, index] = decoded
            else:
                out[index, start:start + 32] = decoded
    return out


def test_kivi_keeps_the_newest_tokens_and_packs_the_others_once():
    model = text_model("qwen2", head_dim=64, hidden_size=256)
    cache = KiviCache(model.config)
    rows = torch.randn(2, 1, 2, 300, 64, generator=torch.Generator().manual_seed(1))
    keys, values = cache.update(rows[0, ..., :299, :], rows[1, ..., :299, :], 0)
    assert torch.equal(keys, rows[0, ..., :299, :]) and torch.equal(values, rows[1, ..., :299, :])  # a prompt is read as it is
    keys, values = cache.update(rows[0, ..., 299:, :], rows[1, ..., 299:, :], 0)
    assert cache.get_seq_length() == keys.shape[-2] == 300 and cache.layers[0].tokens_coded == 160
    assert torch.equal(keys[..., 160:, :], rows[0, ..., 160:, :])
    for head in range(2):
        assert torch.allclose(keys[0, head, :160], kivi_by_loops(rows[0, 0, head, :160], 0), atol=1e-5)
        assert torch.allclose(values[0, head, :160], kivi_by_loops(rows[1, 0, head, :160], 1), atol=1e-5)
    coded = 2 * 160 * 2 * 64
    assert cache.bytes_held() == coded * 3 // 8 + 2 * 140 * 2 * 64 * 4 and cache.true_bits == 3


def test_kivi_generates():
    model = text_model("qwen2", head_dim=64, hidden_size=256)
    ids = torch.randint(3, 280, (1, 300), generator=torch.Generator().manual_seed(3))
    cache = KiviCache(model.config)
    out = model.generate(ids, max_new_tokens=40, do_sample=False, **as_arguments(cache))
    assert out.shape == (1, 340) and cache.get_seq_length() == 339 and cache.bytes_held() < 339 * 3 * 2 * 2 * 64 * 4


def test_a_table_stands_beside_the_papers_figures(tmp_path):
    columns = PAPER
    cells = {task: dict(results={}, samples={}, answers=[dict(doc_id=0, visual_tokens=10, bytes_held=2048, true_bits=1.6, seconds=1.0)])
             for task in tasks_of(columns)}
    for column in columns:
        for task, metric in column.parts:
            cells[task]["results"][metric] = .5
    lines = write(Path(tmp_path), columns, {"f16": cells, "t1.65": cells}, "made up")
    assert len({len(line) for line in lines[1:len(columns)]}) == 1 and lines[0].split() == ["f16", "t1.65", "samples"]
    assert any(line.split() == ["VATEX", "CIDEr", "50", "50", "+0", "1"] for line in lines), lines
    table = (tmp_path / "table.csv").read_text().splitlines()
    assert len(table) == 3 + len(FIGURES) and any("LLaVA-OV-7B 1.5/1.58" in row and "20.09" in row for row in table)
    names = table[0].split(",")
    assert len(set(names)) == len(names) and {"WorldQA", "WorldQA - f16", "WorldQA ±", "% of f16"} <= set(names)
    assert "paired bootstrap" in (tmp_path / "table.html").read_text() and "arXiv 2503.16257" in (tmp_path / "table.html").read_text()


def test_a_difference_stands_beside_its_standard_error(tmp_path):
    """Red in the page where it is more than two of them; none from one sample."""
    column = Column("c", (("task", "metric"),), 100)
    answers = [dict(doc_id=i, bytes_held=100, bytes_f16=400) for i in range(100)]
    finished = {"f16": cell([0, 5, 0, 5] * 25), "a": cell([0, 5, 0, 4] * 25), "b": cell([0, 5, 0, 5] * 24 + [0, 5, 0, 4])}
    for cells in finished.values():
        cells["task"]["answers"] = answers
    lines = write(tmp_path, (column,), finished, "made up")
    assert "225 −25 ± 4." in lines[1] and "249 −1 ± 1" in lines[1] and lines[1].endswith("  100")
    assert any(line.split() == ["%", "of", "f16", "25", "25", "25"] for line in lines)
    page = (tmp_path / "table.html").read_text()
    assert "<b>225" in page and "<b>249" not in page and "100 samples" in page
    assert standard_error(column, cell([1]), cell([5])) is None


def test_columns_of_single_tasks():
    columns = lambda tasks: [(c.name, len(c.parts)) for c in columns_of(parse(["--model", "small", "--tasks", tasks]))]
    assert columns("moviechat_global,worldqa_gen") == [("MovieChat score", 1), ("MovieChat acc", 1), ("WorldQA", 1)]
    assert columns("tempcompass_yes_no,mvbench") == [("tempcompass_yes_no", 1)]
    mvbench = {"mvbench": dict(results={"alias": "mvbench", "accuracy": 50.0, "samples": 3})}
    assert [c.name for c in other_columns((), mvbench)] == ["mvbench accuracy"]


TASK = 'Traceback (most recent call last):\n  File "/x/lmms_eval/tasks/tempcompass/utils.py", line 1, in f\n'


@pytest.mark.parametrize("log, says", [
    ("fine\n" + TASK + "KeyError: 'dim'", "a row of tempcompass has no 'dim', or something else there than the task knows"),
    (TASK + "KeyError: 'dim'\n\nTraceback (most recent call last):\n  File \"/x/tenacity.py\"\ntenacity.RetryError: RetryError[raised KeyError]",
     "a row of tempcompass has no 'dim', or something else there than the task knows"),
    (TASK + "IndexError: list index out of range", "a row of tempcompass is not as the task wants it (IndexError: list index out of range)"),
    (TASK + '  File "/x/torch/nn.py", line 1\nRuntimeError: no memory', "RuntimeError: no memory"),
    (TASK + '  File "/x/lmms_eval/tasks/_task_utils/mcq.py", line 1\nTypeError: None', "a row of tempcompass is not as the task wants it (TypeError: None)"),
    (TASK + '  File "/x/pycocoevalcap/bleu.py", line 1\nAssertionError\n\x1b[32m ERROR: Error during evaluation: .', "a row of tempcompass is not as the task "
     "wants it (AssertionError)"),
    ("Traceback (most recent call last):\nOSError: no such folder\nmore", "OSError: no such folder"),
    ("video path:/x/a b.mp4 does not exist, please check", "the video /x/a b.mp4 is missing"),
    ("", "it said nothing"),
])
def test_a_log_in_one_line(log, says):
    assert _reason(log) == says


def test_a_video_in_another_container(tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (measure/benchmarks/requirements.txt)")
    from vidkv.benchmark.answers import Video, in_another_container, video_of
    for name in ("a.b.MKV", "a.b.txt", "ü 1.webm"):
        (tmp_path / name).touch()
    assert in_another_container(str(tmp_path / "a.b.mp4")) == str(tmp_path / "a.b.MKV")
    assert video_of([{"video_path": str(tmp_path / "ü 1.mp4"), "timestep": "7"}]) == Video(str(tmp_path / "ü 1.webm"), 7)
    with pytest.raises(FileNotFoundError, match="c.mp4"):
        video_of([str(tmp_path / "c.mp4")])
    with pytest.raises(ValueError, match="number of frames, not 'soon'"):
        video_of([{"video_path": str(tmp_path / "a.b.MKV"), "timestep": "soon"}])


@pytest.mark.parametrize("arguments, says", [
    (["--kv", "t9"], "t9"),
    (["--model", "/no/such"], "no config.json"),
    (["--data", "/no/such/folder"], "there is no such folder"),
    (["--suite", "paper"], "a judge is asked"),
    (["--judge", "http://127.0.0.1:9", "--limit", "3"], "must be even"),
])
def test_bad_options(arguments, says, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    options = parse(["--model", "small", "--data", str(tmp_path), *arguments])
    with pytest.raises(BenchmarkError, match=says):
        check(options)
        tasks_for(options, columns_of(options))


def test_without_java_its_tasks_are_left_out_and_named(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    options = parse(["--model", "small", "--judge", "http://127.0.0.1:9", "--data", "/"])
    assert "vatex_test" not in tasks_for(options, columns_of(options)) and "video_dc499" in tasks_for(options, columns_of(options))
    assert "vatex_test is skipped: Java" in capsys.readouterr().err
    options = parse(["--model", "small", "--tasks", "vatex_test", "--data", "/"])
    with pytest.raises(BenchmarkError, match="Java computes the scores"):
        tasks_for(options, columns_of(options))


def test_what_is_wrong_is_said_before_anything_runs(tmp_path):
    run = lambda *arguments: subprocess.run([sys.executable, "-m", "vidkv.benchmark", *arguments], capture_output=True, text=True)
    said = run("--model", "small", "--data", str(tmp_path))
    assert said.returncode == 1 and ("lmms-eval is not installed" in said.stderr or "a judge is asked" in said.stderr)
    assert len(said.stderr.strip().splitlines()) == 1


def test_rows_files_without_rows_are_named(tmp_path):
    file = tmp_path / "rows" / "Enxin" / "lmms_MovieChat_test" / "default.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("\n")
    (file.parent / "other.jsonl").write_text("{}\n")
    assert _empty_rows(tmp_path, "RetryError[<Future state=finished raised StopIteration>]") == f"no rows in {file}: put the data set's there"
    assert _empty_rows(tmp_path, "ValueError: another") is None
