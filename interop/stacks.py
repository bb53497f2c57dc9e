"""The servers a cell runs on: ours with secure defaults, ours with --allow-legacy, upstream's."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from interop import upstream
from interop.processes import DEADLINE, Missing, Server


class Servers(enum.StrEnum):
    OURS = "ours"
    OURS_LEGACY = "ours --allow-legacy"
    UPSTREAM = "upstream 3.7.0"


@dataclass(frozen=True)
class Stack:
    """A relay and a registry that are running."""

    servers: Servers
    relay: str
    """`host:port`"""
    registry: str
    """`host:port`"""
    folder: Path
    """For whatever the agents keep; gone with the stack."""

    async def connections(self, count: int) -> None:
        """Wait until the relay counts that many connected agents."""
        agents = -1
        async with httpx.AsyncClient(base_url=f"http://{self.relay}", trust_env=False) as http:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEADLINE):
                    while agents != count:
                        agents = (await http.get("/health")).json()["connected_agents"]
                        await asyncio.sleep(0.01)
        if agents != count:
            raise Missing(f"the relay has {agents} connected agents, not {count}")


@contextlib.asynccontextmanager
async def running(servers: Servers) -> AsyncIterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="mesh-interop-") as folder:
        async with contextlib.AsyncExitStack() as children:
            if servers is Servers.UPSTREAM:
                opened = [upstream.serving(name) for name in ("relay", "registry")]
            else:
                opened = [_ours(name, Path(folder), servers) for name in ("relay", "registry")]
            relay, registry = [await children.enter_async_context(server) for server in opened]
            yield Stack(servers, relay, registry, Path(folder))


@contextlib.asynccontextmanager
async def _ours(name: str, folder: Path, servers: Servers) -> AsyncIterator[str]:
    argv = [sys.executable, "-m", f"mesh_{name}", "serve", "--host", "127.0.0.1", "--port", "0"]
    argv += ["--store", str(folder / f"{name}.db")]
    if servers is Servers.OURS_LEGACY:
        argv.append("--allow-legacy")
    async with Server.running(f"our {name}", argv) as server:
        host, port = await server.address()
        yield f"{host}:{port}"
