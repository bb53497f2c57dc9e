"""TLS for one socket of the relay: bytes in, bytes out. No sockets, no waiting, no certificates.

The shell hands over what the network brought and gets plaintext; it hands over plaintext and gets what to send. The
handshake, alerts and goodbyes ride along, so a socket with TLS is served by the same readiness, deadlines and bounds as
one without.
"""

import contextlib
import ssl
from collections.abc import Sequence

_PIECE = 16 * 1024
"""Bytes that pass a memory buffer of OpenSSL at a time, about a record. These buffers never shrink: one large frame,
passed whole, would cost its connection a megabyte for as long as it lives."""

_RECORD = 32
"""What a record adds to its plaintext, at most: 29 bytes with TLS 1.2, 22 with TLS 1.3."""

_LARGEST_EXCESS = 64 * 1024
"""Bytes that carry no plaintext, above what records add. Honest peers send some handshake messages; a flood of key
updates costs us a hundred times as much per byte as plaintext."""

_HANDSHAKE = 0x16  # the first byte of every TLS connection

_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 47\r\n\r\nThis port speaks TLS: use wss:// and https://.\n"
)


class TlsFailed(Exception):
    """The peer broke the rules of TLS or showed no certificate we take; ``str()`` says which, in OpenSSL's words.

    What is left to say to it is in the next :meth:`Tls.seal`.
    """


class Tls:
    """The server's side of one TLS connection."""

    __slots__ = (
        "_began",
        "_excess",
        "_incoming",
        "_object",
        "_outgoing",
        "_over",
        "_plain",
        "admitted",
        "ended",
        "established",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._excess = 0
        self._plain = b""  # the answer to somebody who speaks no TLS
        self._over = False  # failed, or our goodbye is said
        self._began = False
        self.admitted = False
        """For whoever rations handshakes: its turn is now, or has been set."""
        self.established = False
        """The handshake is done."""
        self.ended = False
        """The peer has said goodbye: nothing will follow."""

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the network; returns the plaintext in them, and never more than about as much.

        Raises:
            TlsFailed: nothing will come of this connection any more.
        """
        if not self._began:
            self._began = True
            if data[0] != _HANDSHAKE:
                self._plain, self._over = _PLAIN_ANSWER, True
                raise TlsFailed("it speaks no TLS")
        if self._over or self.ended:
            return b""
        parts: list[bytes] = []
        try:
            for start in range(0, len(data), _PIECE):
                self._incoming.write(data[start : start + _PIECE])
                self._take(parts)
        except ssl.SSLError as error:
            self._over = True
            raise TlsFailed(error.reason or "the handshake failed") from error
        plaintext = parts[0] if len(parts) == 1 else b"".join(parts)
        self._excess = max(0, self._excess + len(data) - len(plaintext) - _RECORD * len(parts))
        if self._excess > _LARGEST_EXCESS:
            self._over = True
            raise TlsFailed("it sends records without content")
        return plaintext

    def _take(self, parts: list[bytes]) -> None:
        try:
            if not self.established:
                self._object.do_handshake()
                self.established = True
                self._excess = 0
            while self._incoming.pending and not self.ended:
                if part := self._object.read(_PIECE):
                    parts.append(part)
                else:
                    self.ended = True
        except ssl.SSLWantReadError:
            pass

    def seal(self, writes: Sequence[bytes], *, last: bool) -> bytes:
        """What to send for ``writes``, behind what TLS itself has to say.

        Args:
            last: nothing follows; the goodbye is added.
        Raises:
            TlsFailed: nothing can be sent any more.
        """
        if self._plain:
            answer, self._plain = self._plain, b""
            return answer
        sealed = [self._outgoing.read()]
        if self.established and not self._over:
            plaintext = memoryview(b"".join(writes))
            try:
                for start in range(0, len(plaintext), _PIECE):
                    self._object.write(plaintext[start : start + _PIECE])
                    sealed.append(self._outgoing.read())
            except ssl.SSLError as error:
                self._over = True
                raise TlsFailed(error.reason or "nothing can be sent") from error
            if last:
                self._say_goodbye()
                sealed.append(self._outgoing.read())
        return b"".join(sealed)

    def _say_goodbye(self) -> None:
        self._over = True
        with contextlib.suppress(ssl.SSLError):  # it wants to wait for the peer's; the socket's own deadline does
            self._object.unwrap()
