"""Each deliberate bug is found within its number of seeds, by the promise it breaks; and shrunk plans still fail."""

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.faults import plan
from tests.simulation.runs import run_seed
from tests.simulation.shrink import shrink
from tests.simulation.world import run


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_deliberate_bug_is_found(name: str) -> None:
    bug = BUGS[name]
    broken = set()
    for seed in range(bug.within):
        violation = run_seed(name, seed).violation
        broken.add(violation.rule if violation else None)
        if bug.rule in broken:
            return
    pytest.fail(f"{bug.about}: not found in {bug.within} seeds; broken was {broken}")


def test_a_failing_plan_is_shrunk_to_what_it_takes() -> None:
    bug = BUGS["relay drops pushed"]
    whole = plan(0)
    short = shrink(whole, lambda tried: run(tried, bug.parts), bug.rule)
    assert len(short.happenings) == 1
    assert short.happenings[0].kind in ("send", "burst", "both send")
