"""Results for people, as they come in: tables, in colour where there is a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from bench.measures import OURS, Case, Measure

_COLOURS = {"bold": "1", "dim": "2", "green": "32", "red": "31", "yellow": "33"}


class Terminal:
    """Writes to a stream; colours only if it is a terminal and NO_COLOR is not set."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colours = stream.isatty() and not os.environ.get("NO_COLOR")

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._colours else text

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def heading(self, name: str) -> None:
        """A suite begins."""
        self._say(self._paint(f"\n== {name}", "bold"))

    def begin(self, case: Case) -> None:
        """A case begins."""
        self._say(f"{self._paint(case.title, 'bold')} {self._paint(f'[{case.unit}]', 'dim')}")

    def show(self, measure: Measure) -> None:
        """One line per contender: median, spread, our ratio to it, and what is remarkable."""
        for name, runs in measure.runs.items():
            line = f"  {name:<18}{number(measure.median(name)):>12}  ±{measure.spread(name):>4.0%}"
            if name != OURS and OURS in measure.runs:
                line += f"  ours {measure.ratio(name):6.2f}x"
                if (reached := measure.reached(name)) is not None:
                    wanted = f" of {measure.case.reach[name]:g}x"
                    line += self._paint(wanted + (" reached" if reached else " missed"), "green" if reached else "red")
            if all("us" in run.details for run in runs):
                line += self._paint(f"  {measure.median(name, 'us'):.1f} us of CPU each", "dim")
            if beside := remark(measure, name):
                line += self._paint(f"  {beside}", "dim")
            if any(run.load_bound for run in runs):
                line += self._paint("  the load generator is the bottleneck", "yellow")
            if faults := sum(run.faults for run in runs):
                line += self._paint(f"  {faults} lost, doubled, reordered or refused", "red")
            self._say(line)

    def verdict(self, measures: Sequence[Measure]) -> int:
        """What was reached and what was not; the exit status."""
        judged = [(m, other) for m in measures for other in m.case.reach if m.reached(other) is not None]
        missed = [(m, other) for m, other in judged if not m.reached(other)]
        self._say(f"\n{len(judged) - len(missed)} of {len(judged)} ratios reached")
        for measure, other in missed:
            ratio, wanted = measure.ratio(other), measure.case.reach[other]
            self._say(f"  {measure.case.title}: {ratio:.2f}x {other}, wanted {wanted:g}x")
        faults = sum(run.faults for measure in measures for run in measure.runs.get(OURS, ()))
        if faults:
            self._say(self._paint(f"{faults} messages of ours lost, doubled, reordered or refused", "red"))
        return 1 if faults else 0


def remark(measure: Measure, contender: str) -> str:
    """What was seen beside the value, for the cases that see something."""
    runs = measure.runs[contender]
    if measure.case.name == "reconnect storm":
        p50, p99 = (number(measure.median(contender, share)) for share in ("p50", "p99"))
        return f"a pair beside it: p50 {p50} ms, p99 {p99} ms"
    if all("each" in run.details for run in runs):
        return f"{number(measure.median(contender, 'each'))} KiB per peer"
    return ""


def number(value: float) -> str:
    """A figure with three digits that count."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
