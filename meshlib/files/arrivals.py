"""Which files of peers are on their way to us, and which of these have a place.

Owns the places. Whoever offers a file gets one, and may never send it; identities cost nothing, so places that can be
held by silence would be held against everybody. Who has been silent for some minutes makes way for others: it rests, is
asked again like everybody who is silent, and has a place again with its next chunk, if there is one by then.

Leaves asking, files and messages to :mod:`meshlib.files.receiver`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from meshlib.files.incoming import Assembly, Fetch
from meshlib.files.receipts import FileReceipt, TransferState
from meshlib.files.records import Key, Receiving

AT_ONCE = 32
"""Files that have a place; with two chunks of each on the way they take some 40 MiB of memory."""
EACH = 4
"""Of these, of one peer: more than ours sends at a time. As many more of it may rest."""
IDLE_AFTER = 180.0
"""Seconds without a chunk after which a file makes way: a line of 30 kbit/s carries the largest in less."""
RESTING = 256
"""Files that may rest. Each costs a record and a file on the disk; beyond them the one least come is forgotten."""


@dataclass(slots=True, eq=False)
class Arriving:
    """A file on its way to us."""

    record: Receiving
    core: Fetch | Assembly
    receipt: FileReceipt
    resting: bool = False
    """Without a place: what comes of it is not taken before it has one."""

    @property
    def key(self) -> Key:
        """Its peer and id."""
        return self.record.key


class Arrivals:
    """Files on their way to us."""

    def __init__(self) -> None:
        self._all: dict[Key, Arriving] = {}

    def __iter__(self) -> Iterator[Arriving]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def get(self, key: Key) -> Arriving | None:
        """A file, if it is on its way."""
        return self._all.get(key)

    def add(self, one: Arriving) -> None:
        """A file is on its way."""
        self._all[one.key] = one

    def drop(self, one: Arriving) -> None:
        """A file is not on its way any more."""
        self._all.pop(one.key, None)

    def placed(self) -> list[Arriving]:
        """Those that have a place."""
        return [one for one in self._all.values() if not one.resting]

    @property
    def promised(self) -> int:
        """Bytes that those with a place have not sent yet."""
        return sum(max(0, one.record.size - one.core.received_bytes) for one in self.placed())

    def has_place(self, peer: str, now: float) -> bool:
        """Whether there is a place for one more file of a peer; who is silent makes way for it."""
        placed = self.placed()
        of_peer = [one for one in placed if one.record.peer == peer]
        if len(of_peer) < EACH and len(placed) < AT_ONCE:
            return True
        silent = min(of_peer if len(of_peer) >= EACH else placed, key=_heard_at)
        if not _is_idle(silent, now):
            return False
        _rest(silent)
        return True

    def rest_idle(self, now: float) -> None:
        """Have everybody who is silent make way."""
        for one in self.placed():
            if _is_idle(one, now):
                _rest(one)

    def surplus(self) -> list[Arriving]:
        """Those that rest and are too many: the least come of a peer, and of all."""
        resting = [one for one in self if one.resting]
        resting.sort(key=lambda one: (one.core.received_bytes, one.core.heard_at), reverse=True)
        kept: Counter[str] = Counter()
        surplus: list[Arriving] = []
        for one in resting:
            if kept[one.record.peer] < EACH and kept.total() < RESTING:
                kept[one.record.peer] += 1
            else:
                surplus.append(one)
        return surplus


def _heard_at(one: Arriving) -> float:
    return one.core.heard_at


def _is_idle(one: Arriving, now: float) -> bool:
    return now >= one.core.heard_at + IDLE_AFTER


def _rest(one: Arriving) -> None:
    one.resting = True
    one.receipt.advance(TransferState.WAITING)
