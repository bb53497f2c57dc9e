"""The pictures of docs/benchmarks.md: ``python bench/pictures.py FILE FOLDER``.

Needs matplotlib: runs in the peers' environment, so it reads the JSON as it is and imports nothing of ours.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found]

mpl.use("svg")
import matplotlib.pyplot as plt  # type: ignore[import-not-found]

COLOURS = {"ours": "#0b6e4f", "AGT": "#c8553d"}
Measures = list[dict[str, Any]]


def median(measure: dict[str, Any], who: str, detail: str = "value") -> float:
    """The middle of a contender's runs."""
    return float(statistics.median(run[detail] for run in measure["runs"][who]))


def chosen(measures: Measures, name: str, **parameters: Any) -> Measures:
    """Measures of one name whose parameters have these values."""
    return [
        one
        for one in measures
        if one["name"] == name and all(one["parameters"].get(key) == value for key, value in parameters.items())
    ]


def line(axes: Any, measures: Measures, who: str, at: str, detail: str = "value", **style: Any) -> None:
    """One curve over a parameter."""
    points = [(one["parameters"][at], median(one, who, detail)) for one in measures if who in one["runs"]]
    points.sort()
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, marker="o", color=COLOURS[who], **{"label": who, **style})


def throughput(measures: Measures) -> Any:
    """Messages per second against payload."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    routed = [one for one in chosen(measures, "routed", acks=True) if one["parameters"]["pairs"] <= 8]
    for who in COLOURS:
        line(axes, routed, who, "payload")
    sizes = sorted({one["parameters"]["payload"] for one in routed})
    axes.set(xscale="log", yscale="log", xlabel="payload", ylabel="messages/s")
    axes.set_xticks(sizes, [f"{size // 1024} KiB" if size >= 1024 else f"{size} B" for size in sizes], minor=False)
    axes.minorticks_off()
    return figure


def latency(measures: Measures) -> Any:
    """Percentiles against load."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for who in COLOURS:
        for share, style in (("p50", "-"), ("p90", "--"), ("p99", ":")):
            line(axes, chosen(measures, "latency"), who, "messages/s", share, linestyle=style, label=f"{who} {share}")
    axes.set(xscale="log", yscale="log", xlabel="messages/s", ylabel="ms from when it was due")
    rates = sorted(one["parameters"]["messages/s"] for one in chosen(measures, "latency"))
    axes.set_xticks(rates, [f"{rate / 1000:g}k" for rate in rates])
    axes.minorticks_off()
    return figure


def memory(measures: Measures) -> Any:
    """MiB against idle connections."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for who, colour in COLOURS.items():
        idle = chosen(measures, "memory of an idle connection")
        counts = [0, *(one["parameters"]["connections"] for one in idle)]
        sizes = [0.0, *(median(one, who) * one["parameters"]["connections"] / 1024 for one in idle)]
        axes.plot(counts, sizes, marker="o", color=colour, label=who)
    axes.set(xlabel="idle connections", ylabel="MiB more than without")
    return figure


def growth(measures: Measures) -> Any:
    """Microseconds per discovery against agents, per drained message against depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
    for axes, found, at, title in (
        (left, chosen(measures, "discovery"), "agents", "per discovery"),
        (right, chosen(measures, "mail drained", recipients=1), "messages each", "per message of a deep inbox"),
    ):
        axes.set(xscale="log", yscale="log")
        for who, colour in COLOURS.items():
            xs = [one["parameters"][at] for one in found]
            axes.plot(xs, [1e6 / median(one, who) for one in found], marker="o", color=colour, label=who)
        low, high = axes.get_ylim()
        axes.set(
            xlabel=at.replace("messages each", "messages waiting"),
            ylabel="µs",
            ylim=(low / 4, high * 4),
            title=title,
        )
    return figure


PICTURES: dict[str, Callable[[Measures], Any]] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "growth": growth,
}


def main(source: Path, folder: Path) -> None:
    """Draw everything there are figures for."""
    # Fixed ids and no date: the same figures give the same bytes.
    plt.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3})
    measures = json.loads(source.read_text())["measures"]
    for name, draw in PICTURES.items():
        try:
            figure = draw(measures)
        except (KeyError, statistics.StatisticsError, ValueError):
            print(f"no figures for {name}", file=sys.stderr)
            continue
        for axes in figure.axes:
            axes.legend(fontsize="small")
            axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
