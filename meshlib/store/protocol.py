"""What a client keeps, as values, and the verbs of a place to keep it.

A verb is a whole transaction: after ``save`` returns, everything in the change is there; if it raises or the process
dies, nothing is. Owns the records; leaves how sessions become bytes to :mod:`meshlib.snapshot`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from meshlib.client.events import DeliveryState
from meshlib.client.keyring import DatedPrekey
from meshlib.client.peers import Peer
from meshlib.crypto.keys import Ed25519Private
from meshlib.crypto.prekeys import OneTimePrekey
from meshlib.identity import Did
from meshlib.wire.encoding import MessageId

InboxKey = tuple[Did, MessageId]
"""Sender and message id: what makes a message one message."""

SEEN_KEPT = 100_000
"""Ids of messages that outlive a restart, the newest: as many as :class:`~meshlib.config.Limits` remembers."""
OUTCOMES_KEPT = 10_000
"""Messages whose end a store remembers: a day at seven a minute."""
SPENT_KEPT = 20_000
"""Marks of past knocks that outlive a restart, the newest: twice as many as the limits remember, because a client
writes all that it remembers again each time it has written as many (:class:`meshlib.client.knocks.SpentOpenings`)."""

_Item = TypeVar("_Item")


class Outgoing(Struct, frozen=True):
    """A message of ours that is not delivered yet."""

    id: MessageId
    peer: Did
    payload: bytes
    """The JSON text that gets encrypted."""
    state: DeliveryState = DeliveryState.QUEUED
    frame: bytes | None = None
    """The frame as it was written; the same bytes go out again after a lost connection."""
    queued: float | None = None
    """When it was queued, UTC seconds; ``None`` where an older store did not note it."""

    def __repr__(self) -> str:
        return f"Outgoing({self.id}, to {self.peer}, {self.state})"


class Incoming(Struct, frozen=True):
    """A message taken from a peer that the application has not confirmed yet."""

    sender: Did
    id: MessageId
    payload: bytes
    """The JSON text as decrypted."""
    encrypted: bool = True
    handed_over: bool = False

    def __repr__(self) -> str:
        return f"Incoming({self.id}, from {self.sender})"


class Outcome(NamedTuple):
    """What has become of a message that left the outbox."""

    id: MessageId
    peer: Did
    state: DeliveryState


@dataclass(frozen=True)
class SavedState:
    """Everything a store holds when a client opens it."""

    signing_key: Ed25519Private | None = None
    signed_prekeys: tuple[DatedPrekey, ...] = ()
    one_time_prekeys: Mapping[int, OneTimePrekey] = field(default_factory=dict)
    next_prekey_id: int = 1
    epoch: int = 0
    """How often a client has opened the store; published, so that an old copy is noticed."""
    peers: Mapping[Did, Peer] = field(default_factory=dict)
    """Their candidates come without sessions: these are derived again from the opening and the prekeys."""
    outbox: tuple[Outgoing, ...] = ()
    """In the order in which they were queued."""
    inbox: tuple[Incoming, ...] = ()
    """In the order in which they were taken."""
    seen: tuple[InboxKey, ...] = ()
    """Oldest first, each once; bounded to the newest."""
    spent_ephemerals: tuple[bytes, ...] = ()
    """Oldest first, each once; bounded to the newest."""
    outcomes: tuple[Outcome, ...] = ()
    """Oldest first; bounded to the newest."""


@dataclass
class Changes:
    """What one step of the core changed; a store writes it in one transaction.

    ``None`` in a mapping deletes the record.
    """

    signing_key: Ed25519Private | None = None
    signed_prekeys: tuple[DatedPrekey, ...] | None = None
    """The complete new list, if it changed."""
    one_time_prekeys: dict[int, OneTimePrekey | None] = field(default_factory=dict)
    next_prekey_id: int | None = None
    epoch: int | None = None
    peers: dict[Did, Peer | None] = field(default_factory=dict)
    outbox: dict[MessageId, Outgoing | None] = field(default_factory=dict)
    inbox: dict[InboxKey, Incoming | None] = field(default_factory=dict)
    seen: list[InboxKey] = field(default_factory=list)
    spent_ephemerals: list[bytes] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(
            (
                self.signing_key is not None,
                self.signed_prekeys is not None,
                self.one_time_prekeys,
                self.next_prekey_id is not None,
                self.epoch is not None,
                self.peers,
                self.outbox,
                self.inbox,
                self.seen,
                self.spent_ephemerals,
                self.outcomes,
            )
        )


class Store(Protocol):
    """A place that keeps one identity's state. One process at a time."""

    @property
    def durable(self) -> bool:
        """Whether what was saved survives the process, so that a saved message may be acknowledged at once."""

    def load(self) -> SavedState:
        """Everything that is there.

        Raises:
            StoreError: the store cannot be read, or is of a newer version.
        """

    def save(self, changes: Changes) -> None:
        """Write all of ``changes`` in one transaction.

        Raises:
            StoreError: nothing of it was written. Whoever made the changes is ahead of the store now and must start
                again from :meth:`load`: to go on would send what is not saved.
        """

    def close(self) -> None:
        """Let go of files and locks."""


def newest(items: Iterable[_Item]) -> tuple[_Item, ...]:
    """Each item once, where it comes last."""
    return tuple(reversed(dict.fromkeys(reversed(tuple(items)))))


def without_candidate_sessions(peer: Peer) -> Peer:
    """The peer as a store keeps it."""
    if not any(candidate.sessions for candidate in peer.candidates):
        return peer
    return replace(peer, candidates=tuple(replace(candidate, sessions=()) for candidate in peer.candidates))
