"""TLS on a listening socket: which connections get as far as a handshake.

A handshake costs a server half a millisecond of its one core and a quarter of a megabyte, whoever asks for it next to
nothing, and it comes before any request that an endpoint could refuse. So connections are counted where they are
accepted. Too many of one address are closed; of those under way the oldest makes room for a new one, because honest
clients are done within a few round trips.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection

from mesh_registry.config import Limits
from mesh_registry.core import network
from meshlib.buckets import Buckets, Rate
from meshlib.logs import LogEvent

log = logging.getLogger("mesh_registry.tls")

TIMEOUT = 10.0
"""Seconds from the connection to the end of its handshake."""

ACCEPTED_AT_ONCE = 64
"""Connections taken before requests that wait get their turn."""

RETRY = 1.0
"""Seconds until connections are accepted again after the system had no file descriptor for one."""


class TlsListener:
    """Makes connections with TLS of what a socket accepts. Owned by the event loop it is made on; closed like
    :class:`asyncio.Server`."""

    def __init__(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        limits: Limits,
        refused: Counter[str],
        exempt: Collection[str],
    ) -> None:
        """Start to accept.

        Args:
            refused: counts connections that became none, by reason.
            exempt: addresses that many clients share, and so may make any number of handshakes.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._tls = tls
        self._protocol = protocol
        self._limits = limits
        self._refused = refused
        self._exempt = exempt
        self._addresses = Buckets(Rate(limits.address_handshake_burst, limits.address_handshake_rate))
        self._under_way: dict[asyncio.Task[None], None] = {}
        """Handshakes, the oldest first."""
        self._closed = False
        listener.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more, and give up the handshakes under way."""
        self._closed = True
        self._loop.remove_reader(self._listener)
        for task in self._under_way:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the handshakes have ended."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                raw, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error(LogEvent("accept_failed", error=error))
                self._loop.remove_reader(self._listener)
                self._loop.call_later(RETRY, self._listen)
                return
            if self._admits(address[0]):
                self._begin(raw)
            else:
                self._refused["handshake_rate"] += 1
                raw.close()

    def _admits(self, address: str) -> bool:
        exempt = address in self._exempt or "*" in self._exempt
        return exempt or self._addresses.take(network(address), self._loop.time())

    def _begin(self, raw: socket.socket) -> None:
        if len(self._under_way) >= self._limits.handshakes:
            oldest = next(iter(self._under_way))
            del self._under_way[oldest]
            oldest.cancel()
            self._refused["handshakes"] += 1
        task = self._loop.create_task(self._shake_hands(raw))
        self._under_way[task] = None
        task.add_done_callback(lambda ended: self._under_way.pop(ended, None))

    async def _shake_hands(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._protocol, raw, ssl=self._tls, ssl_handshake_timeout=TIMEOUT)
        except OSError:  # no TLS, another protocol or certificate, too slow, gone
            self._refused["handshake"] += 1
