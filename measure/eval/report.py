"""Plots what `vidkv eval kl --json --details` and `vidkv eval video --json` measured, and one HTML page that shows the plots."""
import argparse
import html
import json
import math
import shutil
import sys
import zlib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

OURS, PAPER, PEER = "#c0392b", "#2471a3", "#7f8c8d"
LINES = {"f16": "#222222", "t2.2": "#7b241c", "t1.65": "#c0392b", "t1.15": "#e67e22", "t1.0": "#d4ac0d", "k2v2": "#154360", "k1.5v2": "#2471a3",
         "k1.5v1.58": "#5dade2", "k1.5v1.58-g128": "#a9cce3", "q8_0": "#145a32", "q4_0": "#27ae60", "kivi2": "#8e44ad", "turbo3": "#16a085",
         "turbo2": "#76d7c4"}
OTHERS = ["#5d6d7e", "#a04000", "#b9770e", "#6c3483", "#117864", "#943126"]
FLOOR = 1e-4  # of the logarithmic axis: an exact cache diverges by nothing


def family(name):
    """Colour and legend of a codec."""
    if name.startswith("kt") or name.startswith("t") and name[1:2].isdigit():
        return OURS, "trellis codes"
    if name.startswith("k") and name[1:2].isdigit():
        return PAPER, "paper's formulas, corrected"
    return PEER, "others"


def line_colour(name):
    """The same codec has the same colour in every plot of every report."""
    return LINES.get(name, OTHERS[zlib.crc32(name.encode()) % len(OTHERS)])


def wilson(share, n):
    """How far a share of n answers reaches down and up: one standard error, and never out of 0 to 1."""
    if not n:
        return None
    middle, half = (share + 0.5 / n) / (1 + 1 / n), math.sqrt(share * (1 - share) / n + 0.25 / n / n) / (1 + 1 / n)
    return [[max(0, 100 * (share - middle + half))], [max(0, 100 * (middle + half - share))]]


def without_outliers(axes, values):
    """An axis that shows all but the farthest hundredth, so that one spike does not flatten the rest; True if it cuts something off."""
    ordered = sorted(v for v in values if math.isfinite(v))
    low, high = ordered[int(0.01 * (len(ordered) - 1))], ordered[math.ceil(0.99 * (len(ordered) - 1))]
    margin = 0.08 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    return ordered[0] < low - margin or ordered[-1] > high + margin


def bits(codec):
    return (codec["k_bits"] + codec["v_bits"]) / 2 if "k_bits" in codec else codec["true_bits"]


def shown(document):
    """Codecs that belong into a plot: no f16, nothing without sink tokens."""
    return [c for c in document["presets"] if bits(c) < 16 and not c["name"].endswith("-nosink")]


def mark(axes, codec, x, y, labels, error=None):
    colour, legend = family(codec["name"])
    axes.errorbar(x, y, yerr=error, fmt="o", color=colour, capsize=2, label=None if legend in labels else legend)
    labels.add(legend)
    axes.annotate(codec["name"], (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8, color=colour)


def part_names(figure):
    """Moves a name that covers an earlier one below its point."""
    figure.canvas.draw()
    placed = []
    for name in figure.axes[0].texts:
        if any(name.get_window_extent().overlaps(other) for other in placed):
            name.set_position((5, -12))
        placed.append(name.get_window_extent())


def plot_kl(document):
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    labels = set()
    for codec in shown(document):
        mark(axes, codec, bits(codec), max(codec["kld"], FLOOR), labels, codec["kld_se"])
    axes.set_yscale("log")
    axes.margins(x=0.1)  # room for the last name
    axes.set_xlabel("true bits per element, all metadata included (mean of keys and values)")
    axes.set_ylabel("KL divergence from the f16 cache, nats")
    axes.set_title(f"{Path(document['model']).name}, {document['windows']} windows, protocol {document['protocol']}", fontsize=10)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    part_names(figure)
    return figure


def plot_accuracy(document):
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    labels = set()
    for codec in (c for c in document["presets"] if not c["name"].endswith("-nosink")):
        mark(axes, codec, codec["kv_bytes"] / 2**20, 100 * codec["accuracy"], labels, wilson(codec["accuracy"], document.get("questions", 0)))
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_ylim(top=100, bottom=max(0, min(axes.get_ylim()[0], 100 * min(c["accuracy"] for c in document["presets"]) - 2)))
    axes.set_xlabel("bytes held by the cache, MiB (mean per clip)")
    axes.set_ylabel("answers that are right, %")
    axes.set_title(f"{document['clips']} clips, {document['visual_tokens_mean']:.0f} visual tokens per clip", fontsize=10)
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize=8)
    part_names(figure)
    return figure


def with_layers(document, most=6):
    """Codecs whose layers were measured, ours first."""
    codecs = [c for c in shown(document) if c.get("layers") and c["name"] != "vidkv-released"]
    return sorted(codecs, key=lambda c: family(c["name"])[0] != OURS)[:most]


def plot_layers(document):
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    for axes, key, title in zip(both, ("k_error", "v_error"), ("keys", "values")):
        for codec in with_layers(document):
            axes.plot([layer["layer"] for layer in codec["layers"]], [layer[key] for layer in codec["layers"]], label=codec["name"],
                      linewidth=1.2, color=line_colour(codec["name"]))
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.set_title(title, fontsize=10)
        axes.grid(True, which="both", alpha=0.25)
    both[0].set_ylabel("squared error over the rows' variance")
    both[1].legend(fontsize=8)
    return figure


def plot_channels(document):
    """Bits that the errors of single channels amount to, over the channels of a middle layer, most precise first."""
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    drawn = []
    for codec in with_layers(document):
        layer = codec["layers"][len(codec["layers"]) // 2]
        for axes, key, title in zip(both, ("k_channel_bits", "v_channel_bits"), ("keys", "values")):
            axes.plot(sorted(layer[key], reverse=True), label=codec["name"], linewidth=1.2, color=line_colour(codec["name"]))
            drawn += layer[key]
            axes.set_title(f"{title} of layer {layer['layer']}", fontsize=10)
            axes.set_xlabel("channels, most precise first")
            axes.grid(True, alpha=0.25)
    both[0].set_ylabel("bits: half of log2 (variance / squared error)")
    if without_outliers(both[0], drawn):
        figure.text(0.99, 0.01, "the farthest hundredth lies outside", ha="right", fontsize=7, color=PEER)
    both[1].legend(fontsize=8)
    return figure


KL_COLUMNS = [("codec", "name", "{}"), ("KLD", "kld", "{:.4f}"), ("±", "kld_se", "{:.4f}"), ("PPL", "ppl", "{:.3f}"), ("top-1", "top1", "{:.4f}"),
              ("K bits", "k_bits", "{:.3f}"), ("V bits", "v_bits", "{:.3f}"), ("bytes held", "kv_bytes", "{:,}")]
VIDEO_COLUMNS = [("codec", "name", "{}"), ("accuracy", "accuracy", "{:.4f}"), ("KLD of answers", "kld", "{:.5f}"), ("true bits", "true_bits", "{:.3f}"),
                 ("bytes held", "kv_bytes", "{:,}")]


def table(document, columns):
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _, _ in columns)
    rows = ("".join(f"<td>{html.escape(form.format(codec.get(key, 0)))}</td>" for _, key, form in columns) for codec in document["presets"])
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def made_by(document):
    """Machine, date, version and command, as far as the file has them."""
    run = document.get("run")
    if not isinstance(run, dict):
        return "Machine, date and command are not in this file: it is of an older version."
    return f"vidkv {run.get('version', '?')} on {run.get('cpu', '?')}, {run.get('date', '?')}: {run.get('command', '?')}"


def kl_section(document):
    plots = [("kl-" + document["protocol"], "KL divergence against true bits", plot_kl(document))]
    if with_layers(document):
        plots.append(("layers-" + document["protocol"], "Error by layer", plot_layers(document)))
        plots.append(("channels-" + document["protocol"], "Bits by channel", plot_channels(document)))
    notes = [f"Text: {document['text']}. {document['windows']} windows of {document['window_length']} tokens, protocol {document['protocol']}. "
             "Bars: one standard error over the windows.", made_by(document)]
    return f"Divergence on text, {document['protocol']}", notes, plots, table(document, KL_COLUMNS)


def video_section(document):
    asked = f", {document['questions']} questions. Bars: one standard error" if document.get("questions") else ""
    notes = [f"{document['clips']} clips, {document['visual_tokens_mean']:.0f} visual tokens per clip{asked}; "
             f"blanked video: {100 * document['blank_accuracy']:.1f} %.", made_by(document)]
    return "Video questions", notes, [("accuracy", "Accuracy against bytes held", plot_accuracy(document))], table(document, VIDEO_COLUMNS)


STYLE = ("body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
         "td,th{padding:2px 10px;text-align:right}td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}img{max-width:100%}")


def write_page(folder, sections):
    parts = []
    for title, notes, plots, rows in sections:
        parts.append(f"<h2>{html.escape(title)}</h2>" + "".join(f"<p>{html.escape(note)}</p>" for note in notes))
        for name, caption, figure in plots:
            figure.tight_layout()
            figure.savefig(folder / f"{name}.png", dpi=130)
            plt.close(figure)
            parts.append(f'<h3>{html.escape(caption)}</h3><img src="{name}.png" alt="{html.escape(caption)}">')
        parts.append(rows)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>VidKV</title><style>{STYLE}</style><h1>VidKV: what its caches keep</h1>{"".join(parts)}</html>\n'
    (folder / "index.html").write_text(page, encoding="utf-8")


NUMBER = (int, float)
KL_SHAPE = {"model": str, "text": str, "protocol": str, "windows": NUMBER, "window_length": NUMBER}
KL_CODEC = {"name": str, "kld": NUMBER, "kld_se": NUMBER, "ppl": NUMBER, "top1": NUMBER, "k_bits": NUMBER, "v_bits": NUMBER, "kv_bytes": NUMBER}
VIDEO_SHAPE = {"clips": NUMBER, "visual_tokens_mean": NUMBER, "blank_accuracy": NUMBER}
VIDEO_CODEC = {"name": str, "accuracy": NUMBER, "true_bits": NUMBER, "kv_bytes": NUMBER}
PARTS = {"kl": ("eval kl", KL_SHAPE, KL_CODEC, kl_section), "far": ("eval kl --protocol far", KL_SHAPE, KL_CODEC, kl_section),
         "video": ("eval video", VIDEO_SHAPE, VIDEO_CODEC, video_section)}


def check(document, shape, where):
    if not isinstance(document, dict):
        raise ValueError(f"{where} is no object")
    for key, kind in shape.items():
        if key not in document:
            raise ValueError(f"{where} has no '{key}'")
        if not isinstance(document[key], kind) or isinstance(document[key], bool):
            raise ValueError(f"'{key}' of {where} is no {'text' if kind is str else 'number'}")


def read(path, part):
    command, shape, codec_shape, _ = PARTS[part]
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        check(document, shape, "it")
        if not isinstance(document.get("presets"), list) or not document["presets"]:
            raise ValueError("it has no presets")
        for codec in document["presets"]:
            check(codec, codec_shape, "a preset")
        if part != "video" and document["protocol"] != ("far" if part == "far" else "near"):
            raise ValueError(f"its protocol is {document['protocol']}")
        return document
    except (OSError, ValueError) as error:
        sys.exit(f"'{path}' is not what vidkv {command} --json prints: {error}")


def keep(given, kept):
    """The measurements lie beside the page, so that a later report of another part shows these too."""
    if given.resolve() != kept.resolve():
        shutil.copyfile(given, kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for part in PARTS:
        parser.add_argument("--" + part)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    folder = Path(options.out)
    given = {part: Path(path) for part in PARTS if (path := getattr(options, part))}
    documents = {part: read(path, part) for part, path in given.items()}  # all are good before the folder is touched
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, path in given.items():
            keep(path, folder / f"{part}.json")
        for part in PARTS:
            if part not in documents and (folder / f"{part}.json").exists():
                documents[part] = read(folder / f"{part}.json", part)
        write_page(folder, [PARTS[part][3](documents[part]) for part in PARTS if part in documents])
    except OSError as error:
        sys.exit(f"cannot write into '{folder}': {error.strerror}")
    print(folder / "index.html")


if __name__ == "__main__":
    main()
