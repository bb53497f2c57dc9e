"""What the relay counts since its start: plain numbers, under names that are fixed here.

Whatever comes from a peer is counted under one of these names or under ``other``: a stranger can make a number grow,
never the list of them.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from mesh_relay.admission import (
    IDLE,
    NO_SENDER,
    NOT_AUTHENTICATED,
    NOT_CONNECT,
    NOT_PROVEN,
    REPLACED,
    TRY_AGAIN_LATER,
)

OTHER = "other"
"""What is counted under no name of its own: labels of metrics never take a value a stranger has chosen."""

RECEIVED = ("connect", "knock", "knock_accept", "knock_reject", "heartbeat", "fetch_pending", "disconnect", OTHER)
SENT = ("knock", "knock_accept", "knock_reject", "connected", "pending_messages", "error", "ping")
"""Types of frames that are counted apart. A ping is the WebSocket's; receipts are counted by state. Messages and acks,
which nearly all frames are, have numbers of their own: a dict would cost as much as the rest of counting."""

RECEIPT_STATES = (b"stored", b"delivered", b"expired", b"refused", b"unread")

CLOSE_CODES = (1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, IDLE, REPLACED)
REFUSING_CODES = (NOT_CONNECT, NO_SENDER, NOT_AUTHENTICATED, NOT_PROVEN, TRY_AGAIN_LATER)
ABNORMAL = 1006
"""The code of a socket that ended without a closing handshake."""

FrameReason = Literal[
    "malformed",
    "too_large",
    "wrong_sender",
    "unknown_type",
    "wrong_recipient",
    "no_id",
    "bound_already",
    "pair_full",
    "recipient_full",
    "sender_full",
    "relay_full",
]
"""Why a frame was answered with an error."""


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    messages_received: int = 0
    acks_received: int = 0
    received: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RECEIVED, 0))
    """Other frames of agents, by type."""
    messages_sent: int = 0
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SENT, 0))
    """Other frames to agents, by type; without receipts."""
    receipts: dict[bytes, int] = field(default_factory=lambda: dict.fromkeys(RECEIPT_STATES, 0))
    """Receipts sent, by state."""
    refused_frames: dict[FrameReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(FrameReason), 0))
    disconnects: dict[int | str, int] = field(default_factory=lambda: dict.fromkeys((*CLOSE_CODES, OTHER), 0))
    """Ends of sockets that spoke for an agent, by close code, whoever closed."""
    routed: int = 0
    stored: int = 0
    delivered: int = 0
    expired: int = 0
    unread: int = 0
    abandoned: int = 0
    retransmitted: int = 0
    connects: int = 0
    refused_connects: dict[int, int] = field(default_factory=lambda: dict.fromkeys(REFUSING_CODES, 0))
    replaced: int = 0
    idle: int = 0
    spilled: int = 0
    throttled: int = 0
    turned_away: int = 0
    deaf: int = 0
    tls_failed: int = 0
    overcrowded: int = 0
    accepts_delayed: int = 0
    rule_breaks: dict[int, int] = field(default_factory=dict)

    @property
    def frames_received(self) -> dict[str, int]:
        """All frames of agents, by type."""
        return {"message": self.messages_received, "ack": self.acks_received, **self.received}

    @property
    def frames_sent(self) -> dict[str, int]:
        """All frames to agents, by type."""
        return {"message": self.messages_sent, "receipt": sum(self.receipts.values()), **self.sent}
