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
    limits = {(c.scenario, c.first, c.second) for c in result.checks if c.outcome is Outcome.LIMIT}
    assert limits == {
        (name, first, second)
        for first, second in result.cell.directions
        for name in known_limits(second, result.cell.servers)
    }


def known_limits(second: Client, servers: Servers) -> set[str]:
    """What cannot work, by whose fault it is."""
    limits = set()
    if second is Client.SDK:
        limits.add("duplicate")
    if servers is Servers.UPSTREAM:
        limits.add("lost hop")
    return limits
