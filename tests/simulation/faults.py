"""What goes wrong, and when: plans, made from a seed and carried out on a world.

A plan is a list of :class:`Happening`, each complete in itself: leaving one out leaves the others as they are. Each
seed allows only some kinds (as in swarm testing), so that rare combinations get whole runs of their own.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from meshlib.crypto.keys import X25519Private
from meshlib.wire import frames
from meshlib.wire import registry as wire
from meshlib.wire.codec import encode
from meshlib.wire.encoding import message_id, timestamp

if TYPE_CHECKING:
    from tests.simulation.agents import Agent
    from tests.simulation.world import World


class Happening(NamedTuple):
    """One thing that happens: ``kind`` at ``at`` seconds, to agent ``who``; ``whom`` and ``how`` depend on the kind."""

    at: float
    kind: str
    who: int
    whom: int
    how: int

    def __str__(self) -> str:
        return f"{self.at:7.2f}  {self.kind:<18} who={self.who} whom={self.whom} how={self.how}"


STARTED = 6.0
"""Seconds until all agents have registered; whom nobody knows yet, nobody can send to."""


@dataclass(frozen=True)
class Plan:
    """A whole run: its seed, how many agents take part, and what happens to them."""

    seed: int
    agents: int
    duration: float
    happenings: tuple[Happening, ...]
    strict: bool = False
    """The relay commits before it forwards."""
    small: bool = False
    """Outboxes and inboxes are tiny."""
    trusting: bool = False
    """The first agent takes plaintext of the second until it is verified."""
    second: str = "OURS"
    """What the second agent is made of: a name of :class:`tests.simulation.agents.Kind`."""
    plain_relay: bool = False
    """The relay knows no extensions."""
    lanes: bool = False
    """Messages wait in two lanes, both tiny, and who takes from the first one is away for twenty seconds at a time."""


def plan(seed: int, focus: tuple[str, ...] = ()) -> Plan:
    """The plan of a seed. With a ``focus``, faults are of those kinds only, and many."""
    chance = random.Random(f"plan {seed}")
    agents = chance.choice((2, 2, 2, 3, 4))
    duration = chance.choice((20.0, 60.0, 150.0))
    faults = [kind for kind in KINDS if kind not in ("send", "burst", "both send")]
    allowed = list(focus) or chance.sample(faults, chance.randint(1, min(8, len(faults))))
    kinds = [chance.choice(("send", "send", "burst", "both send")) for _ in range(chance.randint(4, 16))]
    kinds += [chance.choice(allowed) for _ in range(20 if focus else chance.choice((0, 3, 8, 20)))]
    happenings = [_happening(chance, duration, agents, kind) for kind in kinds]
    return Plan(
        seed,
        agents,
        duration,
        tuple(sorted(happenings)),
        strict=chance.random() < 0.2,
        small=chance.random() < 0.2,
        trusting="plaintext forged" in allowed,
        second=chance.choice(("ASKING", "LIKE_SDK", "LEGACY")) if not focus and chance.random() < 0.3 else "OURS",
        plain_relay=not focus and chance.random() < 0.05,
        lanes=chance.random() < 0.25,
    )


def _happening(chance: random.Random, duration: float, agents: int, kind: str) -> Happening:
    who, whom = chance.sample(range(agents), 2)
    return Happening(round(chance.uniform(STARTED, duration), 2), kind, who, whom, chance.randrange(1 << 20))


def carry_out(world: "World", happening: Happening) -> None:
    """Make it happen."""
    agents = world.agents
    who, whom = agents[happening.who % len(agents)], agents[happening.whom % len(agents)]
    KINDS[happening.kind](world, who, whom, happening.how)


# --- what can happen --------------------------------------------------------------------------------------------------


def _send(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    world.send(who, whom)


def _burst(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    for _ in range(2 + how % 6):
        world.send(who, whom)


def _both(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    world.send(who, whom)
    world.send(whom, who)


def _kill(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    who.down_for = (0.1, 2.0, 30.0, 80.0)[how // 100 % 4]
    if who.process is not None:
        who.process.doom = how % 40


def _kill_relay(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    world.relay.down_for = (0.1, 2.0, 40.0)[how // 100 % 3]
    if world.relay.process is not None:
        world.relay.process.doom = how % 25


def _stop_registry(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    world.registry.stop(how % 60)
    world.net.faults["registry down"] += 1


def _cut(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    if who.process is not None and who.process.socket is not None:
        who.process.socket.cut()
        world.net.faults["cut"] += 1


def _bend(kind: str) -> Callable[["World", "Agent", "Agent", int], None]:
    def bend(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
        world.bend(who, ("up", "down")[how % 2], kind, how // 2)

    return bend


def _replay(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    """The relay, or who sits in its place, says again what went to this agent before."""
    heard = [raw for name, direction, raw in world.net.wire if name == who.name and direction == "down"]
    if heard:
        world.inject(who, heard[how % len(heard)], "replayed")


def _replay_knock(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    knocks = [
        raw for name, way, raw in world.net.wire if (name, way) == (who.name, "down") and b'"type":"knock"' in raw
    ]
    if knocks:
        world.inject(who, knocks[how % len(knocks)], "knock replayed")


def _forge_knock(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    """A knock in the name of ``whom``, with its true identity key or a made-up one, and a one-time key if there is."""
    chance = random.Random(f"{world.plan.seed} {how}")
    identity = whom.identity.agreement_key.public if how % 3 else X25519Private(chance.randbytes(32)).public
    known = list(who.process.core.keyring.one_time) if who.process is not None else []
    key = known[how // 3 % len(known)] if known and how % 2 else None
    establishment = frames.Establishment(bytes(identity), bytes(X25519Private(chance.randbytes(32)).public), key)
    moment = timestamp(world.net.instant().utc)
    knock = frames.Knock(whom.did, who.did, message_id(chance.randbytes), moment, establishment)
    world.inject(who, encode(knock), "knock forged")


def _forge_reject(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    chance = random.Random(f"{world.plan.seed} {how}")
    moment = timestamp(world.net.instant().utc)
    invented, answer = message_id(chance.randbytes), message_id(chance.randbytes)
    reject = frames.KnockReject(whom.did, who.did, answer, invented, "policy_denied", moment)
    world.inject(who, encode(reject), "reject forged")


def _plaintext(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    chance = random.Random(f"{world.plan.seed} {how}")
    moment = timestamp(world.net.instant().utc)
    frame = frames.PlaintextMessage(
        world.agents[1].did, world.agents[0].did, message_id(chance.randbytes), moment, b'"psst"'
    )
    world.inject(world.agents[0], encode(frame), "plaintext forged")


def _garbage(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    chance = random.Random(f"{world.plan.seed} {how}")
    moment = timestamp(world.net.instant().utc)
    header = frames.MessageHeader(bytes(X25519Private(chance.randbytes(32)).public), how % 3, how % 5)
    frame = frames.Message(whom.did, who.did, message_id(chance.randbytes), moment, header, chance.randbytes(80))
    world.inject(who, encode(frame), "message forged")


def _skew(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    who.skew = float(how % 7000 - 3500)
    world.net.faults["clock skewed"] += 1


def _drain(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    """Strangers and acquaintances take one-time keys and never knock."""
    for number in range(2 + how % 8):
        request = wire.fetch_prekeys(who.did)
        signer = wire.Signer.of(whom.identity) if how % 2 else None
        moment = timestamp(world.net.instant().utc + number / 1000)
        headers = dict(wire.headers(request, signer, moment, bound=True))
        world.registry.answer(request, headers, f"stranger {number}")
    world.net.faults["prekeys drained"] += 1


def _forget(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    if who.process is not None:
        world.net.run_in(who.process, who.process.close_session, whom)
        world.net.faults["sessions lost"] += 1


def _disk_full(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    who.disk.full = 1


def _relay_disk_full(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    world.relay.disk_full = 1 + how % 3


def _fail(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    who.failures = 1 + how % 2


def _roll_back_relay(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    """Odd: take a backup. Even: put the last one in place."""
    if how % 2:
        world.relay.copy_disk()
    elif world.relay.roll_back():
        world.net.faults["relay rolled back"] += 1


def _roll_back_registry(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    if how % 2:
        world.registry.copy_disk()
    elif world.registry.roll_back():
        world.ledger.refusable = True
        world.net.faults["registry rolled back"] += 1


def _roll_back_store(world: "World", who: "Agent", whom: "Agent", how: int) -> None:
    """Odd: take a backup. Even: put the last one in place."""
    if how % 2:
        who.copy_disk()
    elif who.roll_back():
        world.net.faults["store rolled back"] += 1


KINDS: dict[str, Callable[["World", "Agent", "Agent", int], None]] = {
    "send": _send,
    "burst": _burst,
    "both send": _both,
    "kill": _kill,
    "kill relay": _kill_relay,
    "registry down": _stop_registry,
    "cut": _cut,
    "dropped": _bend("dropped"),
    "delayed": _bend("delayed"),
    "duplicated": _bend("duplicated"),
    "corrupted": _bend("corrupted"),
    "truncated": _bend("truncated"),
    "replayed": _replay,
    "knock replayed": _replay_knock,
    "knock forged": _forge_knock,
    "reject forged": _forge_reject,
    "plaintext forged": _plaintext,
    "message forged": _garbage,
    "clock skewed": _skew,
    "prekeys drained": _drain,
    "sessions lost": _forget,
    "disk full": _disk_full,
    "relay's disk full": _relay_disk_full,
    "application failed": _fail,
    "relay rolled back": _roll_back_relay,
    "registry rolled back": _roll_back_registry,
    "store rolled back": _roll_back_store,
}
