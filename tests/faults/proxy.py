"""A network that can be cut: a TCP proxy in a thread, between applications and the relay."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

UP, DOWN = "up", "down"
"""From the application to the relay, and back."""


@dataclass(eq=False)
class _Tunnel:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    mute: set[str] = field(default_factory=set)


class Proxy:
    """Forwards to ``port`` of this machine until told otherwise."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._tunnels: set[_Tunnel] = set()
        self._mute: set[str] = set()
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.tunnels = 0
        """Connections there have been."""

    def freeze(self, *directions: str) -> None:
        """Lose every byte of these directions and close nothing, of connections that are open and of new ones."""

        def do() -> None:
            self._mute = set(directions)
            for tunnel in self._tunnels:
                tunnel.mute |= self._mute

        self._call(do)

    def thaw(self) -> None:
        """Forward for new connections; what was frozen stays frozen, as behind a router that has forgotten it."""
        self._call(lambda: setattr(self, "_mute", set()))

    def cut(self) -> None:
        """Reset every connection; new ones work."""

        def do() -> None:
            for tunnel in list(self._tunnels):
                for side in (tunnel.near, tunnel.far):
                    side.transport.abort()

        self._call(do)

    def refuse(self, refusing: bool) -> None:
        """Reset new connections as well, or no more."""
        self._call(lambda: setattr(self, "_refusing", refusing))

    def _call(self, do: object) -> None:
        async def run() -> None:
            assert callable(do)
            do()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _tunnel(self, near_in: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        if self._refusing:
            near.transport.abort()
            return
        try:
            far_in, far = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            near.transport.abort()
            return
        tunnel = _Tunnel(near, far, set(self._mute))
        self._tunnels.add(tunnel)
        self.tunnels += 1
        try:
            await asyncio.gather(self._pump(tunnel, UP, near_in, far), self._pump(tunnel, DOWN, far_in, near))
        finally:
            self._tunnels.discard(tunnel)
            near.transport.abort()
            far.transport.abort()

    async def _pump(
        self, tunnel: _Tunnel, way: str, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                if way not in tunnel.mute:
                    target.write(data)
                    await target.drain()
            if way not in tunnel.mute and target.can_write_eof():
                target.write_eof()

    def run(self) -> None:
        """The thread's work."""
        asyncio.set_event_loop(self._loop)

        async def serve() -> None:
            server = await asyncio.start_server(self._tunnel, sock=self._listener)
            self._stop = asyncio.Event()
            self._ready.set()
            await self._stop.wait()
            server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(serve())
        self._loop.close()

    _ready: threading.Event
    _stop: asyncio.Event


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """A proxy for the length of a ``with`` block."""
    proxy = Proxy(port)
    proxy._ready = threading.Event()
    thread = threading.Thread(target=proxy.run)
    thread.start()
    assert proxy._ready.wait(10)
    try:
        yield proxy
    finally:
        proxy._call(proxy._stop.set)
        thread.join()
