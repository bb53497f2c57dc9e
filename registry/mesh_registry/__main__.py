"""``mesh-registry serve``: the only place that reads the process's environment, and where uvicorn lives."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import httpx
import uvicorn

from mesh_registry import logs
from mesh_registry.api import application
from mesh_registry.config import Config, parse
from mesh_registry.core import Core
from mesh_registry.http import bounded
from mesh_registry.oidc import TokenChecker
from mesh_registry.parts import Registry
from mesh_registry.store.memory import MemoryStore
from mesh_registry.store.protocol import RegistryStore, StoreFailed
from mesh_registry.store.sqlite import SqliteStore
from meshlib.clock import Instant

log = logging.getLogger("mesh_registry")

GRACE = 10
"""Seconds that requests under way get after SIGTERM."""

KEEP_ALIVE = 30
"""Seconds an idle connection is kept. Clients reuse theirs for a burst of requests, then not for minutes."""


def main() -> None:
    """Entry point of the command ``mesh-registry``."""
    try:
        version = installed_version("agent-meshlib")
    except PackageNotFoundError:
        version = "0"
    sys.exit(serve(parse(sys.argv[1:], os.environ, version), version))


def serve(config: Config, version: str) -> int:
    """Serve until told to stop. Returns the exit status: 0 after a signal, 1 when it could not start."""
    logs.configure(config.log_level, config.log_format, sys.stderr)
    try:
        with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
            return runner.run(_serve(config, version))
    except (StoreFailed, OSError, ImportError) as error:
        print(f"mesh-registry: {error}", file=sys.stderr)
        return 1


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # not on Windows, where asyncio's own loop serves
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(config: Config, version: str) -> int:
    listener = _listen(config.host, config.port)
    with contextlib.closing(listener):
        registry = _assemble(config, version)
        server = _Server(
            uvicorn.Config(
                application(registry),
                http=bounded(config.limits, registry.metrics.refused_connections, _exempt(config)),
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=config.max_connections,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=config.trusted_proxies or None,
                ws="none",
            )
        )
        server.registry, server.drain_seconds = registry, config.drain_seconds
        server.announce = lambda: _announce(config, listener)
        await server.serve(sockets=[listener])
    log.info("stopped")
    return 0


def _assemble(config: Config, version: str) -> Registry:
    tokens = None
    if config.issuer is not None:
        tokens = TokenChecker(config.issuer, httpx.AsyncClient(timeout=10, follow_redirects=False))
    store: RegistryStore
    store = MemoryStore(config.max_agents) if config.store is None else SqliteStore(config.store, config.max_agents)
    now = lambda: Instant(time.monotonic(), time.time())  # noqa: E731
    return Registry(Core(config.policy), store, now, tokens, version, config.limits)


def _exempt(config: Config) -> frozenset[str]:
    """Addresses that many clients share, and so may have any number of connections."""
    proxies = {address.strip() for address in config.trusted_proxies.split(",")}
    return frozenset(proxies | ({"127.0.0.1", "::1", "::ffff:127.0.0.1"} if config.exempt_loopback else set()))


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(f"cannot listen on {host}: {error.strerror}") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(False)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def _announce(config: Config, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    store = "memory" if config.store is None else str(config.store)
    event = {"event": "listening", "host": host, "port": port, "store": store, "legacy": config.policy.allow_legacy}
    print(json.dumps(event), flush=True)
    log.info("listening", extra={"fields": {name: value for name, value in event.items() if name != "event"}})


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and for which a signal is an orderly end."""

    announce: Callable[[], None]
    registry: Registry
    drain_seconds: float

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The original raises the signal again after it has shut down, and the process would end by it, not with 0.
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self._heed, loop)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _heed(self, loop: asyncio.AbstractEventLoop) -> None:
        """The first signal ends it after ``drain_seconds``, during which it is not ready; another one at once."""
        first, self.registry.draining = not self.registry.draining, True
        if first and self.drain_seconds:
            loop.call_later(self.drain_seconds, self._end)
        else:
            self._stop()

    def _end(self) -> None:
        self.should_exit = True

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


if __name__ == "__main__":
    main()
