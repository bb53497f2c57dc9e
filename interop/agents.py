"""The agents of the matrix, each a process that speaks the protocol of README.md."""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from interop.processes import Peer
from interop.stacks import Stack

_PEER_MJS = Path(__file__).with_name("peer.mjs")


class Client(enum.StrEnum):
    OURS = "ours"
    OURS_TRIO = "ours on trio"
    SDK = "SDK 4.0.0"
    SDK_ADAPTER = "SDK 4.0.0 + adapter"

    @property
    def is_sdk(self) -> bool:
        return self in (Client.SDK, Client.SDK_ADAPTER)

    @property
    def argv(self) -> list[str]:
        if self.is_sdk:
            return ["node", str(_PEER_MJS)]
        return [sys.executable, "-m", "interop.peer", "trio" if self is Client.OURS_TRIO else "asyncio"]


@contextlib.asynccontextmanager
async def agent(stack: Stack, client: Client, name: str, relay: str, **options: Any) -> AsyncIterator[Peer]:
    """An agent of that kind, connected and registered under its name."""
    async with Peer.running(name, client.argv) as peer:
        await peer.expect("ready")
        await peer.call(
            "start",
            name=name,
            relay=f"ws://{relay}",
            registry=f"http://{stack.registry}",
            adapter=client is Client.SDK_ADAPTER,
            store=str(stack.folder / name),
            **options,
        )
        peer.did = (await peer.call("connect"))["did"]
        await peer.expect("connected")
        yield peer
