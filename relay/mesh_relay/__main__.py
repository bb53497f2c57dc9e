"""``mesh-relay serve``: the command line, the only reader of the environment."""

import argparse
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import get_args

import trio

from mesh_relay import logs
from mesh_relay.config import Durability, LogFormat, LogLevel, RelayConfig
from mesh_relay.server import RelayServer, open_inbox, open_listeners
from meshlib.errors import InvalidValue, StoreError

log = logging.getLogger("mesh_relay")


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
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await open_listeners(config.host, config.port)
        server = RelayServer(config, listeners, open_inbox(config))
        host, port = listeners[0].getsockname()[:2]
        async with trio.open_nursery() as heeding:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve)
                print(
                    json.dumps(
                        {"event": "listening", "host": host, "port": port, "path": "/ws", "store": config.store}
                    ),
                    flush=True,
                )
                log.info("listening", extra={"fields": {"host": host, "port": port, "store": config.store}})
                heeding.start_soon(_heed, signals, server)
            heeding.cancel_scope.cancel()


async def _heed(signals: AsyncIterator[int], server: RelayServer) -> None:
    async for received in signals:
        log.info("draining", extra={"fields": {"signal": signal.Signals(received).name}})
        server.drain()


if __name__ == "__main__":
    sys.exit(main())
