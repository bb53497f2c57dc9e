"""Many runs: in several processes, summed up, and explained where they fail."""

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tests.simulation.bugs import BUGS
from tests.simulation.faults import plan
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, Parts, run


@dataclass
class Totals:
    """The sum of many runs."""

    runs: int = 0
    messages: int = 0
    delivered: int = 0
    reported: int = 0
    unpromised: int = 0
    redelivered: int = 0
    frames: int = 0
    virtual: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count a run."""
        self.runs += 1
        self.messages += outcome.messages
        self.delivered += outcome.delivered
        self.reported += outcome.reported
        self.unpromised += outcome.unpromised
        self.redelivered += outcome.redelivered
        self.frames += outcome.frames
        self.virtual += outcome.virtual
        self.faults.update(outcome.faults)
        if outcome.violation is not None:
            self.failures.append(outcome)

    def __str__(self) -> str:
        faults = "\n".join(f"  {count:>9,}  {kind}" for kind, count in sorted(self.faults.items()))
        broken = Counter(outcome.violation.rule for outcome in self.failures if outcome.violation)
        return (
            f"{self.runs:,} runs, {self.virtual / 86_400:,.1f} days of virtual time, {self.frames:,} frames\n"
            f"{self.messages:,} messages accepted: {self.delivered:,} delivered, "
            f"{self.reported:,} reported as given up, {self.unpromised:,} lost with a store or beyond a relay without "
            f"receipts, {self.redelivered:,} handed over again and marked so\n"
            f"{self.faults.total():,} faults:\n{faults}\n"
            f"{len(self.failures)} violations{': ' if broken else ''}"
            + ", ".join(f"{count} x {rule}" for rule, count in broken.items())
        )


def run_seeds(seeds: Sequence[int], bug: str | None = None, jobs: int = 1) -> Iterator[Outcome]:
    """The outcomes of seeds, in order, from as many processes as wanted."""
    one = partial(run_seed, bug)
    if jobs == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(one, seeds, chunksize=10)


def run_seed(bug: str | None, seed: int) -> Outcome:
    """One seed, with a deliberate bug or without."""
    if bug is None:
        return run(plan(seed))
    found = BUGS[bug]
    planned = plan(seed, found.focus)
    return run(replace(planned, second=found.second) if found.second else planned, found.parts)


def explain(outcome: Outcome, parts: Parts, *, trace: bool) -> str:
    """A failure, as small as it can be made, and how to see it again."""
    assert outcome.violation is not None
    short = shrink(outcome.plan, lambda tried: run(tried, parts), outcome.violation.rule)
    again = run(short, parts, trace=True)
    lines = [f"seed {short.seed}: {again.violation}"]
    lines.append(f"{len(outcome.plan.happenings)} events, {len(short.happenings)} after shrinking:")
    lines.extend(f"  {happening}" for happening in short.happenings)
    lines.append(f"replay: python -m tests.simulation --replay '{json.dumps(asdict(short), default=list)}'")
    if trace:
        lines.append("what the agents were told:")
        lines.extend(f"  {event}" for event in again.events)
    return "\n".join(lines)
