"""``python -m bench``: measure, show, write down."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import machine, queues, registry, relay
from bench.clients import suite as clients
from bench.crypto import suite as crypto
from bench.measures import Case, Contender, Measure, take_turns
from bench.plan import FULL, QUICK
from bench.terminal import Terminal

SUITES = {
    "crypto": crypto.run,
    "relay": relay.run,
    "queues": queues.run,
    "registry": registry.run,
    "client": clients.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites; 1 when a message was lost, doubled or reordered, or a request answered wrongly."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(SUITES), help=f"some of {','.join(SUITES)}")
    parser.add_argument("--case", default="", help="only cases whose title contains this text")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean nothing")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, or add to what is there")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    plan, terminal = QUICK if options.quick else FULL, Terminal(sys.stdout)
    rounds = options.rounds or plan.rounds
    measures: list[Measure] = []

    def turns(case: Case, contenders: Mapping[str, Contender], most_rounds: int = 99) -> Measure:
        if options.case not in case.title:
            return Measure(case, {})
        terminal.begin(case)
        measure = take_turns(case, contenders, min(rounds, most_rounds))
        measures.append(measure)
        terminal.show(measure)
        if options.json:
            write(options.json, about, measures)
        return measure

    about = machine.describe() | {"date": time.strftime("%Y-%m-%d"), "quick": str(options.quick).lower()}
    for name in chosen:
        terminal.heading(name)
        SUITES[name](plan, turns)
    return terminal.verdict(measures)


def write(path: Path, about: Mapping[str, str], measures: Sequence[Measure]) -> None:
    """Write measures as JSON; those of an older file that were not measured now are kept."""
    listed = [measure.to_json() for measure in measures]
    kept: dict[str, object] = {}
    keys = [(one["group"], one["name"], one["parameters"]) for one in listed]
    if path.exists():
        said = json.loads(path.read_text())
        older, kept = said["measures"], {"profiles": said.get("profiles", {})}
        listed = [one for one in older if (one["group"], one["name"], one["parameters"]) not in keys] + listed
        listed.sort(key=lambda one: list(SUITES).index(one["group"]))
    path.write_text(json.dumps({"about": dict(about), "measures": listed} | kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
