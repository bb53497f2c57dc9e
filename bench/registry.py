"""The registry cases: registration, prekeys with one-time keys handed out once, discovery as agents grow."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from bench import machine, servers
from bench.load import http
from bench.load.traffic import without_collector
from bench.measures import OURS, Case, Contender, Run
from bench.plan import Plan, Turns
from meshlib.crypto.prekeys import make_one_time_prekeys, make_signed_prekey
from meshlib.identity import Identity
from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp

AGT = "AGT"
REGISTRIES = {OURS: servers.OUR_REGISTRY, AGT: servers.AGT_REGISTRY}
KEYS_EACH = 100
"""One-time keys an agent publishes."""
FETCHED_EACH = 90
"""Of these, fetched: our registry keeps the last few for peers that prove who they are."""
SAME_CAPABILITY = 10
"""Agents that answer to one capability, however many there are."""


def created(status: int, _: bytes) -> bool:
    """Whether an agent is registered now and was not before."""
    return status == 201


def done(status: int, _: bytes) -> bool:
    """Whether the registry says yes."""
    return status == 200


def registration(identity: Identity, *capabilities: str) -> bytes:
    """A registration with its proof. AGT 3.7.0 wants the DID in front and looks at no proof."""
    asked = wire.register(identity, timestamp(time.time()), capabilities, name_did=True)
    return http.request(asked.method, asked.target, asked.body, [("content-type", "application/json")])


def registrations(identities: Sequence[Identity], first: int = 0) -> Iterator[bytes]:
    """Registrations of agents, ten of which share a capability."""
    for number, identity in enumerate(identities, first):
        yield registration(identity, f"skill-{number // SAME_CAPABILITY}", "any")


def identities(count: int) -> list[Identity]:
    """Fresh agents."""
    return [Identity.generate(os.urandom) for _ in range(count)]


@contextlib.contextmanager
def loaded(program: servers.Program) -> Iterator[servers.Server]:
    """A fresh registry, the load on its own core."""
    with servers.running(program) as server, machine.on_load_core(), without_collector():
        yield server


def register(program: servers.Program, count: int) -> Run:
    """Registrations per second."""
    requests = list(registrations(identities(count)))
    with loaded(program) as server:
        return http.ask(server.port, server.pid, requests, created)


class _KeysOnce:
    """Checks bundles: no one-time key comes twice."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.doubled = 0

    def __call__(self, status: int, body: bytes) -> bool:
        key = json.loads(body).get("one_time_pre_key") if status == 200 else None
        if key is None:
            return False
        self.doubled += key["public_key"] in self.seen
        self.seen.add(key["public_key"])
        return True


def fetch(program: servers.Program, count: int) -> Run:
    """Bundles per second, each with a one-time key of its own."""
    agents = identities(-(-count // FETCHED_EACH))
    uploads = []
    for agent in agents:
        signed, one_time = make_signed_prekey(agent, 1, os.urandom), make_one_time_prekeys(1, KEYS_EACH, os.urandom)
        asked = wire.upload_prekeys(agent.did, wire.PrekeyUpload.of(agent, signed, one_time))
        headers = wire.headers(asked, wire.Signer.of(agent), timestamp(time.time()), bound=True)
        uploads.append(http.request(asked.method, asked.target, asked.body, headers))
    fetches = [http.request("GET", wire.fetch_prekeys(agent.did).target) for agent in agents]
    asked_for = list(itertools.islice(itertools.cycle(fetches), count))
    with loaded(program) as server:
        for requests, right in ((list(registrations(agents)), created), (uploads, done)):
            prepared = http.ask(server.port, server.pid, requests, right)
            if prepared.faults:
                raise RuntimeError(f"{prepared.faults} of {len(requests)} requests were refused")
        once = _KeysOnce()
        run = http.ask(server.port, server.pid, asked_for, once)
        return Run(run.value, {**run.details, "doubled": once.doubled})


class Growing:
    """A registry that is filled further and further, and asked at each size."""

    def __init__(self, stack: contextlib.ExitStack, program: servers.Program) -> None:
        self.server = stack.enter_context(servers.running(program))
        self._agents = 0

    def grow(self, agents: int) -> None:
        """Register agents until there are so many."""
        while self._agents < agents:
            count = min(5000, agents - self._agents)
            requests = registrations(identities(count), self._agents)
            run = http.ask(self.server.port, self.server.pid, requests, created)
            if run.faults:
                raise RuntimeError(f"{run.faults} registrations were refused")
            self._agents += count

    def discover(self, agents: int, seconds: float) -> Run:
        """Discoveries per second, each of a capability that ten agents have."""
        self.grow(agents)
        capabilities = range(agents // SAME_CAPABILITY)
        requests = [http.request("GET", wire.discover(f"skill-{n}").target) for n in capabilities]
        with machine.on_load_core(), without_collector():
            return http.ask(self.server.port, self.server.pid, _for(seconds, requests), _found_ten)


def _for(seconds: float, requests: Sequence[bytes]) -> Iterator[bytes]:
    end, step = time.perf_counter() + seconds, 7919  # a prime, to walk through them in no order
    for number in itertools.count():
        if time.perf_counter() > end:
            return
        yield requests[number * step % len(requests)]


def _found_ten(status: int, body: bytes) -> bool:
    return status == 200 and body.count(b'"did"') == SAME_CAPABILITY


def run(plan: Plan, turns: Turns) -> None:
    """Measure everything here."""
    cases: list[tuple[Case, Callable[[servers.Program], Run]]] = [
        (
            Case("registry", "registration", {"agents": plan.registrations}, "requests/s", True, {AGT: 1.1}),
            partial(register, count=plan.registrations),
        ),
        (
            Case("registry", "prekey fetch", {"fetches": plan.fetches}, "requests/s", True, {AGT: 1.2}),
            partial(fetch, count=plan.fetches),
        ),
    ]
    for case, measure in cases:
        contenders: Mapping[str, Contender] = {name: partial(measure, program) for name, program in REGISTRIES.items()}
        turns(case, contenders)
    with contextlib.ExitStack() as stack:
        growing = {name: Growing(stack, program) for name, program in REGISTRIES.items()}
        for agents in plan.agents:
            reach = {AGT: 4.0 if agents <= 1000 else 8.0}
            case = Case("registry", "discovery", {"agents": agents}, "requests/s", True, reach)
            turns(case, {name: partial(one.discover, agents, plan.seconds) for name, one in growing.items()})
