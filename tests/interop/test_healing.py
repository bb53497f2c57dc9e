"""What a fault costs, by who runs upstream's software and who runs ours: every cell of docs/interop.md, seen live.

Each case starts two agents as processes, lets one thing go wrong, sends a message and one more, and looks. The
applications do nothing to help. Only then, to tell a message that is lost from one that is late, a session is opened by
hand and a probe sent over it: what has not come by then never comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from interop import stacks
from interop.agents import Client
from interop.processes import Peer, PeerFailed, value_of
from interop.proxy import Doubled, Proxy, Spoilt
from interop.scenarios import deliver
from interop.stacks import Servers, Stack

pytestmark = [pytest.mark.slow, pytest.mark.node]

INTEROP_MD = Path(__file__).resolve().parents[2] / "docs" / "interop.md"
AT_ONCE = 6
"""Cases that run at the same time: most of their time they wait for each other or for a timer."""
PATIENCE = 40.0
"""Seconds for what is healed by waiting: two rounds of it, on a busy machine."""
MARKER = "did:agentmesh:marker"


class Fate(enum.StrEnum):
    """What became of the message."""

    ARRIVES = "arrives"
    """Once, and so does the next one."""
    LATE = "arrives, after the next"
    """Once, but the next one came first."""
    ENDS = "arrives, next lost"
    """But the session is gone."""
    TWICE = "arrives twice"
    """Its sender could not know that it had arrived, and the recipient does not look."""
    WAITS = "waits, known by id"
    """Its sender knows by id that it is not delivered; it arrives once the peer opens a session."""
    ALONE = "lost alone, recipient told"
    """Its sender heard nothing; the recipient was told that something could not be read. The next one arrives."""
    TOLD = "lost, recipient told"
    """Its sender heard nothing; the recipient was told that something could not be read."""
    LOST = "lost"
    """Neither heard anything."""


@dataclass(frozen=True)
class Route:
    """Who sends to whom, over which servers."""

    name: str
    sender: Client
    recipient: Client
    servers: Servers


ROUTES = {
    route.name: route
    for route in (
        Route("SDK to SDK, upstream's servers", Client.SDK, Client.SDK, Servers.UPSTREAM),
        Route("SDK to SDK, our servers", Client.SDK, Client.SDK, Servers.OURS_LEGACY),
        Route("SDK to ours", Client.SDK, Client.OURS, Servers.OURS_LEGACY),
        Route("ours to SDK", Client.OURS, Client.SDK, Servers.OURS_LEGACY),
        Route("adapter to ours", Client.SDK_ADAPTER, Client.OURS, Servers.OURS),
        Route("ours to adapter", Client.OURS, Client.SDK_ADAPTER, Servers.OURS),
        Route("ours to ours", Client.OURS, Client.OURS, Servers.OURS),
    )
}


class Case:
    """Two agents that can be killed and started again."""

    sender: Peer
    recipient: Peer

    def __init__(
        self, stack: Stack, proxy: Proxy, route: Route, name: str, children: contextlib.AsyncExitStack
    ) -> None:
        self.proxy, self.route = proxy, route
        self._stack, self._name, self._children = stack, name, children
        self._passed = 0

    def client(self, role: str) -> Client:
        return self.route.sender if role == "sender" else self.route.recipient

    async def start(self, role: str, *, keep: bool = True, connect: bool = True) -> None:
        """Start an agent; with ``keep`` ours finds what an earlier process stored."""
        client, name = self.client(role), f"{role}-{self._name}"
        peer = await self._children.enter_async_context(Peer.running(name, client.argv))
        setattr(self, role, peer)
        await peer.expect("ready")
        options: dict[str, Any] = {}
        if not client.is_sdk:
            options["store"] = str(self._stack.folder / (name if keep else f"{name}-anew"))
        started = await peer.call(
            "start",
            name=name,
            relay=f"ws://{self.proxy.address}",
            registry=f"http://{self._stack.registry}",
            adapter=client is Client.SDK_ADAPTER,
            seed=hashlib.sha256(f"{self.route.name}/{name}".encode()).hexdigest(),
            **options,
        )
        peer.did = started.get("did", "")
        if connect:
            peer.did = (await peer.call("connect"))["did"]
            await peer.expect("connected")

    async def talk(self) -> None:
        """One message each way: both ends of the session have been heard."""
        await self.sender.call("establish", peer=self.recipient.did)
        await deliver(self.sender, self.recipient, "before")
        await deliver(self.recipient, self.sender, "before, too")
        self._passed = self.proxy.passed(self.recipient.did)

    async def kill(self, role: str) -> None:
        await getattr(self, role).kill()

    async def restart(self, role: str, *, keep: bool = True) -> None:
        """Kill an agent and start it again, with its key, and ours with its store or without."""
        did = getattr(self, role).did
        await self.kill(role)
        await self.start(role, keep=keep)
        assert getattr(self, role).did == did

    async def send(self, payload: str) -> str:
        """Send; returns the message's id where the client has one."""
        said = await self.sender.call("send", peer=self.recipient.did, payload=payload)
        return str(said.get("message", ""))

    async def fate(self, message: str) -> Fate:
        """What becomes of "it", which has been sent, and of what is sent after it."""
        try:
            await self.send("the next")
            sent = 2
        except PeerFailed:  # the SDK says that it has no session
            sent = 1
        if self.heals:
            got = await self.recipient.payloads(self.sender, 2, patience=PATIENCE)
            assert sorted(got) == ["it", "the next"]
            assert not self.recipient.seen("message", **{"from": self.sender.did})
            return Fate.ARRIVES if got[0] == "it" else Fate.LATE
        await self.proxy.passes(self.recipient.did, self._passed + sent)
        await self.flush()
        got = await self.taken()
        if not self.route.sender.is_sdk:
            return await self.fate_of_ours(got, message)
        if got == ["it", "the next"]:
            return Fate.ARRIVES
        if got == ["the next"]:
            assert self.told
            return Fate.ALONE
        told = self.told
        got += await self.probe()
        if got == ["the next"]:
            assert self.told
            return Fate.ALONE
        assert got in ([], ["it"], ["it", "the next"])
        if got:
            return Fate.ENDS if len(got) == 1 else Fate.ARRIVES
        return Fate.TOLD if told or self.told else Fate.LOST

    @property
    def heals(self) -> bool:
        """Whether the sender encrypts anew what the recipient says it cannot read."""
        return not self.route.sender.is_sdk and self.route.recipient is not Client.SDK

    @property
    def told(self) -> bool:
        """Whether the recipient's application was told that something of the sender could not be read."""
        return bool(self.recipient.seen("error", **{"from": self.sender.did}))

    async def fate_of_ours(self, got: list[Any], message: str) -> Fate:
        """Ours to an SDK: what does not arrive is known by id, and arrives once the SDK opens a session."""
        waited = "it" not in got
        state = (await self.sender.call("delivery", message=message))["state"]
        assert state in ("queued", "relayed", "stored", "delivered")
        if got == ["it", "the next"]:
            return Fate.ARRIVES
        assert got == ["it"] or state != "delivered"
        await self.recipient.call("close", peer=self.sender.did)
        await self.recipient.call("establish", peer=self.sender.did)
        await self.recipient.call("send", peer=self.sender.did, payload="hello")
        while await self.sender.payloads(self.recipient) != ["hello"]:
            pass
        while not {"it", "the next"} <= set(got):
            got += await self.recipient.payloads(self.sender)
        if len(got) == len(set(got)):
            return Fate.WAITS if waited else Fate.ENDS
        assert got.count("it") == 2
        return Fate.TWICE

    async def flush(self) -> None:
        """Wait until the recipient has dealt with everything that has been written to it."""
        frame = {
            "v": 1,
            "type": "message",
            "from": MARKER,
            "to": self.recipient.did,
            "id": "marker",
            "ciphertext": "IiI=",
        }
        await self.proxy.inject(self.recipient.did, json.dumps({**frame, "plaintext": True}))
        match self.route.recipient:
            case Client.SDK:
                await self.recipient.expect("message", **{"from": MARKER})
            case Client.SDK_ADAPTER:
                await self.recipient.expect("refused")
            case _:
                await self.recipient.expect("error", **{"from": MARKER})

    async def taken(self) -> list[Any]:
        """What has come from the sender."""
        count = len(self.recipient.seen("message", **{"from": self.sender.did}))
        return [value_of(await self.recipient.expect("message", sender=self.sender)) for _ in range(count)]

    async def probe(self) -> list[Any]:
        """Open a session by hand, as often as it takes, and see what came before a message over it."""
        sdk = self.route.recipient.is_sdk
        if sdk:
            await self.recipient.call("close", peer=self.sender.did)
        for _ in range(5):
            while self.recipient.seen("knock"):
                await self.recipient.expect("knock")
            await self.sender.call("close", peer=self.recipient.did)
            await self.sender.call("establish", peer=self.recipient.did)
            await self.recipient.expect("knock", sender=self.sender)
            # What the SDK could not read it feeds to the next session, which does not survive it.
            if sdk and not (await self.recipient.call("session", peer=self.sender.did))["exists"]:
                continue
            with contextlib.suppress(PeerFailed):  # a late reject of an older knock has closed the session
                await self.send("probe")
                break
        got: list[Any] = []
        while "probe" not in got:
            got += await self.recipient.payloads(self.sender)
        return got[:-1]


Fault = Callable[[Case], Awaitable[Fate]]


async def restarted_recipient(case: Case, *, keep: bool = True) -> Fate:
    await both(case)
    await case.restart("recipient", keep=keep)
    return await case.fate(await case.send("it"))


async def restarted_sender(case: Case, *, keep: bool = True) -> Fate:
    await both(case)
    await case.restart("sender", keep=keep)
    await case.sender.call("establish", peer=case.recipient.did)
    return await case.fate(await case.send("it"))


async def waiting_knock(case: Case) -> Fate:
    await case.start("sender")
    await case.start("recipient")
    await case.kill("recipient")
    await case.proxy.gone(case.recipient.did)
    await case.sender.call("establish", peer=case.recipient.did)
    message = await case.send("it")
    await case.start("recipient")
    return await case.fate(message)


async def crossing_knocks(case: Case) -> Fate:
    await case.start("sender")
    await case.start("recipient")
    gates = [case.proxy.gate(agent.did) for agent in (case.sender, case.recipient)]
    await case.sender.call("establish", peer=case.recipient.did)
    message = await case.send("it")
    await case.recipient.call("establish", peer=case.sender.did)
    await case.recipient.call("send", peer=case.sender.did, payload="crossing")
    for gate in gates:
        await gate.holds("message")
    for gate in gates:
        await gate.open()
    return await case.fate(message)


async def lost_ack(case: Case) -> Fate:
    await both(case)
    await case.recipient.call("disconnect")
    await case.proxy.gone(case.recipient.did)
    message = await case.send("it")
    case.proxy.lose_ack(case.recipient.did)
    await case.recipient.call("connect")
    await case.recipient.expect("disconnected")
    await case.recipient.expect("connected")
    return await case.fate(message)


async def duplicate(case: Case) -> Fate:
    await both(case)
    case.proxy.rule(case.recipient.did, Doubled())
    return await case.fate(await case.send("it"))


async def unreadable(case: Case) -> Fate:
    await both(case)
    case.proxy.rule(case.recipient.did, Spoilt())
    return await case.fate(await case.send("it"))


async def both(case: Case) -> None:
    await case.start("recipient")
    await case.start("sender")
    await case.talk()


FAULTS: dict[str, Fault] = {
    "recipient restarts": restarted_recipient,
    "recipient restarts without its store": functools.partial(restarted_recipient, keep=False),
    "sender restarts": restarted_sender,
    "sender restarts without its store": functools.partial(restarted_sender, keep=False),
    "recipient restarts while a knock waits": waiting_knock,
    "both knock at once": crossing_knocks,
    "an ack is lost with the connection": lost_ack,
    "a frame arrives twice": duplicate,
    "a frame arrives spoilt": unreadable,
}


@dataclass(frozen=True)
class Cell:
    """One fault on one route."""

    route: str
    fault: str


def cells() -> list[Cell]:
    """Every pairing; an SDK has no store to lose."""
    found = []
    for route in ROUTES.values():
        for fault in FAULTS:
            role = route.sender if fault.startswith("sender") else route.recipient
            if not (fault.endswith("without its store") and role.is_sdk):
                found.append(Cell(route.name, fault))
    return found


CELLS = cells()
Row = dict[Cell, Fate | str]


@pytest.fixture(scope="module")
def seen() -> Row:
    """What became of the message in every cell, or what went wrong."""
    return asyncio.run(see_all())


async def see_all() -> Row:
    row: Row = {}
    turn = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for servers in Servers:
            tasks.create_task(see(servers, turn, row))
    return row


async def see(servers: Servers, turn: asyncio.Semaphore, row: Row) -> None:
    async with stacks.running(servers) as stack, Proxy.before(stack.relay) as proxy:

        async def look(cell: Cell, name: str) -> None:
            async with turn, contextlib.AsyncExitStack() as children:
                try:
                    row[cell] = await FAULTS[cell.fault](Case(stack, proxy, ROUTES[cell.route], name, children))
                except AssertionError as problem:
                    row[cell] = f"{type(problem).__name__}: {problem}"

        async with asyncio.TaskGroup() as tasks:
            for number, cell in enumerate(CELLS):
                if ROUTES[cell.route].servers is servers:
                    tasks.create_task(look(cell, str(number)))


def documented() -> dict[Cell, str]:
    """The table of docs/interop.md."""
    lines = INTEROP_MD.read_text(encoding="utf-8").splitlines()
    rows = [[text.strip() for text in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    start = next(index for index, row in enumerate(rows) if row[0] == "what goes wrong")
    names = rows[start][1:]
    table = rows[start + 2 : start + 2 + len(FAULTS)]
    return {Cell(name, row[0]): text for row in table for name, text in zip(names, row[1:], strict=True)}


def test_the_table_has_every_cell() -> None:
    assert {cell for cell, text in documented().items() if text != "-"} == set(CELLS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.fault}, {cell.route}")
def test_what_is_seen_is_what_the_table_says(cell: Cell, seen: Row) -> None:
    allowed = documented()[cell].split(" or ")
    assert seen[cell] in allowed
