"""Draws the rows of vidkv bench attention --csv over the machine's rooflines."""
import csv
import json
import sys


def read(path):
    machine, lines = {}, []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("# machine: "):
                machine = json.loads(line[len("# machine: "):])
            elif not line.startswith("#"):
                lines.append(line)
    return machine, list(csv.DictReader(lines))


def draw(machine, rows, out):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    threads = max(int(row["threads"]) for row in rows)
    rows = [row for row in rows if int(row["threads"]) == threads]
    # Multiply-adds a byte of keys and values: what a packed cache raises.
    intensity = [float(row["gmac_s"]) / float(row["gb_s"]) for row in rows]
    span = [min(intensity) / 2, max(intensity) * 2]
    axes.plot(span, [machine["stream_gb_s"] * x for x in span], color="black", label=f"streaming read, {machine['stream_gb_s']:.0f} GB/s")
    for isa, peaks in machine["int8_gmac_s_by_isa_and_threads"].items():
        if peaks.get(str(threads)):
            axes.axhline(peaks[str(threads)], linestyle="--", color="black")
            axes.text(span[0], peaks[str(threads)] * 1.05, f"int8 peak, {isa}")
    markers = dict(zip(dict.fromkeys((row["isa"], row["phase"]) for row in rows), "o^sDv<>p"))
    colours = dict(zip(dict.fromkeys(row["name"] for row in rows), pyplot.cm.tab20.colors))
    for row, x in zip(rows, intensity):
        axes.plot(x, float(row["gmac_s"]), markers[row["isa"], row["phase"]], color=colours[row["name"]], alpha=0.7)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=name)
    for (isa, phase), marker in markers.items():
        axes.plot([], [], marker, color="grey", label=f"{isa}, {phase}")
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte of keys and values", ylabel="10^9 multiply-adds per second",
             title=f"{machine['cpu']}, {threads} threads")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: roofline.py ROWS.csv OUT.png")
    draw(*read(sys.argv[1]), sys.argv[2])
