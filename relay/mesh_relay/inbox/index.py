"""Where stored frames are: their numbers by key and by recipient, in memory.

On disk an index costs several times what the frames cost: ids are random and recipients come in any order, so nearly
every row dirties a page of its own in each index, once to come and once to go. In memory it is some 130 bytes a frame.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from meshlib.identity import Did


def key_of(recipient: str, sender: str, frame_id: str) -> int:
    """What stands for a key. Python's own hash, keyed at random per process: nobody can make two of them equal."""
    return hash((recipient, sender, frame_id))


class Index:
    """The numbers of what is stored. They mostly come in ascending order."""

    __slots__ = ("_by_key", "_by_recipient", "_gone")

    def __init__(self) -> None:
        self._by_key: dict[int, int] = {}
        self._by_recipient: dict[Did, list[int]] = {}
        self._gone: set[int] = set()  # removed, and maybe still in the others; at most half as many as they hold

    def find(self, key: int) -> int | None:
        """The number last added under a key, unless it was removed."""
        seq = self._by_key.get(key)
        return None if seq in self._gone else seq

    def after(self, recipient: Did, seq: int, count: int) -> list[int]:
        """Up to ``count`` numbers of a recipient that are greater than ``seq``, ascending."""
        order, gone = self._by_recipient.get(recipient, []), self._gone
        if order and order[0] in gone:  # acks come in order: what is gone is at the front, and looked at only once
            del order[: next((position for position, kept in enumerate(order) if kept not in gone), len(order))]
        found: list[int] = []
        for position in range(bisect_right(order, seq), len(order)):
            if order[position] not in gone:
                found.append(order[position])
                if len(found) == count:
                    break
        return found

    def add(self, seq: int, recipient: Did, key: int) -> None:
        """A frame has been stored; under its key nothing else is any more."""
        self._gone.discard(seq)  # it may have been removed before it came
        self._by_key[key] = seq
        order = self._by_recipient.setdefault(recipient, [])
        position = bisect_left(order, seq)  # the end, but for one that was here before
        if order[position : position + 1] != [seq]:
            order.insert(position, seq)

    def remove(self, seqs: Iterable[int]) -> None:
        """Frames are not stored any more."""
        gone = self._gone
        gone.update(seqs)
        if 2 * len(gone) > len(self._by_key):
            self._by_key = {key: seq for key, seq in self._by_key.items() if seq not in gone}
            kept = ((did, [seq for seq in order if seq not in gone]) for did, order in self._by_recipient.items())
            self._by_recipient = {did: order for did, order in kept if order}
            self._gone = set()
