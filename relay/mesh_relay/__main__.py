"""``mesh-relay serve``: the command line, the only reader of the environment."""

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from typing import get_args

import trio

from mesh_relay import logs
from mesh_relay.config import Durability, LogFormat, LogLevel, RelayConfig
from mesh_relay.server import PATH, RelayServer, open_inbox, open_listeners
from meshlib.errors import InvalidValue, StoreError
from meshlib.logs import LogEvent
from meshlib.serving.certificates import CertificateUnusable, ServerTls
from meshlib.serving.unix import unix_listener

log = logging.getLogger("mesh_relay")

_RELOAD = getattr(signal, "SIGHUP", None)
_HEEDED = [signal.SIGTERM, signal.SIGINT, *([_RELOAD] if _RELOAD is not None else [])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 after SIGTERM or SIGINT, 1 when the relay cannot start, 2 for wrong usage."""
    options = vars(_parser().parse_args(arguments))
    del options["command"]
    try:
        config = RelayConfig.from_mapping(os.environ, **options)
    except InvalidValue as error:
        print(f"mesh-relay: {error}", file=sys.stderr)
        return 2
    logs.configure(config.log_level, config.log_format)
    # Nearly all objects here die young and without cycles: look for cycles seldom.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        trio.run(_serve, config)
    except* (StoreError, OSError) as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):  # one for each nursery it has left
            first = first.exceptions[0]
        print(f"mesh-relay: {first}", file=sys.stderr)
        sys.exit(1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mesh-relay",
        description="Carries encrypted frames between agents and keeps them for absent ones.",
        epilog="Every option can be given as MESH_RELAY_<OPTION>, every limit as MESH_RELAY_<LIMIT>.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the relay until SIGTERM or SIGINT")
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (8083); 0 lets the system choose")
    serve.add_argument("--unix", metavar="PATH", help="listen on a Unix socket; with --host or --port beside TCP")
    serve.add_argument("--unix-mode", metavar="MODE", help="who may connect to it (660: owner and group)")
    serve.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate chain, read anew on SIGHUP")
    serve.add_argument("--tls-key", metavar="FILE", help="its key")
    serve.add_argument("--tls-client-ca", metavar="FILE", help="require client certificates signed by these")
    serve.add_argument("--store", metavar="PATH", help="the SQLite database, or :memory: to forget everything at exit")
    serve.add_argument(
        "--allow-legacy",
        action="store_true",
        default=None,
        help="admit DIDs outside did:mesh: without proof of possession",
    )
    serve.add_argument(
        "--exempt-loopback",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether limits per address leave out loopback, as a reverse proxy needs (they do)",
    )
    serve.add_argument(
        "--durability", choices=get_args(Durability), help="commit within milliseconds, or before forwarding"
    )
    serve.add_argument("--ttl", metavar="SECONDS", help="how long frames are kept for their recipient (72 hours)")
    serve.add_argument(
        "--drain-seconds", metavar="SECONDS", help="after a signal, be not ready for as long before closing (0)"
    )
    serve.add_argument("--log-level", choices=get_args(LogLevel))
    serve.add_argument("--log-format", choices=get_args(LogFormat))
    return parser


async def _serve(config: RelayConfig) -> None:
    tls = None if config.tls is None else ServerTls(config.tls)
    async with contextlib.AsyncExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(*_HEEDED))
        listeners = await _listen(config, stack)
        server = RelayServer(config, listeners, open_inbox(config), tls=tls)
        async with trio.open_nursery() as heeding:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve)
                _announce(config, listeners)
                heeding.start_soon(_heed, signals, server, tls)
            heeding.cancel_scope.cancel()


async def _heed(signals: AsyncIterator[int], server: RelayServer, tls: ServerTls | None) -> None:
    async for received in signals:
        if received == _RELOAD:
            _reload(tls)
        else:
            log.info(LogEvent("draining", signal=signal.Signals(received).name))
            server.drain()


async def _listen(config: RelayConfig, stack: contextlib.AsyncExitStack) -> list[socket.socket]:
    """TCP first: where there is one, it is what the listening line names."""
    listeners = [] if config.port is None else await open_listeners(config.host, config.port)
    if config.unix is not None:
        try:
            listeners.append(stack.enter_context(unix_listener(config.unix, config.unix_mode)))
        except OSError:
            for listener in listeners:
                listener.close()
            raise
        listeners[-1].setblocking(False)
    return listeners


def _announce(config: RelayConfig, listeners: Sequence[socket.socket]) -> None:
    where: dict[str, object] = {}
    if config.port is not None:
        host, port = listeners[0].getsockname()[:2]
        where = {"host": host, "port": port, "tls": config.tls is not None}
    if config.unix is not None:
        where["unix"] = str(config.unix)
    print(json.dumps({"event": "listening", **where, "path": PATH, "store": config.store}), flush=True)
    log.info(LogEvent("listening", **where, store=config.store))


def _reload(tls: ServerTls | None) -> None:
    if tls is None:
        log.info(LogEvent("nothing_to_reload"))
        return
    try:
        tls.reload()
    except CertificateUnusable as error:
        log.error(LogEvent("certificate_kept", error=error))
    else:
        log.info(LogEvent("certificate_loaded", expires=tls.expires.isoformat()))


if __name__ == "__main__":
    sys.exit(main())
