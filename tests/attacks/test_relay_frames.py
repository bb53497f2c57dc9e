"""Agents that have proved who they are and send what hurts: they pay for it, and nobody else does."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.load.wire import Agent, client_frame
from tests.attacks.kit import MIB, STORED, Raw, Siege, dump, message, siege, until

pytestmark = pytest.mark.slow

LIMITS = {
    "frame_size": 64 * 1024,
    "frame_rate": 5000,
    "frame_burst": 5000,
    "address_frame_rate": 8000,
    "address_frame_burst": 8000,
    "outgoing_high": 256 * 1024,
    "outgoing_low": 64 * 1024,
    "uncommitted_bytes": MIB,
    "knock_rate": 20,
    "knock_burst": 50,
    "address_knock_rate": 30,
    "address_knock_burst": 60,
    "proof_seconds": 20,
}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("frames"), LIMITS) as running:
        yield running


@contextmanager
def reading(*raws: Raw) -> Iterator[list[tuple[int, bytes]]]:
    """Let threads take whatever comes, so that nobody waits for an attacker to listen."""
    taken: list[tuple[int, bytes]] = []

    def read(raw: Raw) -> None:
        with contextlib.suppress(OSError):
            taken.extend(raw.frames())

    threads = [threading.Thread(target=read, args=(raw,), daemon=True) for raw in raws]
    for thread in threads:
        thread.start()
    yield taken
    for raw in raws:
        raw.hang_up()
    for thread in threads:
        thread.join(20)


def errors(taken: list[tuple[int, bytes]]) -> list[str]:
    return [json.loads(payload)["detail"] for opcode, payload in taken if opcode == 1 and b'"error"' in payload]


@pytest.mark.parametrize("agents", [1, 8], ids=["one DID", "many DIDs of one address"])
def test_a_flood_of_frames_is_read_more_slowly_and_loses_nothing(besieged: Siege, agents: int) -> None:
    relay, address = besieged.relay, f"127.0.0.{1 + agents}"
    before, began, sent = relay.counted("throttled_total"), time.monotonic(), 0
    with contextlib.ExitStack() as stack:
        flooders = [stack.enter_context(Raw.join(relay, address)) for _ in range(agents)]
        nobody = Agent().did
        with reading(*flooders) as taken, besieged.watch(grows=STORED) as watch:
            while watch.going:
                for raw in flooders:
                    assert raw.say(*(message(nobody, f"{sent + n}") for n in range(500)))
                    sent += 500
            until(lambda: sum(b'"stored"' in payload for _, payload in taken) == sent, "every frame is answered")
    assert relay.counted("throttled_total") > before
    scope = "frame" if agents == 1 else "address_frame"
    rate, burst = LIMITS[f"{scope}_rate"], LIMITS[f"{scope}_burst"]
    assert sent <= burst + rate * (time.monotonic() - began) + 5000  # what the kernel holds


def test_frames_too_large_are_answered_and_the_connection_stays(besieged: Siege) -> None:
    relay = besieged.relay
    before = relay.counted("refused_frames_total")
    with Raw.join(relay, "127.0.0.3") as raw, reading(raw) as taken, besieged.watch() as watch:
        count = 0
        while watch.going:
            raw.say(b"x" * MIB)
            count += 1
        raw.say(dump({"v": 1, "type": "fetch_pending"}))
        until(lambda: any(b"pending_messages" in payload for _, payload in taken), "the connection stays")
        assert len(errors(taken)) == count
        assert set(errors(taken)) == {f"a frame of {MIB} bytes; at most {LIMITS['frame_size']} are taken"}
    assert relay.counted("refused_frames_total") == before + count


def test_a_frame_that_announces_too_much_ends_the_connection_with_1009(besieged: Siege) -> None:
    relay = besieged.relay
    before = relay.counted('rule_breaks_total{code="1009"}')
    huge = b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)
    with Raw.join(relay, "127.0.0.3") as proven, Raw(relay, "127.0.0.3") as stranger:
        assert stranger.upgrade() == 101
        stranger.say(b"x" * 20_000)  # before the proof the first frame's bound holds
        proven.write(huge)
        assert proven.close_code() == stranger.close_code() == 1009
    assert relay.counted('rule_breaks_total{code="1009"}') == before + 2


@pytest.mark.parametrize("piece", [b"", b"x"], ids=["empty ones", "tiny ones"])
def test_a_message_in_endless_fragments_is_ended_with_1009(besieged: Siege, piece: bytes) -> None:
    relay, codes, number = besieged.relay, set(), 0
    with besieged.watch() as watch:
        while watch.going:
            number += 1
            with Raw.join(relay, f"127.0.{30 + len(piece)}.{number % 250 + 1}") as raw:
                raw.write(b"\x01" + client_frame(b"{")[1:] + (b"\x00" + client_frame(piece)[1:]) * 1100)
                codes.add(raw.close_code())
    assert codes == {1009}


def test_a_flood_of_pings_is_throttled_and_before_the_proof_ended_with_1008(besieged: Siege) -> None:
    relay = besieged.relay
    before = relay.counted("throttled_total")
    with Raw(relay, "127.0.0.5") as stranger:
        assert stranger.upgrade() == 101
        stranger.say(*[b"hello"] * 20, opcode=9)
        assert stranger.close_code() == 1008
    with Raw.join(relay, "127.0.0.5") as raw, reading(raw) as taken, besieged.watch() as watch:
        raw.socket.settimeout(0.2)
        began = time.monotonic()
        while watch.going:
            with contextlib.suppress(TimeoutError):  # it is hardly read from any more
                raw.say(*[b"hello"] * 100, opcode=9)
        answered, spent = sum(opcode == 10 for opcode, _ in taken), time.monotonic() - began
    assert relay.counted("throttled_total") > before
    one_read = 64 * 1024 / 11  # what is taken at once, before it is counted
    assert 0 < answered <= (LIMITS["frame_burst"] + LIMITS["frame_rate"] * spent) / 20 + 2 * one_read


def test_who_reads_slowly_is_switched_to_the_inbox_and_gets_everything_later(besieged: Siege) -> None:
    relay, slow_one = besieged.relay, Agent()
    before = relay.counted("spilled_total")
    with (
        Raw.join(relay, "127.0.0.6", slow_one, buffer=4096) as slow,
        Raw.join(relay, "127.0.0.7") as sender,
        reading(sender) as taken,
    ):
        sent, body = 0, "x" * 30_000
        with besieged.watch(grows=STORED) as watch:
            while watch.going or sent < 600:
                sender.say(*(message(slow_one.did, str(sent + n), body) for n in range(10)))
                sent += 10
            until(lambda: sum(b'"stored"' in payload for _, payload in taken) == sent, "everything is on the disk")
        assert relay.counted("spilled_total") > before
        ids: list[str] = []
        while len(ids) < sent:
            ids.append(slow.next("message")["id"])
        assert ids == [str(number) for number in range(sent)]
        slow.say(*(dump({"v": 1, "type": "ack", "id": one}) for one in ids))
        until(lambda: sum(b'"delivered"' in payload for _, payload in taken) == sent, "everything is delivered")


def test_who_reads_nothing_at_all_is_not_read_from(tmp_path: Path) -> None:
    """Rates are out of the way here: what is sent is bounded by what is taken."""
    rates = {"frame_burst": 1e7, "address_frame_rate": 1e6, "address_frame_burst": 1e6}
    with siege(tmp_path, {"outgoing_high": 64 * 1024, **rates}) as besieged:
        with Raw.join(besieged.relay, "127.0.0.8", buffer=4096) as deaf, besieged.watch() as watch:
            deaf.socket.settimeout(0.2)
            # Each is answered by an error that nobody takes, and larger than that, so that it is noticed in time.
            storm = b"".join(client_frame(b"null".ljust(200)) for _ in range(5000))
            unsent = storm
            while watch.going or not besieged.relay.counted("deaf_total"):
                with contextlib.suppress(TimeoutError):
                    unsent = unsent[deaf.socket.send(unsent) :] or storm
            throttled = besieged.relay.counted("throttled_total")
        assert throttled == 0


def test_ids_taken_in_advance_hold_nobody_up(besieged: Siege) -> None:
    relay, recipient = besieged.relay, Agent()
    before = relay.counted("refused_frames_total")
    with Raw.join(relay, "127.0.0.9") as squatter, Raw.join(relay, "127.0.0.10") as honest:
        squatter.say(*(message(recipient.did, str(number), "squat") for number in range(100)))
        squatter.say(dump({"v": 1, "type": "fetch_pending"}))
        squatter.next("pending_messages")  # so the squatter's were first
        honest.say(*(message(recipient.did, str(number), "honest") for number in range(100)))
        for _ in range(100):
            assert honest.next("receipt")["state"] == "stored"
        with Raw.join(relay, "127.0.0.10", recipient) as reader:
            frames = [reader.next("message") for _ in range(200)]
            assert [frame["id"] for frame in frames if frame["ciphertext"] == "honest"] == [str(n) for n in range(100)]
            for frame in frames:  # what names its sender removes no other's
                reader.say(dump({"v": 1, "type": "ack", "id": frame["id"], "from": frame["from"]}))
            for _ in range(100):
                assert honest.next("receipt")["state"] == "delivered"
    assert relay.counted("refused_frames_total") == before


def nested(depth: int) -> bytes:
    return message("did:mesh:" + "0" * 32, "deep").replace(b'""', b"[" * depth + b"]" * depth)


BAD: dict[str, Callable[[], bytes]] = {
    "deep": lambda: nested(20_000),
    "deep objects": lambda: b'{"type":"message","x":' + b'{"a":' * 9000 + b"1" + b"}" * 9001,
    "wide": lambda: b'{"type":"message","id":[' + b"1," * 30_000 + b"1]}",
    "a huge number": lambda: b'{"type":"message","v":' + b"9" * 60_000 + b"}",
    "no object": lambda: b"[" + b"{}," * 10_000 + b"{}]",
    "null": lambda: b"null",
    "no UTF-8": lambda: b'{"type":"message","id":"\xff"}',
    "a long id": lambda: message("did:mesh:" + "0" * 32, "i" * 50_000),
    "a long DID": lambda: message("did:mesh:" + "0" * 50_000, "1"),
    "somebody else's name": lambda: dump({"v": 1, "type": "message", "from": "did:mesh:" + "0" * 32, "id": "1"}),
}


def test_huge_and_deep_json_gets_an_error_frame(besieged: Siege) -> None:
    relay = besieged.relay
    before, frames = relay.counted("refused_frames_total"), [make() for make in BAD.values()]
    with Raw.join(relay, "127.0.0.11") as raw, reading(raw) as taken, besieged.watch() as watch:
        sent = 0
        while watch.going:
            raw.say(*frames)
            sent += len(frames)
        until(lambda: len(errors(taken)) == sent, "every frame is answered")
        assert max(len(detail) for detail in errors(taken)) < 400
    assert relay.counted("refused_frames_total") >= before + sent


def test_spam_of_knocks_is_read_more_slowly_and_its_victim_goes_on(besieged: Siege) -> None:
    """The victim is one of the honest pair: it drops what is beyond its own rate, and goes on hearing its peer."""
    relay = besieged.relay
    opening = {"ik": "A" * 43 + "=", "ek": "B" * 43 + "="}
    before, routed, began = relay.counted("throttled_total"), relay.counted("routed_total"), time.monotonic()
    with contextlib.ExitStack() as stack:
        spammers = [stack.enter_context(Raw.join(relay, f"127.0.1.{number // 2 + 1}")) for number in range(8)]
        for raw in spammers:
            raw.socket.settimeout(0.05)
        with reading(*spammers), besieged.watch() as watch:
            sent = 0
            while watch.going:
                for raw in spammers:
                    ids = [str(sent + number) for number in range(20)]
                    with contextlib.suppress(TimeoutError):
                        raw.say(*(message(besieged.pair.did, one, "", "knock", establishment=opening) for one in ids))
                    sent += 20
        spent = time.monotonic() - began
    assert relay.counted("throttled_total") > before
    knocks = relay.counted("routed_total") - routed - len(besieged.pair.laps["message"])
    one_read = 64 * 1024 / len(message(besieged.pair.did, "1", "", "knock", establishment=opening))
    assert knocks <= 4 * (60 + 30 * spent) + 8 * one_read
