"""Whatever is sent to a server, in whatever order: it answers, raises nothing, and keeps within its bounds."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mesh_registry.core import Policy
from mesh_relay.connection import Asked, Connection, Phase

from meshlib.identity import Identity
from tests.unit.mesh_registry.helpers import Actor, Site
from tests.unit.mesh_relay.kit import ALICE, BOB, CAROL, MALLORY, UTC, Relay, ack, connect_frame, dump, message

# --- the relay's sockets ----------------------------------------------------------------------------------------------

LIMIT = 2000
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def framed(first: int, payload: bytes, announced: int | None, masked: bool) -> bytes:
    """A frame, perhaps one that announces another length than it has."""
    length, mask = len(payload) if announced is None else announced, 0x80 if masked else 0
    size = bytes((mask | length,)) if length < 126 else bytes((mask | 127,)) + length.to_bytes(8, "big")
    return bytes((first,)) + size + (bytes(4) if masked else b"") + payload


pieces = st.one_of(
    st.builds(
        framed,
        st.sampled_from([0x81, 0x82, 0x01, 0x00, 0x80, 0x88, 0x89, 0x8A, 0xC1, 0x8B]) | st.integers(0, 255),
        st.binary(max_size=200) | st.integers(0, LIMIT + 500).map(bytes),
        st.none() | st.integers(0, 2**63 - 1),
        st.booleans() | st.just(True),
    ),
    st.binary(max_size=100),
    st.just(UPGRADE),
)


@given(st.booleans(), st.booleans(), st.lists(pieces, max_size=20), st.lists(st.integers(1, 4000), max_size=30))
def test_a_socket_takes_any_bytes_in_any_pieces(
    upgraded: bool, trusted: bool, stream: list[bytes], sizes: list[int]
) -> None:
    connection = Connection(LIMIT)
    data = (UPGRADE if upgraded else b"") + b"".join(stream)
    start = 0
    for size in [*sizes, len(data)]:
        events = connection.receive(data[start : start + size])
        start += size
        while events:
            for event in events:
                if isinstance(event, Asked):
                    connection.upgrade({})
                    if trusted and connection.phase is Phase.OPEN:
                        connection.trust(LIMIT)
                assert not isinstance(event, bytes) or len(event) <= LIMIT
            events = connection.receive(b"") if connection.held else []
        # Pongs and closing frames are all it has to say by itself: no more than it was sent, and the two handshakes.
        assert connection.waiting <= len(data) + 1000
    for _ in range(3):
        connection.close(1001)
        connection.receive(b"x")


# --- the relay's frames -----------------------------------------------------------------------------------------------

TIGHT: dict[str, Any] = {
    "pair_frames": 3,
    "recipient_frames": 5,
    "sender_frames": 6,
    "sender_recipients": 2,
    "total_frames": 8,
    "live_frames": 2,
    "frame_size": 3000,
    "unproven": 4,
    "credentials": 3,
    "proofs": 3,
    "proofs_each": 2,
    "acked_memory": 6,
    "acked_each": 4,
    "addresses": 2,
    "outgoing_high": 2000,
    "outgoing_low": 500,
    "page_frames": 2,
}
AGENTS = (ALICE, BOB, CAROL, MALLORY)
agents = st.sampled_from(AGENTS)
odd: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ids = st.sampled_from(["1", "2", "3", "", "x" * 200]) | st.text(max_size=3)
kinds = st.sampled_from(
    ["message", "knock", "knock_accept", "knock_reject", "ack", "fetch_pending", "heartbeat", "disconnect", "connect"]
)


def _frame(kind: str, members: dict[str, Any]) -> bytes:
    return dump({"type": kind, **members})


frames = st.one_of(
    st.builds(lambda to, one, kind: message(to.did, one, kind=kind), agents, ids, kinds),
    st.builds(ack, ids),
    st.builds(lambda who, one: ack(one, **{"from": who.did}), agents, ids),
    st.builds(
        _frame,
        kinds,
        st.dictionaries(
            st.sampled_from(["from", "to", "id", "knock_id", "unread", "features", "public_key", "v"]),
            odd | ids | agents.map(lambda who: who.did),
        ),
    ),
    st.builds(connect_frame, agents, st.just(UTC + 1) | st.floats(UTC - 1000, UTC + 1000), nonce=st.none() | ids),
    st.binary(max_size=200),
    st.just(b"null"),
)


def damaged(frame: bytes, at: int, value: int) -> bytes:
    raw = bytearray(frame)
    if raw:
        raw[at % len(raw)] = value
    return bytes(raw)


hostile = frames | st.builds(damaged, frames, st.integers(0, 5000), st.integers(0, 255))
steps = st.one_of(
    st.tuples(st.just("say"), st.integers(0, 5), hostile),
    st.tuples(st.just("join"), st.integers(0, 5), agents),
    st.tuples(st.just("open"), st.integers(0, 5), st.none()),
    st.tuples(st.just("hang up"), st.integers(0, 5), st.none()),
    st.tuples(st.just("oversized"), st.integers(0, 5), st.none()),
    st.tuples(st.just("commit"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("wait"), st.integers(0, 100), st.none()),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(steps, max_size=60))
def test_the_relays_core_takes_any_frames_in_any_order(
    legacy: bool, strict: bool, events: list[tuple[str, int, Any]]
) -> None:
    relay = Relay(allow_legacy=legacy, durability="strict" if strict else "relaxed", **TIGHT)
    links = [relay.open(f"192.0.2.{number}") for number in range(6)]
    for what, number, value in events:
        at = number % 6
        if what == "say":
            relay.say(links[at], value)
        elif what == "join":
            assert isinstance(value, Identity)
            links[at] = relay.join(value, ["receipts"])
        elif what == "open":
            links[at] = relay.open(f"192.0.2.{at}")
        elif what == "hang up":
            relay.core.lost(links[at])
        elif what == "oversized":
            relay.core.oversized(links[at], 10**9)
            relay.carry_out()
        elif what == "commit":
            relay.commit()
        else:
            relay.wait(float(number))
        assert relay.core.unproven <= TIGHT["unproven"]
        kept, size, recipients = relay.core.kept
        assert 0 <= kept <= TIGHT["total_frames"] + TIGHT["live_frames"] * len(AGENTS)
        assert 0 <= recipients <= kept
        assert size >= 0
        assert relay.core.uncommitted >= 0
        assert len(relay.core.acked) <= TIGHT["acked_memory"]
    relay.core.shut_down()
    relay.carry_out()
    assert relay.core.connected == relay.core.unproven == 0


# --- the registry -----------------------------------------------------------------------------------------------------

methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"])
segments = st.sampled_from([
    "v1", "agents", "prekeys", "presence", "heartbeat", "reputation", "registry", "session", "verify", "discover",
    "health", "metrics", "openapi.json", Actor("known").did, "did:mesh:x", "%00", "%ff", "..", "", "%2F",
]) | st.text("az%/:?#0é\u2028", max_size=10)  # fmt: skip
paths = st.lists(segments, max_size=5).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(
    [path.replace("{did}", Actor("known").did) for path in (
        "/v1/agents", "/v1/agents/{did}", "/v1/agents/{did}/prekeys", "/v1/agents/{did}/presence",
        "/v1/agents/{did}/heartbeat", "/v1/agents/{did}/reputation", "/v1/registry/reputation/session",
        "/v1/registry/verify", "/v1/discover",
    )]
)  # fmt: skip
queries = st.sampled_from(
    ["", "?capability=a", "?capability=a&limit=0", "?limit=99999999999", "?" + "a=b&" * 50, "?%ff"]
)
names = st.sampled_from(["public_key", "did", "proof", "proof_timestamp", "capabilities", "metadata", "score", "amid"])
contents = st.dictionaries(names, odd).map(dump) | st.binary(max_size=100) | st.just(b"[" * 5000) | st.just(b"")
values = st.sampled_from([
    b"Ed25519-Timestamp", b"Ed25519-Timestamp a b c", b"Ed25519-Timestamp did:mesh:x 2026-01-01T00:00:00.000Z AAAA",
    b"application/json", b"text/html", b"-1", b"1e9", b"\xff\xfe", b"x" * 2000,
]) | st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\r\n\0").strip())  # fmt: skip
headers = st.dictionaries(
    st.sampled_from([b"authorization", b"mesh-request-signature", b"content-type", b"x-forwarded-for", b"accept"]),
    values,
)


async def _answer(site: Site, method: str, target: str, fields: dict[bytes, bytes], body: bytes) -> tuple[int, bytes]:
    """What the application says to a request as uvicorn would hand it over: any bytes may stand in its target."""
    path, _, query = target.encode().partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(fields.items()),
        "client": ("192.0.2.1", 1),
        "server": ("registry", 80),
    }
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        said.append(event)

    await site.app(scope, receive, send)
    assert not any(name == b"location" for name, _ in said[0]["headers"])
    return said[0]["status"], b"".join(event.get("body", b"") for event in said[1:])


async def _answers(site: Site, asked: list[tuple[str, str, dict[bytes, bytes], bytes]]) -> list[tuple[int, bytes]]:
    await site.join(Actor("known"))
    return [await _answer(site, *one) for one in asked]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.booleans(), st.lists(st.tuples(methods, st.builds(str.__add__, paths, queries), headers, contents), max_size=8)
)
@example(False, [("GET", "/v1/agents/%00", {}, b"")])
@example(False, [("GET", "/v1/agents//", {b"host": b"elsewhere.test"}, b"")])
def test_the_registry_answers_any_request_and_never_with_500(
    legacy: bool, asked: list[tuple[str, str, dict[bytes, bytes], bytes]]
) -> None:
    site = Site(Policy(allow_legacy=legacy))
    for (status, body), (method, target, *_) in zip(asyncio.run(_answers(site, asked)), asked, strict=True):
        assert 200 <= status < 300 or 400 <= status < 500 or status == 503, target
        if status >= 400 and method != "HEAD":
            assert json.loads(body)["detail"]
