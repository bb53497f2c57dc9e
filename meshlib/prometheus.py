"""Numbers a server shows, in Prometheus' text format 0.0.4. One form for both servers, without a dependency.

Owns the format and the histogram. Leaves what is counted, and that no label takes a value from the network, to whoever
counts: a label with values of a stranger's choice would grow without bound.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, TypeAlias, TypeVar

LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds in seconds: from a commit to a fast disk up to what nobody would wait for."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Number: TypeAlias = int | float


_One = TypeVar("_One", int | float, "Histogram")


class Histogram:
    """How often a value was at most each of some bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = LATENCY) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # not cumulated; the last is beyond every bound
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def samples(self, name: str, labels: str) -> Iterator[str]:
        """The lines of this histogram; ``labels`` are spelled already."""
        counts, total = list(self._counts), self._sum  # another thread may be counting
        before = f"{labels}," if labels else ""
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), accumulate(counts), strict=True):
            yield f'{name}_bucket{{{before}le="{bound}"}} {count}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {total!r}"
        yield f"{name}_count{braces} {sum(counts)}"


class Page:
    """A page of metrics, written from top to bottom. Names get the prefix; each has a line of help and its type.

    A metric with ``labels`` takes a mapping from their values to numbers, one without takes the number. The keys are
    tuples of values in the order of the labels, or the value itself when there is one label.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lines: list[str] = []

    def counter(self, name: str, text: str, value: Number | Mapping[Any, Number], *labels: str) -> None:
        """What only grows while the process lives."""
        self._metric(f"{self._prefix}_{name}", "counter", text, value, labels)

    def gauge(self, name: str, text: str, value: Number | Mapping[Any, Number], *labels: str) -> None:
        """What is so now."""
        self._metric(f"{self._prefix}_{name}", "gauge", text, value, labels)

    def histogram(self, name: str, text: str, value: Histogram | Mapping[Any, Histogram], *labels: str) -> None:
        """How values are distributed."""
        full = f"{self._prefix}_{name}"
        self._head(full, "histogram", text)
        for spelled, histogram in _labelled(value, labels):
            self._lines += histogram.samples(full, spelled)

    def process(self, name: str, kind: Literal["counter", "gauge"], text: str, value: Number) -> None:
        """A number of the process, under the name that all programs give to it."""
        self._metric(f"process_{name}", kind, text, value, ())

    def text(self) -> str:
        """The page."""
        return "".join(f"{line}\n" for line in self._lines)

    def _metric(
        self, name: str, kind: str, text: str, value: Number | Mapping[Any, Number], labels: tuple[str, ...]
    ) -> None:
        self._head(name, kind, text)
        for spelled, number in _labelled(value, labels):
            self._lines.append(f"{name}{{{spelled}}} {number!r}" if spelled else f"{name} {number!r}")

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")


def _labelled(value: _One | Mapping[Any, _One], labels: tuple[str, ...]) -> Iterator[tuple[str, _One]]:
    if not isinstance(value, Mapping):
        yield "", value
        return
    for values, one in sorted(value.items(), key=lambda item: str(item[0])):
        given = values if isinstance(values, tuple) else (values,)
        yield ",".join(f'{name}="{_escaped(str(text))}"' for name, text in zip(labels, given, strict=True)), one


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
