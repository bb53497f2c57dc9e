"""What a client can tell about itself, as values: its numbers, and where a message stands.

Loads nothing besides the standard library: a daemon's clients read these values inside of foreign interpreters.
Leaves counting to :mod:`meshlib.client.counters` and looking up to :mod:`meshlib.client.sightings`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that went wrong, lately."""

    at: float
    """When, UTC seconds; the last time, if it happened again and again."""
    kind: str
    """``connect``, ``disconnected``, ``session_lost``, or the kind of a :class:`meshlib.FaultFound`."""
    detail: str


@dataclass(frozen=True, slots=True)
class ClientStats:
    """A client's numbers. Counts are since it was entered, by this process; the rest is how it stands right now.

    The names are those of ``/metrics`` of relay and registry where they mean the same.
    """

    uptime: float
    """Seconds since the client was entered; 0 when none runs on the store."""
    connected: bool
    """Whether the relay takes our frames."""
    connects: int
    """Times the relay took our proof. One more than there were reconnects."""
    connect_failures: int
    """Attempts after which there was no connection at all."""
    disconnects: dict[str, int]
    """Connections that ended, by WebSocket close code; 1006 for one without."""
    frames_sent: dict[str, int]
    """By type, as on the wire. Counted once they are on the socket; repeated ones count again."""
    frames_received: dict[str, int]
    """By type; those inside of a batch count, too. What is no frame at all is a fault of kind ``frame``."""
    bytes_sent: int
    """Of frames, without what WebSocket and TLS add."""
    bytes_received: int
    outbox: int
    """Messages of ours that are not delivered yet."""
    oldest_undelivered: float | None
    """Seconds for which the oldest of them has been waiting, over restarts."""
    inbox: int
    """Messages taken that the application has not confirmed."""
    held: int
    """Frames that cannot be taken yet: others are missing before them, or their knock."""
    saves: int
    """Transactions of the store."""
    save_seconds: float
    """Time spent in them."""
    receipts: dict[str, int]
    """Changes of messages of ours, by the state they came to; ``unread``: the peer could not read it, it goes anew."""
    refusals: dict[str, int]
    """Knocks of ours that peers refused, by reason, and under ``relay`` frames that the relay refused."""
    decrypt_failures: dict[str, int]
    """Messages that could not be taken, by reason, see :attr:`meshlib.FaultFound.reason`."""
    faults: dict[str, int]
    """Everything that could not be taken, by kind, see :class:`meshlib.FaultFound`."""
    sessions_lost: int
    """Times messages with a peer turned out to be unreadable, and a new session was opened or awaited."""
    peers: dict[str, int]
    """Peers by where their session stands: ``open``, ``knocking`` and ``fetching`` on our way in, ``knocked`` for a
    peer that has not spoken yet, ``mute`` when the peer cannot read us, ``none``."""
    one_time_keys: int
    """One-time keys of ours that nobody has used: published ones, and those of which a part is still to be."""
    one_time_keys_published: int | None
    """How many of them the registry had for others when it was last asked; ``None`` where it does not say."""
    troubles: tuple[Trouble, ...]
    """The last few, oldest first."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a message stands, as far as one agent knows."""

    direction: str
    """``sent`` by this agent, or ``received``."""
    peer: str
    """The DID at the other end."""
    state: str
    """Of a sent one a :class:`meshlib.DeliveryState`. Of a received one ``held`` (not readable yet), ``received``
    (saved), ``handed_over`` (to the application) or ``acked`` (the application is done with it)."""
    encrypted: bool | None = None
    """Whether a frame of it has been made, or it came encrypted; ``None`` where that is not known any more."""
    size: int | None = None
    """Bytes of its payload as JSON, while it is kept."""
    queued: float | None = None
    """When a sent one was queued, UTC seconds."""
