"""python -m vidkv.benchmark: the paper's benchmarks with any cache, as one table (docs/benchmarks.md)."""
import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from .grid import BenchmarkError, Run, cell_file, check_settings, run_caches
from .suites import NEEDS_JAVA, SUITES, WITHOUT_JUDGE, Column, tasks_of
from .table import write

PAPER_KV = "f16,k2v2,k1.5v2,k1.5v1.58,k1.5v1.58-stp0.2,kivi2,t1.65,t1.15"
OTHER_CACHES = ("dynamic", "kivi2")  # no presets: transformers' own cache, and KIVI


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vidkv.benchmark", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR", help="a folder of LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL for transformers; 'small': "
                                                      "the toy that comes with VidKV")
    source.add_argument("--server", metavar="URL", help="or an OpenAI server (http://127.0.0.1:8080/v1): llama-server with the plug-in")
    parser.add_argument("--suite", choices=SUITES, default="paper", help="paper: its six benchmarks; more: what else they have; letters: newer ones that need no judge")
    parser.add_argument("--tasks", help="tasks of lmms-eval in the place of a suite, separated by commas")
    parser.add_argument("--kv", default=PAPER_KV, help="caches, separated by commas; f16, or else the first, is what others are compared with; 'dynamic' is "
                                                       "transformers' own, 'kivi2' KIVI (default: %(default)s)")
    parser.add_argument("--data", default=os.environ.get("HF_HOME"), help="folder with the videos (default: $HF_HOME)")
    parser.add_argument("--out", default="benchmark", help="folder for results; started again, a run goes on there (default: benchmark)")
    parser.add_argument("--frames", type=int, help="frames of a video (default: 32; small: four a second)")
    parser.add_argument("--limit", type=int, help="samples of each task (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=0, help="a cap below what the tasks ask for")
    parser.add_argument("--device", default="cpu", help="torch's name (default: cpu)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--judge", metavar="URL", help="chat completions of an OpenAI server that judges answers")
    parser.add_argument("--judge-model", help="model that the judge is asked for (default: what each task names)")
    return parser.parse_args(arguments)


def columns_of(options):
    """The columns of a suite; with --tasks those that they fill, in part too."""
    if not options.tasks:
        return SUITES[options.suite]
    columns = []
    for column in (column for suite in SUITES.values() for column in suite):
        parts = tuple(part for part in column.parts if part[0] in options.tasks.split(","))
        if parts:
            columns.append(column if parts == column.parts else Column(" + ".join(tasks_of([Column("", parts)])), parts, column.scale))
    return tuple(columns)


def other_columns(columns, cells):
    """A column for each figure of tasks that are in no suite."""
    known = tasks_of(columns)
    return tuple(Column(f"{task} {metric}", ((task, metric),)) for task, cell in cells.items() if task not in known
                 for metric, figure in cell["results"].items() if isinstance(figure, (int, float)) and metric != "samples")


def check(options):
    """Says what is wrong before anything runs."""
    from .. import Params

    if importlib.util.find_spec("lmms_eval") is None:
        raise BenchmarkError("lmms-eval is not installed: pip install -r measure/benchmarks/requirements.txt")
    if not options.data or not os.path.isdir(options.data):
        raise BenchmarkError(f"--data {options.data or ''}: there is no such folder; it holds the videos (docs/benchmarks.md)")
    for kv in options.kv.split(","):
        try:
            if kv not in OTHER_CACHES:
                Params.from_preset(kv)
        except ValueError as error:
            raise BenchmarkError(f"--kv {kv}: {error}") from None
    if options.model and options.model != "small" and not os.path.exists(os.path.join(options.model, "config.json")):
        raise BenchmarkError(f"--model {options.model}: no config.json there")
    if options.server and "," in options.kv:
        raise BenchmarkError("--server: a server has one cache: name it with --kv, and run once for each in the same --out")


def without_java(tasks):
    """The tasks that can run here: some need Java. Those left out are named."""
    left_out = [task for task in tasks if task in NEEDS_JAVA and shutil.which("java") is None]
    if left_out == tasks:
        raise BenchmarkError(f"{', '.join(tasks)}: Java computes the scores, and it is not installed (apt-get install default-jre-headless)")
    for task in left_out:
        print(f"vidkv.benchmark: {task} is skipped: Java computes its scores, and it is not installed (apt-get install default-jre-headless)",
              file=sys.stderr)
    return [task for task in tasks if task not in left_out]


def tasks_for(options, columns):
    tasks = without_java(list(dict.fromkeys(options.tasks.split(","))) if options.tasks else tasks_of(columns))
    judged = [task for task in tasks if task not in WITHOUT_JUDGE]
    if judged and not options.judge:
        raise BenchmarkError(f"{', '.join(judged)}: a judge is asked; give --judge URL (a llama-server can be one)")
    if "videochatgpt_consistency" in tasks and (options.limit or 0) % 2:
        raise BenchmarkError("--limit must be even for videochatgpt_consistency: its rows are pairs")
    return tasks


def make_run(options, out, judge):
    arguments = dict(frames=options.frames, max_new_tokens=options.max_new_tokens or None)
    if options.server:
        model, source = "vidkv_gguf", options.server
        arguments["base_url"] = options.server
    else:
        model, source = "vidkv_hf", options.model if options.model == "small" else os.path.abspath(options.model)
        arguments.update(pretrained=None if options.model == "small" else source, torch_device=options.device, dtype=options.dtype)
    settings = dict(model=source, frames=options.frames, limit=options.limit, max_new_tokens=options.max_new_tokens, dtype=options.dtype,
                    judge=options.judge, judge_model=options.judge_model)
    return Run(out, model, arguments, Path(options.data).resolve(), options.limit, judge, settings)


def earlier_caches(run, tasks, asked):
    """{cache: {task: cell}} of caches that earlier runs finished in the same folder: a server has one cache a run."""
    folder = run.out / "cells"
    names = sorted(entry.name for entry in folder.glob("*")) if folder.is_dir() else []
    return run_caches(run, {kv: [task for task in tasks if cell_file(run, kv, task).exists()] for kv in names if kv not in asked})


def run_all(options):
    from .judge import Judge

    check(options)
    columns = columns_of(options)
    tasks = tasks_for(options, columns)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    judge = Judge(options.judge, options.judge_model, os.environ.get("OPENAI_API_KEY"), out / "verdicts.jsonl") if options.judge else None
    try:
        run = make_run(options, out, judge)
        check_settings(run)
        asked = options.kv.split(",")
        finished = run_caches(run, dict.fromkeys(asked, tasks))
        finished.update(earlier_caches(run, tasks, asked))
        finished = dict(sorted(finished.items(), key=lambda entry: entry[0] != "f16"))  # what others are compared with stands first
        columns += other_columns(columns, finished[asked[0]])
    finally:
        if judge:
            judge.close()
    skipped = [task for task in tasks_of(columns) if task not in tasks and task in NEEDS_JAVA]
    named = f"{run.settings['model']}, {options.frames or 'default'} frames, {options.limit or 'all'} samples a task, judge {options.judge or 'none'}"
    named += f"; skipped, for want of Java: {', '.join(skipped)}" if skipped else ""
    for line in write(run.out, columns, finished, named):
        print(line)
    print(f"vidkv.benchmark: {run.out / 'table.html'} and table.csv", file=sys.stderr)


def main(arguments=None):
    options = parse(arguments)
    try:
        run_all(options)
    except (BenchmarkError, OSError) as error:
        print(f"vidkv.benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vidkv.benchmark: interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
