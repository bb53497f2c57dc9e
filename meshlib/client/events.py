"""What the core can tell its caller: facts, in the past tense. None of them holds a key."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field

from meshlib.identity import Did
from meshlib.wire.encoding import MessageId


class DeliveryState(StrEnum):
    """How far a message of ours has come. Only ``DELIVERED``, ``EXPIRED`` and ``REFUSED`` are final."""

    QUEUED = "queued"
    """In the outbox."""
    RELAYED = "relayed"
    """Written to the relay."""
    STORED = "stored"
    """On the relay's disk, waiting for an absent recipient."""
    DELIVERED = "delivered"
    """The recipient has it in its store. Only a relay that sends receipts can tell."""
    EXPIRED = "expired"
    """The relay gave up waiting for the recipient."""
    REFUSED = "refused"
    """The recipient refused our knock, or the relay refused the frame."""


class Received(Struct, frozen=True):
    """A message of a peer, authentic (or, for a peer on the plaintext list, unencrypted) and saved."""

    sender: Did
    id: MessageId
    payload: object
    encrypted: bool = True
    redelivered: bool = False
    """Handed over before, but not confirmed."""

    def __repr__(self) -> str:
        return f"Received(sender={self.sender!r}, id={self.id!r})"


class Connected(Struct, frozen=True):
    """The relay takes our frames."""

    features: frozenset[str]


class Disconnected(Struct, frozen=True):
    """The connection is gone. ``code`` is the WebSocket close code, 1006 when there was none."""

    code: int
    reason: str
    retrying: bool


class PeerVerified(Struct, frozen=True):
    """The first message of a peer has authenticated: its key is proven."""

    peer: Did
    first: bool
    """Whether it is the first peer this client verified at all."""


class KnockReceived(Struct, frozen=True):
    """A peer wants to talk. ``peer`` is proven to own its DID where the DID commits to a key."""

    peer: Did
    knock_id: MessageId
    intent: Mapping[str, object] = field(default_factory=dict)
    """What the peer says it wants; its word only."""


class KnockAccepted(Struct, frozen=True):
    """A peer let us in."""

    peer: Did


class KnockRejected(Struct, frozen=True):
    """A peer refused the knock that was out."""

    peer: Did
    reason: str


class SessionLost(Struct, frozen=True):
    """Messages of a peer cannot be read and no knock of theirs explains it."""

    peer: Did
    reason: str


class DeliveryChanged(Struct, frozen=True):
    """A message of ours has come further."""

    peer: Did
    id: MessageId
    state: DeliveryState
    detail: str = ""


class FileReceived(Struct, frozen=True):
    """A file of a peer lies in the folder for received files, and is what was sent. A message in the inbox says so,
    too, and outlives the process."""

    peer: Did
    transfer_id: str
    path: str
    """Where, absolute."""
    name: str
    """As the peer calls it; its word, like the description."""
    size: int
    sha256: str
    description: str = ""


class FaultFound(Struct, frozen=True):
    """Something arrived that could not be taken; nothing has changed.

    ``kind`` is one of ``frame`` (no frame at all), ``knock`` (unusable opening), ``decrypt`` (not readable),
    ``replay`` (readable once, and read), ``payload`` (authentic, but no JSON), ``relay`` (the relay's own complaint),
    ``registry`` (prekeys could not be published or fetched).
    """

    kind: str
    detail: str
    peer: Did | None = None
    id: str | None = None
    reason: str = ""
    """Of ``decrypt``, in a word or two out of a few: ``not_authentic``, ``too_many_skipped``, ``malformed_frame``,
    ``not_encrypted``, ``unexplained`` (no session and no knock came that reads it), ``no_sender``."""


Event = (
    Connected
    | Disconnected
    | PeerVerified
    | KnockReceived
    | KnockAccepted
    | KnockRejected
    | SessionLost
    | DeliveryChanged
    | FileReceived
    | FaultFound
)
