"""The real process: started, asked over TCP, killed, started again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshlib.client.registry import RegistryClient
from meshlib.errors import AgentNotFound, RegistryRefused
from meshlib.wire import registry as wire
from tests.unit.mesh_registry.helpers import Actor

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")]

ALICE = Actor("alice")
BOB = Actor("bob")


class Process:
    """A running ``mesh-registry``."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "mesh_registry", "serve", "--port", "0", "--log-format", "json", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.listening: dict[str, Any] = json.loads(line) if line else {}
        self.url = f"http://127.0.0.1:{self.listening.get('port', 0)}"

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send the signal; exit status, rest of stdout, stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Process]:
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.communicate()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_it_announces_itself_once_and_ends_with_zero_on_a_signal(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with running("--store", str(tmp_path / "registry.db")) as registry:
            assert registry.listening["event"] == "listening"
            assert registry.listening["host"] == "127.0.0.1"
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"{registry.url}/health")).json()["status"] == "healthy"
            status, out, err = registry.stop(number)
            assert (status, out) == (0, "")
            assert [json.loads(line)["event"] for line in err.splitlines()] == ["listening", "stopped"]


async def test_every_endpoint_through_our_client(tmp_path: Path) -> None:
    with running("--store", str(tmp_path / "registry.db")) as registry:
        alice = RegistryClient(registry.url, signer=ALICE.signer)
        bob = RegistryClient(registry.url, signer=BOB.signer)
        stranger = RegistryClient(registry.url)
        async with alice, bob, stranger:
            assert (await alice.register(ALICE.identity, ["alice"], {"display_name": "alice"})).created
            assert not (await alice.register(ALICE.identity, ["alice"])).created
            await bob.register(BOB.identity, ["bob"])
            assert await alice.upload_prekeys(ALICE.did, ALICE.prekeys(3)) == 3
            assert await alice.upload_prekeys(ALICE.did, ALICE.prekeys(2, first_id=10), "merge") == 5
            bundle = (await stranger.fetch_prekeys(ALICE.did)).checked(ALICE.identity.did)
            assert bundle.one_time_prekey_id == 1
            record = await stranger.get_agent(ALICE.did)
            assert (record.one_time_keys_left, record.registration, record.online) == (4, "pop", True)
            assert record.public_key == ALICE.identity.public_key
            assert [found.did for found in await stranger.discover("alice")] == [ALICE.did]
            assert (await stranger.presence(ALICE.did)).online
            assert (await alice.update(ALICE.did, ["alice", "chat"])).capabilities == ("alice", "chat")
            await alice.heartbeat(ALICE.did)
            with pytest.raises(RegistryRefused, match="429"):
                await alice.heartbeat(ALICE.did)
            assert await bob.rate(ALICE.did, 1.0, "kind") == pytest.approx(0.65)
            await bob.report_session(wire.SessionReport("s", BOB.did, ALICE.did, "timeout", BOB.did))
            with pytest.raises(RegistryRefused, match="identity provider"):
                await alice.verify_agent(ALICE.did, "token")
            with pytest.raises(RegistryRefused, match="403"):
                await bob.delete_agent(ALICE.did)
            await alice.delete_agent(ALICE.did)
            with pytest.raises(AgentNotFound):
                await stranger.get_agent(ALICE.did)
            assert alice.clock_skew is not None
            assert abs(alice.clock_skew) < 2
        status, _, err = registry.stop()
        assert status == 0
        assert [json.loads(line)["event"] for line in err.splitlines()] == ["listening", "stopped"], "quiet on success"


async def raw(url: str, data: bytes) -> bytes:
    """Send bytes as they are; whatever comes back until the other side closes or stays silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read(65536)
    finally:
        writer.close()


def head(request: str, *headers: str) -> bytes:
    return "\r\n".join((f"{request} HTTP/1.1", "host: x", *headers, "", "")).encode("latin-1")


async def test_hostile_bytes_cost_their_sender_only() -> None:
    with running("--store", ":memory:") as registry:
        async with RegistryClient(registry.url, signer=ALICE.signer) as alice:
            await alice.register(ALICE.identity, ["alice"])
            body = b'{"a":' * 10_000
            cases = (
                (b"\x00\x01\x02\x03\r\n\r\n", b"400"),
                (b"GET /v1/agents/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"4"),
                (head("GET /v1/discover?capability=%ff"), b"422"),
                (head("GET /v1/agents/%00%0a%0d"), b"404"),
                (head(f"GET /v1/agents/{'x' * 3000}"), b"404"),
                (head("PUT /v1/agents/x/prekeys", "content-length: 2000000"), b"413"),
                (head("POST /v1/agents", "content-length: 1048577", "content-type: application/json"), b"413"),
                (head("POST /v1/agents", f"content-length: {len(body)}") + body, b"400"),
                (head("POST /v1/agents", "content-length: -1"), b"400"),
                (head("POST /v1/agents", "transfer-encoding: chunked") + b"zz\r\n", b"400"),
                (head("DELETE /v1/agents/x", "authorization: Ed25519-Timestamp \xff \xfe \xfd"), b"401"),
                (head("BREW /v1/agents"), b"4"),
                (head("GET /health", f"x-long: {'x' * 200_000}"), b"400"),
                (head(f"GET /{'x' * 200_000}"), b"400"),
                (head("GET /health", *(f"x-{number}: y" for number in range(10_000))), b"400"),
                (b"GET /health HTTP/1.1\r\nx-endless: " + b"x" * 100_000, b"400"),
            )
            for data, status in cases:
                answer = await raw(registry.url, data)
                assert answer.split(b" ")[1].startswith(status), (data[:60], answer[:200])
            assert (await alice.get_agent(ALICE.did)).capabilities == ("alice",)
        status, _, err = registry.stop()
        assert status == 0
        assert "Traceback" not in err


@pytest.mark.slow
async def test_killed_at_any_time_it_hands_out_no_key_twice(tmp_path: Path) -> None:
    store = str(tmp_path / "registry.db")
    seen: list[int] = []

    async def fetch(client: RegistryClient, ids: list[int]) -> None:
        bundle = await client.fetch_prekeys(ALICE.did)
        if bundle.one_time_prekey_id is not None:
            ids.append(bundle.one_time_prekey_id)

    options = ("--store", store, "--keys-per-target", "1000/1")
    for round_number in range(3):
        with running(*options) as registry:
            async with RegistryClient(registry.url, signer=ALICE.signer) as alice:
                if round_number == 0:
                    await alice.register(ALICE.identity)
                    await alice.upload_prekeys(ALICE.did, ALICE.prekeys(200))
                tasks = [asyncio.create_task(fetch(alice, seen)) for _ in range(40)]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                registry.process.kill()
                await asyncio.gather(*tasks, return_exceptions=True)
    assert len(seen) == len(set(seen)) > 0


def test_what_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with running("--store", str(tmp_path / "registry.db")) as registry:
        port = str(registry.listening["port"])
        other = str(tmp_path / "other.db")
        for arguments, word in (
            (("--store", str(tmp_path / "registry.db")), "in use by another mesh-registry"),
            (("--store", "/proc/nowhere/registry.db"), "cannot be used"),
            (("--store", other, "--port", port), f"port {port}"),
            (("--store", other, "--host", "256.256.256.256"), "256.256.256.256"),
        ):
            with running(*arguments) as second:
                status = second.process.wait(timeout=20)
                assert second.process.stderr is not None
                err = second.process.stderr.read()
            assert status == 1
            assert err.startswith("mesh-registry: ")
            assert len(err.splitlines()) == 1, err
            assert word in err


async def test_the_environment_configures_it() -> None:
    environment = {"MESH_REGISTRY_STORE": ":memory:", "MESH_REGISTRY_ALLOW_LEGACY": "1"}
    with running(**environment) as registry:
        assert registry.listening["legacy"] is True
        assert registry.listening["store"] == "memory"
        old = Actor("old", did="did:agentmesh:old")
        async with RegistryClient(registry.url) as client:
            assert (await client.register_legacy(old.did, old.identity.agreement_key.public)).created
