"""What the SDK 4.0.0 and upstream's servers do, pinned: each of these decides something in our code.

When one of them fails after a version bump, upstream has changed and the decision can be looked at again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from interop import stacks
from interop.agents import Client, agent
from interop.processes import Peer, PeerFailed
from interop.proxy import Proxy
from interop.stacks import Servers, Stack

pytestmark = [pytest.mark.slow, pytest.mark.node]


@contextlib.asynccontextmanager
async def sdk_agents(servers: Servers, client: Client) -> AsyncIterator[tuple[Stack, Proxy, Peer, Peer]]:
    async with (
        stacks.running(servers) as stack,
        Proxy.before(stack.relay) as proxy,
        agent(stack, client, "alice", proxy.address) as alice,
        agent(stack, client, "bob", proxy.address) as bob,
    ):
        yield stack, proxy, alice, bob


@contextlib.asynccontextmanager
async def raw_socket(stack: Stack, did: str, **more: object) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://{stack.relay}/ws", proxy=None) as socket:
        await socket.send(json.dumps({"v": 1, "type": "connect", "from": did, **more}))
        yield socket


async def next_frame(socket: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


class TestSdk:
    def test_responder_cannot_send_before_it_has_received(self) -> None:
        async def run() -> None:
            async with sdk_agents(Servers.UPSTREAM, Client.SDK) as (_, _, alice, bob):
                await alice.call("establish", peer=bob.did)
                await bob.expect("knock")
                with pytest.raises(PeerFailed, match=r"(?i)send.*chain"):
                    await bob.call("send", peer=alice.did, payload="too early")

        asyncio.run(run())

    def test_text_null_ends_its_process(self) -> None:
        async def run() -> None:
            async with sdk_agents(Servers.UPSTREAM, Client.SDK) as (_, proxy, _, bob):
                await proxy.inject(bob.did, "null")
                assert await bob.ended() != 0
                assert "TypeError" in bob.errors

        asyncio.run(run())

    def test_plaintext_is_taken_from_anybody(self) -> None:
        async def run() -> None:
            async with sdk_agents(Servers.UPSTREAM, Client.SDK) as (_, proxy, _, bob):
                await proxy.inject(bob.did, plaintext_frame("did:agentmesh:mallory", bob.did))
                message = await bob.expect("message")
                assert message["from"] == "did:agentmesh:mallory"
                assert message["payload"] == "unsealed"

        asyncio.run(run())

    def test_typed_array_becomes_an_object_of_indices(self) -> None:
        async def run() -> None:
            async with sdk_agents(Servers.UPSTREAM, Client.SDK) as (_, _, alice, bob):
                await alice.call("establish", peer=bob.did)
                await alice.call("sendTypedArray", peer=bob.did, bytes=base64.b64encode(b"\x00\xff").decode())
                assert await bob.payloads(alice) == [{"0": 0, "1": 255}]

        asyncio.run(run())


class TestSdkWithAdapter:
    def test_text_null_and_foreign_plaintext_stay_outside(self) -> None:
        async def run() -> None:
            async with sdk_agents(Servers.OURS, Client.SDK_ADAPTER) as (_, proxy, alice, bob):
                await proxy.inject(bob.did, "null")
                await proxy.inject(bob.did, plaintext_frame("did:agentmesh:mallory", bob.did))
                await bob.expect("refused")
                await bob.expect("refused")
                await alice.call("establish", peer=bob.did)
                await alice.call("send", peer=bob.did, payload="sealed")
                assert await bob.payloads(alice) == ["sealed"]
                assert not bob.seen("message")

        asyncio.run(run())


class TestUpstreamRelay:
    def test_fetch_pending_is_an_unknown_frame_type(self) -> None:
        async def run() -> None:
            async with (
                stacks.running(Servers.UPSTREAM) as stack,
                raw_socket(stack, "did:x:a", features=["receipts"]) as a,
            ):
                await a.send(json.dumps({"v": 1, "type": "fetch_pending", "from": "did:x:a"}))
                # The first frame to arrive: upstream does not answer `connect`, whatever it offers.
                assert await next_frame(a) == {"type": "error", "detail": "Unknown frame type: fetch_pending"}

        asyncio.run(run())

    def test_sender_may_claim_to_be_anybody(self) -> None:
        async def run() -> None:
            async with (
                stacks.running(Servers.UPSTREAM) as stack,
                raw_socket(stack, "did:x:a") as a,
                raw_socket(stack, "did:x:b") as b,
            ):
                await stack.connections(2)
                await a.send(json.dumps({"v": 1, "type": "message", "from": "did:x:c", "to": "did:x:b", "id": "1"}))
                assert (await next_frame(b))["from"] == "did:x:c"

        asyncio.run(run())

    def test_replaced_connection_is_closed_as_if_it_had_ended_normally(self) -> None:
        async def run() -> None:
            async with stacks.running(Servers.UPSTREAM) as stack, raw_socket(stack, "did:x:a") as a:
                await stack.connections(1)
                async with raw_socket(stack, "did:x:a"):
                    await asyncio.wait_for(a.wait_closed(), 10)
                assert (a.close_code, a.close_reason) == (1000, "session_replaced")

        asyncio.run(run())


class TestUpstreamRegistry:
    def test_registration_needs_a_did_and_ignores_what_it_does_not_know(self) -> None:
        proven = {
            "public_key": base64.urlsafe_b64encode(bytes(32)).decode().rstrip("="),
            "proof": "x",
            "proof_timestamp": "2026-01-01T00:00:00.000Z",
            "capabilities": ["alice"],
            "metadata": {"display_name": "alice"},
        }

        async def run() -> None:
            async with (
                stacks.running(Servers.UPSTREAM) as stack,
                httpx.AsyncClient(base_url=f"http://{stack.registry}", trust_env=False) as http,
            ):
                refused = await http.post("/v1/agents", json=proven)
                assert refused.status_code == 422
                both = await http.post("/v1/agents", json={"did": "did:mesh:a", **proven})
                assert (both.status_code, both.json()) == (201, {"did": "did:mesh:a", "status": "registered"})
                again = await http.post("/v1/agents", json={"did": "did:mesh:a", **proven})
                assert again.status_code == 409

        asyncio.run(run())

    def test_metadata_other_than_text_is_refused(self) -> None:
        async def run() -> None:
            async with (
                stacks.running(Servers.UPSTREAM) as stack,
                httpx.AsyncClient(base_url=f"http://{stack.registry}", trust_env=False) as http,
            ):
                body = {"did": "did:x:a", "public_key": "A" * 43, "metadata": {"port": 1}}
                assert (await http.post("/v1/agents", json=body)).status_code == 422

        asyncio.run(run())


def plaintext_frame(sender: str, recipient: str) -> str:
    ciphertext = base64.b64encode(b'"unsealed"').decode()
    frame = {"v": 1, "type": "message", "from": sender, "to": recipient, "id": "1", "ciphertext": ciphertext}
    return json.dumps({**frame, "plaintext": True})
