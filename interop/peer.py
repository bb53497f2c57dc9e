"""A Python peer on stdio: meshlib's MeshClient, driven like peer.mjs. README.md holds the protocol.

`python -m interop.peer asyncio` or `python -m interop.peer trio`. Leaving and coming back is a new client on the same
store, as after a restart.
"""

from __future__ import annotations

import base64
import functools
import importlib.metadata
import json
import platform
import sys
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

import meshlib
from meshlib import Backoff, ClientConfig, Dialect, Identity, MeshClient, accept_everyone, refuse_everyone

QUICK = Backoff(first=0.05, last=0.5)
"""A test of reconnection should take as long as the reconnection."""


class Peer:
    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._config = ClientConfig()
        self._client: MeshClient | None = None
        self._settled = anyio.Event()
        """Connected, or failed to."""
        self._leave = anyio.Event()
        self._left = anyio.Event()
        self._problem: Exception | None = None

    @property
    def client(self) -> MeshClient:
        if self._client is None:
            raise RuntimeError("not connected")
        return self._client

    async def start(
        self, name: str, relay: str, registry: str, store: str | None = None, did: str | None = None, **more: Any
    ) -> dict[str, Any]:
        self._config = ClientConfig(
            name=name,
            relay_url=relay,
            registry_url=registry,
            store=store,
            did=did,
            dialect=Dialect.AGT4 if did else Dialect.AGT5,
            knock_policy=refuse_everyone if more.get("knock") == "deny" else accept_everyone,
            plaintext_peers=frozenset(more.get("plaintextPeers", ())),
            identity=Identity.generate(lambda _: bytes.fromhex(more["seed"])) if more.get("seed") else None,
            proxy="",
            backoff=QUICK,
        )
        return {}

    async def connect(self) -> dict[str, Any]:
        if self._client is None:
            self._settled, self._leave, self._problem = anyio.Event(), anyio.Event(), None
            self._tasks.start_soon(self._online)
            await self._settled.wait()
            if self._problem is not None:
                raise self._problem
        return {"did": str(self.client.did)}

    async def disconnect(self) -> None:
        if self._client is not None:
            self._leave.set()
            await self._left.wait()

    async def reconnect(self) -> None:
        await self.disconnect()
        await self.connect()

    async def discover(self, name: str, limit: int = 50) -> dict[str, Any]:
        found = await self.client.discover(name, limit=limit)
        return {"dids": [str(agent.did) for agent in found]}

    async def establish(self, peer: str) -> None:
        """Nothing: the first message knocks by itself."""

    async def send(
        self,
        peer: str,
        payload: Any = None,
        bytes: str | None = None,  # noqa: A002 - the protocol's word
        wait: str | None = None,
    ) -> dict[str, Any]:
        receipt = await self.client.send(peer, payload if bytes is None else base64.b64decode(bytes), wait=wait)
        return {"message": str(receipt.id)}

    async def delivery(self, message: str) -> dict[str, Any]:
        """How far a message has come."""
        return {"state": str(self.client.receipt(message).state)}

    async def burst(self, peer: str, count: int, label: str = "") -> None:
        for n in range(count):
            await self.client.send(peer, {"label": label, "n": n})

    async def stats(self) -> dict[str, Any]:
        return {"connected": self._client is not None, "python": platform.python_version()}

    async def _online(self) -> None:
        self._left = anyio.Event()
        try:
            async with MeshClient(self._config) as client, anyio.create_task_group() as tasks:
                self._client = client
                say(event="connected", did=str(client.did), features=sorted(client.features))
                tasks.start_soon(self._report_messages, client)
                tasks.start_soon(self._report_events, client)
                self._settled.set()
                await self._leave.wait()
                tasks.cancel_scope.cancel()
        except meshlib.MeshError as problem:
            self._problem = problem
        finally:
            self._client = None
            self._settled.set()
            self._left.set()

    async def _report_messages(self, client: MeshClient) -> None:
        async for message in client.inbox():
            say(event="message", **{"from": str(message.sender)}, **as_fields(message.payload))
            await message.ack()

    async def _report_events(self, client: MeshClient) -> None:
        async for event in client.events():
            match event:
                case meshlib.Connected():
                    say(event="connected", did=str(client.did), features=sorted(event.features))
                case meshlib.Disconnected():
                    say(event="disconnected", code=event.code, reason=event.reason)
                case meshlib.PeerVerified():
                    say(event="verified", **{"from": str(event.peer)})
                case meshlib.KnockReceived():
                    say(event="knock", **{"from": str(event.peer)})
                case meshlib.KnockAccepted():
                    say(event="accepted", **{"from": str(event.peer)})
                case meshlib.DeliveryChanged():
                    say(event="delivery", message=str(event.id), state=str(event.state), detail=event.detail)
                case meshlib.SessionLost():
                    say(event="error", kind="session_lost", **{"from": str(event.peer)}, detail=event.reason)
                case meshlib.FaultFound():
                    say(event="error", kind=event.kind, **{"from": str(event.peer)}, detail=event.detail)
                case _:
                    pass


def as_fields(payload: object) -> dict[str, Any]:
    if isinstance(payload, bytes):
        return {"bytes": base64.b64encode(payload).decode()}
    return {"payload": payload}


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


COMMANDS = (
    "start",
    "connect",
    "disconnect",
    "reconnect",
    "discover",
    "establish",
    "send",
    "burst",
    "delivery",
    "stats",
)


async def main(backend: str) -> None:
    async with anyio.create_task_group() as tasks:
        peer = Peer(tasks)
        version = importlib.metadata.version("agent-meshlib")
        say(event="ready", kind="ours", meshlib=version, python=platform.python_version(), backend=backend)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            arguments = json.loads(line)
            command, number = arguments.pop("cmd"), arguments.pop("id", None)
            if command == "quit":
                break
            await obey(peer, command, number, arguments)
        await peer.disconnect()


async def obey(peer: Peer, command: str, number: int | None, arguments: dict[str, Any]) -> None:
    try:
        if command not in COMMANDS:
            raise ValueError(f"unknown command {command}")
        answer = await getattr(peer, command)(**arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver hears of it
        say(event="failed", id=number, error=f"{type(error).__name__}: {error}")
    else:
        say(event="done", id=number, **(answer or {}))


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
    anyio.run(functools.partial(main, chosen), backend=chosen)
