"""Answers as they were rendered, kept for whoever asks next.

An answer holds until somebody it shows changes, which the store tells before it answers whoever made the change, and
until time alone makes it wrong: an agent goes offline, or has been silent for so long that it is not found any more.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

MAX_SHOWN = 32 * 1024 * 1024
"""Bytes of answers kept: those about 20,000 agents, or 10,000 capabilities with ten agents each. What was not asked for
longest goes first."""

OVERHEAD = 512
"""Bytes an entry costs beside its answer, at most: a name of 256 characters, and what holds it all."""


class _Kept(NamedTuple):
    question: object
    body: bytes
    since: float
    until: float

    @property
    def size(self) -> int:
        return len(self.body) + OVERHEAD


class Shown:
    """Answers about one kind of thing, one for each name. Owned by the event loop."""

    def __init__(self, limit: int = MAX_SHOWN) -> None:
        self.changes = 0
        """Counts the times something changed, whatever it was."""
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def get(self, name: str, question: object, utc: float) -> bytes | None:
        """The answer about ``name`` to the same question, if it is what it would be now, at UTC seconds ``utc``."""
        kept = self._kept.get(name)
        if kept is None or kept.question != question or not kept.since <= utc < kept.until:
            return None
        self._kept.move_to_end(name)
        return kept.body

    def keep(self, name: str, question: object, body: bytes, changes: int, since: float, until: float) -> None:
        """Keep the answer about ``name``, in place of one to another question.

        Args:
            changes: what :attr:`changes` said before the store was asked. The answer is dropped if it says more now: it
                may be older than a change that has been told already.
            since: when it was rendered, in UTC seconds. Clocks are set back, too.
            until: it is wrong from then on, even if nobody changes anything.
        """
        if changes != self.changes:
            return
        self._drop(name)
        kept = self._kept[name] = _Kept(question, body, since, until)
        self._size += kept.size
        while self._size > self._limit:
            self._drop(next(iter(self._kept)))

    def forget(self, names: Iterable[str]) -> None:
        """Something about ``names`` has changed."""
        self.changes += 1
        for name in names:
            self._drop(name)

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._size -= kept.size


def lasts_until(last_seen: Iterable[float], utc: float, online_for: float, found_for: float = math.inf) -> float:
    """When an answer that shows agents seen then turns wrong by itself, in UTC seconds."""
    return min(seen + (online_for if utc - seen < online_for else found_for) for seen in last_seen)
