"""A relay's front door that misbehaves on request: frames swapped, doubled, swallowed or made up.

It stands between agents and a real relay and passes everything on unchanged, unless a rule for the receiving agent
says otherwise. Reordering and loss then happen where they happen in the field: between two TCP connections.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from interop.processes import DEADLINE, Missing

Rule = Callable[[str], list[str] | None]
"""Takes a message frame on its way to an agent and returns what to deliver in its place, or None to have it cut off."""


class Gate:
    """Closed, it holds every frame back that is on its way to an agent."""

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._held: list[str] | None = []
        self._news = asyncio.Event()

    async def holds(self, kind: str, patience: float = DEADLINE) -> None:
        """Wait until a frame of that type is in front of the gate."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not any(json.loads(text)["type"] == kind for text in self._held or ()):
                    self._news.clear()
                    await self._news.wait()
                return
        raise Missing(f"no {kind} frame came to the gate, only {self._held}")

    async def open(self) -> None:
        """Let everything pass that has come, and from now on all."""
        while self._held:
            await self._send(self._held.pop(0))
        self._held = None

    async def __call__(self, text: str) -> None:
        if self._held is None:
            await self._send(text)
        else:
            self._held.append(text)
            self._news.set()


_MAX_FRAME = 4 * 1024 * 1024


@dataclass
class Reversed:
    """Holds frames back until `count` are there and delivers the last one first."""

    count: int
    held: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> list[str]:
        if self.count == 0:
            return [text]
        self.held.append(text)
        if len(self.held) < self.count:
            return []
        self.count = 0
        return self.held[::-1]


@dataclass
class Doubled:
    """Delivers the next frame twice."""

    done: bool = False

    def __call__(self, text: str) -> list[str]:
        if self.done:
            return [text]
        self.done = True
        return [text, text]


@dataclass
class Spoilt:
    """Changes the ciphertext of the next frame."""

    done: bool = False

    def __call__(self, text: str) -> list[str]:
        if self.done:
            return [text]
        self.done = True
        frame = json.loads(text)
        frame["ciphertext"] = base64.b64encode(bytes(len(base64.b64decode(frame["ciphertext"])))).decode()
        return [json.dumps(frame)]


@dataclass
class Swallowed:
    """Loses the next frame, and the connection with it."""

    done: bool = False

    def __call__(self, text: str) -> list[str] | None:
        if self.done:
            return [text]
        self.done = True
        return None


@dataclass
class _Link:
    agent: ServerConnection
    relay: ClientConnection
    rule: Rule | None = None
    gate: Gate | None = None


class Proxy:
    def __init__(self, relay: str) -> None:
        self._relay = relay
        self._links: dict[str, _Link] = {}
        self._loses_ack: set[str] = set()
        self._passed: dict[str, set[str]] = {}
        self._news = asyncio.Event()
        self.address = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, relay: str) -> AsyncIterator[Proxy]:
        """A proxy in front of the relay at `host:port`; its own `address` has the same form."""
        proxy = cls(relay)
        async with serve(proxy._accept, "127.0.0.1", 0, max_size=_MAX_FRAME, compression=None) as server:
            host, port = next(iter(server.sockets)).getsockname()[:2]
            proxy.address = f"{host}:{port}"
            yield proxy

    def rule(self, did: str, rule: Rule) -> None:
        """From now on, message frames to this agent pass through the rule."""
        self._link(did).rule = rule

    def gate(self, did: str) -> Gate:
        """Close a gate in front of this agent."""
        link = self._link(did)
        link.gate = Gate(link.agent.send)
        return link.gate

    def lose_ack(self, did: str) -> None:
        """The next ack of this agent dies on its way to the relay, and the connection with it."""
        self._loses_ack.add(did)

    def passed(self, did: str) -> int:
        """How many messages, by id, have come for this agent."""
        return len(self._passed.get(did, ()))

    async def passes(self, did: str, count: int, patience: float = DEADLINE) -> None:
        """Wait until that many messages have come for this agent."""
        await self._until(lambda: self.passed(did) >= count, patience, f"not {count} messages for {did}")

    async def gone(self, did: str, patience: float = DEADLINE) -> None:
        """Wait until the agent's connection has ended, at the relay, too."""
        await self._until(lambda: did not in self._links, patience, f"{did} is still connected")

    async def _until(self, holds: Callable[[], bool], patience: float, otherwise: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
                return
        raise Missing(otherwise)

    def cut(self, did: str) -> None:
        """Pull the cable: both connections end without a close frame."""
        link = self._link(did)
        link.agent.transport.abort()
        link.relay.transport.abort()

    async def inject(self, did: str, text: str) -> None:
        """Deliver a frame that no relay has sent."""
        await self._link(did).agent.send(text)

    def _link(self, did: str) -> _Link:
        if did not in self._links:
            raise Missing(f"{did} is not connected through the proxy")
        return self._links[did]

    async def _accept(self, agent: ServerConnection) -> None:
        assert agent.request is not None
        async with connect(
            f"ws://{self._relay}{agent.request.path}", max_size=_MAX_FRAME, compression=None, proxy=None
        ) as relay:
            link = _Link(agent, relay)
            upward = asyncio.create_task(self._upward(link))
            downward = asyncio.create_task(self._downward(link))
            _, open_ = await asyncio.wait({upward, downward}, return_when=asyncio.FIRST_COMPLETED)
            for task in open_:
                task.cancel()
            await asyncio.gather(upward, downward, return_exceptions=True)
            self._links = {did: each for did, each in self._links.items() if each is not link}
            self._news.set()

    async def _upward(self, link: _Link) -> None:
        """Agent to relay, unchanged."""
        with contextlib.suppress(ConnectionClosed):
            async for text in link.agent:
                frame = json.loads(text)
                if frame.get("type") == "connect":
                    self._links[frame["from"]] = link
                did = next((did for did, each in self._links.items() if each is link), "")
                if did in self._loses_ack and frame.get("type") == "ack":
                    self._loses_ack.discard(did)
                    link.agent.transport.abort()
                    link.relay.transport.abort()
                    return
                await link.relay.send(text)
            await link.relay.close()

    async def _downward(self, link: _Link) -> None:
        """Relay to agent, message frames through the rule."""
        with contextlib.suppress(ConnectionClosed):
            async for text in link.relay:
                assert isinstance(text, str)
                frame = json.loads(text)
                is_message = isinstance(frame, dict) and frame.get("type") == "message"
                if is_message:
                    self._passed.setdefault(frame["to"], set()).add(frame["id"])
                    self._news.set()
                replaced = link.rule(text) if link.rule and is_message else [text]
                if replaced is None:
                    link.agent.transport.abort()
                    link.relay.transport.abort()
                    return
                for each in replaced:
                    await (link.gate or link.agent.send)(each)
        code = link.relay.close_code
        await link.agent.close(code if code and code not in (1005, 1006) else 1011)
