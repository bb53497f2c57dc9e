"""Frames as the load writes and reads them: everything of one payload size has one length, so bytes need no parser.

Message ids are ``<lane, 8 hex digits>-0000-4000-8000-<number, 12 digits>``: a recipient sees at once what is missing,
doubled or out of order. Client frames are masked with zeros: a server has the same work, the load has none.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from dataclasses import dataclass

from meshlib.identity import Identity, challenge_statement, timestamp_statement
from meshlib.wire.encoding import b64, timestamp

ID_LENGTH = 36
_TS = "2026-01-01T00:00:00.000Z"
_NO_MASK = bytes(4)


def client_frame(payload: bytes, opcode: int = 1) -> bytes:
    """A whole client frame, masked with zeros (RFC 6455, section 5.2)."""
    return bytes((0x80 | opcode,)) + _length(len(payload), 0x80) + _NO_MASK + payload


def server_head(length: int) -> bytes:
    """The head of an unmasked text frame of that length."""
    return b"\x81" + _length(length, 0)


def _length(length: int, masked: int) -> bytes:
    if length < 126:
        return bytes((masked | length,))
    if length < 65536:
        return struct.pack("!BH", masked | 126, length)
    return struct.pack("!BQ", masked | 127, length)


def cut(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Whole server frames as (opcode, payload), and the rest. The slow way, for what is not all messages."""
    frames, position, end = [], 0, len(data)
    while end - position >= 2:
        length, start = data[position + 1], position + 2
        if length == 126:
            if end - position < 4:
                break
            length, start = int.from_bytes(data[position + 2 : position + 4], "big"), position + 4
        elif length == 127:
            if end - position < 10:
                break
            length, start = int.from_bytes(data[position + 2 : position + 10], "big"), position + 10
        if end - start < length:
            break
        frames.append((data[position] & 15, data[start : start + length]))
        position = start + length
    return frames, data[position:]


@dataclass(frozen=True)
class Lane:
    """Messages of one sender for one recipient: everything around their number, ready to be joined."""

    number: int
    before: bytes
    after: bytes

    @classmethod
    def between(cls, number: int, sender: str, recipient: str, payload: int) -> Lane:
        """A lane whose messages carry ``payload`` bytes of plaintext, as the ratchet seals them."""
        message = {
            **{"v": 1, "type": "message", "from": sender, "to": recipient, "id": "@" * ID_LENGTH, "ts": _TS},
            "header": {"dh": b64(os.urandom(32)), "pn": 0, "n": 1000},
            "ciphertext": base64.b64encode(os.urandom(payload + 28)).decode(),
        }
        text = json.dumps(message, separators=(",", ":")).encode()
        before, _, after = client_frame(text).partition(b"@" * ID_LENGTH)
        return cls(number, before + b"%08x-0000-4000-8000-" % number, after)

    def frame(self, number: int) -> bytes:
        """The client frame of one message."""
        return b"%b%012d%b" % (self.before, number, self.after)

    def frames(self, first: int, count: int) -> bytes:
        """The client frames of consecutive messages."""
        before, after = self.before, self.after
        return b"".join([b"%b%012d%b" % (before, number, after) for number in range(first, first + count)])


@dataclass(frozen=True)
class Shape:
    """Where things are in the server frames of one payload size."""

    size: int
    head: bytes
    """What every frame starts with."""
    id_at: int

    @classmethod
    def of(cls, lane: Lane) -> Shape:
        """The shape of a lane's messages, as written by a relay that forwards the bytes, or the same JSON."""
        masked = lane.frame(0)
        length = masked[1] & 127
        start = 2 + (2 if length == 126 else 8 if length == 127 else 0) + len(_NO_MASK)
        text = masked[start:]
        head = server_head(len(text))
        return cls(len(head) + len(text), head + text[:24], len(head) + text.index(b"-0000-4000-8000-") - 8)


_ACK = client_frame(json.dumps({"v": 1, "type": "ack", "id": "@" * ID_LENGTH}, separators=(",", ":")).encode())
ACK_BEFORE, _, ACK_AFTER = _ACK.partition(b"@" * ID_LENGTH)

PONG = 0xA


class Agent:
    """Who connects: an identity, and its connect frame."""

    def __init__(self) -> None:
        self.identity = Identity.generate(os.urandom)
        self.did = str(self.identity.did)

    def connect(self, challenge: str | None, now: float, *, receipts: bool) -> bytes:
        """The connect frame with its proof of possession, over the challenge if the relay sent one."""
        signed_at = timestamp(now)
        if challenge is None:
            statement, features = timestamp_statement(signed_at), []
        else:
            statement, features = challenge_statement(self.identity.did, signed_at, challenge), ["challenge"]
            features += ["receipts"] if receipts else []
        frame = {
            **{"v": 1, "type": "connect", "from": self.did, "public_key": b64(bytes(self.identity.public_key))},
            **{"timestamp": signed_at, "signature": b64(self.identity.sign(statement))},
        }
        return client_frame(json.dumps(frame | ({"features": features} if features else {})).encode())


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
