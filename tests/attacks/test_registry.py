"""The registry attacked by strangers and by agents of its own, while an honest pair goes on looking each other up."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp
from tests.attacks.kit import Raw, Siege, ask, siege, until
from tests.unit.mesh_registry.helpers import Actor, changed

pytestmark = pytest.mark.slow

LIMITS = {
    "registrations_per_address": "50/2",
    "keys_per_target": "20/0.1",
    "keys_per_requester": "15/0.1",
    "lookups_per_requester": "300/100",
    "max_agents": 400,
    "max_connections": 200,
    "address_connections": 60,
    "head_seconds": 2,
    "body_seconds": 2,
    "unread_seconds": 2,
    "pipelined": 4,
}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("registry"), {}, LIMITS) as running:
        yield running


def send(
    besieged: Siege, address: str, request: wire.Request, actor: Actor | None = None, at: float | None = None
) -> tuple[int, dict[str, object]]:
    """A request of the client's own making, signed by ``actor``."""
    signed_at = timestamp(time.time() if at is None else at)
    headers = wire.headers(request, None if actor is None else actor.signer, signed_at, bound=True)
    status, body = ask(besieged.registry, address, request.method, request.target, request.body, headers)
    return status, json.loads(body) if body else {}


def join(besieged: Siege, name: str, address: str, keys: int = 0) -> Actor:
    actor = Actor(name)
    assert send(besieged, address, actor.registration(time.time()))[0] == 201
    if keys:
        assert send(besieged, address, actor.publication(keys), actor)[0] == 200
    return actor


def test_strangers_cannot_drain_the_one_time_keys_that_known_peers_get(besieged: Siege) -> None:
    registry = besieged.registry
    victim = join(besieged, "victim", "127.3.0.1", keys=50)
    peer = join(besieged, "peer", "127.3.0.2", keys=5)
    fetch, taken, number = wire.fetch_prekeys(victim.did), 0, 0
    before = registry.counted("bundles_without_one_time_key_total")
    with besieged.watch("lookup") as watch:
        while watch.going or number < 100:
            status, bundle = send(besieged, f"127.3.1.{number % 100 + 1}", fetch)
            assert status == 200  # a bundle there always is
            taken += bundle["one_time_pre_key"] is not None
            number += 1
    assert taken <= 20 + 0.1 * 60
    assert registry.counted("bundles_without_one_time_key_total") >= before + number - taken
    assert send(besieged, "127.3.0.2", fetch, peer)[1]["one_time_pre_key"] is not None


def test_who_scrapes_is_answered_429_and_others_are_not(besieged: Siege) -> None:
    registry, statuses = besieged.registry, Counter[int]()
    with besieged.watch("lookup") as watch:
        while watch.going or not statuses[429]:
            statuses[send(besieged, "127.4.0.1", wire.discover("ben", 200))[0]] += 1
    assert set(statuses) == {200, 429}
    assert registry.counted('requests_total{endpoint="discover",status="429"}') == statuses[429]
    assert send(besieged, "127.4.0.2", wire.discover("ben", 200))[0] == 200


TOO_MUCH = {
    "a long capability": {"capabilities": ["x" * 257]},
    "many capabilities": {"capabilities": [str(n) for n in range(65)]},
    "capabilities of 4 KiB": {"capabilities": [f"{n}" + "x" * 200 for n in range(30)]},
    "control characters": {"capabilities": ["a\nb"]},
    "much metadata": {"metadata": {str(n): "x" for n in range(65)}},
    "a long value": {"metadata": {"a": "x" * 4097}},
    "metadata of 16 KiB": {"metadata": {str(n): "x" * 4000 for n in range(5)}},
    "a long key": {"metadata": {"x" * 129: ""}},
    "no text": {"metadata": {"a": {"b": []}}},
    "a long public key": {"public_key": "A" * 20_000},
}


def test_what_an_agent_publishes_is_bounded(besieged: Siege) -> None:
    number = 0
    with besieged.watch("lookup") as watch:
        while watch.going or number < len(TOO_MUCH):
            members = list(TOO_MUCH.values())[number % len(TOO_MUCH)]
            request = changed(Actor("greedy").registration(time.time()), **members)
            status, answer = send(besieged, f"127.5.{number % 200}.1", request)
            assert (status, bool(answer["detail"])) == (422, True), members.keys()
            number += 1
    huge = changed(Actor("greedy").registration(time.time()), metadata={"x": "y" * 70_000})
    assert send(besieged, "127.5.0.2", huge)[0] == 413


def test_a_bundle_holds_only_so_many_keys(besieged: Siege) -> None:
    actor = join(besieged, "hoarder", "127.5.1.1")
    assert send(besieged, "127.5.1.1", actor.publication(201), actor)[0] == 422
    assert send(besieged, "127.5.1.1", actor.publication(200), actor)[0] == 200
    huge = changed(actor.publication(200), padding="x" * 256 * 1024)
    assert send(besieged, "127.5.1.1", huge, actor)[0] == 413


JUNK = {
    b"[" * 30_000: 400,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000: 400,
    b'{"public_key":' + b"9" * 30_000 + b"}": 400,
    b'{"public_key":"\xff"}': 400,
    b'{"public_key":"\\ud800"}': 400,
    b'{"public_key":"a","public_key":"b"}': 400,
    b'{"public_key":NaN}': 400,
    b"null": 422,
    b"": 400,
    b"x" * 65_537: 413,
}


def test_huge_and_deep_json_is_answered(besieged: Siege) -> None:
    registry, number = besieged.registry, 0
    with besieged.watch("lookup") as watch:
        while watch.going or number < len(JUNK):
            body, expected = list(JUNK.items())[number % len(JUNK)]
            headers = [("Content-Type", "application/json")]
            status, _ = ask(registry, "127.6.0.1", "POST", "/v1/agents", body, headers)
            assert status == expected or (status == 0 and expected == 413), body[:40]
            number += 1
    assert registry.counted('requests_total{endpoint="register",status="400"}') > 0
    assert registry.counted('requests_total{endpoint="register",status="500"}') == 0


ABUSE = [
    (b"GET /v1/agents/" + b"%61" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (404, 422)),
    (b"GET /v1/agents/%ff%00%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n", (404, 422)),
    (b"GET /v1/agents/did:mesh:%2e%2e%2f HTTP/1.1\r\nHost: x\r\n\r\n", (404, 422)),
    (b"GET /../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", (404,)),
    (b"GET //x:y@[::1/ HTTP/1.1\r\nHost: x\r\n\r\n", (400, 404)),
    (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
    (b"GET /v1/discover?" + b"a=b&" * 4000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (422,)),
    (b"GET /v1/discover?capability=a&limit=9999999999999 HTTP/1.1\r\nHost: x\r\n\r\n", (422,)),
    (b"BREW /v1/agents HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
    (b"PATCH /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", (405,)),
    (b"DELETE /v1/agents/x HTTP/1.1\r\nHost: x\r\nAuthorization: " + b"A " * 8000 + b"\r\n\r\n", (401, 422)),
    (b"DELETE /v1/agents/x HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\xfe\r\n\r\n", (400, 401, 422)),
    (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 12_000 + b"\r\n", (400,)),
    (b"GET /health HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", (400,)),
    (b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", (400,)),
    (b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", (400,)),
    (b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", (413, 415)),
    (b"GET /v1/agents HTTP/9.9\r\nHost: x\r\n\r\n", (400, 405)),
    (b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", (400,)),
]


def test_abuse_of_paths_and_headers_is_answered_and_never_with_500(besieged: Siege) -> None:
    registry, number = besieged.registry, 0
    before = registry.counted('refused_connections_total{reason="malformed"}')
    with besieged.watch("lookup") as watch:
        while watch.going or number < len(ABUSE):
            request, expected = ABUSE[number % len(ABUSE)]
            with Raw(registry, "127.7.0.1") as raw:
                raw.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                assert raw.answer()[0] in expected, request[:100]
            number += 1
    assert registry.counted('refused_connections_total{reason="malformed"}') > before


SLOW = {
    "half-open": (b"", b""),
    "headers that drip": (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X"),
    "a body that drips": (
        b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n",
        b" ",
    ),
}


@pytest.mark.parametrize("kind", SLOW)
def test_who_is_slow_is_answered_408(besieged: Siege, kind: str) -> None:
    registry, (head, drip) = besieged.registry, SLOW[kind]
    sockets = registry.descriptors()
    with contextlib.ExitStack() as stack, besieged.watch("lookup") as watch:
        slow = [stack.enter_context(Raw(registry, f"127.8.0.{len(kind)}")) for _ in range(50)]
        for raw in slow:
            raw.write(head)
        while watch.going:
            for raw in slow:
                raw.write(drip)
        assert Counter(raw.answer()[0] for raw in slow) == {408: 50}
        until(lambda: registry.descriptors() <= sockets + 1, "the registry lets go of them")


def test_requests_without_end_on_one_connection_end_it(besieged: Siege) -> None:
    registry = besieged.registry
    with besieged.watch("lookup") as watch:
        while watch.going:
            with Raw(registry, "127.8.1.1") as raw:
                raw.write(b"GET /v1/discover?capability=a HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
                raw.answer()
    assert registry.counted('refused_connections_total{reason="pipelined"}') > 0


def test_who_does_not_read_the_answers_is_cut_off(besieged: Siege) -> None:
    def cut_off() -> float:
        """Who goes on asking is cut off for that before the time to read is over."""
        reasons = ("unread", "pipelined")
        return sum(registry.counted(f'refused_connections_total{{reason="{reason}"}}') for reason in reasons)

    registry = besieged.registry
    before = cut_off()
    question, sent = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", 0
    with Raw(registry, "127.8.2.1", buffer=4096) as raw, besieged.watch("lookup") as watch:
        raw.socket.settimeout(0.1)
        with contextlib.suppress(TimeoutError):  # once it takes no answers, its questions are not read either
            while sent < 2000 and raw.write(question):
                sent += 1
                watch.rest(0.002)
        while watch.going:
            watch.rest()
        until(lambda: cut_off() > before, "it is cut off")


def test_connections_of_one_address_are_bounded_and_beyond_all_of_them_answers_are_503(besieged: Siege) -> None:
    registry = besieged.registry
    with contextlib.ExitStack() as stack, besieged.watch("lookup") as watch:
        for _ in range(60):
            stack.enter_context(Raw(registry, "127.8.3.1"))
        with Raw(registry, "127.8.3.1") as one_more:
            assert one_more.answer()[0] == 429
        while watch.going:
            with Raw(registry, "127.8.3.1") as raw:
                raw.answer()
    assert registry.counted('refused_connections_total{reason="address"}') > 0
    with contextlib.ExitStack() as stack:
        for number in range(210):
            stack.enter_context(Raw(registry, f"127.8.4.{number % 5 + 1}"))
        until(lambda: ask(registry, "127.8.5.1", "GET", "/health")[0] == 503, "it is full")
    until(lambda: ask(registry, "127.8.5.1", "GET", "/health")[0] == 200, "there is room again")
    assert registry.counted('refused_connections_total{reason="crowded"}') > 0


def test_a_captured_signature_is_of_no_use(besieged: Siege) -> None:
    registry = besieged.registry
    agent = join(besieged, "captured", "127.8.6.1")
    request = wire.heartbeat(agent.did)
    bare = wire.headers(request, agent.signer, timestamp(time.time()), bound=False)
    assert ask(registry, "127.8.6.1", request.method, request.target, b"", bare)[0] in (200, 401)
    other = wire.delete_agent(agent.did)
    status, answer = ask(registry, "127.8.6.2", other.method, other.target, b"", bare)
    assert status == 401
    assert json.loads(answer)["detail"]
    assert send(besieged, "127.8.6.2", wire.get_agent(agent.did))[0] == 200
    assert registry.counted('requests_total{endpoint="delete",status="401"}') > 0


@pytest.mark.parametrize(("off", "words"), [(3600.0, "in the future"), (-3600.0, "s old")])
def test_a_clock_far_off_is_told_the_registrys_time(besieged: Siege, off: float, words: str) -> None:
    agent = join(besieged, f"late {off}", "127.8.7.1")
    status, answer = send(besieged, "127.8.7.1", wire.heartbeat(agent.did), agent, time.time() + off)
    assert status == 401
    assert words in str(answer["detail"])
    assert "the registry's time is 20" in str(answer["detail"])


def test_a_flood_of_registrations_is_answered_429_and_a_full_registry_503(besieged: Siege) -> None:
    registry, statuses, number = besieged.registry, Counter[int](), 0
    with besieged.watch("lookup") as watch:
        while watch.going or not (statuses[429] and statuses[503]):
            address = f"127.0.{number // 60}.2"
            number += 1
            statuses[send(besieged, address, Actor(f"flood {number}").registration(time.time()))[0]] += 1
    assert set(statuses) == {201, 429, 503}
    assert registry.counted('requests_total{endpoint="register",status="429"}') == statuses[429]
    assert registry.counted("agents") == LIMITS["max_agents"]
