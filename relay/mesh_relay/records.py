"""The values that pass between the relay's core and its store.

Sequence numbers are the core's: it assigns them in order of acceptance, and they only grow.
"""

from collections.abc import Sequence
from typing import NamedTuple

from meshlib.identity import Did


class Credential(NamedTuple):
    """What is remembered of a DID for good. ``key`` is set for DIDs that commit to none."""

    did: Did
    key: bytes | None
    challenged: bool
    """It has answered a challenge once: a bare timestamp proves nothing for it any more."""


class Proof(NamedTuple):
    """A bare-timestamp proof that has been used, until its timestamp is stale anyway."""

    did: Did
    timestamp: str
    expires_at: float


class StoredFrame(NamedTuple):
    """A frame kept for its recipient."""

    seq: int
    recipient: Did
    sender: Did
    id: str
    control: bool
    """A knock or an answer to one: clients that ack messages only do not ack it."""
    accepted_at: float
    """Seconds since the Unix epoch."""
    frame: bytes
    """As it goes to the recipient."""


Waiting = tuple[int, Did, str, bool, float, bytes]
"""A frame read back for its recipient: seq, sender, id, control, accepted_at and frame, as in :class:`StoredFrame`.
As the database gives it: to name the members of every row would cost half as much as to read it."""


class Usage(NamedTuple):
    """What one recipient keeps of one sender."""

    recipient: Did
    sender: Did
    frames: int
    size: int


class Contents(NamedTuple):
    """What a store holds when it is opened."""

    last_seq: int
    usage: Sequence[Usage]
    credentials: Sequence[Credential]
    proofs: Sequence[Proof]
    oldest: float | None = None
    """When the oldest frame was accepted, in seconds since the Unix epoch; None without any."""


class Load(NamedTuple):
    """A wish for the next frames of a recipient, in order, after sequence number ``after``."""

    recipient: Did
    after: int


class Page(NamedTuple):
    """Frames of one recipient; ``more`` says whether others follow."""

    frames: Sequence[Waiting]
    more: bool


class Sweep(NamedTuple):
    """A wish to delete what nobody waits for any more. Times in seconds since the Unix epoch."""

    frames_before: float
    """Frames accepted before this time go, oldest first, at most ``limit``."""
    proofs_before: float
    """Proofs that expire before this time go, all of them."""
    limit: int


class Work(NamedTuple):
    """One transaction's worth of changes, and what to read after it."""

    frames: Sequence[StoredFrame] = ()
    removals: Sequence[int] = ()
    credentials: Sequence[Credential] = ()
    proofs: Sequence[Proof] = ()
    sweep: Sweep | None = None
    loads: Sequence[Load] = ()
    page_frames: int = 0
    page_bytes: int = 0

    @property
    def due(self) -> bool:
        """Whether there is anything to do."""
        return bool(
            self.frames or self.removals or self.credentials or self.proofs or self.sweep is not None or self.loads
        )


class Removed(NamedTuple):
    """A frame that is not stored any more."""

    seq: int
    recipient: Did
    sender: Did
    id: str
    size: int


class Done(NamedTuple):
    """What a transaction found."""

    duplicates: frozenset[int] = frozenset()
    """Sequence numbers that were not stored because the very same frame was."""
    replaced: Sequence[Removed] = ()
    """Frames that made room for a newer one of the same sender and id."""
    expired: Sequence[Removed] = ()
    pages: Sequence[Page] = ()
    """One per load."""
    oldest: float | None = None
    """When the oldest frame there is now was accepted."""
