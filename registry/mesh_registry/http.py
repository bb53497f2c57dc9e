"""uvicorn's HTTP protocol with bounds on what a client may send before anyone looks at it.

The parser buffers a header of any length, and a connection may stay silent for ever: both are memory and sockets
that a stranger spends for us. So are requests sent before earlier ones are answered, and answers nobody reads.
How long a body may be is bounded where it is read, in :mod:`mesh_registry.handler`.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Sized
from http import HTTPStatus

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mesh_registry.config import Limits
from mesh_registry.core import network

LOOPBACK = ("127.0.0.1", 0)


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
    """Closes connections whose request is too long in its head or does not end, or that ask faster than they listen.

    Refusals are counted by reason in ``refused``. :func:`bounded` makes a class with limits and counters of its own.
    """

    limits = Limits()
    refused: Counter[str] = Counter()
    connected: Counter[str] = Counter()
    """Connections at a time, by network."""
    exempt: Collection[str] = ()
    """Addresses that may have any number of them."""

    _network = ""
    _head_size = 0
    _fields_size = 0
    _in_head = True
    _seconds: float | None = None
    """What is left of the part of a request that has begun, head or body, must arrive within."""
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is None:  # a Unix socket, which knows no addresses: limits count it as loopback
            self.client = LOOPBACK
        self.flow = _Flow(transport, self.pipeline)
        address = self.client[0]
        if address and address not in self.exempt and "*" not in self.exempt:
            self._network = network(address)
            self.connected[self._network] += 1
            if self.connected[self._network] > self.limits.address_connections:
                self._refuse("address", 429)
                return
        self._seconds = self.limits.head_seconds
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._is_read()
        self.pipeline.clear()
        if self._network:
            self.connected[self._network] -= 1
            if not self.connected[self._network]:
                del self.connected[self._network]
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.unread_seconds, self._give_up_writing)

    @property
    def _under_way(self) -> bool:
        """Whether a request of this connection has not been answered to its end."""
        cycle: RequestResponseCycle | None = self.cycle  # None until the first request
        return cycle is not None and not cycle.response_complete

    def _give_up_writing(self) -> None:
        self.refused["unread"] += 1
        self.transport.abort()

    def resume_writing(self) -> None:
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self.refused["malformed"] += 1
            super().send_400_response(msg)

    def _refuse(self, reason: str, status: int) -> None:
        if not self.transport.is_closing():
            self.refused[reason] += 1
            phrase = HTTPStatus(status).phrase
            head = f"HTTP/1.1 {status} {phrase}\r\nRetry-After: 10\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(head.encode())
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._head_size += len(data)
        super().data_received(data)
        # What came in one piece with a body is no head any more.
        if self._in_head and self._head_size > self.limits.head_size and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")
        # Set here, because nearly all requests arrive in one piece and need none.
        if self._seconds is not None and self._deadline is None and not self.transport.is_closing():
            self._set_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fields_size = 0
        if self._deadline is None:
            self._seconds = self.limits.head_seconds

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)  # colon, space and line end: thousands of tiny ones cost memory too
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._fields_size += size
        if self._fields_size > self.limits.head_size:
            raise ValueError("the request's headers are too long")  # the parser stops, the client is answered 400

    def on_headers_complete(self) -> None:
        self._arrived()
        self._in_head = False
        self._seconds = self.limits.body_seconds
        full = self.limit_concurrency
        if full is not None and max(len(self.connections), len(self.tasks)) >= full:  # then it is answered 503
            self.refused["crowded"] += 1
        super().on_headers_complete()
        if len(self.pipeline) > self.limits.pipelined:
            self.refused["pipelined"] += 1
            # A 400 would pass for the answer to the first of them.
            self.transport.abort()
            self.pipeline.clear()
            raise ValueError("too many requests at once")  # the parser stops

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._arrived()
        self._in_head = True
        self._head_size = 0

    def _set_deadline(self) -> None:
        assert self._seconds is not None
        self._deadline = self.loop.call_later(self._seconds, self._give_up)

    def _arrived(self) -> None:
        self._seconds = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        # Where an earlier request waits for its answer, or this one has its own already, a 408 would pass for that.
        if self._in_head:
            first = not self._under_way
        else:
            first = not self.pipeline and not self.cycle.response_started
        if first:
            self._refuse("slow", 408)
        else:
            self.refused["slow"] += 1
            self.transport.close()


def bounded(limits: Limits, refused: Counter[str], exempt: Collection[str]) -> type[BoundedHttp]:
    """The protocol for one server."""
    members = {"limits": limits, "refused": refused, "connected": Counter(), "exempt": exempt}
    return type("Bounded", (BoundedHttp,), members)
