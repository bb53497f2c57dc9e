"""What two agents do with each other in every cell of the matrix.

A scenario returns when everything arrived as it was sent, raises `Limit` when it watched upstream fail in the way that
upstream fails, and any AssertionError when something else happened. `first` opened the session, `second` answered.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from interop.agents import Client
from interop.processes import DEADLINE, Peer, PeerFailed, as_arguments
from interop.proxy import Doubled, Proxy, Reversed, Swallowed
from interop.stacks import Servers, Stack

UNICODE: tuple[Any, ...] = (
    "plain",
    "",
    "\U0001d11e \U0001f469\u200d\U0001f680 \U0010fffd",
    "line\u2028paragraph\u2029next\u0085line",
    '\u0000\u0001\u001f\u007f\\"/\b\f\n\r\t',
    "e\u0301 \u00e9 \u202eleft \ufeffbom \ufffe\uffff",
    {"2": "two", "10": "ten", "\U0001f511": ["\u05d0", None, True, 1.5, -7, {"nested": []}]},
    "half a pair: \ud83d",
    [],
    0,
    False,
    None,
)
LARGE = "".join(random.Random(64).choices('abcdefghijklmnopqrstuvwxyz0123456789 "\\\u00e9\u20ac\U0001f600', k=65_536))
BINARY = (bytes(range(256)), random.Random(8).randbytes(4096), b"\xff", b"\x00\x80")
BURST = 50


class Limit(Exception):
    """Upstream cannot do this. The text says what was observed."""


@dataclass(frozen=True)
class Pair:
    """Two agents that are running and registered."""

    stack: Stack
    front: Proxy
    """Stands between the agents and the relay, if the group says so."""
    first: Peer
    second: Peer
    first_client: Client
    second_client: Client

    @property
    def sdks(self) -> list[Peer]:
        """Those of the two on the SDK, with or without the adapter."""
        both = ((self.first, self.first_client), (self.second, self.second_client))
        return [peer for peer, client in both if client.is_sdk]


Scenario = Callable[[Pair], Awaitable[None]]


async def deliver(sender: Peer, receiver: Peer, *payloads: Any) -> None:
    """Send payloads one after the other and see them arrive unchanged and in that order."""
    for payload in payloads:
        await sender.call("send", peer=receiver.did, **as_arguments(payload))
    expect_same(await receiver.payloads(sender, len(payloads)), list(payloads))


def expect_same(received: Any, sent: Any) -> None:
    if received != sent or repr(received) != repr(sent):  # 1 == True and 1 == 1.0, but not in JSON
        raise AssertionError(f"sent {sent!r:.300}, received {received!r:.300}")


async def discovery(pair: Pair) -> None:
    """Each finds the other by its name at the registry."""
    for seeker, sought in ((pair.first, pair.second), (pair.second, pair.first)):
        found = (await seeker.call("discover", name=sought.label))["dids"]
        if found != [sought.did]:
            raise AssertionError(f"{seeker.label} looked for {sought.label} ({sought.did}) and found {found}")


async def first_message(pair: Pair) -> None:
    """Knock, first message, reply, and the ratchet turns a few times."""
    await pair.first.call("establish", peer=pair.second.did)
    await deliver(pair.first, pair.second, "first")
    await pair.second.expect("knock", sender=pair.first)
    await pair.second.expect("verified", sender=pair.first)
    await deliver(pair.second, pair.first, "reply")
    await pair.first.expect("verified", sender=pair.second)
    for turn in range(3):
        await deliver(pair.first, pair.second, {"turn": turn})
        await deliver(pair.second, pair.first, {"turn": turn}, "and another")


async def bursts(pair: Pair) -> None:
    """50 messages without waiting, each way, then both ways at once; all arrive in order."""

    async def arrives(sender: Peer, receiver: Peer, label: str) -> None:
        await sender.call("burst", peer=receiver.did, count=BURST, label=label)
        expect_same(await receiver.payloads(sender, BURST), [{"label": label, "n": n} for n in range(BURST)])

    await arrives(pair.first, pair.second, "there")
    await arrives(pair.second, pair.first, "back")
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        await sender.call("burst", peer=receiver.did, count=BURST, label="crossing")
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        expected = [{"label": "crossing", "n": n} for n in range(BURST)]
        expect_same(await receiver.payloads(sender, BURST), expected)


async def unicode(pair: Pair) -> None:
    """Non-BMP characters, line separators, controls, every kind of JSON value."""
    await deliver(pair.first, pair.second, *UNICODE)
    await deliver(pair.second, pair.first, *UNICODE)


async def large(pair: Pair) -> None:
    """65536 characters, a third more in bytes."""
    await deliver(pair.first, pair.second, LARGE, {"text": LARGE})
    await deliver(pair.second, pair.first, LARGE, {"text": LARGE})


async def binary(pair: Pair) -> None:
    """Every byte value. The SDK has JSON only; bytes travel as {"raw_b64"} by convention."""
    await deliver(pair.first, pair.second, *BINARY)
    await deliver(pair.second, pair.first, *BINARY)


async def offline(pair: Pair) -> None:
    """Each leaves in turn, is written to, comes back, and finds everything in order."""
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        await receiver.call("disconnect")
        await pair.stack.connections(1)
        messages = [f"while you were away {n}" for n in range(5)]
        for message in messages:
            await sender.call("send", peer=receiver.did, payload=message)
        await receiver.call("connect")
        expect_same(await receiver.payloads(sender, 5), messages)
        await pair.stack.connections(2)
        await deliver(receiver, sender, "got them")


async def offline_first_contact(pair: Pair) -> None:
    """The knock, too, waits for somebody who is away."""
    await pair.second.call("disconnect")
    await pair.stack.connections(1)
    await pair.first.call("establish", peer=pair.second.did)
    for n in range(3):
        await pair.first.call("send", peer=pair.second.did, payload=n)
    await pair.second.call("connect")
    expect_same(await pair.second.payloads(pair.first, 3), [0, 1, 2])
    await pair.stack.connections(2)
    await deliver(pair.second, pair.first, "hello")


async def out_of_order(pair: Pair) -> None:
    """Frames that overtake each other between relay and receiver are all readable, whatever their order."""
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        await deliver(sender, receiver, "in order")
        pair.front.rule(receiver.did, Reversed(4))
        for n in range(4):
            await sender.call("send", peer=receiver.did, payload=n)
        expect_same(sorted(await receiver.payloads(sender, 4)), [0, 1, 2, 3])
        await deliver(sender, receiver, "in order again")


async def crossing_knocks(pair: Pair) -> None:
    """Both open a session before either hears of the other's. Nothing that was sent may be lost."""
    gates = [pair.front.gate(agent.did) for agent in (pair.first, pair.second)]
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        await sender.call("establish", peer=receiver.did)
        await sender.call("send", peer=receiver.did, payload="crossing")
    for gate in gates:
        await gate.holds("message")
    for gate in gates:
        await gate.open()
    if pair.sdks:
        return await _crossing_with_sdk(pair)
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        expect_same(await receiver.payloads(sender), ["crossing"])
    await deliver(pair.first, pair.second, "one session")
    await deliver(pair.second, pair.first, "is in use")


async def _crossing_with_sdk(pair: Pair) -> None:
    """The SDK ignores the session in a crossing knock, fails on its first message and drops its own session, too."""
    for peer in pair.sdks:
        await peer.expect("error", kind="session_desync")
    sdk = pair.sdks[-1]
    other = pair.first if sdk is pair.second else pair.second
    if len(pair.sdks) == 1:
        expect_same(await other.payloads(sdk), ["crossing"])
    for attempt in range(3):
        await sdk.call("establish", peer=other.did)
        try:
            await deliver(sdk, other, "anew")
            break
        except PeerFailed as failure:  # a late frame of the old sessions has cost it this one, too
            if attempt == 2 or "No encrypted session" not in str(failure):
                raise
    await other.call("send", peer=sdk.did, payload="agreed")
    arrived = await sdk.payloads(other)
    if arrived == ["crossing"]:
        arrived += await sdk.payloads(other)
    if arrived != ["crossing", "agreed"]:
        expect_same(arrived, ["agreed"])
        raise Limit("SDK 4.0.0 drops its session when knocks cross, and what was sent to it; a new session works")


async def reconnect(pair: Pair) -> None:
    """The cable is pulled; the agent comes back by itself and the session goes on."""
    for unlucky, other in ((pair.second, pair.first), (pair.first, pair.second)):
        await cut(pair, unlucky)
        await deliver(other, unlucky, "are you there")
        await deliver(unlucky, other, "I am")


async def cut(pair: Pair, unlucky: Peer) -> None:
    pair.front.cut(unlucky.did)
    await returned(pair, unlucky)


async def returned(pair: Pair, unlucky: Peer) -> None:
    await unlucky.expect("disconnected")
    await unlucky.expect("connected")
    await pair.stack.connections(2)


async def lost_hop(pair: Pair) -> None:
    """A frame dies between relay and receiver together with the connection; the relay must still have it."""
    for sender, receiver in ((pair.first, pair.second), (pair.second, pair.first)):
        pair.front.rule(receiver.did, Swallowed())
        await sender.call("send", peer=receiver.did, payload="the one in the air")
        await returned(pair, receiver)
        await sender.call("send", peer=receiver.did, payload="the next")
        arrived = await receiver.payloads(sender)
        if arrived == ["the next"] and pair.stack.servers is Servers.UPSTREAM:
            await deliver(receiver, sender, "only one came")
            await deliver(sender, receiver, "no more will")
            raise Limit(
                "upstream's relay forgets a frame once it is written to a socket: lost when the receiver is cut off"
            )
        arrived += await receiver.payloads(sender)
        expect_same(sorted(arrived), ["the next", "the one in the air"])


async def duplicate(pair: Pair) -> None:
    """A frame that comes twice is delivered once and costs nothing."""
    pair.front.rule(pair.second.did, Doubled())
    await pair.first.call("send", peer=pair.second.did, payload="twice")
    expect_same(await pair.second.payloads(pair.first), ["twice"])
    if pair.second_client is Client.SDK:
        desync = await pair.second.expect("error", kind="session_desync", patience=DEADLINE)
        exists = (await pair.second.call("session", peer=pair.first.did))["exists"]
        if exists:
            raise AssertionError(f"the SDK reported {desync} and kept its session")
        if not pair.first_client.is_sdk:
            # Ours takes the SDK's new session at once; two SDKs would have to notice and knock in turn.
            await pair.second.call("establish", peer=pair.first.did)
            await deliver(pair.second, pair.first, "anew")
            await deliver(pair.first, pair.second, "agreed")
        raise Limit(f"SDK 4.0.0 takes a second delivery for tampering and drops its session ({desync['detail']})")
    await deliver(pair.first, pair.second, "the next")
    await deliver(pair.second, pair.first, "came once")


@dataclass(frozen=True)
class Group:
    """Scenarios that one pair of agents goes through, one after the other."""

    name: str
    scenarios: dict[str, Scenario]
    proxied: bool = True


GROUPS = (
    Group(
        "direct",
        {
            "discovery": discovery,
            "first message": first_message,
            "bursts": bursts,
            "unicode": unicode,
            "64 KiB": large,
            "binary": binary,
            "offline": offline,
        },
        proxied=False,
    ),
    Group(
        "proxied",
        {
            "offline knock": offline_first_contact,
            "out of order": out_of_order,
            "reconnect": reconnect,
            "lost hop": lost_hop,
            "duplicate": duplicate,
        },
    ),
    Group("crossing", {"crossing knocks": crossing_knocks}),
)
NAMES = tuple(name for group in GROUPS for name in group.scenarios)
