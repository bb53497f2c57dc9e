"""Seeds enough for about a minute. ``python -m tests.simulation --seeds 10000 --jobs 2`` runs more."""

import os

import pytest

from tests.simulation.agents import Kind
from tests.simulation.faults import KINDS, Happening, Plan, plan
from tests.simulation.runs import Totals, explain, run_seeds
from tests.simulation.world import Parts, World, run

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


def test_every_kind_of_fault_happens_and_every_kind_of_agent_takes_part() -> None:
    plans = [plan(seed) for seed in range(200)]
    assert {happening.kind for planned in plans for happening in planned.happenings} == set(KINDS)
    assert {planned.second for planned in plans} == set(Kind.__members__)
    assert {planned.plain_relay for planned in plans} == {True, False}


HOUR = 3_600.0
TALK = tuple(Happening(float(at), "burst", at // 600 % 2, 1 - at // 600 % 2, at) for at in range(10, int(HOUR), 600))


@pytest.mark.parametrize("gone", [("relay",), ("registry",), ("relay", "registry")])
def test_servers_that_are_away_for_an_hour_cost_nothing_but_time(gone: tuple[str, ...]) -> None:
    world = World(Plan(1, 2, HOUR + 100.0, TALK))

    def leave() -> None:
        if "relay" in gone:
            world.relay.down_for = HOUR
            assert world.relay.process is not None
            world.relay.process.die()
        if "registry" in gone:
            world.registry.stop(HOUR)

    world.net.after(8.0, None, leave)
    outcome = world.run()
    assert outcome.violation is None
    assert outcome.delivered == outcome.messages > 20


@pytest.mark.parametrize("skews", [(3_500.0, 0.0), (-3_500.0, 0.0), (3_500.0, -3_500.0)])
def test_clocks_an_hour_off_cost_nothing(skews: tuple[float, float]) -> None:
    world = World(Plan(1, 2, 60.0, tuple(happening._replace(at=happening.at / 60) for happening in TALK)))
    for agent, skew in zip(world.agents, skews, strict=True):
        agent.skew = skew
    outcome = world.run()
    assert outcome.violation is None
    assert outcome.delivered == outcome.messages > 20
