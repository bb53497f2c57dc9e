"""``python -m tests.simulation``: run seeds, count what happened, and show what fails in as few events as possible."""

import argparse
import json
import time
from pathlib import Path

from tests.simulation.bugs import BUGS
from tests.simulation.faults import Happening, Plan
from tests.simulation.runs import Totals, explain, run_seeds
from tests.simulation.world import Parts, run


def _read_plan(text: str) -> Plan:
    members = json.loads(Path(text).read_text() if not text.startswith("{") else text)
    members["happenings"] = tuple(Happening(*one) for one in members["happenings"])
    return Plan(**members)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many seeds to run (1000)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes to run them in (1)")
    parser.add_argument("--bug", choices=sorted(BUGS), help="build a deliberate bug in, to see it found")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="failures to shrink and show (3)")
    parser.add_argument("--trace", action="store_true", help="with a failure, also what the agents were told")
    parser.add_argument("--replay", metavar="PLAN", help="run one plan, as a failure shows it: JSON, or a file of it")
    arguments = parser.parse_args()
    parts = BUGS[arguments.bug].parts if arguments.bug else Parts()
    if arguments.replay:
        outcome = run(_read_plan(arguments.replay), parts, trace=True)
        print("\n".join(outcome.events))
        print(outcome.violation or "nothing is wrong")
        return 1 if outcome.violation else 0
    began = time.perf_counter()
    totals = Totals()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    for outcome in run_seeds(seeds, arguments.bug, arguments.jobs):
        totals.add(outcome)
    print(totals)
    print(f"{time.perf_counter() - began:.1f} s")
    for outcome in totals.failures[: arguments.show]:
        print()
        print(explain(outcome, parts, trace=arguments.trace))
    if len(totals.failures) > arguments.show:
        rest = " ".join(str(outcome.plan.seed) for outcome in totals.failures[arguments.show : arguments.show + 50])
        print(f"\nother failing seeds: {rest}")
    return 1 if totals.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
