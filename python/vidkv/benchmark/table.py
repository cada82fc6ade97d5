"""From finished cells to a table: scores, standard errors of the difference from f16 by paired bootstrap, memory; CSV and HTML."""
import csv
import html

import numpy as np

from .suites import FIGURES, PAPER

ROUNDS = 2000


def value_of(entry):
    """A sample's figure from what its task logged, or None where the task scores all samples at once."""
    if isinstance(entry, (int, float)):
        return float(entry)
    if not isinstance(entry, dict):
        return None
    if "rating" in entry:
        return 100.0 * (entry["rating"] == 1)
    if "gt_answer" in entry:  # MVBench
        return 100.0 * entry["score"]
    if {"pred_answer", "answer", "duration"} <= entry.keys():  # Video-MME
        return 100.0 * (entry["pred_answer"] == entry["answer"])
    if "parsed_pred" in entry:  # LongVideoBench
        return float(entry["parsed_pred"] == entry["answer"])
    if {"pred", "ground_truth"} == entry.keys():  # EgoSchema
        return float(str(entry["pred"]) == str(entry["ground_truth"]))
    if "score" in entry:
        return float(entry["score"])
    if "acc" in entry:
        return float(entry["acc"] == "yes")
    if "eval_answer" in entry:
        return float(entry["eval_answer"].split("\n")[-1])
    return None


def score(column, cells):
    """The column's figure of one cache: {task: cell}; None if a task is missing."""
    found = [cells[task]["results"].get(metric) for task, metric in column.parts if task in cells]
    if len(found) < len(column.parts) or any(not isinstance(figure, (int, float)) for figure in found):
        return None
    return column.scale * float(np.mean(found))


def standard_error(column, cells, reference, seed=0):
    """Of score(cells) - score(reference), the same samples drawn for both. None where samples have no figures of their own."""
    rng, total = np.random.default_rng(seed), np.zeros(ROUNDS)
    for task, metric in column.parts:
        if task not in cells or task not in reference:
            return None
        ours, theirs = (cell[task]["samples"].get(metric, {}) for cell in (cells, reference))
        shared = sorted(set(ours) & set(theirs))
        pairs = [(value_of(ours[doc]), value_of(theirs[doc])) for doc in shared]
        if not pairs or any(None in pair for pair in pairs):
            return None
        difference = np.array([a - b for a, b in pairs])
        total += difference[rng.integers(0, len(difference), (ROUNDS, len(difference)))].mean(1)
    return column.scale * float((total / len(column.parts)).std(ddof=1))


def memory(cells):
    """Means over all answers of a cache: visual tokens, KiB held, true bits, seconds."""
    lines = [line for cell in cells.values() for line in cell["answers"]]
    mean = lambda name, scale=1: (lambda given: scale * sum(given) / len(given) if given else None)(
        [line[name] for line in lines if line.get(name) is not None])
    return [mean("visual_tokens"), mean("bytes_held", 1 / 1024), mean("true_bits"), mean("seconds")]


def rows(columns, finished):
    """[label, [(score, standard error)], memory] of every cache; finished: {kv: {task: cell}}, the first is the reference."""
    reference = next(iter(finished.values()), {})
    made = []
    for kv, cells in finished.items():
        figures = [(score(column, cells), None if cells is reference else standard_error(column, cells, reference)) for column in columns]
        made.append((kv, figures, memory(cells)))
    return made


def _text(figure, digits=3):
    return "" if figure is None else f"{figure:.{digits}f}".rstrip("0").rstrip(".")


MEMORY = ("visual tokens", "KiB held", "true bits", "s an answer")


def write(folder, columns, finished, what):
    """folder/table.csv and folder/table.html; returns the table as lines of text."""
    made = rows(columns, finished)
    header = ["cache", *(name for column in columns for name in (column.name, "± from first")), *MEMORY]
    table = [[kv, *(_text(f) for pair in figures for f in pair), *(_text(m, 2) for m in held)] for kv, figures, held in made]
    paper = [[f"paper, {model} {bits}", *(cell for figure in row for cell in (_text(figure), "")), *[""] * len(MEMORY)]
             for (model, bits), row in (FIGURES.items() if tuple(columns) == PAPER else ())]
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *table, *paper])
    line = lambda tag, row: "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .6em;text-align:right}td:first-child,th:first-child{text-align:left}"
    body = "\n".join([line("th", header), *(line("td", row) for row in table), *(line("td", row) for row in paper)])
    notes = ("± is the standard error of the difference from the first cache, the same samples drawn for both (paired bootstrap); none where a "
             "task scores all samples at once. The paper's rows were judged by another judge: compare caches here, not these rows with those.")
    (folder / "table.html").write_text(f"<!doctype html><meta charset=utf-8><title>VidKV benchmarks</title><style>{style}</style>"
                                       f"<h1>VidKV benchmarks</h1><p>{html.escape(what)}</p><table>{body}</table><p>{notes}</p>\n", encoding="utf-8")
    return ["\t".join(row) for row in [header, *table]]
