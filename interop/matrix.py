"""Who talks to whom: every pairing of clients on every relay and registry, live.

`python -m interop.matrix` prints the table and exits 1 when a cell fails; `--json` prints the same for machines.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import enum
import json
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass

from interop import scenarios, stacks
from interop.agents import Client, agent
from interop.proxy import Proxy
from interop.scenarios import Group, Limit, Pair, Scenario
from interop.stacks import Servers, Stack


@dataclass(frozen=True)
class Cell:
    """Two clients and the servers between them."""

    one: Client
    other: Client
    servers: Servers

    def __str__(self) -> str:
        return f"{self.one}, {self.other} @ {self.servers}"

    @property
    def directions(self) -> tuple[tuple[Client, Client], ...]:
        """Who opens the session. Two equal clients need to do it once."""
        forth = (self.one, self.other)
        return (forth,) if self.one is self.other else (forth, forth[::-1])


class Outcome(enum.StrEnum):
    OK = "ok"
    LIMIT = "limit"
    """Impossible with upstream's part of the cell, and seen to be."""
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One scenario in one direction."""

    scenario: str
    first: Client
    second: Client
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class CellResult:
    cell: Cell
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(check.outcome is not Outcome.FAILED for check in self.checks)

    def of(self, scenario: str) -> list[Check]:
        return [check for check in self.checks if check.scenario == scenario]


MATRIX = (
    Cell(Client.OURS, Client.OURS_TRIO, Servers.OURS),
    Cell(Client.OURS, Client.SDK, Servers.OURS_LEGACY),
    Cell(Client.OURS_TRIO, Client.SDK_ADAPTER, Servers.OURS),
    Cell(Client.SDK, Client.SDK, Servers.OURS_LEGACY),
    Cell(Client.SDK_ADAPTER, Client.SDK_ADAPTER, Servers.OURS),
    Cell(Client.SDK, Client.SDK_ADAPTER, Servers.OURS_LEGACY),
    Cell(Client.OURS, Client.OURS_TRIO, Servers.UPSTREAM),
    Cell(Client.OURS, Client.SDK, Servers.UPSTREAM),
    Cell(Client.SDK, Client.SDK, Servers.UPSTREAM),
)


async def run_cell(cell: Cell) -> CellResult:
    """Start the servers, run every scenario in both directions, stop everything."""
    started = time.monotonic()
    checks: list[Check] = []
    try:
        async with stacks.running(cell.servers) as stack, Proxy.before(stack.relay) as proxy:
            for number, (first, second) in enumerate(cell.directions, 1):
                for group in scenarios.GROUPS:
                    checks += await _run(stack, first, second, group, f"{group.name}-{number}", proxy)
    except (AssertionError, OSError) as problem:
        ran = {(check.scenario, check.first, check.second) for check in checks}
        wanted = [(name, *direction) for direction in cell.directions for name in scenarios.NAMES]
        missing = [each for each in wanted if each not in ran]
        details = [f"not started: {problem}", *["not started"] * len(missing)]
        checks += [Check(*each, Outcome.FAILED, detail) for each, detail in zip(missing, details, strict=False)]
    return CellResult(cell, tuple(checks), time.monotonic() - started)


async def _run(stack: Stack, first: Client, second: Client, group: Group, suffix: str, proxy: Proxy) -> list[Check]:
    checks: list[Check] = []
    relay = proxy.address if group.proxied else stack.relay
    await stack.connections(0)
    async with (
        agent(stack, first, f"alice-{suffix}", relay) as alice,
        agent(stack, second, f"bob-{suffix}", relay) as bob,
    ):
        pair = Pair(stack, proxy, alice, bob, first, second)
        broken = ""
        for name, scenario in group.scenarios.items():
            started = time.monotonic()
            outcome, detail = (
                await _attempt(scenario, pair) if not broken else (Outcome.FAILED, f"not reached: {broken}")
            )
            checks.append(Check(name, first, second, outcome, detail, round(time.monotonic() - started, 2)))
            if outcome is Outcome.FAILED:
                broken = broken or f"{name} failed"
    return checks


async def _attempt(scenario: Scenario, pair: Pair) -> tuple[Outcome, str]:
    try:
        await scenario(pair)
    except Limit as limit:
        return Outcome.LIMIT, str(limit)
    except AssertionError as problem:
        return Outcome.FAILED, str(problem)
    return Outcome.OK, ""


def table(results: Iterable[CellResult]) -> str:
    """The matrix as text, with what is impossible upstream spelled out below."""
    notes: dict[str, int] = {}
    rows = [["clients", "relay and registry", *scenarios.NAMES]]
    for result in results:
        cells = [_mark(result.of(name), notes) for name in scenarios.NAMES]
        rows.append([f"{result.cell.one}, {result.cell.other}", result.cell.servers, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for note, number in notes.items():
        lines.append(textwrap.fill(f"({number}) {_brief(note)}", 120, subsequent_indent="    "))
    return "\n".join(lines)


def _mark(checks: list[Check], notes: dict[str, int]) -> str:
    """The worst outcome of the directions, with the numbers of its notes."""
    numbers = sorted({notes.setdefault(check.detail, len(notes) + 1) for check in checks if check.detail})
    outcomes = {check.outcome for check in checks} or {Outcome.FAILED}
    worst = next(outcome for outcome in (Outcome.FAILED, Outcome.LIMIT, Outcome.OK) if outcome in outcomes)
    word = worst.upper() if worst is Outcome.FAILED else worst
    return " ".join([word, *(f"({number})" for number in numbers)])


def _brief(note: str) -> str:
    """The beginning and, where a traceback follows, its end; --json has it all."""
    first, *rest = note.strip().splitlines()
    return f"{first[:300]} ... {rest[-1]}" if rest else first[:300]


def as_json(results: Iterable[CellResult]) -> str:
    cells = [
        {
            "cell": str(result.cell),
            **dataclasses.asdict(result.cell),
            "passed": result.passed,
            "seconds": round(result.seconds, 1),
            "checks": [dataclasses.asdict(check) for check in result.checks],
        }
        for result in results
    ]
    return json.dumps({"passed": all(cell["passed"] for cell in cells), "cells": cells}, indent=2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m interop.matrix", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", metavar="TEXT", help="run the cells whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    arguments = parser.parse_args()
    cells = [cell for cell in MATRIX if not arguments.only or arguments.only.lower() in str(cell).lower()]
    if arguments.list:
        print("\n".join(map(str, cells)))
        return 0
    results = []
    for cell in cells:
        result = asyncio.run(run_cell(cell))
        results.append(result)
        print(f"{'ok    ' if result.passed else 'FAILED'} {result.seconds:5.1f} s  {cell}", file=sys.stderr, flush=True)
    print(as_json(results) if arguments.json else table(results))
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
