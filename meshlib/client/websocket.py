"""The frames of an open WebSocket, without the socket: what one read brings is cut, what one write takes is joined.

Stands beside ``websockets``' Sans-I/O ``ClientProtocol`` and is a shorter path for what nearly every byte is: whole,
unmasked data frames to us, masked text frames from us (RFC 6455, section 5.2). The handshake, control frames, fragments
and everything irregular go through ClientProtocol byte for byte as they come, which therefore always stands at a frame
boundary when a data frame is cut, and decides what is refused. Measured: a quarter of what ClientProtocol takes for a
frame, in either direction; the tests hold one against the other.

Knows nothing of what a message says. Leaves reading, writing and deadlines to :mod:`meshlib.client.transport`.
"""

import struct
from collections.abc import Sequence

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode

from meshlib.crypto.keys import Entropy

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover  # websockets without its C extension
    from websockets.utils import apply_mask

MAX_FRAGMENTS = 1024
"""Pieces one message may come in. Ours come in one; empty pieces would otherwise cost memory without end."""

_TEXT = 0x81
_DATA = (_TEXT, 0x82)  # the first byte of a whole message, text or binary: FIN and the opcode
_MASKED = 0x80
_small_header = struct.Struct("!BB4s").pack
_medium_header = struct.Struct("!BBH4s").pack
_large_header = struct.Struct("!BBQ4s").pack


class Frames:
    """Bytes in, messages out; messages in, bytes out. Never raises for what the relay sends.

    Args:
        protocol: open, and given nothing of what followed the handshake.
        max_size: the largest message taken, in bytes; the protocol's own bound.
        entropy: masks come from here, four bytes for each message. A page in a browser must not be able to choose what
            bytes a proxy sees (RFC 6455, section 10.3); we have no page, the rule is a rule all the same.
    """

    def __init__(self, protocol: ClientProtocol, max_size: int, entropy: Entropy) -> None:
        self._protocol = protocol
        self._max_size = max_size
        self._entropy = entropy
        self._rest = bytearray()
        """The beginning of a data frame, or of a frame's header."""
        self._wanted = 0
        """Bytes in ``_rest`` before another look at it is of use."""
        self._owed = 0
        """Bytes still to come of a frame that is the protocol's."""
        self._pieces: list[Frame] = []
        self._ended = False
        self.in_pieces = False
        """A message came in more than :data:`MAX_FRAGMENTS` pieces: nothing after it is taken."""

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes from the network. Returns the messages that are complete with them, in order.

        What the protocol makes of everything else shows in its own state; it may want to send something.
        """
        messages: list[bytes] = []
        if self._owed:
            piece, data = data[: self._owed], data[self._owed :]
            self._owed -= len(piece)
            self._delegate(piece, messages)
        if self._ended:
            self._drop(data)
            return messages
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return messages
            data, self._rest = bytes(self._rest), bytearray()
        position, end = 0, len(data)
        self._wanted = 2
        while end - position >= 2:
            first, length = data[position], data[position + 1]
            payload, masked = position + 2, length >= _MASKED
            length &= ~_MASKED
            if length > 125:
                payload += 2 if length == 126 else 8
                if payload > end:
                    self._wanted = payload - position
                    break
                length = int.from_bytes(data[position + 2 : payload], "big")
            stop = payload + length
            if first in _DATA and length <= self._max_size and not masked and not self._pieces:
                if stop > end:
                    self._wanted = stop - position
                    break
                messages.append(data[payload:stop])
            else:
                stop += 4 if masked else 0
                self._owed = max(0, stop - end)
                self._delegate(data[position:stop], messages)
                if self._ended:
                    self._drop(data[stop:])
                    return messages
            position = stop
        self._rest += data[position:]
        return messages

    def _delegate(self, piece: bytes, messages: list[bytes]) -> None:
        """Give the protocol bytes of a frame that is its own, and take what it makes of it."""
        self._protocol.receive_data(piece)
        for frame in self._protocol.events_received():
            if not isinstance(frame, Frame) or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            self._pieces.append(frame)
            if len(self._pieces) > MAX_FRAGMENTS:
                self.in_pieces = self._ended = True
            elif frame.fin:
                messages.append(b"".join([one.data for one in self._pieces]))
                self._pieces = []
        if self._protocol.close_rcvd is not None or self._protocol.parser_exc is not None:
            self._ended = True  # nothing follows a close frame, or means anything once the rules are broken

    def _drop(self, data: bytes) -> None:
        """What comes after the end shows the protocol how it ends, and is kept by nobody, however much it is."""
        self._pieces.clear()
        self._protocol.receive_data(data)
        self._protocol.events_received()

    def write(self, messages: Sequence[bytes]) -> bytes:
        """The bytes of text frames, one for each message."""
        parts: list[bytes] = []
        masks = self._entropy(4 * len(messages))
        for number, message in enumerate(messages):
            length, mask = len(message), masks[4 * number : 4 * number + 4]
            if length < 126:
                parts.append(_small_header(_TEXT, _MASKED | length, mask))
            elif length < 65536:
                parts.append(_medium_header(_TEXT, _MASKED | 126, length, mask))
            else:
                parts.append(_large_header(_TEXT, _MASKED | 127, length, mask))
            parts.append(apply_mask(message, mask))
        return b"".join(parts)
