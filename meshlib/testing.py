"""Public fakes for testing agents: scripted randomness, a clock that is moved by hand, a mesh in memory.

The production cores run unchanged; only sockets, disk, clock and randomness are replaced. Nothing else in meshlib
imports this module.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlib.client.core import ClientCore, Profile
from meshlib.client.events import Event, Received
from meshlib.client.keyring import PrekeyUpload
from meshlib.clock import Instant
from meshlib.config import Limits
from meshlib.crypto.prekeys import OneTimePrekey, make_bundle
from meshlib.errors import AgentNotFound
from meshlib.identity import Did, Identity
from meshlib.store.memory import MemoryStore
from meshlib.store.protocol import Changes, SavedState
from meshlib.wire.codec import decode, encode
from meshlib.wire.frames import (
    Ack,
    Connected,
    Knock,
    KnockAccept,
    KnockReject,
    Message,
    PlaintextMessage,
    Receipt,
    ReceiptState,
)

EPOCH = 1_767_225_600.0
"""2026-01-01T00:00:00Z, where a :class:`ManualClock` starts."""


class SeededEntropy:
    """Bytes that look random and are the same for the same seed. Never for real keys."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._drawn = 0

    def __call__(self, size: int) -> bytes:
        output = b""
        while len(output) < size:
            output += hashlib.sha256(self._seed + self._drawn.to_bytes(8, "big")).digest()
            self._drawn += 1
        return output[:size]


class ScriptedEntropy:
    """Exactly the given values, in order; anything else is an error.

    Raises:
        AssertionError: more is drawn than scripted, or another size.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        self._values = deque(values)

    def __call__(self, size: int) -> bytes:
        assert self._values, f"{size} bytes drawn, none scripted"
        value = self._values.popleft()
        assert len(value) == size, f"{size} bytes drawn, {len(value)} scripted"
        return value

    @property
    def left(self) -> int:
        """Values not drawn yet."""
        return len(self._values)


class ManualClock:
    """Time that stands still until it is moved."""

    def __init__(self, utc: float = EPOCH) -> None:
        self.now = Instant(1_000.0, utc)

    def advance(self, seconds: float) -> Instant:
        """Move both clocks on."""
        self.now = Instant(self.now.monotonic + seconds, self.now.utc + seconds)
        return self.now


class MemoryClient:
    """One agent of a :class:`MemoryMesh`: a production core, and what it told."""

    def __init__(self, mesh: "MemoryMesh", name: str, profile: Profile, state: SavedState, limits: Limits) -> None:
        self.mesh = mesh
        self.name = name
        self.store = MemoryStore()
        self.store.save(_as_changes(state))
        self.core = ClientCore(profile, state, SeededEntropy(f"{mesh.seed}/{name}/{mesh.boots(name)}"), limits)
        self.received: list[Received] = []
        self.events: list[Event] = []

    @property
    def did(self) -> Did:
        """The agent's DID."""
        return self.core.profile.did

    def connect(self) -> None:
        """Open the connection to the mesh's relay."""
        self.core.opened(self.mesh.clock.now, "challenge" if self.mesh.receipts else None)
        self.step()
        if self.mesh.receipts:
            self.receive(encode(Connected(("receipts",))))
        self.mesh.replay(self)

    def send(self, peer: "MemoryClient", payload: object) -> str:
        """Queue a message, and send what can be sent. Returns its id."""
        message = self.core.send(peer.did, payload, self.mesh.clock.now)
        self.step()
        return message

    def step(self) -> None:
        """Save, write, and gather what the core has to tell."""
        self.store.save(self.core.changes())
        for raw in self.core.writes():
            self.mesh.carry(self, raw)
        self.core.sent()
        self.events += self.core.events()
        arrived = self.core.messages()
        self.store.save(self.core.changes())  # that a message was handed over is saved before it is
        self.received += arrived
        for did in self.core.fetches():
            self.mesh.fetch(self, did)

    def receive(self, raw: bytes) -> None:
        """Take a frame, as if it had come by socket."""
        self.core.receive(raw, self.mesh.clock.now)
        self.step()

    @property
    def payloads(self) -> list[object]:
        """What was handed over, in order."""
        return [one.payload for one in self.received]

    def told(self, kind: type) -> list[Event]:
        """The events of one type."""
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class _Directory:
    upload: PrekeyUpload
    identity: Identity
    one_time: deque[OneTimePrekey] = field(default_factory=deque)


class MemoryMesh:
    """Agents around a relay that stores, forwards and forgets on ack, all in memory.

    Frames lie in ``inboxes`` until :meth:`settle` or :meth:`deliver` moves them, so that a test can drop, repeat,
    reorder or forge them.

    Args:
        receipts: tell senders what became of their messages, as our relay does.
    """

    def __init__(self, seed: str = "mesh", *, receipts: bool = False) -> None:
        self.seed = seed
        self.receipts = receipts
        self.unread: list[tuple[Did, str]] = []
        self._held_back: set[Did] = set()
        self.clock = ManualClock()
        self.clients: dict[Did, MemoryClient] = {}
        self.inboxes: dict[Did, deque[bytes]] = {}
        self.delivered: dict[Did, dict[str, bytes]] = {}
        self.directory: dict[Did, _Directory] = {}
        self._news: deque[tuple[str, bytes]] = deque()
        self.acked: list[tuple[Did, str]] = []
        self._boots: dict[str, int] = {}

    def boots(self, name: str) -> int:
        """How often an agent of that name was started; keeps randomness of restarts apart."""
        self._boots[name] = self._boots.get(name, 0) + 1
        return self._boots[name]

    def agent(
        self,
        name: str,
        *,
        state: SavedState | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        identity: Identity | None = None,
        connect: bool = True,
        **profile: object,
    ) -> MemoryClient:
        """Start an agent, publish its prekeys and connect it."""
        identity = identity or Identity.generate(SeededEntropy(f"{self.seed}/{name}"))
        made = Profile(identity=identity, **{"did": identity.did, "extensions": self.receipts, **profile})  # type: ignore[arg-type]
        client = MemoryClient(self, name, made, state or SavedState(), limits)
        self.clients[client.did] = client
        self.inboxes.setdefault(client.did, deque())
        self.delivered[client.did] = {}
        # As at a registry: what an earlier process of the same store published is still there.
        left = self.directory[client.did].one_time if state is not None and client.did in self.directory else deque()
        upload = client.core.replenish(len(left), self.clock.now)
        client.store.save(client.core.changes())
        self.directory[client.did] = _Directory(upload, identity, deque((*left, *upload.one_time)))
        if connect:
            client.connect()
        return client

    def restart(self, client: MemoryClient, *, keep_state: bool = True) -> MemoryClient:
        """Kill an agent between two steps and start it from what it had saved, or from its key alone."""
        profile = client.core.profile
        options = {name: getattr(profile, name) for name in ("did", "extensions", "plaintext_peers", "ack_when_saved")}
        state = client.store.load() if keep_state else None
        return self.agent(client.name, state=state, limits=client.core.limits, identity=profile.identity, **options)

    def carry(self, sender: MemoryClient, raw: bytes) -> None:
        """Take a frame from an agent."""
        frame = decode(raw)
        if isinstance(frame, Ack):
            (self.unread if frame.unread else self.acked).append((sender.did, frame.id))
            raw = self.delivered[sender.did].pop(frame.id, b"")
            if self.receipts and raw:
                state = ReceiptState.UNREAD if frame.unread else ReceiptState.DELIVERED
                self._news.append((getattr(decode(raw), "sender", ""), encode(Receipt(frame.id, state))))
        elif isinstance(frame, Knock | KnockAccept | KnockReject | Message | PlaintextMessage):
            self.inboxes.setdefault(Did(frame.recipient), deque()).append(raw)

    def fetch(self, client: MemoryClient, did: Did) -> None:
        """Answer a bundle request as a registry would."""
        entry = self.directory.get(did)
        if entry is None:
            client.core.no_bundle(did, AgentNotFound(did), self.clock.now, final=True)
        else:
            one_time = entry.one_time.popleft() if entry.one_time else None
            bundle = make_bundle(entry.identity, entry.upload.signed, one_time)
            client.core.bundle(did, bundle, self.clock.now)
        client.step()

    def deliver(self, client: MemoryClient) -> bytes | None:
        """Hand one waiting frame to an agent."""
        inbox = self.inboxes[client.did]
        if not inbox or client.did in self._held_back:
            return None
        raw = inbox.popleft()
        identifier = getattr(decode(raw), "id", "")
        self.delivered[client.did][identifier] = raw
        client.receive(raw)
        return raw

    def replay(self, client: MemoryClient) -> None:
        """Offer again what was delivered and never acknowledged."""
        waiting = self.delivered[client.did]
        self.delivered[client.did] = {}
        self.inboxes[client.did].extendleft(reversed(waiting.values()))

    def hold_back(self, client: MemoryClient) -> None:
        """Keep an agent's frames from it until :meth:`let_go`."""
        self._held_back.add(client.did)

    def let_go(self, client: MemoryClient) -> None:
        """Deliver to an agent again."""
        self._held_back.discard(client.did)

    def settle(self, rounds: int = 1_000) -> None:
        """Move frames until none is left.

        Raises:
            AssertionError: they never end.
        """
        for _ in range(rounds):
            while self._news:
                did, receipt = self._news.popleft()
                if did in self.clients:
                    self.clients[Did(did)].receive(receipt)
            moved = [self.deliver(client) for client in list(self.clients.values())]
            if not any(moved) and not self._news:
                return
        raise AssertionError(f"frames still travel after {rounds} rounds")


def _as_changes(state: SavedState) -> Changes:
    return Changes(
        signing_key=state.signing_key,
        signed_prekeys=state.signed_prekeys or None,
        one_time_prekeys=dict(state.one_time_prekeys),
        next_prekey_id=state.next_prekey_id,
        peers=dict(state.peers),
        outbox={outgoing.id: outgoing for outgoing in state.outbox},
        inbox={(incoming.sender, incoming.id): incoming for incoming in state.inbox},
        seen=list(state.seen),
        spent_ephemerals=list(state.spent_ephemerals),
    )
