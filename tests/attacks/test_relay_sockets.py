"""Sockets that cost the relay and bring nothing: it answers, counts, and the honest pair does not notice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from bench.load.wire import UPGRADE, Agent, client_frame
from meshlib.wire.encoding import timestamp
from tests.attacks.kit import MIB, Raw, Siege, dump, siege, until

pytestmark = pytest.mark.slow

LIMITS = {
    "proof_seconds": 2,
    "close_seconds": 1,
    "unproven": 100,
    "connections": 300,
    "address_burst": 150,
    "address_rate": 20,
    "bad_proof_burst": 10,
    "bad_proof_rate": 0.1,
    "accept_rate": 400,
    "accept_burst": 200,
}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("sockets"), LIMITS) as running:
        yield running


def test_a_flood_of_connections_from_one_address_is_answered_429(besieged: Siege) -> None:
    relay, statuses = besieged.relay, []
    with besieged.watch() as watch:
        while watch.going:
            with Raw(relay, "127.0.0.2") as raw:
                statuses.append(raw.upgrade())
    assert 429 in statuses
    assert statuses.count(101) <= 150 + 20 * 30
    assert relay.counted("turned_away_total") >= statuses.count(429) > 0
    with Raw(relay, "127.0.0.3") as other:
        assert other.upgrade() == 101  # whoever else comes is let in


@pytest.mark.parametrize(
    ("address", "head"),
    [("127.0.0.4", b""), ("127.0.0.5", UPGRADE[:-2])],
    ids=["half-open sockets", "requests that do not end"],
)
def test_who_sends_no_request_is_answered_408(besieged: Siege, address: str, head: bytes) -> None:
    relay = besieged.relay
    before, sockets = relay.counted("refused_connects_total"), relay.descriptors()
    with contextlib.ExitStack() as stack, besieged.watch() as watch:
        slow = [stack.enter_context(Raw(relay, address)) for _ in range(60)]
        for raw in slow:
            raw.write(head)
        while watch.going:
            for raw in slow:  # dripping does not help
                raw.write(b"X" if head else b"")
        assert [raw.answer()[0] for raw in slow] == [408] * 60
        assert relay.counted("refused_connects_total") >= before + 60
        until(lambda: relay.descriptors() <= sockets + 1, "the relay lets go of sockets that their clients keep")


def test_who_never_proves_is_closed_4005_and_the_oldest_make_room(besieged: Siege) -> None:
    relay = besieged.relay
    with contextlib.ExitStack() as stack, besieged.watch() as watch:
        idle = []
        for number in range(130):
            idle.append(stack.enter_context(Raw(relay, f"127.0.0.{6 + number % 2}")))
            assert idle[-1].upgrade() == 101
        assert relay.counted("unproven_sockets") <= LIMITS["unproven"]
        while watch.going:
            watch.rest()
        assert {raw.close_code() for raw in idle} == {4005}
    until(lambda: relay.counted("unproven_sockets") <= 1, "none is left but the one that asks")


def test_more_sockets_than_there_may_be_are_answered_503(besieged: Siege) -> None:
    relay, statuses = besieged.relay, []
    with contextlib.ExitStack() as stack, besieged.watch(grows=48 * MIB) as watch:
        agents = [Agent() for _ in range(320)]
        for number, agent in enumerate(agents):
            raw = stack.enter_context(Raw(relay, f"127.0.0.{8 + number % 4}"))
            statuses.append(raw.upgrade())
            if statuses[-1] == 101:
                raw.write(agent.connect(raw.nonce, time.time(), receipts=True))
                raw.next("connected")
        while watch.going:
            watch.rest()
    assert statuses.count(503) >= 20
    assert relay.counted("overcrowded_total") == statuses.count(503)


def test_a_captured_proof_is_of_no_use(besieged: Siege) -> None:
    relay, agent = besieged.relay, Agent()
    with Raw(relay, "127.0.0.12") as owner, Raw(relay, "127.0.0.12") as sdk:
        assert owner.upgrade() == sdk.upgrade() == 101
        captured = agent.connect(owner.nonce, time.time(), receipts=True)
        bare = Agent()
        captured_bare = bare.connect(None, time.time(), receipts=False)
        owner.write(captured)
        owner.next("connected")
        sdk.write(captured_bare)
        sdk.say(dump({"v": 1, "type": "fetch_pending", "from": bare.did}))
        sdk.next("pending_messages")
        before = relay.counted('refused_connects_total{code="4005"}')
        for proof in (captured, captured_bare):
            with Raw(relay, "127.0.0.13") as thief:
                assert thief.upgrade() == 101
                thief.write(proof)
                assert thief.next("error")["code"] == 4005
                assert thief.close_code() == 4005
        assert relay.counted('refused_connects_total{code="4005"}') == before + 2
        for victim, did in ((owner, agent.did), (sdk, bare.did)):  # nobody was replaced
            victim.say(dump({"v": 1, "type": "fetch_pending", "from": did}))
            victim.next("pending_messages")


def test_bad_proofs_use_up_their_address(besieged: Siege) -> None:
    relay, seen = besieged.relay, []
    agent = Agent()
    with besieged.watch() as watch:
        while watch.going:
            with Raw(relay, "127.0.0.14") as raw:
                if (status := raw.upgrade()) == 101:
                    raw.write(agent.connect("another nonce", time.time(), receipts=True))
                    status = raw.close_code()
                seen.append(status)
    assert seen[:10] == [4005] * 10
    assert seen[-1] == 429
    assert seen.count(4005) <= 15


@pytest.mark.parametrize(("off", "words"), [(3600, "3600 s ahead of"), (-86_400, "86400 s behind")])
def test_a_clock_far_off_is_told_how_far(besieged: Siege, off: float, words: str) -> None:
    with Raw(besieged.relay, "127.0.0.15") as raw:
        assert raw.upgrade() == 101
        now = time.time()
        raw.write(Agent().connect(raw.nonce, now + off, receipts=True))
        error = raw.next("error")
        assert error["code"] == 4005
        assert words in error["detail"].replace("3599", "3600").replace("86401", "86400")
        assert abs(time.time() - now) > 60 or error["server_time"][:16] in (
            timestamp(now)[:16],
            timestamp(now + 60)[:16],
        )
        assert raw.close_code() == 4005


ABUSE = {
    "endless headers": (b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 4000, 431),
    "an endless path": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
    "a long path": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 400),
    "many headers": (b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
    "another path": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "another method": (b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 405),
    "a split line": (b"GET /ws HTTP/1.1\r\nHost: x\nInjected: 1\r\n\r\n", 400),
    "no HTTP": (b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", 400),
    "no key": (UPGRADE.replace(b"Sec-WebSocket-Key", b"X-Key"), 400),
}


def test_requests_that_are_none_get_a_status(besieged: Siege) -> None:
    relay = besieged.relay
    before = relay.counted("rule_breaks_total")
    with besieged.watch() as watch:
        number = 0
        while watch.going:
            for head, status in ABUSE.values():
                with Raw(relay, f"127.1.{number % 250}.1") as raw:
                    raw.write(head)
                    assert raw.answer()[0] == status, head[:80]
                number += 1
    assert relay.counted("rule_breaks_total") > before


def test_compression_is_never_agreed_to(besieged: Siege) -> None:
    relay = besieged.relay
    before = relay.counted('rule_breaks_total{code="1002"}')
    with Raw(relay, "127.0.0.16") as raw:
        offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
        raw.write(UPGRADE[:-2] + offer)
        head = b""
        while b"\r\n\r\n" not in head:
            head += raw.read()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"extensions" not in head.lower()
        raw.write(b"\xc1" + client_frame(b"a bomb")[1:])
        assert raw.close_code() == 1002
    assert relay.counted('rule_breaks_total{code="1002"}') == before + 1


def test_a_fleet_that_comes_back_at_once_is_let_in_at_a_bounded_rate(besieged: Siege) -> None:
    relay = besieged.relay
    before = relay.counted("accepts_delayed_total")
    began = time.monotonic()
    count = 0
    with besieged.watch(grows=48 * MIB) as watch:
        while watch.going or count < 600:
            with contextlib.ExitStack() as stack:
                wave = [stack.enter_context(Raw(relay, f"127.2.{count % 250}.{n % 20 + 1}")) for n in range(90)]
                assert all(raw.write(UPGRADE) for raw in wave)
                for raw in wave:  # they wait, and all of them come in
                    assert raw.read().startswith(b"HTTP/1.1 101 ")
                count += len(wave)
    assert count <= LIMITS["accept_burst"] + LIMITS["accept_rate"] * (time.monotonic() - began) + 64
    assert relay.counted("accepts_delayed_total") > before
