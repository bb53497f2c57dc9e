"""Messages of ours that are not delivered yet, per peer in the order they were queued.

Owns what waits and how far it has come. Leaves encrypting and writing to :mod:`meshlib.client.core`.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from msgspec.structs import replace

from meshlib.client.events import DeliveryState
from meshlib.errors import QueueFull
from meshlib.identity import Did
from meshlib.store.protocol import OUTCOMES_KEPT, Outcome, Outgoing
from meshlib.wire.encoding import MessageId


class Outbox:
    """A bounded queue per peer. Every step costs the same however much waits."""

    def __init__(self, saved: Iterable[Outgoing], limit: int, outcomes: Iterable[Outcome] = ()) -> None:
        self._limit = limit
        self._entries: dict[MessageId, Outgoing] = {}
        self._of: dict[Did, dict[MessageId, None]] = {}
        self._queued: dict[Did, dict[MessageId, None]] = {}
        self._changed: dict[MessageId, Outgoing | None] = {}
        self._outcomes = OrderedDict((outcome.id, outcome) for outcome in outcomes)
        self._ended: list[Outcome] = []
        for outgoing in saved:
            self._index(outgoing)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, message: MessageId) -> Outgoing | None:
        """A message, if it is still here."""
        return self._entries.get(message)

    def add(self, outgoing: Outgoing, *, answer: bool = False) -> None:
        """Queue a new message.

        Args:
            answer: it is one that a peer made us send; these have half of the outbox.
        Raises:
            QueueFull: the bound is reached.
        """
        if answer and len(self._entries) >= self._limit // 2:
            raise QueueFull(f"the outbox holds {len(self._entries)} undelivered messages: the rest is not for answers")
        if len(self._entries) >= self._limit:
            raise QueueFull(f"the outbox holds {len(self._entries)} undelivered messages, its limit: try later")
        self.keep(outgoing)

    def keep(self, outgoing: Outgoing) -> None:
        """Replace a message by its next state."""
        self._index(outgoing)
        self._changed[outgoing.id] = outgoing

    def drop(self, message: MessageId) -> bool:
        """Let go of a message. Returns whether it was here."""
        outgoing = self._entries.pop(message, None)
        if outgoing is None:
            return False
        for index in (self._of, self._queued):
            ids = index.get(outgoing.peer, {})
            ids.pop(message, None)
            if not ids:
                index.pop(outgoing.peer, None)
        self._changed[message] = None
        return True

    def finish(self, message: MessageId, state: DeliveryState) -> None:
        """Let go of a message that can come no further, and remember how it ended."""
        outgoing = self._entries.get(message)
        if outgoing is None:
            return
        self.drop(message)
        outcome = Outcome(message, outgoing.peer, state)
        self._outcomes[message] = outcome
        self._ended.append(outcome)
        if len(self._outcomes) > OUTCOMES_KEPT:
            self._outcomes.popitem(last=False)

    def outcome(self, message: MessageId) -> Outcome | None:
        """How a message ended, if it did and is remembered."""
        return self._outcomes.get(message)

    def all(self) -> list[Outgoing]:
        """Everything that is not delivered, in the order it was queued."""
        return list(self._entries.values())

    def encrypt_anew(self, peer: Did) -> None:
        """Queue again, under the same ids and in the same order, whatever a peer has not confirmed."""
        self._queued.pop(peer, None)
        for message in self._of.get(peer, ()):
            outgoing = self._entries[message]
            if outgoing.state is DeliveryState.QUEUED:
                self._index(outgoing)
            else:
                self.keep(replace(outgoing, state=DeliveryState.QUEUED, frame=None))

    def peers(self) -> list[Did]:
        """Peers something waits for."""
        return list(self._of)

    def waits_for(self, peer: Did) -> bool:
        """Whether something waits for a peer."""
        return peer in self._of

    def of(self, peer: Did) -> list[Outgoing]:
        """What waits for a peer, in order."""
        return [self._entries[message] for message in self._of.get(peer, ())]

    def queued(self, peer: Did) -> list[Outgoing]:
        """What has not been written yet to a peer, in order."""
        queued = self._queued.get(peer)
        return [self._entries[message] for message in queued] if queued else []

    def last_written(self, peer: Did) -> MessageId | None:
        """The message before the first that is queued for a peer, unless the peer has it.

        What is queued for a peer is always the end of what waits for it.
        """
        queued = len(self._queued.get(peer, ()))
        return next(islice(reversed(self._of.get(peer, {})), queued, None), None)

    def changes(self) -> dict[MessageId, Outgoing | None]:
        """What changed since the last call; ``None`` for what is gone."""
        taken, self._changed = self._changed, {}
        return taken

    def ended(self) -> list[Outcome]:
        """What ended since the last call."""
        taken, self._ended = self._ended, []
        return taken

    def _index(self, outgoing: Outgoing) -> None:
        self._entries[outgoing.id] = outgoing
        self._of.setdefault(outgoing.peer, {})[outgoing.id] = None
        if outgoing.state is DeliveryState.QUEUED:
            self._queued.setdefault(outgoing.peer, {})[outgoing.id] = None
            return
        queued = self._queued.get(outgoing.peer, {})
        queued.pop(outgoing.id, None)
        if not queued:
            self._queued.pop(outgoing.peer, None)
