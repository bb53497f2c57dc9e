"""Agents that talk to a registry under test, and a clock that moves by hand."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from mesh_registry.api import Registry, application
from mesh_registry.core import Core, Policy
from mesh_registry.store.memory import MemoryStore

from meshlib.clock import Instant
from meshlib.crypto.prekeys import make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.primitives import sha256
from meshlib.identity import Identity
from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp

NOON = 1_790_000_000.0


def entropy(seed: str) -> Callable[[int], bytes]:
    """Bytes that depend on the seed and the call only."""
    calls = 0

    def draw(size: int) -> bytes:
        nonlocal calls
        calls += 1
        return sha256(f"{seed} {calls}".encode())[:size]

    return draw


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.utc = NOON

    def __call__(self) -> Instant:
        return Instant(self.monotonic, self.utc)

    def advance(self, seconds: float) -> None:
        self.monotonic += seconds
        self.utc += seconds


@dataclass
class Actor:
    """An agent with everything it needs to sign requests."""

    name: str
    did: str = ""
    identity: Identity = field(init=False)

    def __post_init__(self) -> None:
        self.identity = Identity.generate(entropy(self.name))
        self.did = self.did or self.identity.did

    @property
    def signer(self) -> wire.Signer:
        return wire.Signer.of(self.identity, self.did)

    def registration(self, utc: float = NOON, capabilities: tuple[str, ...] = (), **metadata: str) -> wire.Request:
        return wire.register(self.identity, timestamp(utc), capabilities or (self.name,), metadata)

    def legacy_registration(self, did: str | None = None) -> wire.Request:
        return wire.register_legacy(did or self.did, self.identity.agreement_key.public, (self.name,))

    def prekeys(self, count: int = 10, *, signed_id: int = 1, first_id: int = 1, seed: str = "") -> wire.PrekeyUpload:
        draw = entropy(f"{self.name} {signed_id} {seed}")
        signed = make_signed_prekey(self.identity, signed_id, draw)
        one_time = make_one_time_prekeys(first_id, count, entropy(f"{self.name} one-time {first_id} {seed}"))
        return wire.PrekeyUpload.of(self.identity, signed, one_time)

    def publication(self, count: int = 10, mode: wire.PrekeyMode = "replace", **options: Any) -> wire.Request:
        return wire.upload_prekeys(self.did, self.prekeys(count, **options), mode)


def changed(request: wire.Request, **members: Any) -> wire.Request:
    """The request with other members in its JSON body; None removes one."""
    body = json.loads(request.body or b"{}") | members
    body = {name: value for name, value in body.items() if value is not None}
    return wire.Request(request.method, request.target, json.dumps(body).encode())


class Site:
    """A registry in this process, behind its real HTTP application."""

    def __init__(self, policy: Policy | None = None, max_agents: int = 100, **options: Any) -> None:
        self.clock = Clock()
        self.store = MemoryStore(max_agents)
        self.core = Core(policy or Policy())
        self.registry = Registry(self.core, self.store, self.clock, version="test", **options)
        self.app = application(self.registry)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://registry.test")

    async def send(
        self,
        request: wire.Request,
        actor: Actor | None = None,
        *,
        bound: bool = False,
        at: float | None = None,
        headers: list[tuple[str, str]] | None = None,
    ) -> httpx.Response:
        """Send a request, signed by ``actor`` at the clock's time or another, or with ready headers."""
        signer = None if actor is None else actor.signer
        if headers is None:
            headers = wire.headers(request, signer, timestamp(self.clock.utc if at is None else at), bound=bound)
        return await self.http.request(request.method, request.target, headers=headers, content=request.body)

    async def join(self, actor: Actor, count: int = 10, **options: Any) -> None:
        """Register the actor and publish prekeys."""
        assert (await self.send(actor.registration(self.clock.utc))).status_code == 201
        self.clock.advance(1)
        answer = await self.send(actor.publication(count, **options), actor)
        assert answer.status_code == 200, answer.text
        self.clock.advance(1)
