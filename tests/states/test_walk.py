"""Whatever happens between two clients, in whatever order, ends well. docs/states.md says what is walked."""

import re
from pathlib import Path

import pytest

from meshlib.client.core import ClientCore
from meshlib.client.outbox import Outbox
from meshlib.client.peers import Entry
from tests.states.walk import Budget, Unhealthy, walk

STATES_MD = (Path(__file__).resolve().parents[2] / "docs" / "states.md").read_text(encoding="utf-8")
BUDGETS = {
    "two restarts": Budget(sends=(1, 1), restarts=2),
    "a restart and a crash": Budget(sends=(1, 1), restarts=1, crashes=1),
    "a restart and a timer": Budget(sends=(1, 1), restarts=1, delays=1),
    "more messages": Budget(sends=(2, 1), restarts=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUDGETS)
def test_every_path_ends_with_everything_delivered_once_and_both_able_to_talk(name, capsys):
    found = walk(BUDGETS[name])
    with capsys.disabled():
        print(f"\n{name}: {found}")
    assert found.crossings
    assert found.rests
    assert found.entries == {(one, other) for one in Entry for other in Entry}
    written = re.search(rf"^\| {name} \|.* (\d[\d ]*) \|$", STATES_MD, re.MULTILINE)
    assert written, f"docs/states.md does not count {name}"
    assert int(written[1].replace(" ", "")) == pytest.approx(found.states, rel=0.2), "count again in docs/states.md"


class ForgetsWhatItHasSeen(ClientCore):
    """Takes a frame that comes again for a new one."""

    def _is_duplicate(self, sender, message):
        return False


class NeverEncryptsAnew(ClientCore):
    """Leaves what went out on a lost session to its fate."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.outbox.__class__ = StubbornOutbox


class StubbornOutbox(Outbox):
    """Does nothing when a session is lost."""

    def encrypt_anew(self, peer):
        """Nothing."""


class NeverWritesAgain(ClientCore):
    """Does not repeat what may have been lost with a connection."""

    def _up(self, now, features=frozenset()):
        kept, self.outbox = self.outbox, Outbox((), 1)
        super()._up(now, features)
        self.outbox = kept


@pytest.mark.parametrize(
    ("bug", "budget"),
    [
        (ForgetsWhatItHasSeen, Budget(sends=(1, 1), restarts=0)),
        (NeverEncryptsAnew, Budget(sends=(1, 1), restarts=0, delays=1)),
        (NeverWritesAgain, Budget(sends=(1, 0), restarts=0, crashes=1)),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_deliberate_bug_is_found(bug, budget):
    with pytest.raises(Unhealthy):
        walk(budget, core=bug)
