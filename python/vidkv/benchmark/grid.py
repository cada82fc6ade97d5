"""Runs every task with every cache, one lmms-eval per cache. A finished cell (a task with a cache) is a file; after a stop, answers and
verdicts that were given already are read again."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .answers_log import read_log


class BenchmarkError(Exception):
    """One line for the user."""


@dataclass
class Run:
    out: Path
    model: str                      # lmms-eval's: vidkv_hf or vidkv_gguf
    arguments: dict                 # model_args beside preset and log
    data: Path                      # HF_HOME
    limit: int | None = None
    judge: object = None
    settings: dict = field(default_factory=dict)  # what a finished cell must have been made with


def check_settings(run):
    """The settings that cells in the folder were made with; another run may not add to them."""
    file = run.out / "settings.json"
    if not file.exists():
        file.write_text(json.dumps(run.settings, indent=1))
        return
    before = json.loads(file.read_text())
    for name in sorted(set(before) | set(run.settings)):
        if before.get(name) != run.settings.get(name):
            raise BenchmarkError(f"{run.out} holds results with {name} {before.get(name)}, not {run.settings.get(name)}: choose another --out")


def _command(run, kv, tasks, folder):
    log = folder / "answers.jsonl"
    arguments = dict(run.arguments, preset=kv, log=str(log))
    command = [sys.executable, "-m", "lmms_eval", "--model", run.model, "--tasks", ",".join(tasks), "--batch_size", "1", "--log_samples",
               "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items() if value not in (None, "")),
               "--output_path", str(folder / "lmms_eval")]
    return command + (["--limit", str(run.limit)] if run.limit else [])


def _environment(run, folder):
    home = dict(os.environ, HF_HOME=str(run.data), API_TYPE="openai", OPENAI_API_KEY="none", TOKENIZERS_PARALLELISM="false")
    home["OPENAI_API_URL"] = run.judge.address if run.judge else "http://127.0.0.1:9/no/judge/was/given"
    if (run.data / "rows").is_dir():
        home.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(folder / "datasets"))
    return home


def _reason(text):
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        missing = re.search(r"video path:(.*?) does not exist", line)
        if missing:
            return f"the video {missing.group(1)} is missing"
        found = re.search(r"\b(\w*(?:Error|Exception|Interrupt|Refused))\b: (.*)", line)
        if found:
            return f"{found.group(1)}: {found.group(2)}"
    return lines[-1] if lines else "it said nothing"


def _watch(child, run):
    """Waits for a cell; a judge that fails ends it."""
    while child.poll() is None:
        if run.judge and run.judge.complaint:
            child.terminate()
            child.wait()
        else:
            time.sleep(0.2)
    if run.judge and run.judge.complaint:
        raise BenchmarkError(run.judge.complaint)
    return child.returncode


def _only(folder, pattern, what):
    found = sorted(folder.rglob(pattern))
    if not found:
        raise BenchmarkError(what)
    return found[-1]


def _collect(folder, kv, task, document, why):
    """A finished cell from what lmms-eval wrote."""
    results = {name.split(",")[0]: figure for name, figure in document["results"][task].items() if "stderr" not in name}
    samples, count = {}, 0
    for line in _only(folder / "lmms_eval", f"*_samples_{task}.jsonl", why).read_text().splitlines():
        sample = json.loads(line)
        count += 1
        for metric in results:
            if metric in sample:
                samples.setdefault(metric, {})[str(sample["doc_id"])] = sample[metric]
    answers = [line for line in read_log(folder / "answers.jsonl").values() if line["task"] == task]
    if len(answers) != count:
        raise BenchmarkError(f"{task} with {kv}: {len(answers)} answers for {count} samples: remove {folder} and run again")
    return dict(results=results, samples=samples, answers=answers)


def cell_file(run, kv, task):
    return run.out / "cells" / kv / f"{task}.json"


def _save(file, cell):
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(cell))
    part.rename(file)


def _evaluate(run, kv, tasks, folder):
    """lmms-eval with one cache; the text it logged."""
    for made in ("lmms_eval", "datasets"):
        shutil.rmtree(folder / made, ignore_errors=True)
    rows = run.data / "rows"
    with open(folder / "log.txt", "w") as log:
        child = subprocess.Popen(_command(run, kv, tasks, folder), stdout=log, stderr=log, env=_environment(run, folder),
                                 cwd=rows if rows.is_dir() else folder)
        try:
            _watch(child, run)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    return (folder / "log.txt").read_text(errors="replace")


def run_cache(run, kv, tasks):
    """{task: finished cell} of a cache; what is not there yet is made."""
    missing = [task for task in tasks if not cell_file(run, kv, task).exists()]
    if missing:
        folder = run.out / "unfinished" / kv
        folder.mkdir(parents=True, exist_ok=True)
        print(f"vidkv.benchmark: {kv}: {', '.join(missing)}", file=sys.stderr)
        why = f"{kv}: {_reason(_evaluate(run, kv, missing, folder))} (all of it: {folder / 'log.txt'})"
        document = json.loads(_only(folder / "lmms_eval", "[0-9]*_[0-9]*_results.json", why).read_text())
        for task in missing:
            _save(cell_file(run, kv, task), _collect(folder, kv, task, document, why))
        shutil.rmtree(folder)
    return {task: json.loads(cell_file(run, kv, task).read_text()) for task in tasks}
