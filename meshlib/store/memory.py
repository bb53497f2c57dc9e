"""A store for agents that are thrown away: nothing outlives the object."""

from collections import deque
from typing import TypeVar

from meshlib.client.keyring import DatedPrekey
from meshlib.client.peers import Peer
from meshlib.crypto.keys import Ed25519Private
from meshlib.crypto.prekeys import OneTimePrekey
from meshlib.identity import Did
from meshlib.store.protocol import (
    OUTCOMES_KEPT,
    SEEN_KEPT,
    SPENT_KEPT,
    Changes,
    InboxKey,
    Incoming,
    Outcome,
    Outgoing,
    SavedState,
    newest,
    without_candidate_sessions,
)
from meshlib.wire.encoding import MessageId

_Key = TypeVar("_Key")
_Record = TypeVar("_Record")


class MemoryStore:
    """Keeps everything in memory, under the same rules as a store on disk."""

    durable = False

    def __init__(self, *, keep_seen: int = SEEN_KEPT, keep_spent: int = SPENT_KEPT) -> None:
        self._signing_key: Ed25519Private | None = None
        self._signed: tuple[DatedPrekey, ...] = ()
        self._one_time: dict[int, OneTimePrekey] = {}
        self._next_prekey_id = 1
        self._peers: dict[Did, Peer] = {}
        self._outbox: dict[MessageId, Outgoing] = {}
        self._inbox: dict[InboxKey, Incoming] = {}
        self._seen: deque[InboxKey] = deque(maxlen=keep_seen)
        self._spent: deque[bytes] = deque(maxlen=keep_spent)
        self._outcomes: deque[Outcome] = deque(maxlen=OUTCOMES_KEPT)
        self._epoch = 0

    def load(self) -> SavedState:
        """What was saved into this object."""
        return SavedState(
            signing_key=self._signing_key,
            signed_prekeys=self._signed,
            one_time_prekeys=dict(self._one_time),
            next_prekey_id=self._next_prekey_id,
            peers={did: without_candidate_sessions(peer) for did, peer in self._peers.items()},
            outbox=tuple(self._outbox.values()),
            inbox=tuple(self._inbox.values()),
            seen=newest(self._seen),
            spent_ephemerals=newest(self._spent),
            outcomes=newest(self._outcomes),
            epoch=self._epoch,
        )

    def save(self, changes: Changes) -> None:
        """Apply ``changes``."""
        if changes.signing_key is not None:
            self._signing_key = changes.signing_key
        if changes.signed_prekeys is not None:
            self._signed = changes.signed_prekeys
        if changes.next_prekey_id is not None:
            self._next_prekey_id = changes.next_prekey_id
        if changes.epoch is not None:
            self._epoch = changes.epoch
        _apply(self._peers, changes.peers)
        _apply(self._one_time, changes.one_time_prekeys)
        _apply(self._outbox, changes.outbox)
        _apply(self._inbox, changes.inbox)
        self._seen.extend(changes.seen)
        self._spent.extend(changes.spent_ephemerals)
        self._outcomes.extend(changes.outcomes)

    def close(self) -> None:
        """Nothing to let go of."""


def _apply(records: dict[_Key, _Record], changes: dict[_Key, _Record | None]) -> None:
    for key, record in changes.items():
        if record is None:
            records.pop(key, None)
        else:
            records[key] = record
