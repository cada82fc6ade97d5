"""Runs every task with every cache, all in one process of lmms-eval's (worker.py). A finished cell (a task with a cache) is a file; after a
stop, answers and verdicts that were given already are read again."""
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


def _arguments(run, kv, tasks, folder):
    """lmms-eval's for one cache."""
    model = dict(run.arguments, preset=kv, log=str(folder / "answers.jsonl"))
    arguments = ["--model", run.model, "--tasks", ",".join(tasks), "--batch_size", "1", "--log_samples", "--output_path", str(folder / "lmms_eval"),
                 "--model_args", ",".join(f"{name}={value}" for name, value in model.items() if value not in (None, ""))]
    return arguments + (["--limit", str(run.limit)] if run.limit else [])


def _environment(run):
    home = dict(os.environ, HF_HOME=str(run.data), API_TYPE="openai", OPENAI_API_KEY="none", TOKENIZERS_PARALLELISM="false")
    home["OPENAI_API_URL"] = run.judge.address if run.judge else "http://127.0.0.1:9/no/judge/was/given"
    if (run.data / "rows").is_dir():
        home.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(run.out / "unfinished" / "datasets"))
    return home


def _reason(text):
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    for number, line in reversed(list(enumerate(lines))):
        missing = re.search(r"[Vv]ideo path: ?(.*?) does not exist", line)
        if missing:
            return f"the video {missing.group(1)} is missing"
        found = re.search(r"\b(\w*(?:Error|Exception|Interrupt|Refused))\b(?:: (.*)|$)", line)
        if found and found.group(1) in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
            return "what a task needs is not under --data, and rows/ there means that nothing is fetched: docs/benchmarks.md names its folders"
        if found and found.group(1) != "RetryError":  # it says less than what it follows from
            return _of_a_row(found.group(1), found.group(2), lines[:number]) or f"{found.group(1)}: {found.group(2) or 'it says no more'}"
    return lines[-1] if lines else "it said nothing"


def _empty_rows(data, text):
    """Where datasets came to the end before the first row, a line about the files without rows; else None."""
    if "StopIteration" not in text:
        return None
    empty = [str(file) for file in sorted((data / "rows").rglob("*.jsonl")) if not file.read_bytes().strip()]
    return f"no rows in {', '.join(empty[:3])}{' and others' if empty[3:] else ''}: put the data set's there" if empty else None


def _of_a_row(kind, what, before):
    """What fails in a task's own code, and what it calls to score, is mostly a row that is not as the task wants it; None if it was elsewhere."""
    text = "\n".join(before)
    files = re.findall(r'File "(.*?)"', text[text.rfind("Traceback"):])
    tasks = [re.search(r"lmms_eval/tasks/([a-z]\w*)/", file) for file in files]
    if not any(tasks) or re.search(r"/(torch|transformers|datasets)/|/vidkv/(\w+\.py|benchmark/)", files[-1]):
        return None
    task = next(task.group(1) for task in reversed(tasks) if task)
    if kind == "KeyError":
        return f"a row of {task} has no {what}, or something else there than the task knows"
    return f"a row of {task} is not as the task wants it ({kind}{': ' if what else ''}{what or ''})"


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
    asked = {line["doc_id"] for line in answers}
    if len(asked) != count:
        raise BenchmarkError(f"{task} with {kv}: answers to {len(asked)} of {count} samples: remove {folder} and run again")
    return dict(results=results, samples=samples, answers=answers)


def cell_file(run, kv, task):
    return run.out / "cells" / kv / f"{task}.json"


def _save(file, cell):
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(cell))
    part.rename(file)


class _Worker:
    """The process that makes cells; missing: {cache: tasks}."""

    def __init__(self, run, missing):
        self.run, folder = run, run.out / "unfinished"
        shutil.rmtree(folder / "datasets", ignore_errors=True)
        cells = [self._cell(kv, tasks) for kv, tasks in missing.items()]
        (folder / "cells.json").write_text(json.dumps(cells))
        rows = run.data / "rows"
        self.child = subprocess.Popen([sys.executable, "-m", "vidkv.benchmark.worker", str(folder / "cells.json")], env=_environment(run),
                                      stdout=subprocess.DEVNULL, cwd=rows if rows.is_dir() else folder)

    def _cell(self, kv, tasks):
        folder = self.run.out / "unfinished" / kv
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "lmms_eval", ignore_errors=True)
        for name in ("log.txt", "finished"):
            (folder / name).unlink(missing_ok=True)
        return dict(arguments=_arguments(self.run, kv, tasks, folder), log=str(folder / "log.txt"), finished=str(folder / "finished"))

    def wait(self, kv):
        """Until a cache is done or nothing more comes of it; a judge that fails ends it. What lmms-eval said."""
        folder = self.run.out / "unfinished" / kv
        while self.child.poll() is None and not (folder / "finished").exists():
            if self.run.judge and self.run.judge.complaint:
                self.end()
                break
            time.sleep(0.2)
        if self.run.judge and self.run.judge.complaint:
            raise BenchmarkError(self.run.judge.complaint)
        return (folder / "log.txt").read_text(errors="replace") if (folder / "log.txt").exists() else ""

    def end(self):
        if self.child.poll() is None:
            self.child.terminate()
            self.child.wait()


def _finish(run, worker, kv, tasks):
    """Makes the cells of a cache."""
    folder = run.out / "unfinished" / kv
    print(f"vidkv.benchmark: {kv}: {', '.join(tasks)}", file=sys.stderr)
    said = worker.wait(kv)
    why = f"{kv}: {_empty_rows(run.data, said) or _reason(said)} (all of it: {folder / 'log.txt'})"
    document = json.loads(_only(folder / "lmms_eval", "[0-9]*_[0-9]*_results.json", why).read_text())
    for task in tasks:
        _save(cell_file(run, kv, task), _collect(folder, kv, task, document, why))
    shutil.rmtree(folder)


def run_caches(run, tasks_by_cache):
    """{cache: {task: finished cell}}; what is not there yet is made."""
    missing = {kv: [task for task in tasks if not cell_file(run, kv, task).exists()] for kv, tasks in tasks_by_cache.items()}
    missing = {kv: tasks for kv, tasks in missing.items() if tasks}
    if missing:
        (run.out / "unfinished").mkdir(parents=True, exist_ok=True)
        worker = _Worker(run, missing)
        try:
            for kv, tasks in missing.items():
                _finish(run, worker, kv, tasks)
        finally:
            worker.end()
    return {kv: {task: json.loads(cell_file(run, kv, task).read_text()) for task in tasks} for kv, tasks in tasks_by_cache.items()}
