"""Numbers of a client against real servers, however one asks for them."""

import uuid
from pathlib import Path

import anyio
import pytest

from meshlib import (
    BlockingDaemonClient,
    BlockingMeshClient,
    ClientConfig,
    ClientStats,
    DaemonClient,
    Disconnected,
    Identity,
    KnockRefused,
    MeshClient,
    Sighting,
)
from meshlib.daemon.address import socket_path
from meshlib.daemon.server import serve_daemon
from meshlib.testing import SeededEntropy
from tests.commands import Servers

NOBODY = "did:mesh:00000000000000000000000000000000"

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def config(servers: Servers, store: Path | None = None) -> ClientConfig:
    name = f"agent-{uuid.uuid4().hex[:8]}"
    return ClientConfig(relay_url=servers.relay, registry_url=servers.registry, name=name, store=store)


def undated(stats: ClientStats) -> dict[str, object]:
    """What does not change while nothing happens."""
    changing = ("uptime", "frames_sent", "frames_received", "bytes_sent", "bytes_received")
    return {name: getattr(stats, name) for name in stats.__slots__ if name not in changing}


async def test_conversation_shows_in_the_numbers_of_both(servers: Servers, tmp_path: Path) -> None:
    async with (
        MeshClient(config(servers, tmp_path / "a")) as alice,
        MeshClient(config(servers, tmp_path / "b")) as bob,
    ):
        before = await alice.stats()
        assert before.connected
        assert (before.connects, before.outbox, before.oldest_undelivered, before.peers) == (1, 0, None, {})
        assert before.one_time_keys == before.one_time_keys_published == alice.config.prekeys.one_time
        with anyio.fail_after(30):
            for number in range(3):
                receipt = await alice.send(bob.did, number, wait="delivered")
            for _ in range(3):
                await (await bob.receive()).ack()
            await bob.send(alice.did, "thanks", wait="delivered")
        ours, theirs = await alice.stats(), await bob.stats()
        assert (ours.frames_sent["message"], ours.frames_sent["knock"], ours.frames_sent["connect"]) == (3, 1, 1)
        assert (theirs.frames_received["message"], theirs.frames_received["knock"]) == (3, 1)
        assert ours.receipts["delivered"] == 3
        assert (ours.outbox, ours.inbox, theirs.inbox) == (0, 1, 0)
        assert ours.peers == theirs.peers == {"open": 1}
        assert ours.saves > before.saves
        assert ours.save_seconds > 0
        assert min(ours.bytes_sent, ours.bytes_received) > 500
        assert (ours.decrypt_failures, ours.faults, ours.refusals, ours.troubles) == ({}, {}, {}, ())
        assert theirs.one_time_keys == bob.config.prekeys.one_time - 1  # alice's knock took one
        (sent,) = await alice.trace(receipt.id)
        (taken,) = await bob.trace(receipt.id)
        assert (sent.direction, sent.state, taken.direction, taken.state) == ("sent", "delivered", "received", "acked")


async def test_daemons_clients_see_the_same(servers: Servers, tmp_path: Path) -> None:
    path = socket_path(tmp_path / "a")

    def in_a_thread(message: str) -> tuple[ClientStats, tuple[Sighting, ...]]:
        with BlockingDaemonClient(path) as blocking:
            return blocking.stats(), blocking.trace(message)

    async with MeshClient(config(servers, tmp_path / "a")) as alice, serve_daemon(alice):
        receipt = await alice.send(NOBODY, "x")
        with pytest.raises(KnockRefused):
            await receipt.wait()
        async with DaemonClient(path) as daemon:
            assert undated(await daemon.stats()) == undated(await alice.stats())
            assert await daemon.trace(receipt.id) == await alice.trace(receipt.id) != ()
            assert await daemon.trace("unheard-of") == ()
        stats, found = await anyio.to_thread.run_sync(in_a_thread, receipt.id)
        assert undated(stats) == undated(await alice.stats())
        assert [one.state for one in found] == ["refused"]


async def test_relay_that_goes_is_counted(servers: Servers, tmp_path: Path) -> None:
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    again = ClientConfig(relay_url=servers.relay, registry_url=servers.registry, identity=identity)
    async with MeshClient(again) as alice:
        events = alice.events()
        async with MeshClient(again):
            with anyio.fail_after(30):
                while not isinstance(await anext(events), Disconnected):
                    pass
        stats = await alice.stats()
        assert stats.disconnects == {"4006": 1}
        assert stats.troubles[-1].kind == "disconnected"
        assert not stats.connected


def test_blocking_client_tells_them(servers: Servers) -> None:
    with BlockingMeshClient(config(servers)) as alice:
        stats = alice.stats()
        assert stats.connected
        assert stats.frames_sent["connect"] == 1
        assert alice.trace("unheard-of") == ()
