"""A frame that the SDK cannot read costs it one session, not every session for as long as the relay keeps the frame."""

from __future__ import annotations

import asyncio

import pytest

from interop import stacks
from interop.agents import Client, agent
from interop.processes import Peer
from interop.proxy import Proxy, Spoilt
from interop.scenarios import deliver
from interop.stacks import Servers, Stack

pytestmark = [pytest.mark.slow, pytest.mark.node]


def test_plain_sdk_keeps_its_new_session_after_a_reconnect() -> None:
    asyncio.run(run(Client.SDK, Servers.OURS_LEGACY))


def test_sdk_with_adapter_keeps_its_new_session_after_a_reconnect() -> None:
    asyncio.run(run(Client.SDK_ADAPTER, Servers.OURS))


async def run(client: Client, servers: Servers) -> None:
    async with (
        stacks.running(servers) as stack,
        Proxy.before(stack.relay) as proxy,
        agent(stack, Client.OURS, "alice", proxy.address) as alice,
        agent(stack, client, "bob", proxy.address) as bob,
    ):
        await lose_session(proxy, alice, bob)
        await bob.call("establish", peer=alice.did)
        await deliver(bob, alice, "anew")
        await alice.call("send", peer=bob.did, payload="agreed")
        while await bob.payloads(alice) != ["agreed"]:
            pass
        await come_back(stack, bob)
        await deliver(bob, alice, "still the same session")
        assert not bob.seen("error")


async def lose_session(proxy: Proxy, ours: Peer, sdk: Peer) -> None:
    """The SDK gets a message whose ciphertext has changed on the way."""
    await deliver(ours, sdk, "first")
    await deliver(sdk, ours, "reply")
    proxy.rule(sdk.did, Spoilt())
    await ours.call("send", peer=sdk.did, payload="spoilt")
    await sdk.expect("error", kind="session_desync")


async def come_back(stack: Stack, peer: Peer) -> None:
    await peer.call("disconnect")
    await stack.connections(1)
    await peer.call("connect")
    await stack.connections(2)
