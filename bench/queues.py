"""What one would take instead of a relay: brokers with one durable queue per recipient and an ack per message.

None of them proves identities, encrypts end to end or speaks the SDK's wire. Durability differs: ours is on disk within
milliseconds, JetStream syncs every two minutes, mosquitto saves when it ends, AGT forgets.
"""

from __future__ import annotations

import time
from functools import partial

from bench import machine, peers, relay, servers
from bench.load.brokers import Broker, JetStream, Mqtt
from bench.load.loop import PATIENCE, LoadError, Loop
from bench.load.traffic import without_collector
from bench.measures import OURS, Case, Contender, Run
from bench.plan import Plan, Turns

NATS, MOSQUITTO = "NATS JetStream", "mosquitto"
PAYLOAD = 1024
_BROKERS: dict[str, tuple[str, servers.Program, type[Broker]]] = {
    NATS: ("nats-server", servers.NATS, JetStream),
    MOSQUITTO: ("mosquitto", servers.MOSQUITTO, Mqtt),
}


def throughput(name: str, pairs: int, window: int, seconds: float) -> Run:
    """Messages per second through a broker with all windows full."""
    _, program, protocol = _BROKERS[name]
    with (
        servers.running(program) as server,
        Loop(server.port, answers_connect=False) as loop,
        machine.on_load_core(),
        without_collector(),
    ):
        traffic = protocol.with_pairs(loop, pairs, PAYLOAD, window, present=True)
        return traffic.saturate(server.pid, seconds)


def drain(name: str, recipients: int, each: int) -> Run:
    """Messages per second that absent recipients get once they are there."""
    _, program, protocol = _BROKERS[name]
    with (
        servers.running(program) as server,
        Loop(server.port, answers_connect=False) as loop,
        machine.on_load_core(),
        without_collector(),
    ):
        traffic = protocol.with_pairs(loop, recipients, PAYLOAD, each, present=False)
        for flow in traffic.flows.values():
            traffic.pump(flow)
        total = recipients * each
        if not loop.spin(lambda: traffic.delivered >= total, PATIENCE):
            raise LoadError(f"{name} confirmed {traffic.delivered} of {total} messages")
        cpu, own, began = machine.cpu_seconds(server.pid), time.process_time(), time.perf_counter()
        traffic.arrive()
        loop.spin(lambda: traffic.received >= total, patience=10)
        spent = time.perf_counter() - began
        cpu, own = machine.cpu_seconds(server.pid) - cpu, time.process_time() - own
        return Run(
            total / spent, {"server": cpu / spent, "load": own / spent, "us": cpu / total * 1e6, **traffic.faults()}
        )


def run(plan: Plan, turns: Turns) -> None:
    """Measure everything here."""
    there = [name for name, (command, _, _) in _BROKERS.items() if peers.broker(command) is not None]
    for pairs in (min(8, plan.many_pairs), plan.many_pairs):
        pattern = relay.Pattern.pairs(pairs, PAYLOAD)
        contenders: dict[str, Contender] = {
            name: partial(relay.throughput, relay.RELAYS[name], pattern, PAYLOAD, plan.seconds)
            for name in (OURS, relay.AGT)
        }
        contenders |= {name: partial(throughput, name, pairs, pattern.window, plan.seconds) for name in there}
        parameters = {"payload": PAYLOAD, "pairs": pairs}
        turns(Case("queues", "through a queue each", parameters, "messages/s", True, {NATS: 1.0}), contenders)
    recipients, each = plan.recipients // 5, plan.mail_each
    contenders = {
        name: partial(relay.backlog, relay.RELAYS[name], recipients, each, PAYLOAD) for name in (OURS, relay.AGT)
    }
    contenders |= {name: partial(drain, name, recipients, each) for name in there}
    parameters = {"payload": PAYLOAD, "recipients": recipients, "messages each": each}
    turns(Case("queues", "queues drained", parameters, "messages/s", True, {NATS: 1.0}), contenders)
