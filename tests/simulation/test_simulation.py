"""Seeds enough for about a minute. ``python -m tests.simulation --seeds 10000 --jobs 2`` runs more."""

import os

import pytest

from tests.simulation.faults import KINDS, plan
from tests.simulation.runs import Totals, explain, run_seeds
from tests.simulation.world import Parts, run

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "500"))


@pytest.mark.slow
def test_every_seed_keeps_every_promise() -> None:
    totals = Totals()
    for outcome in run_seeds(range(SEEDS), jobs=2):
        totals.add(outcome)
    print(totals)
    assert not totals.failures, "\n\n".join(explain(failed, Parts(), trace=False) for failed in totals.failures[:3])
    assert totals.delivered > 20 * SEEDS


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = run(plan(7), trace=True), run(plan(7), trace=True)
    assert one.events == other.events
    assert (one.frames, one.faults, one.messages) == (other.frames, other.faults, other.messages)


def test_every_kind_of_fault_happens() -> None:
    planned = {happening.kind for seed in range(200) for happening in plan(seed).happenings}
    assert planned == set(KINDS)
