"""What is remembered of knocks: which were let in, and how many each sender may still have.

Owns the two memories and their bounds. Identities are free, so each memory is fair: who fills it loses its own part
first. Leaves deciding and answering to :mod:`meshlib.client.core`.
"""

from collections import OrderedDict
from collections.abc import Iterable

from meshlib.config import Limits
from meshlib.crypto.primitives import sha256
from meshlib.identity import Did

_SENDER = 8
"""Bytes of a mark that name the sender. Two senders that share them share a part of the memory, and nothing else."""
_KEY = 24
"""Bytes of a mark that name the ephemeral key."""


class SpentOpenings:
    """Ephemeral keys of knocks that were let in, so that a knock without a one-time key opens nothing twice.

    Kept as marks of 32 bytes, which a store takes in order and gives back, the newest of them. The store does not know
    who is who: so everything remembered is written again before the store's window, twice as large, has passed over it.

    Args:
        saved: what a store kept, oldest first.
    """

    def __init__(self, saved: Iterable[bytes], limits: Limits) -> None:
        self._limits = limits
        self._of: dict[bytes, OrderedDict[bytes, None]] = {}
        self._count = 0
        self._changed: list[bytes] = []
        self._written = 0
        """Marks written since everything was written."""
        for mark in saved:
            self._remember(mark)
            self._written += 1

    def __len__(self) -> int:
        return self._count

    def __contains__(self, opening: tuple[Did, bytes]) -> bool:
        mark = _mark(*opening)
        return mark in self._of.get(mark[:_SENDER], ())

    def add(self, sender: Did, ephemeral: bytes) -> None:
        """Remember an opening that was let in."""
        mark = _mark(sender, ephemeral)
        self._remember(mark)
        if self._written < self._limits.spent_ephemerals:
            self._changed.append(mark)
            self._written += 1
        else:
            self._changed.extend(mark for marks in self._of.values() for mark in marks)
            self._written = 0

    def changes(self) -> list[bytes]:
        """What a store is to append since the last call."""
        taken, self._changed = self._changed, []
        return taken

    def _remember(self, mark: bytes) -> None:
        own = self._of.setdefault(mark[:_SENDER], OrderedDict())
        self._count += mark not in own
        own[mark] = None
        own.move_to_end(mark)
        if len(own) > self._limits.spent_per_peer:
            own.popitem(last=False)
            self._count -= 1
        if self._count > self._limits.spent_ephemerals:
            most = max(self._of, key=lambda sender: len(self._of[sender]))
            self._of[most].popitem(last=False)
            self._count -= 1
            if not self._of[most]:
                del self._of[most]


def _mark(sender: Did, ephemeral: bytes) -> bytes:
    return sha256(sender.encode())[:_SENDER] + sha256(ephemeral)[:_KEY]


class KnockRate:
    """How many knocks of each sender are looked at: a burst, then one at a time. What is beyond costs no agreement."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: OrderedDict[Did, tuple[float, float, bool]] = OrderedDict()
        """Knocks left, when that was counted (monotonic seconds), and whether too many were reported."""
        self._newcomers = float(limits.newcomers_burst)
        self._newcomers_since = 0.0

    def take(self, sender: Did, now: float) -> bool:
        """Count a knock. Returns whether it may be looked at."""
        limits = self._limits
        if sender not in self._of and not self._take_newcomer(now):
            return False
        left, since, reported = self._of.pop(sender, (float(limits.knock_burst), now, False))
        left = min(float(limits.knock_burst), left + (now - since) / limits.knock_every)
        allowed = left >= 1
        self._of[sender] = (left - 1 if allowed else left, now, False if allowed else reported)
        while len(self._of) > limits.strangers:
            self._of.popitem(last=False)
        return allowed

    def _take_newcomer(self, now: float) -> bool:
        limits = self._limits
        earned = (now - self._newcomers_since) / limits.newcomers_every
        self._newcomers = min(float(limits.newcomers_burst), self._newcomers + earned)
        self._newcomers_since = now
        allowed = self._newcomers >= 1
        self._newcomers -= allowed
        return allowed

    def report(self, sender: Did) -> bool:
        """Whether it is to be said that a sender knocks too often: once until it may knock again."""
        if sender not in self._of:
            return False  # one of too many newcomers
        left, since, reported = self._of[sender]
        self._of[sender] = (left, since, True)
        return not reported
