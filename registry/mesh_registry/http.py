"""uvicorn's HTTP protocol with bounds on what a client may send before anyone looks at it.

The parser buffers a header of any length, and a connection may stay silent for ever: both are memory and sockets
that a stranger spends for us. So are requests sent before earlier ones are answered, and answers nobody reads.
Bodies are bounded where they are read, in :mod:`mesh_registry.api`.
"""

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 32 * 1024
"""Bytes of request line and headers. Ours have under 1 KiB; proxies and browsers add some more."""

HEAD_TIMEOUT = 20.0
"""Seconds from the connection, or the first byte of a later request, to the end of its headers."""

MAX_PIPELINED = 8
"""Requests that may wait for the answer to an earlier one on the same connection. HTTP clients wait themselves."""

LOOPBACK = ("127.0.0.1", 0)

TLS_TIMEOUT = 10.0
"""Seconds from the connection to the end of the TLS handshake."""

READ_TIMEOUT = 20.0
"""Seconds a client may leave more than the transport's 64 KiB of answers unread."""


class _Flow(FlowControl):
    """Reads on only when no request waits: what has been read must have been answered first."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        # Asked to by whoever starts the last one that waits, at the latest when that one is answered.
        if not self._waiting:
            super().resume_reading()


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose request head is too long or does not end, or that ask faster than they listen."""

    _head_size = 0
    _fields_size = 0
    _in_head = True
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is None:  # a Unix socket, which knows no addresses: limits count it as loopback
            self.client = LOOPBACK
        self.flow = _Flow(transport, self.pipeline)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ended()
        self._is_read()
        self.pipeline.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(READ_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def data_received(self, data: bytes) -> None:
        self._head_size += len(data)
        super().data_received(data)
        # What came in one piece with a body is no head any more.
        if self._in_head and self._head_size > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fields_size = 0
        if self._deadline is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._fields_size += size
        if self._fields_size > MAX_HEAD:
            raise ValueError("the request's headers are too long")  # the parser stops, the client is answered 400

    def on_headers_complete(self) -> None:
        self._head_ended()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            # A 400 would pass for the answer to the first of them.
            self.transport.abort()
            self.pipeline.clear()
            raise ValueError("too many requests at once")  # the parser stops

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_size = 0

    def _expect_head(self) -> None:
        self._in_head = True
        self._deadline = self.loop.call_later(HEAD_TIMEOUT, self._give_up)

    def _head_ended(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
