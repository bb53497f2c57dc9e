"""One socket's states, without the socket: HTTP request, WebSocket frames, closing.

Wraps ``websockets.server.ServerProtocol`` and keeps beside it a shorter path for what nearly every byte is: whole,
masked data frames (RFC 6455, section 5.2). Those are cut out of the stream here. The handshake, control frames,
fragments and everything irregular go through ServerProtocol, which therefore always stands at a frame boundary.
The short path is tested against the plain one.

Knows nothing of agents, routing, or what a frame says.
"""

import http
import logging
import struct
from email.utils import formatdate
from enum import Enum
from typing import NamedTuple

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover  # websockets without its C extension
    from websockets.utils import apply_mask

LARGEST_HEAD = 16 * 1024
"""Request line and headers; browsers and proxies stay under 8 KiB."""

LARGEST_SKIP = 64 * 1024 * 1024
"""An oversized frame is dropped while it arrives up to this size; who announces more is cut off."""

LARGEST_FRAGMENTS = 1024
"""Fragments of one message. Empty ones add nothing to its size, and each costs memory and time."""

UNTRUSTED_IRREGULAR = 16
"""Control frames and fragments before :meth:`Connection.trust`: each costs more than a message, and nobody pays yet."""

POLICY = 1008
NORMAL, GOING_AWAY, PROTOCOL_ERROR, ABNORMAL, TOO_BIG = 1000, 1001, 1002, 1006, 1009
_LONGEST_REASON = 123  # bytes: a control frame holds 125, the code takes two

_TEXT, _BINARY = 0x81, 0x82  # the first byte of a whole message: FIN and the opcode
_CLOSE, _PONG = 0x88, 0x8A
_FIN, _OPCODE, _MASKED = 0x80, 0x0F, 0x80
_TINY = tuple(bytes((_TEXT, length)) for length in range(126))
_medium_header = struct.Struct("!BBH").pack
_large_header = struct.Struct("!BBQ").pack

# Whatever the log level: at DEBUG ServerProtocol would log payloads.
_silent = logging.getLogger("mesh_relay.websocket")
_silent.setLevel(logging.CRITICAL)


class Asked(NamedTuple):
    """An HTTP request: answer it with :meth:`Connection.upgrade` or :meth:`Connection.respond`."""

    method: str
    path: str
    """Without the query."""
    upgrade: bool
    """It wants a WebSocket."""


class Oversized(NamedTuple):
    """A message beyond the limit is being dropped while it arrives; the connection stays."""

    size: int


class Ended(NamedTuple):
    """The closing handshake is complete, or the peer broke the rules: nothing more will come."""


Event = bytes | Asked | Oversized | Ended
"""Bytes are the payload of a text or binary message."""


class Phase(Enum):
    """What a socket is waiting for. They follow one another and none comes back."""

    REQUEST = "request"  # the HTTP request, whole
    DECISION = "decision"  # our answer to it
    OPEN = "open"  # messages
    CLOSING = "closing"  # the peer's half of the closing handshake
    ENDED = "ended"  # the end of the stream


class Connection:
    """Bytes in, events out; wishes in, bytes out. Never raises for what the peer sends.

    Args:
        frame_size: the largest message taken, in bytes, until :meth:`trust` raises it.
    """

    __slots__ = (
        "_fragments",
        "_fragments_count",
        "_frame_size",
        "_irregular",
        "_protocol",
        "_request",
        "_rest",
        "_skip",
        "_wanted",
        "_writes",
        "broke",
        "held",
        "phase",
        "trusted",
        "waiting",
    )

    def __init__(self, frame_size: int) -> None:
        self.phase = Phase.REQUEST
        self._frame_size = frame_size
        self.trusted = False
        self._protocol = ServerProtocol(max_size=None, logger=_silent)
        self._request: Request | None = None
        self._rest = bytearray()  # the head of the request, or the beginning of a frame
        self._wanted = 0  # bytes in _rest before another look at it is of use
        self._skip = 0  # bytes of an oversized message still to come
        self._fragments: bytearray | None = None
        self._fragments_count = 0
        self._irregular = 0
        self._writes: list[bytes] = []
        self.held = False
        """Received bytes wait for :meth:`upgrade` or :meth:`trust`: after it, ``receive(b"")`` goes on with them."""
        self.waiting = 0
        """Bytes that :meth:`writes` would return."""
        self.broke = 0
        """HTTP status or close code the peer was told when it broke the rules; 0 as long as it has not."""

    def trust(self, frame_size: int) -> None:
        """Take messages up to ``frame_size``, and drop larger ones without closing. Before, they come one by one."""
        self._frame_size = frame_size
        self.trusted = True

    @property
    def close_code(self) -> int:
        """How the WebSocket ended: the peer's code, else ours, 1006 when nobody said."""
        said = self._protocol.close_rcvd or self._protocol.close_sent
        return ABNORMAL if said is None else int(said.code)

    # --- in ---------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the network."""
        if self.phase is Phase.OPEN or self.phase is Phase.CLOSING:
            return self._cut(data)
        if self.phase is Phase.REQUEST:
            return self._read_head(data)
        if self.phase is Phase.DECISION:
            self._rest += data  # bounded by one read of the socket: the decision follows in the same step
        return []

    def receive_eof(self) -> None:
        """The peer will send no more."""
        self.phase = Phase.ENDED

    def _read_head(self, data: bytes) -> list[Event]:
        searched = max(0, len(self._rest) - 3)
        self._rest += data
        if self._rest[:1] == b"\x16":  # TLS, spoken to the wrong port: its client waits for our answer, not we for more
            self._answer(http.HTTPStatus.BAD_REQUEST)
            return [Ended()]
        end = self._rest.find(b"\r\n\r\n", searched) + 4
        if end < 4 and len(self._rest) <= LARGEST_HEAD:
            return []
        if end < 4 or end > LARGEST_HEAD:
            self._answer(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return [Ended()]
        head = bytes(self._rest[:end])
        del self._rest[:end]
        self._protocol.receive_data(head)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self.phase = Phase.DECISION
                self._request = event
                wants = event.headers.get_all("Upgrade")
                method = getattr(event, "method", "GET")  # websockets 15 takes no other and has no such attribute
                return [Asked(method, event.path.partition("?")[0], any("websocket" in w.lower() for w in wants))]
        other = head.partition(b" ")[0] in (
            b"POST",
            b"PUT",
            b"HEAD",
            b"DELETE",
            b"OPTIONS",
            b"PATCH",
            b"CONNECT",
            b"TRACE",
        )
        self._answer(http.HTTPStatus.METHOD_NOT_ALLOWED if other else http.HTTPStatus.BAD_REQUEST)
        return [Ended()]

    def _cut(self, data: bytes) -> list[Event]:
        """Cut messages out of the stream. Bytes that drip in cost no more than those that come at once."""
        events: list[Event] = []
        buffer: bytes | bytearray = data
        self.held = False
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return events
            buffer, self._rest = self._rest, bytearray()
        position, end = 0, len(buffer)
        if self._skip:
            position = min(self._skip, end)
            self._skip -= position
        self._wanted = 2
        while end - position >= 2:
            first, length = buffer[position], buffer[position + 1]
            if length < _MASKED:
                return events + self._delegate_rest(buffer[position:])
            length -= _MASKED
            payload = position + 6
            if length >= 126:
                width = 2 if length == 126 else 8
                payload += width
                if payload > end:
                    self._wanted = payload - position
                    break
                length = int.from_bytes(buffer[position + 2 : position + 2 + width], "big")
            stop = payload + length
            plain = first in (_TEXT, _BINARY) and self._fragments is None
            ignored = first == _PONG and length < 126
            if self.phase is Phase.CLOSING and first != _CLOSE and length <= self._frame_size:
                # All but the peer's half of the closing handshake is skipped, at next to no cost.
                if stop > end:
                    self._wanted = stop - position
                    break
                position = stop
                continue
            if length > self._frame_size:
                if not plain or not self.trusted or length > LARGEST_SKIP:
                    return events + self._fail_size()
                events.append(Oversized(length))
                self._skip = max(0, stop - end)
                position = min(stop, end)
            elif stop > end:
                self._wanted = stop - position
                break
            elif plain:
                events.append(apply_mask(buffer[payload:stop], buffer[payload - 4 : payload]))
                position = stop
                if not self.trusted:
                    self.held = position < end
                    self._wanted = 0
                    break
            else:
                self._irregular += 1
                if not self.trusted and self._irregular > UNTRUSTED_IRREGULAR:
                    return events + self._fail(POLICY, "too many control frames before a proof")
                if ignored:  # nothing to do about it
                    position = stop
                    continue
                if first & _OPCODE <= Opcode.BINARY:
                    if len(self._fragments or b"") + length > self._frame_size:
                        return events + self._fail_size()
                    if self._fragments_count >= LARGEST_FRAGMENTS:
                        return events + self._fail(TOO_BIG, f"a message has at most {LARGEST_FRAGMENTS} fragments")
                events += self._delegate(bytes(buffer[position:stop]))
                position = stop
                if self.phase is Phase.ENDED:
                    return events
        if position < end:
            self._rest = bytearray(buffer[position:])
        return events

    def _delegate(self, whole: bytes) -> list[Event]:
        """Give ServerProtocol one whole frame and take what it makes of it."""
        self._protocol.receive_data(whole)
        events: list[Event] = []
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode <= Opcode.BINARY:
                self._assemble(event, events)
        self._take_protocol_writes()
        if self.phase is Phase.ENDED:
            if self._protocol.parser_exc is not None and self._protocol.close_sent is not None:
                self.broke = self._protocol.close_sent.code
            events.append(Ended())
        return events

    def _delegate_rest(self, rest: bytes | bytearray) -> list[Event]:
        """An unmasked frame: ServerProtocol words the refusal."""
        events = self._delegate(bytes(rest))
        self.phase = Phase.ENDED
        return events or [Ended()]

    def _assemble(self, frame: Frame, events: list[Event]) -> None:
        if self._fragments is None:
            self._fragments = bytearray()
        self._fragments += frame.data
        self._fragments_count += 1
        if frame.fin:
            events.append(bytes(self._fragments))
            self._fragments, self._fragments_count = None, 0

    def take_irregular(self) -> int:
        """How many control frames and fragments came since the last call."""
        irregular, self._irregular = self._irregular, 0
        return irregular

    def _fail_size(self) -> list[Event]:
        return self._fail(TOO_BIG, f"a frame has at most {self._frame_size} bytes")

    def _fail(self, code: int, reason: str) -> list[Event]:
        self.broke = code
        self._protocol.fail(code, reason)
        self._take_protocol_writes()
        self.phase = Phase.ENDED
        return [Ended()]

    # --- out --------------------------------------------------------------------------------------------------------

    def upgrade(self, headers: dict[str, str]) -> bool:
        """Answer the request with the WebSocket handshake and ``headers``; False when it was no proper one.

        Frames that came with the request are :attr:`held`.
        """
        assert self._request is not None
        response = self._protocol.accept(self._request)
        self._request = None
        accepted = response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS
        if accepted:
            for name, value in headers.items():
                response.headers[name] = value
        self._protocol.send_response(response)
        self.phase = Phase.OPEN
        self._take_protocol_writes()
        self.broke = 0 if accepted else response.status_code
        self.held = accepted and bool(self._rest)
        return accepted

    def respond(self, status: http.HTTPStatus, content_type: str, body: bytes, **headers: str) -> None:
        """Answer the request with an HTTP response and end the connection."""
        self._request = None
        fields = Headers(
            [
                ("Date", formatdate(usegmt=True)),
                ("Connection", "close"),
                ("Content-Length", str(len(body))),
                ("Content-Type", content_type),
                ("Cache-Control", "no-store"),
                *headers.items(),
            ]
        )
        self._writes.append(Response(status.value, status.phrase, fields, body).serialize())
        self.phase = Phase.ENDED

    def _answer(self, status: http.HTTPStatus) -> None:
        """Refuse a request that could not be read."""
        self.broke = status.value
        self.respond(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())

    def send(self, *payloads: bytes) -> None:
        """Send text messages. Dropped unless the WebSocket is open."""
        if self.phase is not Phase.OPEN:
            return
        writes, waiting = self._writes, 0
        for payload in payloads:
            length = len(payload)
            if length < 126:
                header = _TINY[length]
            elif length < 65536:
                header = _medium_header(_TEXT, 126, length)
            else:
                header = _large_header(_TEXT, 127, length)
            writes.append(header)
            writes.append(payload)
            waiting += len(header) + length
        self.waiting += waiting

    def ping(self) -> None:
        """Send a ping. Dropped unless the WebSocket is open."""
        if self.phase is Phase.OPEN:
            self._protocol.send_ping(b"")
            self._take_protocol_writes()

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; before there is a WebSocket, answer 408, or 503 with ``GOING_AWAY``."""
        if self.phase is Phase.OPEN:
            self._protocol.send_close(code, reason.encode()[:_LONGEST_REASON].decode("utf-8", "ignore"))
            self._take_protocol_writes()
            self.phase = Phase.CLOSING
        elif self.phase is Phase.REQUEST:  # not even a request came
            self._answer(http.HTTPStatus.SERVICE_UNAVAILABLE if code == GOING_AWAY else http.HTTPStatus.REQUEST_TIMEOUT)
        elif self.phase is not Phase.CLOSING:
            self.phase = Phase.ENDED

    def writes(self) -> list[bytes]:
        """What to write to the network now, in order. After it, in phase ENDED, shut the stream down."""
        writes, self._writes = self._writes, []
        self.waiting = 0
        return writes

    def _take_protocol_writes(self) -> None:
        for write in self._protocol.data_to_send():
            if write:
                self._writes.append(write)
                self.waiting += len(write)
            else:  # ServerProtocol's sign for the end of the stream
                self.phase = Phase.ENDED
        if self.phase is Phase.OPEN and self._protocol.state is not State.OPEN:
            self.phase = Phase.CLOSING
