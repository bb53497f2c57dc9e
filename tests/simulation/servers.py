"""Relay and registry: the production cores on stores that survive them."""

import re
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from mesh_registry import render
from mesh_registry.core import Core, Endpoint, Policy
from mesh_registry.core import Request as Asked
from mesh_registry.proofs import Reply
from mesh_registry.refusal import Refusal
from mesh_registry.store.memory import MemoryStore as Accounts
from mesh_registry.verbs import FindAgent, PutPrekeys, PutRefused, Register, TakePrekeys, TooSoon, Touch, Update
from mesh_relay.addresses import LOOPBACK
from mesh_relay.config import Limits
from mesh_relay.core import Close, RelayCore, Send
from mesh_relay.inbox.memory import MemoryInbox
from mesh_relay.links import Link
from mesh_relay.records import Work

from meshlib.identity import Did
from meshlib.wire.encoding import b64url
from meshlib.wire.registry import Answer, Request
from tests.simulation.network import Network, Process, Socket

T = TypeVar("T")

_FEATURES = re.compile(rb',"features":\[[^]]*]')
RETENTION = 240.0
"""Seconds the relay keeps what nobody fetches: long against every fault but the longest absence."""
COMMIT = 0.003
DISK = 0.01
"""Seconds until a commit starts, and at most how long it takes."""


class RelayProcess(Process):
    """One run of the relay, from start to death."""

    def __init__(self, relay: "Relay") -> None:
        super().__init__(relay.net, "relay")
        self.relay = relay
        self.core = relay.core_type(
            replace(Limits(), sweep_seconds=10.0),
            relay.inbox.open(),
            self.net.instant(),
            ttl=RETENTION,
            durability="strict" if relay.strict else "relaxed",
            allow_legacy=True,
        )
        self.sockets: dict[Link, Socket] = {}
        self._committing = False
        self._chance = self.net.random(f"relay {relay.boots}")
        self.after(0, self.tick)

    def accept(self, socket: Socket) -> str:
        """A socket has been opened. Returns the challenge it was greeted with."""
        nonce = b64url(self._chance.randbytes(32))
        link = self.core.open(LOOPBACK, nonce, self.net.instant())
        socket.relay, socket.link = self, link
        self.sockets[link] = socket
        return "" if self.relay.plain else nonce

    def hear(self, socket: Socket, raw: bytes) -> None:
        """A frame has come."""
        if self.relay.plain and b'"features":' in raw:
            raw = _FEATURES.sub(b"", raw)
        self.core.receive(socket.link, raw, self.net.instant())
        self.point("relay received")
        self.core.heard(socket.link, 1, self.net.instant())
        self.carry_out()

    def disconnected(self, socket: Socket) -> None:
        """A socket's end has been noticed."""
        self.sockets.pop(socket.link, None)
        self.core.lost(socket.link)
        self.carry_out()

    def tick(self) -> None:
        """Once a second."""
        self.core.tick(self.net.instant())
        self.carry_out()
        self.after(1.0, self.tick)

    def carry_out(self) -> None:
        """Do what the core decided, and plan the commit it needs."""
        while effects := self.core.effects():
            wrote: dict[Link, None] = {}
            for effect in effects:
                socket = self.sockets.get(effect.link)
                if socket is None:
                    continue
                if isinstance(effect, Send):
                    wrote[effect.link] = None
                    for payload in effect.payloads:
                        socket.carry("down", payload)
                        self.point("relay pushed")
                elif isinstance(effect, Close):
                    self.sockets.pop(effect.link, None)
                    socket.cut(effect.code, effect.reason, written="down")
                elif socket.whole:
                    self.after(0.05, self.core.heard, effect.link, 0, self.net.instant())  # the pong
            for link in wrote:
                self.core.flushed(link, 0)
        if self.core.work_waiting and not self._committing:
            self._committing = True
            self.after(0 if self.core.work_urgent else COMMIT, self._begin_commit)

    def _begin_commit(self) -> None:
        work = self.core.take_work(self.net.instant())
        self.after(self._chance.uniform(0, DISK), self._commit, work)

    def _commit(self, work: Work) -> None:
        self.point("relay before commit")
        if self.relay.disk_full > 0:
            self.relay.disk_full -= 1
            self.net.faults["relay's disk full"] += 1
            self.core.failed(work)
        else:
            done = self.relay.inbox.run(work)
            self.point("relay committed")
            self.core.stored(work, done, self.net.instant())
        self._committing = False
        self.carry_out()

    def die(self) -> None:
        """Sockets break; the inbox stays."""
        super().die()
        for socket in list(self.sockets.values()):
            socket.cut(written="down")
        self.relay.died()


class Relay:
    """The relay's machine: its disk, and the process that runs on it."""

    def __init__(
        self, net: Network, *, strict: bool, plain: bool = False, core_type: type[RelayCore] = RelayCore
    ) -> None:
        self.net = net
        self.strict = strict
        self.plain = plain
        """Whether it knows no extensions: no challenge, no receipts, as upstream's."""
        self.core_type = core_type
        self.inbox = MemoryInbox()
        self.disk_full = 0
        self.boots = 0
        self.down_for = 1.0
        self._copies: list[MemoryInbox] = []
        self.process: RelayProcess | None = None
        self.start()

    def start(self) -> None:
        """Start a process, if none runs."""
        if self.process is None:
            self.boots += 1
            self.process = RelayProcess(self)

    def died(self) -> None:
        """The process is gone; its supervisor starts another."""
        self.process = None
        self.net.after(self.down_for, None, self.start)

    def copy_disk(self) -> None:
        """Take a backup."""
        self._copies.append(deepcopy(self.inbox))

    def roll_back(self) -> bool:
        """Put the last backup in place. Whether there is one."""
        if not self._copies:
            return False
        if self.process is not None:
            self.process.die()
        self.inbox = self._copies.pop()
        return True


class Registry:
    """The registry: its store, a core that forgets at every start, and whether it answers."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.accounts = Accounts(1_000)
        self.down_until = 0.0
        self.taken: set[tuple[str, int]] = set()
        self._copies: list[Accounts] = []
        self._chance = net.random("registry")
        self.restart()

    def restart(self) -> None:
        """Start the core from what the store has."""
        self.core = Core(Policy(allow_legacy=True))
        self.core.restore(_finish(self.accounts.used_proofs(self.net.instant().utc)))

    def metadata(self, did: Did) -> dict[str, object]:
        """What the registry would say of an agent."""
        record = _finish(self.accounts.find(did))
        return {} if record is None else dict(msgspec.json.decode(record.metadata))

    def stop(self, seconds: float) -> None:
        """Be away for a while."""
        self.down_until = self.net.now + seconds
        self.net.after(seconds, None, self.restart)

    def copy_disk(self) -> None:
        """Take a backup."""
        self._copies.append(deepcopy(self.accounts))

    def roll_back(self) -> bool:
        """Put the last backup in place. Whether there is one."""
        if not self._copies:
            return False
        self.accounts = self._copies.pop()
        self.restart()
        return True

    def ask(
        self,
        asking: Process,
        request: Request,
        headers: list[tuple[str, str]],
        answer: Callable[[Answer | None, float], None],
    ) -> None:
        """Carry a request to the registry, and its answer (with the registry's time) back to a process."""
        there, back = self._chance.uniform(0.001, 0.3), self._chance.uniform(0.001, 0.3)

        def arrive() -> None:
            if self.net.now < self.down_until:
                asking.after(9.0, answer, None, 0.0)
            else:
                asking.after(back, answer, self.answer(request, dict(headers), asking.name), self.net.instant().utc)

        self.net.after(there, None, arrive)

    def answer(self, request: Request, headers: dict[str, str], requester: str) -> Answer:
        """One request, decided by the core and run on the store."""
        path, _, query = request.target.partition("?")
        endpoint, did = (
            _ENDPOINTS[request.method, path.count("/"), path.rpartition("/")[2] if path.count("/") == 4 else ""],
            "",
        )
        if path.count("/") >= 3:
            did = unquote(path.split("/")[3])
        asked = Asked(
            endpoint,
            request.method,
            request.target,
            did,
            query,
            request.body or b"",
            headers.get("authorization"),
            headers.get("mesh-request-signature"),
            requester,
        )
        core, now = self.core, self.net.instant()
        try:
            needed = core.account_needed(asked)
            account = None if needed is None else _finish(self.accounts.account(needed))
            decision = core.decide(asked, account, now)
            if isinstance(decision, Reply):
                return Answer(decision.status, decision.body)
            status, body = self._run(decision)
        except Refusal as refusal:
            return Answer(refusal.status, render.problem(refusal.detail))
        caller = getattr(decision, "caller", None)
        if caller is not None:
            core.used.finish(caller.proof, Reply(status, body))
        return Answer(status, body)

    def _run(self, verb: Any) -> tuple[int, bytes]:
        store, utc = self.accounts, self.net.instant().utc
        if isinstance(verb, FindAgent):
            record = _finish(store.find(verb.did))
            return (200, render.agent(record, utc, 90.0)) if record else (404, render.problem("Agent not found"))
        if isinstance(verb, Register):
            state = _finish(store.register(verb))
            if state == "created":
                return 201, render.body({"did": verb.did, "registered_at": render.time(verb.now)})
            return 409, render.problem("Agent already registered")
        if isinstance(verb, Update):
            record = _finish(store.update(verb))
            return (200, render.agent(record, utc, 90.0)) if record else (404, render.problem("Agent not found"))
        if isinstance(verb, PutPrekeys):
            count = _finish(store.put_prekeys(verb))
            if isinstance(count, PutRefused):
                return (404 if count is PutRefused.NO_AGENT else 409), render.problem(str(count))
            return 200, render.body({"status": "ok", "otk_count": count})
        if isinstance(verb, TakePrekeys):
            bundle = _finish(store.take_prekeys(verb))
            return (200, render.bundle(bundle)) if bundle else (404, render.problem("no prekeys"))
        assert isinstance(verb, Touch)
        touched = _finish(store.touch(verb))
        if touched is None:
            return 404, render.problem("Agent not found")
        return (429 if isinstance(touched, TooSoon) else 200), render.body({})


_ENDPOINTS = MappingProxyType(
    {
        ("POST", 2, ""): Endpoint.REGISTER,
        ("GET", 3, ""): Endpoint.GET_AGENT,
        ("PUT", 3, ""): Endpoint.UPDATE,
        ("PUT", 4, "prekeys"): Endpoint.PUT_PREKEYS,
        ("GET", 4, "prekeys"): Endpoint.GET_PREKEYS,
        ("POST", 4, "heartbeat"): Endpoint.HEARTBEAT,
    }
)


def _finish(verb: Coroutine[Any, Any, T]) -> T:
    """Run a store's verb, which in memory never waits."""
    try:
        verb.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("a store in memory waits for nothing")
