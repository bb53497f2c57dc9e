"""The relay cases: throughput, latency, memory, connects, mail that waited, and agents that all come back at once."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from bench import machine, servers
from bench.load.loop import PATIENCE, Connection, LoadError, Loop
from bench.load.traffic import Traffic, without_collector
from bench.load.wire import Agent, Lane, Shape
from bench.measures import OURS, Case, Contender, Run, percentile
from bench.plan import Plan, Turns

AGT, STRICT, IN_MEMORY = "AGT", "ours, strict", "ours, in memory"
AGT_DROWNS_AT = 16_000
"""Messages per second that AGT is offered at most: more than it can carry."""
_SETTLE = 0.5
"""Seconds a server gets to come to rest before its memory is read."""
_BYSTANDER_RATE = 200.0


@dataclass(frozen=True)
class Relay:
    """A relay that can be started, and whether it answers a connect frame."""

    program: servers.Program
    answers_connect: bool = True

    @contextlib.contextmanager
    def loaded(self) -> Iterator[tuple[servers.Server, Loop]]:
        """A fresh relay and a loop to it, the load on its own core."""
        with (
            servers.running(self.program) as server,
            Loop(server.port, answers_connect=self.answers_connect) as loop,
            machine.on_load_core(),
            without_collector(),
        ):
            yield server, loop


RELAYS = {
    OURS: Relay(servers.OUR_RELAY),
    STRICT: Relay(servers.OUR_RELAY_STRICT),
    IN_MEMORY: Relay(servers.OUR_RELAY_IN_MEMORY),
    AGT: Relay(servers.AGT_RELAY, answers_connect=False),
}
BOTH = (OURS, AGT)


@dataclass(frozen=True)
class Pattern:
    """Who sends to whom: pairs of indices of senders and recipients."""

    ways: tuple[tuple[int, int], ...]
    window: int
    """Messages of one way that are under way at the same time."""
    acks: bool = True

    @classmethod
    def pairs(cls, count: int, payload: int = 256, *, acks: bool = True) -> Pattern:
        """Each sender has its recipient. Fewer at a time where there are many or large ones."""
        window = max(4, min(64, 4096 // count, 2 * 1024 * 1024 // count // payload))
        return cls(tuple((n, n) for n in range(count)), window, acks)

    @classmethod
    def fan_in(cls, count: int) -> Pattern:
        """All to one."""
        return cls(tuple((n, 0) for n in range(count)), max(4, 192 // count))

    @classmethod
    def fan_out(cls, count: int) -> Pattern:
        """One to all."""
        return cls(tuple((0, n) for n in range(count)), 64)

    def start(self, loop: Loop, payload: int) -> Traffic:
        """Connect everybody and make the flows."""
        senders = loop.open([Agent() for _ in range(1 + max(sender for sender, _ in self.ways))])
        recipients = loop.open([Agent() for _ in range(1 + max(recipient for _, recipient in self.ways))])
        # loop.open returns them in the order in which they were bound, which is as good as any.
        lanes = [
            Lane.between(number, senders[sender].did, recipients[recipient].did, payload)
            for number, (sender, recipient) in enumerate(self.ways)
        ]
        traffic = Traffic(loop, Shape.of(lanes[0]), acks=self.acks)
        for lane, (sender, recipient) in zip(lanes, self.ways, strict=True):
            traffic.add(lane, senders[sender], recipients[recipient], self.window)
        return traffic


def throughput(relay: Relay, pattern: Pattern, payload: int, seconds: float) -> Run:
    """Messages per second with all windows full."""
    with relay.loaded() as (server, loop):
        return pattern.start(loop, payload).saturate(server.pid, seconds)


def latency(relay: Relay, rate: float, seconds: float) -> Run:
    """Milliseconds from when a message was due to its arrival, at a fixed rate over 32 pairs."""
    with relay.loaded() as (server, loop):
        return Pattern.pairs(32).start(loop, 256).at_rate(server.pid, rate, seconds)


def idle_memory(relay: Relay, count: int) -> Run:
    """KiB of the server per connection that only lives."""
    with relay.loaded() as (server, loop):
        loop.open([Agent() for _ in range(10)])
        _rest(loop)
        before = machine.resident(server.pid)
        loop.open([Agent() for _ in range(count)])
        _rest(loop)
        return Run((machine.resident(server.pid) - before) / count / 1024)


def _rest(loop: Loop) -> None:
    until = time.monotonic() + _SETTLE
    while time.monotonic() < until:
        loop.step()


def connects(relay: Relay, count: int) -> Run:
    """Agents per second that connect until a message to themselves has come back."""
    agents = [Agent() for _ in range(count)]
    with relay.loaded() as (server, loop):
        cpu, own, began = machine.cpu_seconds(server.pid), time.process_time(), time.perf_counter()
        loop.open(agents, probe=True)
        spent = time.perf_counter() - began
        cpu, own = machine.cpu_seconds(server.pid) - cpu, time.process_time() - own
        return Run(count / spent, {"server": cpu / spent, "load": own / spent, "us": cpu / count * 1e6})


def backlog(relay: Relay, recipients: int, each: int, payload: int = 256) -> Run:
    """Messages per second that absent recipients get, from their proofs until the last has everything."""
    with relay.loaded() as (server, loop):
        agents = [Agent() for _ in range(recipients)]
        traffic = _leave_mail(server, loop, agents, each, senders=4, payload=payload)
        ready = loop.half_open(agents, partial(_reader, traffic))
        cpu, own, began = machine.cpu_seconds(server.pid), time.process_time(), time.monotonic()
        for prove in ready:
            prove()
        return _collected(server, loop, traffic, cpu, own, began)


def _reader(traffic: Traffic, connection: Connection) -> Callable[[bytes], None]:
    traffic.receive_with(connection)
    return connection.take


def _leave_mail(
    server: servers.Server, loop: Loop, agents: list[Agent], each: int, senders: int, payload: int = 256
) -> Traffic:
    """Send to agents that are not there, and wait until the relay says that it has stored everything."""
    sending = loop.open([Agent() for _ in range(senders)])
    stored = _stored(server)
    lanes = [
        (sender, Lane.between(len(agents) * index + number, sender.did, agent.did, payload))
        for index, sender in enumerate(sending)
        for number, agent in enumerate(agents)
    ]
    if each < senders or len(agents) > 1:  # many recipients: each has its mail from one sender
        lanes = [lanes[len(agents) * (number % senders) + number] for number in range(len(agents))]
        share = each
    else:
        share = each // senders
    traffic = Traffic(loop, Shape.of(lanes[0][1]))
    total = share * len(lanes)
    for sender, lane in lanes:
        flow = traffic.add(lane, sender, None, 0)
        while flow.sent < share:
            if not sender.unsent:
                count = min(500, share - flow.sent)
                sender.send(lane.frames(flow.sent, count))
                flow.sent += count
            loop.step(0)
    patience = time.monotonic() + 2 * PATIENCE
    while _stored(server) - stored < total:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            loop.step(0.01)
        if time.monotonic() > patience or traffic.refused:
            raise LoadError(f"the relay stored {_stored(server) - stored} of {total} messages")
    return traffic


def _stored(server: servers.Server) -> int:
    return int(json.loads(servers.health(server.port))["stats"]["messages_stored"])


def _collected(
    server: servers.Server, loop: Loop, traffic: Traffic, cpu: float, own: float, began: float, **more: float
) -> Run:
    total = sum(flow.sent for flow in traffic.flows.values())
    loop.spin(lambda: traffic.received >= total, patience=10)
    spent = loop.progress - began  # who loses messages is not measured by how long they were waited for
    cpu, own = machine.cpu_seconds(server.pid) - cpu, time.process_time() - own
    count = max(1, traffic.received)
    shares = {"server": cpu / spent, "load": own / spent, "us": cpu / count * 1e6}
    return Run(count / spent, shares | traffic.faults() | more)


def storm(relay: Relay, count: int, each: int) -> Run:
    """Agents per second that come back after all were cut off, each with mail waiting; what a pair notices of it."""
    with relay.loaded() as (server, loop):
        agents = [Agent() for _ in range(count)]
        for connection in loop.open(agents):
            loop.close(connection, hard=True)
        _rest(loop)
        traffic = _leave_mail(server, loop, agents, each, senders=1)
        bystanders = Pattern.pairs(1).start(loop, 256)
        pair = bystanders.flows[0]
        mail, back, began = sum(flow.sent for flow in traffic.flows.values()), 0, time.perf_counter()
        cpu, due, patience, waiting = machine.cpu_seconds(server.pid), began, began + 120, list(reversed(agents))
        dialled = 0

        def upgraded(connection: Connection, hello: bytes) -> None:
            nonlocal back
            back += 1
            _reader(traffic, connection)
            connection.send(hello)

        while traffic.received < mail and time.perf_counter() < patience:
            while waiting and dialled - back < 256:
                loop.dial(waiting.pop(), upgraded=upgraded)
                dialled += 1
            while due <= time.perf_counter():
                pair.due.append(due)
                pair.sender.send(pair.lane.frames(pair.sent, 1))
                pair.sent += 1
                due += 1 / _BYSTANDER_RATE
            loop.step(0.001)
        spent, cpu = time.perf_counter() - began, machine.cpu_seconds(server.pid) - cpu
        bystanders.drain()
        ordered = sorted(bystanders.latencies)
        faults = {name: value + bystanders.faults()[name] for name, value in traffic.faults().items()}
        noticed = {f"p{share}": percentile(ordered, share / 100) * 1000 for share in (50, 99)}
        return Run(count / spent, {"server": cpu / spent, "us": cpu / count * 1e6} | faults | noticed)


@dataclass(frozen=True)
class Step:
    """A case and how one relay is measured for it."""

    case: Case
    measure: Callable[[Relay], Run]
    relays: tuple[str, ...] = field(default=BOTH)
    most_rounds: int = 99


def steps(plan: Plan) -> Iterator[Step]:
    """Everything here, in the order in which it is measured."""
    reach = {256: 5.0, 4096: 4.0, 65536: 1.6}
    few = min(8, plan.many_pairs)
    for payload in plan.payloads:
        pattern = Pattern.pairs(few, payload)
        case = Case(
            "relay",
            "routed",
            {"payload": payload, "pairs": few, "acks": True},
            "messages/s",
            True,
            {AGT: reach[payload]},
        )
        relays: tuple[str, ...] = (OURS, AGT, STRICT, IN_MEMORY) if payload == 256 else BOTH
        yield Step(case, partial(throughput, pattern=pattern, payload=payload, seconds=plan.seconds), relays)
    wide = {"payload": 256, "pairs": plan.many_pairs, "acks": True}
    case = Case("relay", "routed", wide, "messages/s", True, {AGT: 5.0})
    pattern = Pattern.pairs(plan.many_pairs)
    yield Step(case, partial(throughput, pattern=pattern, payload=256, seconds=plan.seconds))
    silent = Case("relay", "routed", {"payload": 256, "pairs": few, "acks": False}, "messages/s")
    pattern = Pattern.pairs(few, acks=False)
    yield Step(silent, partial(throughput, pattern=pattern, payload=256, seconds=plan.seconds), (IN_MEMORY, AGT))
    for name, pattern in (("fan-in", Pattern.fan_in(plan.fan)), ("fan-out", Pattern.fan_out(plan.fan))):
        case = Case("relay", name, {"payload": 256, "agents": plan.fan, "acks": True}, "messages/s", True, {AGT: 4.0})
        yield Step(case, partial(throughput, pattern=pattern, payload=256, seconds=plan.seconds))
    for rate in plan.rates:
        case = Case(
            "relay", "latency", {"payload": 256, "messages/s": rate}, "ms", False, {AGT: 1.0} if rate == 6000 else {}
        )
        able = BOTH if rate <= AGT_DROWNS_AT else (OURS,)
        yield Step(case, partial(latency, rate=rate, seconds=plan.seconds), able)
    for count in plan.idle:
        case = Case("relay", "memory of an idle connection", {"connections": count}, "KiB", False, {AGT: 3.0})
        yield Step(case, partial(idle_memory, count=count))
    case = Case("relay", "connects", {"agents": plan.connects}, "connects/s", True, {AGT: 2.5})
    yield Step(case, partial(connects, count=plan.connects))
    parameters = {"recipients": plan.recipients, "messages each": plan.mail_each}
    case = Case("relay", "mail drained", parameters, "messages/s", True, {AGT: 5.0})
    yield Step(case, partial(backlog, recipients=plan.recipients, each=plan.mail_each))
    for depth in plan.depths:
        parameters = {"recipients": 1, "messages each": depth}
        case = Case("relay", "mail drained", parameters, "messages/s", True, {AGT: 2.8})
        yield Step(case, partial(backlog, recipients=1, each=depth))
    count, each = plan.storm
    case = Case("relay", "reconnect storm", {"agents": count, "messages each": each}, "agents/s", True, {AGT: 2.5})
    yield Step(case, partial(storm, count=count, each=each), most_rounds=2)  # a minute each


def run(plan: Plan, turns: Turns) -> None:
    """Measure everything here."""
    for step in steps(plan):
        contenders: Mapping[str, Contender] = {name: partial(step.measure, RELAYS[name]) for name in step.relays}
        turns(step.case, contenders, step.most_rounds)
