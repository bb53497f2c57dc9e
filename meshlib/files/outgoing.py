"""A file of ours on its way: what is sent next, and when it is over. No I/O: facts and time in, wishes out.

A file that fits a message is sent in one. A larger one is offered, and the peer fetches it: it asks for as many chunks
at a time as it wants, and again for what it has lost, so that after a restart on either side nothing but the question
has to be asked again. A peer in the field does not understand the offer: it gets the envelope in pieces, unasked.

Owns the states below. Leaves reading the file and sending messages to :mod:`meshlib.files.sender`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from meshlib.wire.transfers import FileTransferAck

WINDOW = 16
"""Chunks in messages the peer does not have yet: some 8 MiB, enough to keep a line of 300 Mbit/s and 200 ms busy."""
ANSWER_AFTER = 20.0
"""Seconds from the delivery of an offer until its silence means that the peer does not understand it."""
WORD_AFTER = 120.0
"""Seconds to wait for an ack once the peer has everything. In the field a transfer is forgotten after as long."""
BUSY_FOR = 30.0
"""Seconds until a peer with its hands full is offered the file again."""
KEEP = 72 * 3600.0
"""Seconds without a word of the peer after which a file is given up, as long as a relay keeps messages."""
SENT_AGAIN = 10
"""How often a whole file may be asked for, chunk by chunk, before the asking counts as abuse."""


# --- states ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """The peer has been told of the file, and has not said anything."""

    answer_by: float = inf
    """When it counts as one of those who do not understand. Not before it has the offer."""


@dataclass(frozen=True, slots=True)
class PutOff:
    """The peer has its hands full."""

    until: float


@dataclass(frozen=True, slots=True)
class Serving:
    """Chunks are on their way."""


@dataclass(frozen=True, slots=True)
class Handed:
    """The peer has everything, or will without our doing."""

    word_by: float = inf
    """When we stop waiting for its ack. Not before it has everything."""


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over. ``reason`` is empty if the file got there."""

    reason: str = ""
    detail: str = ""
    saved_to: str = ""
    confirmed: bool = True
    """Whether the peer said so."""


State = Offered | PutOff | Serving | Handed | Ended


# --- wishes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendWhole:
    """Send the file in one message."""


@dataclass(frozen=True, slots=True)
class SendOffer:
    """Send the offer."""


@dataclass(frozen=True, slots=True)
class SendManifest:
    """From now on the envelope travels in pieces: note it, and send their manifest."""


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell the peer that nothing more comes."""

    detail: str


Wish = SendWhole | SendOffer | SendManifest | SendCancel


class Outgoing:
    """One file on its way.

    Args:
        chunks: chunks it has when it is fetched; 0 if it goes in one message.
        pieces: pieces its envelope has; 0 if there would be too many for the field.
        in_pieces: it has been going that way before a restart.
    """

    def __init__(self, chunks: int, pieces: int, now: float, *, in_pieces: bool = False) -> None:
        self._chunks = chunks
        self._pieces = pieces
        self.in_pieces = in_pieces
        self.state: State = Offered() if chunks else Handed()
        self._wanted: dict[int, None] = {}
        self._in_flight: set[int] = set()
        self._sent = 0
        self._started = False
        self._heard_at = now
        self.received_bytes = 0
        """What the peer says it has."""

    @property
    def total(self) -> int:
        """Chunks or pieces of the way it goes."""
        return self._pieces if self.in_pieces else self._chunks

    @property
    def handed_over(self) -> int:
        """Pieces the peer has, or is about to have."""
        return self.total - len(self._wanted) - len(self._in_flight)

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return isinstance(self.state, Ended)

    def start(self, sent: int = 0) -> list[Wish]:
        """Begin, or go on after a restart.

        Args:
            sent: pieces that were sent before it.
        """
        self._started = True
        if not self._chunks:
            return [SendWhole()]
        if not self.in_pieces:
            return [SendOffer()]
        return self._cut_up(sent)

    def next_chunk(self) -> int | None:
        """The chunk to send now, if one is wanted and there is room for it on the way."""
        if not isinstance(self.state, Serving) or not self._wanted or len(self._in_flight) >= WINDOW:
            return None
        index = next(iter(self._wanted))
        del self._wanted[index]
        self._in_flight.add(index)
        self._sent += 1
        return index

    # --- facts -------------------------------------------------------------------------------------------------------

    def delivered(self, index: int | None, now: float, *, certain: bool = True) -> None:
        """The peer has a message of this file: chunk ``index``, or (``None``) the one that began it.

        Args:
            certain: the relay said so. One that never does leaves open whether the peer is there at all.
        """
        if index is not None:
            self._in_flight.discard(index)
        match self.state:
            case Offered(answer_by) if answer_by == inf and (certain or self._pieces):
                self.state = Offered(now + ANSWER_AFTER)
            case Handed(word_by) if word_by == inf:
                self.state = Handed(now + WORD_AFTER)
            case Serving() if self.in_pieces and not self._wanted and not self._in_flight:
                self.state = Handed(now + WORD_AFTER)

    def undeliverable(self, detail: str) -> None:
        """The peer will not get a message of this file."""
        self._end(Ended("refused", detail))

    def asked(self, missing: Iterable[int], received: int, now: float) -> list[Wish]:
        """The peer asks for chunks. Those on their way to it come without being sent again."""
        if self.over or not self._chunks:
            return []
        self._heard_at = now
        self.received_bytes = max(self.received_bytes, received)
        self._wanted.update((one, None) for one in missing if one < self.total and one not in self._in_flight)
        self.state = Serving()
        if self._sent + len(self._wanted) > SENT_AGAIN * self.total + WINDOW:
            return self.cancel("failed", "the same parts were asked for over and over")
        return []

    def not_understood(self, now: float) -> list[Wish]:
        """The peer does not know offers: it gets the file as others in the field send it."""
        if not isinstance(self.state, Offered):
            return []
        if not self._pieces:
            self._end(Ended("refused", "the peer takes no files of this size: it does not understand our offer"))
            return []
        self._heard_at = now
        self.in_pieces = True
        return self._cut_up(0)

    def complete(self, now: float) -> None:
        """The peer has every piece."""
        if self.in_pieces and not self.over:
            self._wanted.clear()
            self.state = Handed(now + WORD_AFTER)

    def acked(self, ack: FileTransferAck, now: float) -> None:
        """The peer says what has become of the file."""
        if self.over:
            return
        if ack.success:
            self._end(Ended(saved_to=ack.saved_to))
        elif ack.reason == "busy" and self._chunks and not self.in_pieces:
            self._heard_at = now
            self.state = PutOff(now + BUSY_FOR)
        else:
            self._end(Ended(ack.reason or "refused", ack.error or "the peer did not take the file"))

    def cancelled(self, detail: str) -> None:
        """The peer does not want to go on."""
        self._end(Ended("cancelled", detail or "the peer cancelled the transfer"))

    def cancel(self, reason: str, detail: str) -> list[Wish]:
        """We do not want to go on."""
        if self.over:
            return []
        self._end(Ended(reason, detail))
        # Nobody but ours knows the word; a peer in the field would take it for a message.
        return [SendCancel(detail)] if self._started and self._chunks and not self.in_pieces else []

    # --- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When :meth:`tick` has something to do."""
        match self.state:
            case Offered(answer_by):
                return min(answer_by, self._heard_at + KEEP)
            case PutOff(until):
                return until
            case Handed(word_by):
                return min(word_by, self._heard_at + KEEP)
            case Serving():
                return self._heard_at + KEEP
            case Ended():
                return inf

    def tick(self, now: float) -> list[Wish]:
        """Time has passed."""
        match self.state:
            case Offered(answer_by) if now >= answer_by:
                return self.not_understood(now)
            case PutOff(until) if now >= until:
                self.state = Offered()
                return [SendOffer()]
            case Handed(word_by) if now >= word_by:
                self._end(Ended(confirmed=False, detail="the peer has it, and has not said what became of it"))
            case Ended():
                pass
            case _ if now >= self._heard_at + KEEP:
                return self.cancel("expired", f"nothing was heard of the peer for {KEEP / 3600:g} hours")
        return []

    def _cut_up(self, sent: int) -> list[Wish]:
        self._wanted = dict.fromkeys(range(sent, self._pieces))
        self.state = Serving() if self._wanted else Handed()
        return [SendManifest()]

    def _end(self, ended: Ended) -> None:
        if not self.over:
            self.state = ended
            self._wanted.clear()
