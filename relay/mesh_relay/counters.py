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

RECEIVED = (
    "connect",
    "message",
    "knock",
    "knock_accept",
    "knock_reject",
    "ack",
    "heartbeat",
    "fetch_pending",
    "disconnect",
)
SENT = ("message", "knock", "knock_accept", "knock_reject", "connected", "pending_messages", "error", "ping")
"""Types of frames that are counted apart; receipts are counted by state. A ping is the WebSocket's."""

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

    received: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*RECEIVED, OTHER), 0))
    """Frames of agents, by type."""
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SENT, 0))
    """Frames to agents, by type."""
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
