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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from mesh_registry.tls import TlsListener
from meshlib.clock import Instant
from meshlib.logs import LogEvent
from meshlib.serving.certificates import CertificateUnusable, ServerTls
from meshlib.serving.unix import unix_listener

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
    tls = None if config.tls is None else ServerTls(config.tls)
    with contextlib.ExitStack() as stack:
        listeners = _listen_everywhere(config, stack)
        registry, exempt = _assemble(config, version), _exempt(config)
        server = _Server(
            uvicorn.Config(
                application(registry),
                http=bounded(config.limits, registry.metrics.refused_connections, exempt),
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
        server.tls, server.exempt = tls, exempt
        server.announce = lambda: _announce(config, listeners)
        await server.serve(sockets=listeners)
    log.info(LogEvent("stopped"))
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


def _listen_everywhere(config: Config, stack: contextlib.ExitStack) -> list[socket.socket]:
    """TCP first: where there is one, it is what the listening line names."""
    listeners = []
    if config.port is not None:
        listeners.append(stack.enter_context(contextlib.closing(_listen(config.host, config.port))))
    if config.unix is not None:
        listeners.append(stack.enter_context(unix_listener(config.unix, config.unix_mode)))
    return listeners


def _announce(config: Config, listeners: Sequence[socket.socket]) -> None:
    where: dict[str, object] = {}
    if config.port is not None:
        host, port = listeners[0].getsockname()[:2]
        where |= {"host": host, "port": port, "tls": config.tls is not None}
    if config.unix is not None:
        where["unix"] = str(config.unix)
    where["store"] = "memory" if config.store is None else str(config.store)
    where["legacy"] = config.policy.allow_legacy
    print(json.dumps({"event": "listening", **where}), flush=True)
    log.info(LogEvent("listening", **where))


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, speaks TLS on TCP alone, and for which a signal is an orderly end."""

    announce: Callable[[], None]
    registry: Registry
    drain_seconds: float
    tls: ServerTls | None
    exempt: frozenset[str]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn knows neither bounds on handshakes nor sockets with TLS beside those without.
        await super().startup([])
        for listener in sockets or []:
            if self.tls is None or listener.family not in (socket.AF_INET, socket.AF_INET6):
                backlog = self.config.backlog
                loop = asyncio.get_running_loop()
                self.servers.append(await loop.create_server(self._protocol, sock=listener, backlog=backlog))
            else:
                listener.listen(self.config.backlog)
                refused = self.registry.metrics.refused_connections
                limits = self.registry.limits
                door = TlsListener(listener, self.tls, self._protocol, limits, refused, self.exempt)
                self.servers.append(door)  # type: ignore[arg-type]  # which closes like a server
        if self.started:
            self.announce()

    def _protocol(self) -> asyncio.Protocol:
        http: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return http(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The original raises the signal again after it has shut down, and the process would end by it, not with 0.
        loop = asyncio.get_running_loop()
        heed = partial(self._heed, loop)
        handled: dict[int, Callable[[], None]] = {signal.SIGTERM: heed, signal.SIGINT: heed}
        if (hangup := getattr(signal, "SIGHUP", None)) is not None:
            handled[hangup] = self._reload
        for number, handler in handled.items():
            loop.add_signal_handler(number, handler)
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

    def _reload(self) -> None:
        if self.tls is None:
            log.info(LogEvent("nothing_to_reload"))
            return
        try:
            self.tls.reload()
        except CertificateUnusable as error:
            log.error(LogEvent("certificate_kept", error=error))
        else:
            log.info(LogEvent("certificate_loaded", expires=self.tls.expires.isoformat()))


if __name__ == "__main__":
    main()
