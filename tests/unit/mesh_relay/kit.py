"""What the relay's tests share: agents with keys, a wound clock, a core with its inbox run by hand."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mesh_relay.config import Limits
from mesh_relay.core import Close, Ping, RelayCore, Send
from mesh_relay.inbox.memory import MemoryInbox
from mesh_relay.inbox.protocol import Inbox
from mesh_relay.links import Link

from meshlib.clock import Instant
from meshlib.identity import Identity, challenge_statement, timestamp_statement
from meshlib.wire.encoding import b64, timestamp

UTC = 1_790_000_000.0
NONCE = "bm9uY2U"


def agent(seed: int) -> Identity:
    return Identity.generate(random.Random(seed).randbytes)


ALICE, BOB, CAROL, MALLORY = (agent(seed) for seed in range(4))


def connect_frame(
    who: Identity,
    utc: float,
    *,
    nonce: str | None = None,
    features: list[str] | None = None,
    did: str | None = None,
    **members: Any,
) -> bytes:
    """A connect with its proof; ``nonce`` answers a challenge, without one the proof is of the bare timestamp."""
    signed_at = timestamp(utc)
    name = did or who.did
    statement = timestamp_statement(signed_at) if nonce is None else challenge_statement(name, signed_at, nonce)  # type: ignore[arg-type]
    frame: dict[str, Any] = {
        "v": 1,
        "type": "connect",
        "from": name,
        "public_key": b64(bytes(who.public_key)),
        "timestamp": signed_at,
        "signature": b64(who.sign(statement)),
    }
    if features is not None:
        frame["features"] = features
    return dump(frame | members)


def dump(frame: object) -> bytes:
    return json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode()


def message(to: str, frame_id: str, *, sender: str | None = None, kind: str = "message", **members: Any) -> bytes:
    frame: dict[str, Any] = {"v": 1, "type": kind, "from": sender, "to": to, "id": frame_id, **members}
    if sender is None:
        del frame["from"]
    return dump(frame)


def ack(frame_id: str, **members: Any) -> bytes:
    return dump({"v": 1, "type": "ack", "id": frame_id, **members})


class Relay:
    """A core, its inbox and its clock, all worked by hand. Every link has its own list of what it was sent."""

    def __init__(self, inbox: Inbox | None = None, *, ttl: float = 3600.0, **options: Any) -> None:
        limits = {name: options.pop(name) for name in list(options) if hasattr(Limits, name)}
        self.now = Instant(1000.0, UTC)
        self.limits = replace(Limits(), **limits)
        self.inbox = inbox or MemoryInbox()
        self.core = RelayCore(self.limits, self.inbox.open(), self.now, ttl=ttl, **options)
        self.got: dict[Link, list[Mapping[str, Any]]] = {}
        self.raw: dict[Link, list[bytes]] = {}
        self.closed: dict[Link, tuple[int, str]] = {}
        self.stalled: set[Link] = set()
        self.pings: list[Link] = []

    def wait(self, seconds: float) -> None:
        """Let time pass, a tick at a time."""
        until = self.now.monotonic + seconds
        while self.now.monotonic < until:
            step = min(1.0, until - self.now.monotonic)
            self.now = Instant(self.now.monotonic + step, self.now.utc + step)
            self.core.tick(self.now)
            self.carry_out()

    def open(self, address: str = "192.0.2.1", nonce: str = NONCE) -> Link:
        link = self.core.open(address, nonce, self.now)
        self.got[link], self.raw[link] = [], []
        return link

    def join(self, who: Identity, features: list[str] | None = None, **options: Any) -> Link:
        """Open a link and prove who; on the challenge when ``features`` ask for it."""
        link = self.open()
        nonce = NONCE if features and "challenge" in features else None
        self.now = Instant(self.now.monotonic + 0.001, self.now.utc + 0.001)  # no two proofs alike
        self.say(link, connect_frame(who, self.now.utc, nonce=nonce, features=features, **options))
        return link

    def say(self, link: Link, *frames: bytes) -> None:
        self.core.receive_all(link, frames, self.now)
        self.core.heard(link, len(frames), self.now)
        self.carry_out()

    def carry_out(self) -> None:
        wrote = set()
        for effect in self.core.effects():
            if isinstance(effect, Send):
                self.raw[effect.link] += effect.payloads
                self.got[effect.link] += map(json.loads, effect.payloads)
                wrote.add(effect.link)
            elif isinstance(effect, Ping):
                self.pings.append(effect.link)
            else:
                assert isinstance(effect, Close)
                self.closed[effect.link] = (effect.code, effect.reason)
        for link in wrote - self.stalled:
            self.core.flushed(link, 0)

    def drain(self, link: Link) -> None:
        """A stalled reader has caught up."""
        self.stalled.discard(link)
        self.core.flushed(link, 0)
        self.carry_out()

    def commit(self, *, everything: bool = True) -> None:
        """Run transactions until there is nothing to do."""
        while self.core.work_waiting:
            work = self.core.take_work(self.now, everything=everything)
            self.core.stored(work, self.inbox.run(work), self.now)
            self.carry_out()

    def frames(self, link: Link, kind: str) -> list[Mapping[str, Any]]:
        return [frame for frame in self.got[link] if frame["type"] == kind]

    def ids(self, link: Link) -> list[str]:
        """Ids of the routed frames that were pushed, in order."""
        return [
            frame["id"]
            for frame in self.got[link]
            if frame["type"] in ("message", "knock", "knock_accept", "knock_reject")
        ]

    def errors(self, link: Link) -> list[str]:
        return [str(frame["detail"]) for frame in self.frames(link, "error")]

    def receipts(self, link: Link) -> list[tuple[str, str]]:
        return [(frame["id"], frame["state"]) for frame in self.frames(link, "receipt")]
