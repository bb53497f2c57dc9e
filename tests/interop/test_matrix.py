"""Every pairing of clients works on every stack, and fails only where upstream is seen to fail."""

from __future__ import annotations

import asyncio

import pytest

from interop import scenarios
from interop.agents import Client
from interop.matrix import MATRIX, Cell, CellResult, Outcome, run_cell
from interop.stacks import Servers

pytestmark = [pytest.mark.slow, pytest.mark.node]


@pytest.fixture(scope="module", params=MATRIX, ids=str)
def result(request: pytest.FixtureRequest) -> CellResult:
    cell: Cell = request.param
    return asyncio.run(run_cell(cell))


def test_every_scenario_ran_in_every_direction(result: CellResult) -> None:
    ran = {(check.scenario, check.first, check.second) for check in result.checks}
    assert ran == {(name, *direction) for name in scenarios.NAMES for direction in result.cell.directions}


def test_nothing_failed(result: CellResult) -> None:
    failed = [check for check in result.checks if check.outcome is Outcome.FAILED]
    assert not failed, "\n".join(f"{c.scenario}, {c.first} first: {c.detail}" for c in failed)


def test_limits_are_upstreams(result: CellResult) -> None:
    for first, second in result.cell.directions:
        checks = [check for check in result.checks if (check.first, check.second) == (first, second)]
        limits = {check.scenario for check in checks if check.outcome is Outcome.LIMIT}
        certain, possible = known_limits(first, second, result.cell.servers)
        assert certain <= limits <= certain | possible


def known_limits(first: Client, second: Client, servers: Servers) -> tuple[set[str], set[str]]:
    """What never works because of upstream's part in it, and what need not."""
    certain, possible = set(), set()
    if second is Client.SDK:
        certain.add("duplicate")
    if servers is Servers.UPSTREAM:
        certain.add("lost hop")
    if first.is_sdk and second.is_sdk:
        certain.add("crossing knocks")
    elif first.is_sdk or second.is_sdk:
        possible.add("crossing knocks")  # ours may send again what the SDK has dropped with its session
    return certain, possible
