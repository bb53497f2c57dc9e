"""What ``/metrics`` says, read by Prometheus' own parser."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from mesh_relay.inbox.sqlite import SqliteInbox
from prometheus_client.parser import text_string_to_metric_families

from meshlib.identity import Identity
from tests.unit.mesh_relay.kit import ALICE, BOB, CAROL, MALLORY, NONCE, Relay, ack, connect_frame, dump, message
from tests.unit.mesh_relay.test_server import Client, get, http, running

FEATURES = ["receipts", "challenge"]
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


async def page(port: int) -> Samples:
    status, head, body = await get(port, "/metrics")
    assert status == 200
    assert b"text/plain; version=0.0.4" in head
    return samples(body.decode())


def samples(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.name.startswith(("mesh_relay_", "process_"))
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"mesh_relay_{name}", frozenset(labels.items())]


def frames(found: Samples, direction: str) -> dict[str, float]:
    """Frames by type, those there were."""
    kinds = {
        dict(labels)["type"]: count
        for (name, labels), count in found.items()
        if name == "mesh_relay_frames_total" and ("direction", direction) in labels
    }
    return {kind: count for kind, count in kinds.items() if count}


async def join(port: int, who: Identity) -> Client:
    client = await Client.join(port, who, FEATURES)
    assert (await client.next())["type"] == "connected"
    return client


@pytest.mark.trio
async def test_real_traffic_is_told_from_what_keeps_a_connection_alive(tmp_path: Any) -> None:
    async with running(SqliteInbox(tmp_path / "relay.db")) as (_, port):
        alice, bob = await join(port, ALICE), await join(port, BOB)
        await alice.say(*[dump({"v": 1, "type": "heartbeat", "from": ALICE.did})] * 5)
        await alice.say(message(BOB.did, "k", kind="knock"))
        await bob.say(message(ALICE.did, "a", kind="knock_accept"), ack("k"))
        await alice.say(message(BOB.did, "1"), message(BOB.did, "2"))
        assert await bob.ids(3) == ["k", "1", "2"]
        await bob.say(ack("1"), ack("2"))
        delivered = set()
        while len(delivered) < 3:
            said = await alice.next()
            if said.get("state") == "delivered":
                delivered.add(said["id"])
        await alice.say(b"no JSON")
        while (await alice.next())["type"] != "error":
            pass
        found = await page(port)
    assert frames(found, "in") == {
        "connect": 2,
        "heartbeat": 5,
        "knock": 1,
        "knock_accept": 1,
        "message": 2,
        "ack": 3,
        "other": 1,
    }
    receipts = value(found, "receipts_total", state="stored") + value(found, "receipts_total", state="delivered")
    assert frames(found, "out") == {
        "connected": 2,
        "knock": 1,
        "knock_accept": 1,
        "message": 2,
        "error": 1,
        "receipt": receipts,
    }
    assert value(found, "receipts_total", state="delivered") == 3
    assert value(found, "bytes_total", direction="in") > 1000
    assert value(found, "bytes_total", direction="out") > 500
    assert value(found, "refused_frames_total", reason="malformed") == 1
    assert value(found, "agents") == 2
    assert value(found, "ready") == 1
    assert value(found, "store_free_bytes") > 0


@pytest.mark.trio
async def test_the_inbox_shows_its_depth_and_the_age_of_its_oldest_frame(tmp_path: Any) -> None:
    for round_, pushed in ((1, 3), (2, 0)):  # the second time over what a restart has found
        async with running(SqliteInbox(tmp_path / "relay.db")) as (_, port):
            alice = await join(port, ALICE)
            await alice.say(*(message(CAROL.did, str(number)) for number in range(pushed)))
            for _ in range(pushed):
                assert (await alice.next())["state"] == "stored"
            found = await page(port)
            assert (value(found, "inbox_frames"), value(found, "inbox_recipients")) == (3, 1), round_
            assert 0 < value(found, "inbox_oldest_seconds") < 60
            while not value(found, "commit_seconds_count"):
                found = await page(port)
            assert value(found, "commit_seconds_count") == value(found, "commit_seconds_bucket", le="+Inf")


def test_the_age_is_that_of_the_oldest_frame_kept_wherever_it_is() -> None:
    relay = Relay()
    alice = relay.join(ALICE)
    assert relay.core.oldest is None
    relay.say(alice, message(BOB.did, "1"))
    accepted = relay.now.utc
    assert relay.core.oldest == accepted
    relay.wait(5)
    relay.say(alice, message(BOB.did, "2"))
    relay.commit()
    assert relay.core.oldest == accepted
    bob = relay.join(BOB)
    relay.commit()
    relay.say(bob, ack("1"))
    relay.commit()
    assert relay.core.oldest == accepted + 5
    relay.say(bob, ack("2"))
    relay.commit()
    assert relay.core.oldest is None


@pytest.mark.trio
async def test_ends_of_sockets_are_counted_by_who_closed_and_why() -> None:
    async with running() as (_, port):
        first, carol, bob = await join(port, ALICE), await join(port, CAROL), await join(port, BOB)
        await join(port, ALICE)
        await first.closed()
        carol.protocol.send_close(3999, "a code of their own")
        await carol.flush()
        await carol.closed()
        await trio.aclose_forcefully(bob.stream)
        mallory = await join(port, MALLORY)
        await mallory.stream.send_all(b"\x81\x05hello")  # a client's frames are masked
        await mallory.closed()
        stranger = await Client.open(port)
        await stranger.say(b"null")
        await stranger.closed()
        found = await page(port)
        while not value(found, "disconnects_total", code="1006"):
            found = await page(port)
    assert value(found, "disconnects_total", code="4006") == 1
    assert value(found, "disconnects_total", code="other") == 1
    assert value(found, "disconnects_total", code="1002") == 1
    assert value(found, "refused_connects_total", code="4001") == 1
    assert value(found, "agents") == 1


@pytest.mark.trio
async def test_no_name_and_nothing_a_stranger_says_becomes_part_of_the_page() -> None:
    async with running() as (_, port):
        alice = await join(port, ALICE)
        await alice.say(dump({"v": 1, "type": "heartbeat"}))
        await alice.say(message("nobody", "x"))
        await alice.next()
        before = set(await page(port))
        for number in range(50):
            await alice.say(dump({"v": 1, "type": f'evil{number}"}} 1\n', "id": f"evil{number}", "to": "evil"}))
            await alice.next()
        alice.protocol.send_close(4990, "evil")
        await alice.flush()
        await alice.closed()
        for number in range(20):
            stranger = await Client.open(port)
            await stranger.say(dump({"v": 1, "type": f"evil{number}", "from": f"evil{number}"}))
            await stranger.closed()
            await http(port, f"GET /evil{number} HTTP/1.1\r\nHost: evil\r\n\r\n".encode())
        _, _, body = await get(port, "/metrics")
        found = samples(body.decode())
    assert before == set(found)
    assert b"evil" not in body
    assert b"did:" not in body
    assert value(found, "frames_total", direction="in", type="other") == 70
    assert value(found, "refused_frames_total", reason="unknown_type") == 50
    assert value(found, "refused_connects_total", code="4001") == 20


def test_every_refusal_of_a_frame_has_its_reason() -> None:
    relay = Relay(pair_frames=2, pair_bytes=10**9, frame_size=2000)
    alice = relay.join(ALICE, FEATURES)
    again = connect_frame(ALICE, relay.now.utc, nonce=NONCE, features=FEATURES)
    relay.say(alice, b"[", dump({"v": 1, "type": "ack"}), message("no DID", "1"), message(BOB.did, "", id="x" * 999))
    relay.say(alice, message(BOB.did, "1", sender=CAROL.did), dump({"v": 1, "type": "dance"}), again)
    relay.core.oversized(alice, 3000)
    relay.say(alice, *(message(BOB.did, str(number)) for number in range(3)))
    assert {reason: count for reason, count in relay.core.counters.refused_frames.items() if count} == {
        "malformed": 1,
        "no_id": 2,
        "wrong_recipient": 1,
        "wrong_sender": 1,
        "unknown_type": 1,
        "bound_already": 1,
        "too_large": 1,
        "pair_full": 1,
    }
    assert relay.core.counters.sent["error"] == len(relay.errors(alice)) == 9
    assert relay.core.counters.receipts[b"refused"] == 1


def test_every_frame_that_went_out_is_counted_by_its_type() -> None:
    relay = Relay()
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB, FEATURES)
    for number, kind in enumerate(("message", "knock", "knock_accept", "knock_reject")):
        relay.say(alice, message(CAROL.did, str(number), kind=kind), message(BOB.did, str(number), kind=kind))
        relay.say(bob, ack(str(number)))
    relay.commit()
    carol = relay.join(CAROL)
    relay.commit()
    relay.say(carol, dump({"v": 1, "type": "fetch_pending"}))
    went: dict[str, int] = {}
    for frame in [json.loads(raw) for link in (alice, bob, carol) for raw in relay.raw[link]]:
        went[frame["type"]] = went.get(frame["type"], 0) + 1
    assert went == {kind: count for kind, count in relay.core.counters.frames_sent.items() if count}
