"""A world: agents, a relay, a registry and the time they live in, driven by one plan.

The same plan gives the same run, to the byte. First the plan's faults happen; then calm comes, agents talk a little
more, and after a bounded time everything must have come to rest.
"""

import traceback
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from mesh_relay.core import RelayCore

from meshlib.client.core import ClientCore
from meshlib.config import Limits
from tests.simulation.agents import Agent, ClientProcess, Disk, Kind
from tests.simulation.faults import Happening, Plan, carry_out
from tests.simulation.invariants import Ledger, Violation
from tests.simulation.network import Network
from tests.simulation.servers import Registry, Relay

NAMES = ("alice", "bob", "carol", "dave")
CALM = 400.0
"""Seconds after the last fault within which everything comes to rest: a few rounds of the longest backoff."""


@dataclass(frozen=True)
class Parts:
    """What a world is built of. Production cores, unless a deliberate bug is to be found."""

    client: type[ClientCore] = ClientCore
    shell: type[ClientProcess] = ClientProcess
    disk: type[Disk] = Disk
    relay: type[RelayCore] = RelayCore


@dataclass
class Outcome:
    """What a run came to."""

    plan: Plan
    violation: Violation | None
    messages: int = 0
    delivered: int = 0
    reported: int = 0
    unpromised: int = 0
    """Accepted, neither delivered nor reported: only ``relayed`` was said, or a store is gone that knew of them."""
    redelivered: int = 0
    frames: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    virtual: float = 0.0
    events: list[str] = field(default_factory=list)


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan, parts: Parts = Parts(), *, trace: bool = False) -> None:
        self.plan = plan
        self.net = Network(str(plan.seed))
        self.ledger = Ledger(trace=trace, lanes=plan.lanes)
        self.relay = Relay(self.net, strict=plan.strict, plain=plan.plain_relay, core_type=parts.relay)
        self.registry = Registry(self.net)
        limits = replace(Limits(), outbox=6, inbox=3) if plan.small else Limits()
        if plan.lanes:
            limits = replace(limits, inbox=3)
        self.agents = [
            Agent(
                name,
                self.net,
                self.relay,
                self.registry,
                self.ledger,
                parts.shell,
                parts.client,
                parts.disk(),
                limits,
                kind=Kind[plan.second] if name == "bob" else Kind.OURS,
            )
            for name in NAMES[: plan.agents]
        ]
        if plan.trusting:
            self.agents[0].trusts = frozenset({self.agents[1].did})
        for agent in self.agents:
            self.ledger.agents[agent.did] = agent
            self.ledger.names[agent.did] = agent.name
            self.net.after(self.net.random(agent.name).uniform(0, 2), None, agent.start)
        self._sent = 0
        self._talk: set[tuple[int, int]] = set()

    def run(self) -> Outcome:
        """From the first start to rest."""
        violation = None
        try:
            for happening in self.plan.happenings:
                self.net.after(happening.at, None, carry_out, self, happening)
            self.net.run(self.plan.duration)
            self._calm()
            self.ledger.at_rest(self.relay)
        except Violation as broken:
            violation = broken
        except Exception as error:  # noqa: BLE001 - whatever a core raises here, it should have dealt with
            where = traceback.extract_tb(error.__traceback__)[-1]
            violation = Violation("crash", f"{type(error).__name__}: {error} in {where.name}, line {where.lineno}")
        offers = self.ledger.offers.values()
        return Outcome(
            self.plan,
            violation,
            messages=sum(offer.accepted for offer in offers),
            delivered=sum(offer.handed > 0 for offer in offers),
            reported=sum(offer.reported is not None and not offer.handed for offer in offers),
            unpromised=sum(offer.accepted and not offer.handed and offer.reported is None for offer in offers),
            redelivered=self.ledger.redelivered,
            frames=len(self.net.wire),
            faults=self.net.faults,
            virtual=self.net.now,
            events=self.ledger.events,
        )

    def _calm(self) -> None:
        """No more faults. Whoever is down comes up, every connection is made anew, and everybody says a few words."""
        net = self.net
        net.bends.clear()
        self.relay.disk_full = 0
        for agent in self.agents:
            agent.failures = agent.disk.full = 0
            agent.down_for = 1.0
            if agent.process is not None:
                agent.process.doom = None
                if agent.process.socket is not None:
                    agent.process.socket.cut()
        if self.relay.process is not None:
            self.relay.process.doom = None
        for word in range(3):
            for who, whom in sorted(self._talk):
                net.after(150.0 + 40.0 * word + who, None, self.send, self.agents[who], self.agents[whom])
                net.after(160.0 + 40.0 * word + who, None, self.send, self.agents[whom], self.agents[who])
        net.run(self.plan.duration + CALM)

    # --- what plans make happen --------------------------------------------------------------------------------------

    def send(self, who: Agent, whom: Agent) -> None:
        """An application sends a message, if it is running and has started."""
        if who.process is None:
            return
        if whom.did in who.trusts and not who.process.core.peer(whom.did).verified:
            return  # it would go out in plaintext
        self._talk.add((self.agents.index(who), self.agents.index(whom)))
        self._sent += 1
        self.net.run_in(who.process, who.process.send, whom, f"{who.name} to {whom.name} #{self._sent}")

    def bend(self, who: Agent, direction: str, kind: str, how: int) -> None:
        """Something happens to the next frame of an agent."""
        self.net.bends.setdefault((who.name, direction), deque()).append((kind, how))
        if kind in ("corrupted", "truncated"):
            self._tampered(who)

    def inject(self, who: Agent, raw: bytes, kind: str) -> None:
        """A frame comes to an agent that its peers never sent now."""
        process = who.process
        if process is not None and process.socket is not None and process.socket.whole:
            self.net.faults[kind] += 1
            self.net.run_in(process, process.hear, process.socket, raw)

    def _tampered(self, who: Agent) -> None:
        for other in self.agents:
            self.ledger.tampered |= {(who.did, other.did), (other.did, who.did)}


def run(plan: Plan, parts: Parts = Parts(), *, trace: bool = False) -> Outcome:
    """Run a plan."""
    return World(plan, parts, trace=trace).run()


__all__ = ["Happening", "Outcome", "Parts", "World", "run"]
