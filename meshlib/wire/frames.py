"""One frozen value per frame type; :data:`Frame` is their union.

Bytes are decoded, names are ours: ``sender`` and ``recipient`` stand for ``from`` and ``to`` on the wire.
Turning them into bytes and back is left to :mod:`meshlib.wire.codec`. Nothing here is authentic yet: a frame says
what somebody sent, not who sent it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from meshlib.errors import MalformedFrame


class Connect(Struct, frozen=True):
    """A client opens its relay connection. agt-4 clients send ``sender`` alone.

    ``public_key`` is Ed25519 (32 bytes), ``signature`` (64 bytes) covers the text of ``timestamp`` or, with the
    feature ``challenge``, the statement of :func:`meshlib.identity.challenge_statement`. ``features`` are ours.
    """

    sender: str
    public_key: bytes | None = None
    timestamp: str | None = None
    signature: bytes | None = None
    features: tuple[str, ...] = ()
    token: str | None = None

    def __repr__(self) -> str:
        return f"Connect(sender={self.sender!r}, features={self.features!r})"


class Connected(Struct, frozen=True):
    """Our relay's answer to a connect that listed features: those both sides know, and the relay's clock."""

    features: tuple[str, ...]
    server_time: str | None = None


class FetchPending(Struct, frozen=True):
    """A client asks for its stored frames. ``sender`` is empty when the frame names none."""

    sender: str


class Heartbeat(Struct, frozen=True):
    """A client is alive."""

    sender: str
    ts: str


class Disconnect(Struct, frozen=True):
    """A client leaves; it closes with code 1000 next."""

    sender: str


class Establishment(Struct, frozen=True):
    """The initiator's half of X3DH: identity key and ephemeral key (X25519, 32 bytes), and the one-time key it took."""

    ik: bytes
    ek: bytes
    otk: int | None = None


class Unusable(Struct, frozen=True):
    """An establishment nothing can be made of; the knock is answered with a reject, not dropped."""

    reason: str


def _default_intent() -> dict[str, Any]:
    return {"action": "establish_session"}


class Knock(Struct, frozen=True):
    """A peer asks to talk. Without ``establishment`` it only asks."""

    sender: str
    recipient: str
    id: str
    ts: str
    establishment: Establishment | Unusable | None = None
    intent: dict[str, Any] = field(default_factory=_default_intent)


class KnockAccept(Struct, frozen=True):
    """A peer lets us in."""

    sender: str
    recipient: str
    id: str
    knock_id: str
    ts: str


class KnockReject(Struct, frozen=True):
    """A peer does not let us in."""

    sender: str
    recipient: str
    id: str
    knock_id: str
    reason: str
    ts: str
    detail: str | None = None
    """An extension: :data:`UNKNOWN_PREKEY` says that another knock, with a fresh bundle, will do; :data:`POLICY` that
    it will not."""


UNKNOWN_PREKEY = "unknown_prekey"
POLICY = "policy"


class MessageHeader(Struct, frozen=True):
    """The ratchet header: sender's ratchet key (X25519, 32 bytes), length of its previous chain, number in this one."""

    dh: bytes
    pn: int
    n: int


class Message(Struct, frozen=True):
    """An encrypted message; ``ciphertext`` is nonce, ChaCha20 output and tag."""

    sender: str
    recipient: str
    id: str
    ts: str
    header: MessageHeader
    ciphertext: bytes
    after: str | None = None
    """An extension: the id of the message before this one from ``sender``, if it was not known to be delivered when
    this one was encrypted."""


class PlaintextMessage(Struct, frozen=True):
    """A message without ratchet header, whether or not it says ``"plaintext":true``.

    Only the receiver's own list of plaintext peers decides whether ``text`` is read; the flag on the wire is the
    sender's wish. ``text`` is JSON in Latin-1.
    """

    sender: str
    recipient: str
    id: str
    ts: str
    text: bytes

    def __repr__(self) -> str:
        return f"PlaintextMessage(sender={self.sender!r}, recipient={self.recipient!r}, id={self.id!r})"


class Ack(Struct, frozen=True):
    """The recipient has a stored frame in safe hands; the relay may forget it.

    ``unread``, an extension, says that it is of no use to the recipient: no session reads it. ``sender``, another one,
    says whose frame is meant, because two senders may use one id.
    """

    id: str
    unread: bool = False
    sender: str | None = None


class PendingMessages(Struct, frozen=True):
    """Stored frames in one batch; ``faults`` are the entries that are none."""

    frames: "tuple[Frame, ...]"
    faults: tuple[MalformedFrame, ...] = ()


class Error(Struct, frozen=True):
    """The relay did not like a frame; the connection goes on."""

    detail: str


class ReceiptState(StrEnum):
    """What has become of a frame at the relay."""

    STORED = "stored"
    """On the relay's disk, waiting for the recipient."""
    DELIVERED = "delivered"
    """Acknowledged by the recipient."""
    EXPIRED = "expired"
    """Dropped after the retention time."""
    REFUSED = "refused"
    """Not taken: a quota is full or the frame is impossible."""
    UNREAD = "unread"
    """The recipient has it and no session that reads it: encrypt it anew for a new one."""


class Receipt(Struct, frozen=True):
    """Our relay tells a sender that negotiated ``receipts`` what became of the frame ``id``."""

    id: str
    state: ReceiptState


class Unknown(Struct, frozen=True):
    """A frame of a type from the future; receivers ignore it."""

    type: str


Routed = Knock | KnockAccept | KnockReject | Message | PlaintextMessage
"""What a relay carries from one agent to another."""

Frame = (
    Routed
    | Connect
    | Connected
    | FetchPending
    | Heartbeat
    | Disconnect
    | Ack
    | PendingMessages
    | Error
    | Receipt
    | Unknown
)

TYPES: Mapping[type, str] = {
    Message: "message",
    PlaintextMessage: "message",
    Knock: "knock",
    KnockAccept: "knock_accept",
    KnockReject: "knock_reject",
    Connect: "connect",
    Connected: "connected",
    FetchPending: "fetch_pending",
    Heartbeat: "heartbeat",
    Disconnect: "disconnect",
    Ack: "ack",
    PendingMessages: "pending_messages",
    Error: "error",
    Receipt: "receipt",
}
"""What a frame is called on the wire, by its class; :class:`Unknown` ones bring their own."""
