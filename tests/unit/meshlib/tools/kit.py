"""A mesh in memory: what a model's tools see of one, without keys, sockets or time."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlib.client.events import DeliveryState
from meshlib.client.handles import Agent
from meshlib.client.requests import Answer
from meshlib.client.verbs import PeerSummary
from meshlib.errors import AgentNotFound, MeshError
from meshlib.identity import Did
from meshlib.testing import SeededEntropy
from meshlib.tools.desk import Permissions
from meshlib.tools.toolbox import Call, Toolbox

ME = Did("did:mesh:" + "0" * 32)
BOB = Did("did:mesh:" + "b" * 32)
EVE = Did("did:mesh:" + "e" * 32)


class NothingComes(Exception):
    """Waiting any longer would be for ever."""


async def within(seconds: float, awaitable: Any) -> Any:
    """No time passes: what is not there now will not come."""
    try:
        return await awaitable
    except NothingComes:
        return None


@dataclass(eq=False)
class FakeMessage:
    """A message that knows whether it was confirmed."""

    sender: Did
    payload: object
    id: str
    encrypted: bool = True
    redelivered: bool = False
    acked: int = 0
    refuses: MeshError | None = None

    async def ack(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.acked += 1


@dataclass
class FakeReceipt:
    """A message of ours that has come as far as it will."""

    id: str
    peer: Did
    state: DeliveryState
    detail: str = ""

    async def wait(self, state: DeliveryState | str = DeliveryState.DELIVERED) -> DeliveryState:
        if state == DeliveryState.DELIVERED and self.state is not DeliveryState.DELIVERED:
            raise NothingComes
        return self.state


@dataclass
class FakeMesh:
    """Peers by name; what was sent; what waits."""

    did: Did = ME
    names: dict[str, Did] = field(default_factory=lambda: {"bob": BOB, "eve": EVE})
    sent: list[tuple[Did, object]] = field(default_factory=list)
    files: list[tuple[Did, Path, str]] = field(default_factory=list)
    asked: list[tuple[Did, str, float, int]] = field(default_factory=list)
    waiting: deque[FakeMessage] = field(default_factory=deque)
    agents: list[Agent] = field(default_factory=list)
    known: list[PeerSummary] = field(default_factory=list)
    state: DeliveryState = DeliveryState.DELIVERED
    answer: Answer | None = None
    fails: Exception | None = None
    """What every verb raises."""
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    def arrives(self, sender: Did, payload: object, **facts: Any) -> FakeMessage:
        """A message comes."""
        message = FakeMessage(sender, payload, f"m{next(self._ids)}", **facts)
        self.waiting.append(message)
        return message

    async def resolve(self, peer: str) -> Did:
        self._check()
        if peer.startswith("did:"):
            return Did(peer)
        if peer not in self.names:
            raise AgentNotFound(peer)
        return self.names[peer]

    async def send(self, peer: str, payload: object, **_: Any) -> FakeReceipt:
        did = await self.resolve(peer)
        self.sent.append((did, payload))
        return FakeReceipt(f"m{next(self._ids)}", did, self.state)

    async def receive(self, senders: Collection[str] | None = None) -> FakeMessage:
        self._check()
        wanted = None if senders is None else [await self.resolve(one) for one in senders]
        for message in self.waiting:
            if wanted is None or message.sender in wanted:
                self.waiting.remove(message)
                return message
        raise NothingComes

    async def discover(self, capability: str, limit: int = 50) -> list[Agent]:
        self._check()
        return self.agents

    async def request(
        self, peer: str, content: str, *, timeout: float = 1500.0, hops: int = 0, on_progress: object = None
    ) -> Answer:
        did = await self.resolve(peer)
        self.asked.append((did, content, timeout, hops))
        return self.answer or Answer(did, "r1", "the answer")

    async def send_file(self, peer: str, path: Path, *, description: str = "", on_progress: object = None) -> object:
        did = await self.resolve(peer)
        self.files.append((did, path, description))
        return FakeReceipt("f1", did, self.state)

    async def peers(self) -> list[PeerSummary]:
        self._check()
        return self.known

    def _check(self) -> None:
        if self.fails is not None:
            raise self.fails


def toolbox_of(mesh: FakeMesh, *, entropy: Any = None, **permissions: Any) -> Toolbox:
    return Toolbox(mesh, within, Permissions(**permissions), entropy or SeededEntropy("tools"))


async def called(toolbox: Toolbox, name: str, /, **arguments: Any) -> tuple[dict[str, Any], Call]:
    """What a tool says, and the call."""
    call = await toolbox.call(name, arguments)
    return json.loads(call.text), call
