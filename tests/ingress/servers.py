"""A relay and a registry as processes of their own, started as an operator would, and clients for them."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from meshlib import ClientConfig, MeshClient
from tests.commands import Running, running


@dataclass(frozen=True)
class Server:
    """A process that listens, and what it said about where."""

    process: Running
    said: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.said["port"])

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    def reload(self) -> str:
        """SIGHUP; what it says about it."""
        self.process.signal(signal.SIGHUP)
        return self.logged("certificate_")

    def logged(self, part: str) -> str:
        """The next line of its log that has this part."""
        while part not in (line := self.process.line("err")):
            pass
        return line


@contextmanager
def server(role: str, *options: str | Path, port: bool = True, **environment: str) -> Iterator[Server]:
    """``mesh-relay serve`` or ``mesh-registry serve``, without a store that outlives it unless the options name one."""
    argv: list[str | Path] = [sys.executable, "-m", f"mesh_{role}", "serve", *(["--port", "0"] if port else [])]
    argv += [] if "--store" in options else ["--store", ":memory:"]
    with running([*argv, *options], **environment) as process:
        yield Server(process, process.said())


@asynccontextmanager
async def pair(**settings: Any) -> AsyncIterator[tuple[MeshClient, MeshClient]]:
    """Two connected clients with the same settings."""
    async with MeshClient(ClientConfig(**settings)) as anna, MeshClient(ClientConfig(**settings)) as bert:
        yield anna, bert


async def talk(anna: MeshClient, bert: MeshClient, *, size: int = 100) -> None:
    """One message each way, and both arrive whole."""
    with anyio.fail_after(30):
        for sender, recipient in ((anna, bert), (bert, anna)):
            await sender.send(recipient.did, {"text": "x" * size})
            message = await recipient.receive()
            assert message.payload == {"text": "x" * size}
            await message.ack()
