"""What peers are told of their files and ours: never more than they take.

Owns the bounds on it. Whoever asks may be gone by the time we answer, or may never have meant to listen; what it does
not take waits in the outbox, which belongs to all of this agent's messages. Leaves what is said, and trying again, to
:mod:`meshlib.files.receiver` and :mod:`meshlib.files.sender`, and the parts of our files to the latter.
"""

from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from meshlib.buckets import Buckets, Rate
from meshlib.client.events import DeliveryState
from meshlib.client.handles import FINAL, Receipt
from meshlib.errors import QueueFull, RelayRefused
from meshlib.wire.transfers import (
    FileTransferAck,
    TransferCancel,
    TransferChunkRequest,
    TransferComplete,
    write_transfer,
)

OF_ONE = 100
"""Answers that one peer has not taken yet: as many as an agent of ours has files on their way."""
IN_ALL = 2_000
"""The same over all peers, a fifth of the outbox. Beyond it a peer hears more once it has taken what it was told, so
that many who take nothing silence nobody else."""
REFUSALS = Rate(burst=100, per_second=0.1)
"""Refusals that one peer hears: of as many files as an agent of ours has on their way, and of the two that it offers
again every 30 s while our hands are full."""
AGAIN = 5.0
"""Seconds until what found no room is said again."""

LATER = (QueueFull, RelayRefused)
"""Why a message cannot be posted now, and can be once the outbox has room, or the caller has connected again."""

Answer = FileTransferAck | TransferCancel | TransferChunkRequest | TransferComplete


class Post(Protocol):
    """What is needed of a client to send."""

    async def __call__(self, peer: str, payload: object) -> Receipt: ...


class Answers:
    """Says things to peers.

    Args:
        name: the display name peers are told.
        post: sends a payload.
        stamp: the current time as text.
        has_receipts: whether the relay says what was delivered.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        post: Post,
        stamp: Callable[[], str],
        has_receipts: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._post = post
        self._stamp = stamp
        self._has_receipts = has_receipts
        self._clock = clock
        self._refusals = Buckets(REFUSALS)
        self._untaken: dict[str, list[Receipt]] = {}

    async def say(self, peer: str, answer: Answer) -> bool:
        """Send an answer. Returns whether it was posted; if not, it is for the caller to try later."""
        if not self._has_room(peer):
            return False
        signed = replace(answer, from_agent=self._name, timestamp=self._stamp())
        try:
            receipt = await self._post(peer, write_transfer(signed))
        except LATER:
            return False
        self._untaken.setdefault(peer, []).append(receipt)
        return True

    async def refuse(self, peer: str, answer: Answer) -> None:
        """Answer what need not be answered: a file that is not wanted, or that nobody here knows. Seldom, or never."""
        if self._refusals.take(peer, self._clock()):
            await self.say(peer, answer)

    def _has_room(self, peer: str) -> bool:
        untaken = self._look_at(peer)
        if not untaken or untaken >= OF_ONE:
            return not untaken
        if sum(map(len, self._untaken.values())) < IN_ALL:
            return True
        return sum(map(self._look_at, list(self._untaken))) < IN_ALL

    def _look_at(self, peer: str) -> int:
        untaken = [one for one in self._untaken.get(peer, ()) if not self._is_taken(one)]
        if untaken:
            self._untaken[peer] = untaken
        else:
            self._untaken.pop(peer, None)
        return len(untaken)

    def _is_taken(self, receipt: Receipt) -> bool:
        """Whether it has left the outbox."""
        return receipt.state in FINAL or (receipt.state is not DeliveryState.QUEUED and not self._has_receipts())
