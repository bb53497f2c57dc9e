"""What a measurement is: runs of several contenders taken in turns, and what follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

OURS = "ours"
"""The contender every ratio is about."""

BUSY = 0.9
"""Share of its core from which a process counts as having no time left."""


@dataclass(frozen=True)
class Run:
    """One contender, measured once."""

    value: float
    details: Mapping[str, float] = field(default_factory=dict)
    """Whatever else was seen: ``server`` and ``load`` (shares of a core), ``us`` (server CPU per operation), faults."""

    @property
    def load_bound(self) -> bool:
        """Whether the load generator had no time left while the server had: the value is a lower bound."""
        return self.details.get("load", 0.0) > BUSY and self.details.get("server", 1.0) < BUSY

    @property
    def faults(self) -> int:
        """Messages lost, doubled or reordered, and requests answered wrongly."""
        return int(sum(self.details.get(name, 0) for name in FAULTS))


FAULTS = ("lost", "doubled", "reordered", "refused")


@dataclass(frozen=True)
class Case:
    """What is measured. ``group`` and ``name`` with ``parameters`` tell one case from another."""

    group: str
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "/s"
    higher_is_better: bool = True
    reach: Mapping[str, float] = field(default_factory=dict)
    """Per other contender, the ratio that we want to reach; above 1 means that we do better."""

    @property
    def title(self) -> str:
        """The name with its parameters, for tables."""
        shown = ", ".join(spell(name, value) for name, value in self.parameters.items())
        return f"{self.name}, {shown}" if shown else self.name


def spell(name: str, value: object) -> str:
    """A parameter as people write it."""
    if name == "payload":
        size = int(str(value))
        return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{value:,} {name}" if isinstance(value, int) else f"{value}"


@dataclass
class Measure:
    """A case with its runs, by contender in the order of first measurement."""

    case: Case
    runs: dict[str, list[Run]]

    def median(self, contender: str, detail: str | None = None) -> float:
        """The middle of a contender's runs, or of one of their details."""
        runs = self.runs[contender]
        return statistics.median(run.value if detail is None else run.details[detail] for run in runs)

    def spread(self, contender: str) -> float:
        """Half the distance between best and worst run, as a share of the median."""
        values = [run.value for run in self.runs[contender]]
        middle = statistics.median(values)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0

    def ratio(self, other: str, contender: str = OURS) -> float:
        """How much better a contender does than ``other``: above 1 is better, whatever the unit.

        The median of the ratios within each round, where both ran one after the other.
        """
        ratios = []
        for mine, theirs in zip(self.runs[contender], self.runs[other], strict=False):
            top, bottom = (mine, theirs) if self.case.higher_is_better else (theirs, mine)
            ratios.append(top.value / bottom.value if bottom.value else float("inf"))
        return statistics.median(ratios)

    def reached(self, other: str) -> bool | None:
        """Whether we do as well against ``other`` as we want; None when nobody said how well that is."""
        wanted = self.case.reach.get(other)
        if wanted is None or other not in self.runs or OURS not in self.runs:
            return None
        return self.ratio(other) >= wanted

    def to_json(self) -> dict[str, Any]:
        """The measure as plain values."""
        case = self.case
        return {
            "group": case.group,
            "name": case.name,
            "parameters": dict(case.parameters),
            "unit": case.unit,
            "higher_is_better": case.higher_is_better,
            "reach": dict(case.reach),
            "runs": {
                contender: [{"value": run.value, **run.details} for run in runs]
                for contender, runs in self.runs.items()
            },
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        case = Case(
            said["group"], said["name"], said["parameters"], said["unit"], said["higher_is_better"], said["reach"]
        )
        runs = {
            contender: [Run(run["value"], {k: v for k, v in run.items() if k != "value"}) for run in listed]
            for contender, listed in said["runs"].items()
        }
        return cls(case, runs)


Contender = Callable[[], Run]


def take_turns(case: Case, contenders: Mapping[str, Contender], rounds: int) -> Measure:
    """Measure everyone once per round: A B A B, so that a slow minute of the machine hits all alike."""
    measure = Measure(case, {name: [] for name in contenders})
    for _ in range(rounds):
        for name, contender in contenders.items():
            measure.runs[name].append(contender())
    return measure


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the sorted values lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
