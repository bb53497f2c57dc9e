"""Reads ``/metrics`` pages: samples of one moment, and what two of them say about the time between. No I/O."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_SAMPLES = 10_000
"""Samples read of a page; ours have some 200."""
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? +(\S+)(?: +\S+)?")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)" *,? *')


@dataclass(frozen=True, slots=True)
class Sample:
    """One number, and what tells it apart."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


class Page:
    """The numbers of one moment, in Prometheus text format. What cannot be read is passed over.

    Args:
        at: monotonic seconds.
    """

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self._samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for number, line in enumerate(text.splitlines()):
            if number >= MAX_SAMPLES:
                break
            found = _SAMPLE.fullmatch(line.strip())
            value = None if found is None else _number(found[3])
            if found is not None and value is not None:
                self._samples[found[1]].append(Sample(value, dict(_LABEL.findall(found[2] or ""))))

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of a metric's samples with these labels; ``None`` if the page has none."""
        found = [one.value for one in self._of(name, labels)]
        return math.fsum(found) if found else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Those samples by the value of one more label."""
        sums: defaultdict[str, float] = defaultdict(float)
        for one in self._of(name, labels):
            if label in one.labels:
                sums[one.labels[label]] += one.value
        return dict(sums)

    def _of(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        return [one for one in self._samples.get(name, ()) if labels.items() <= one.labels.items()]


@dataclass(frozen=True, slots=True)
class Between:
    """Two pages of one server, the older one first."""

    old: Page
    new: Page

    @property
    def seconds(self) -> float:
        """The time between them."""
        return self.new.at - self.old.at

    def rate(self, name: str, **labels: str) -> float | None:
        """By how much a counter rose per second. One that fell was started anew: what it shows came since then."""
        new = self.new.value(name, **labels)
        return None if new is None else self._per_second(new, self.old.value(name, **labels))

    def rates(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same by the value of a label, highest first; those that stand still are left out."""
        old, new = self.old.by(name, label, **labels), self.new.by(name, label, **labels)
        rates = {one: self._per_second(value, old.get(one)) for one, value in new.items()}
        return dict(sorted(((one, rate) for one, rate in rates.items() if rate), key=lambda item: (-item[1], item[0])))

    def _per_second(self, new: float, old: float | None) -> float:
        rise = new - (old or 0.0)
        return (rise if rise >= 0 else new) / self.seconds if self.seconds > 0 else 0.0


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
