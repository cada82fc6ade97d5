"""From finished cells to a table: scores, standard errors of the difference from f16 by paired bootstrap, memory; CSV and HTML."""
import csv
import html
from dataclasses import dataclass

import numpy as np

from .suites import FIGURES, PAPER

ROUNDS = 2000


@dataclass(frozen=True)
class Figure:
    """A column's figure of one cache. None: not there; of the reference, no difference."""
    score: float | None
    difference: float | None = None  # from the reference
    error: float | None = None       # standard error of the difference


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
    """Of score(cells) - score(reference), the same samples drawn for both. None where samples have no figures of their own, or there is one."""
    rng, total = np.random.default_rng(seed), np.zeros(ROUNDS)
    for task, metric in column.parts:
        if task not in cells or task not in reference:
            return None
        ours, theirs = (cell[task]["samples"].get(metric, {}) for cell in (cells, reference))
        shared = sorted(set(ours) & set(theirs))
        pairs = [(value_of(ours[doc]), value_of(theirs[doc])) for doc in shared]
        if len(pairs) < 2 or any(None in pair for pair in pairs):
            return None
        difference = np.array([a - b for a, b in pairs])
        total += difference[rng.integers(0, len(difference), (ROUNDS, len(difference)))].mean(1)
    return column.scale * float((total / len(column.parts)).std(ddof=1))


def samples(column, cells):
    """How many questions a column's tasks asked."""
    return sum(len({line["doc_id"] for line in cells[task]["answers"]}) for task in dict(column.parts) if task in cells)


MEMORY = ("visual tokens", "KiB held", "% of f16", "true bits", "s an answer")


def memory(cells):
    """Means over all answers of a cache, as MEMORY names them; None where a model does not say."""
    lines = [line for cell in cells.values() for line in cell["answers"]]
    def mean(name, scale=1):
        given = [line[name] for line in lines if line.get(name) is not None]
        return scale * sum(given) / len(given) if given else None
    held, f16 = mean("bytes_held"), mean("bytes_f16")
    return [mean("visual_tokens"), mean("bytes_held", 1 / 1024), 100 * held / f16 if held and f16 else None, mean("true_bits"), mean("seconds")]


def figure(column, cells, reference):
    """reference: None of the reference itself."""
    scored, base = score(column, cells), reference and score(column, reference)
    if scored is None or base is None:
        return Figure(scored)
    return Figure(scored, scored - base, standard_error(column, cells, reference))


def rows(columns, finished):
    """(cache, figures, memory) of every cache; finished: {kv: {task: cell}}, the first is the reference."""
    first = next(iter(finished))
    return [(kv, [figure(column, cells, None if kv == first else finished[first]) for column in columns], memory(cells)) for kv, cells in finished.items()]


def _text(number, digits=3):
    return "" if number is None else f"{number:.{digits}f}".rstrip("0").rstrip(".") if number else "0"


def _signed(number):
    return "" if number is None else f"{'+' if number >= 0 else '−'}{_text(abs(number))}"


def _beside(one):
    """The difference from the reference, as it stands beside a score."""
    return "" if one.difference is None else _signed(one.difference) + (f" ± {_text(one.error)}" if one.error is not None else "")


def _write_csv(path, columns, made, reference, paper):
    """A number a cell."""
    header = ["cache", *(name for column in columns for name in (column.name, f"{column.name} - {reference}", f"{column.name} ±")), *MEMORY]
    table = [[kv, *(_text(number) for one in figures for number in (one.score, one.difference, one.error)), *(_text(m, 2) for m in held)]
             for kv, figures, held in made]
    theirs = [[name, *(cell for number in row for cell in (_text(number), "", "")), *[""] * len(MEMORY)] for name, row in paper]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *table, *theirs])


STYLE = ("body{font:15px sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:right;"
         "border-bottom:1px solid #ddd;vertical-align:top}td:first-child,th:first-child{text-align:left}small{color:#666;white-space:nowrap}"
         "tr.paper td{color:#666}b small{color:#a00}")
NOTES = ("Below a score: its difference from {reference}, ± the standard error of that difference, the same samples drawn for both caches (paired "
         "bootstrap). Red: more than two standard errors away. No ±: a task scores all samples at once, or there is one sample. The last columns "
         "are means over all answers: bytes held when the answer was complete, the share of what the same tokens take in f16, bits of a packed element.")
OF_PAPER = " The paper's rows (arXiv 2503.16257) were judged by another judge: compare caches here, not these rows with those."


def _cell(one):
    far = one.error is not None and abs(one.difference) > 2 * one.error
    beside = f"<br><small>{html.escape(_beside(one))}</small>" if _beside(one) else ""
    return f"<b>{_text(one.score)}{beside}</b>" if far else _text(one.score) + beside


def _write_html(path, columns, made, reference, paper, what):
    line = lambda cells, tag="td", kind="": f"<tr{kind}>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
    counts = [samples(column, reference[1]) for column in columns]
    head = [f"{html.escape(column.name)}<br><small>{count} samples</small>" for column, count in zip(columns, counts)]
    body = [line(["cache", *head, *MEMORY], "th")]
    body += [line([html.escape(kv), *map(_cell, figures), *(_text(m, 2) for m in held)]) for kv, figures, held in made]
    body += [line([html.escape(name), *map(_text, row), *[""] * len(MEMORY)], kind=" class=paper") for name, row in paper]
    notes = html.escape(NOTES.format(reference=reference[0]) + (OF_PAPER if paper else ""))
    path.write_text(f"<!doctype html><meta charset=utf-8><title>VidKV benchmarks</title><style>{STYLE}</style><h1>VidKV benchmarks</h1>"
                    f"<p>{html.escape(what)}</p><table>\n" + "\n".join(body) + f"\n</table><p>{notes}</p>\n", encoding="utf-8")


def _lines(columns, made, reference):
    """The table for a terminal: a line for each column, so that it fits."""
    names = [column.name for column in columns] + list(MEMORY)
    table = [["", *(kv for kv, _, _ in made), "samples"]]
    for index, name in enumerate(names):
        cells = [f"{_text(figures[index].score)} {_beside(figures[index])}".strip() if index < len(columns) else _text(held[index - len(columns)], 2)
                 for _, figures, held in made]
        table.append([name, *cells, str(samples(columns[index], reference[1])) if index < len(columns) else ""])
    widths = [max(map(len, column)) for column in zip(*table)]
    return [(row[0].ljust(widths[0]) + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))).rstrip() for row in table]


def write(folder, columns, finished, what):
    """folder/table.csv and folder/table.html; returns the table as lines of text."""
    made, reference = rows(columns, finished), next(iter(finished.items()))
    paper = [(f"paper, {model} {bits}", row) for (model, bits), row in FIGURES.items()] if tuple(columns) == PAPER else []
    _write_csv(folder / "table.csv", columns, made, reference[0], paper)
    _write_html(folder / "table.html", columns, made, reference, paper, what)
    return _lines(columns, made, reference)
