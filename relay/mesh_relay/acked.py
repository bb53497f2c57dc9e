"""What was acked lately, so that a frame sent once more is known for a copy."""

from collections.abc import Sequence

from mesh_relay.mailboxes import fingerprint
from meshlib.identity import Did


class Acked:
    """Fingerprints of frames that were acked, by (sender, id) for each recipient.

    Each recipient has two generations: when the newer one is full it becomes the older, and that one is forgotten.
    """

    __slots__ = ("_count", "_each", "_recipients", "_total")

    def __init__(self, each: int, total: int) -> None:
        self._each, self._total = max(1, each // 2), total
        self._recipients: dict[Did, tuple[dict[tuple[Did, str], int], dict[tuple[Did, str], int]]] = {}
        self._count = 0  # in all

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return bool(self._recipients)

    def add(self, recipient: Did, sender: Did, frames: Sequence[tuple[str, int]]) -> None:
        """Ids and fingerprints of frames of one pair."""
        newer, older = self._recipients.setdefault(recipient, ({}, {}))
        for frame_id, known in frames:
            while self._count >= self._total:  # once more where all of it is new
                self.rotate()
                newer, older = self._recipients.setdefault(recipient, ({}, {}))
            before = len(newer)
            if before >= self._each:
                self._count -= len(older)
                newer, older = self._recipients[recipient] = {}, newer
                before = 0
            newer[sender, frame_id] = known
            self._count += len(newer) - before

    def knows(self, recipient: Did, sender: Did, frame_id: str, payload: bytes) -> bool:
        """Whether a frame of this sender and id was acked that held these very bytes."""
        generations = self._recipients.get(recipient)
        if generations is None:
            return False
        known = generations[0].get((sender, frame_id)) or generations[1].get((sender, frame_id))
        return known is not None and known == fingerprint(payload)

    def rotate(self) -> None:
        """What was there at the last rotation goes."""
        self._recipients = {did: ({}, newer) for did, (newer, _) in self._recipients.items() if newer}
        self._count = sum(len(older) for _, older in self._recipients.values())
