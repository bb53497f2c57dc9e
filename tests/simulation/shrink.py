"""From a long plan that fails to a short one that fails the same way."""

from collections.abc import Callable
from dataclasses import replace

from tests.simulation.faults import Happening, Plan
from tests.simulation.world import Outcome

RUNS = 400
"""Attempts after which the shortest plan so far must do."""


def shrink(plan: Plan, run: Callable[[Plan], Outcome], rule: str) -> Plan:
    """Leave out happenings, in halves, quarters and finally one by one, while the same rule is still broken."""
    left = RUNS

    def fails(happenings: tuple[Happening, ...]) -> bool:
        nonlocal left
        left -= 1
        violation = run(replace(plan, happenings=happenings)).violation
        return violation is not None and violation.rule == rule

    kept = plan.happenings
    size = max(1, len(kept) // 2)
    while left > 0:
        start, shorter = 0, False
        while start < len(kept) and left > 0:
            without = kept[:start] + kept[start + size :]
            if fails(without):
                kept, shorter = without, True
            else:
                start += size
        if size == 1 and not shorter:
            break
        size = max(1, size // 2)
    return replace(plan, happenings=kept)
