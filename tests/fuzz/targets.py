"""What is fuzzed: functions that take any bytes and raise nothing but what they promise, with inputs to start from.

A target that returns has passed; what it raises is a finding. Importing this module imports what is to be measured.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mesh_registry import bodies
from mesh_registry.core import Core, Endpoint, Policy, Request
from mesh_registry.refusal import Refusal
from mesh_relay import envelope
from mesh_relay.config import Limits
from mesh_relay.connection import Asked, Connection
from mesh_relay.core import Close, RelayCore, Send
from mesh_relay.inbox.memory import MemoryInbox
from mesh_relay.links import Link
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from meshlib import snapshot
from meshlib.client.websocket import Frames
from meshlib.clock import Instant
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.x3dh import Dialect
from meshlib.daemon import protocol as daemon
from meshlib.daemon import values as daemon_values
from meshlib.errors import AmbiguousName, InvalidValue, KnockRefused, MalformedFrame, MeshError, ServiceError
from meshlib.identity import Did, parse_did
from meshlib.session import Session
from meshlib.wire import codec, encoding, envelopes, registry, transfers
from tests.unit.mesh_relay.kit import ALICE, BOB, UTC, ack, connect_frame, message

NOW = Instant(1000.0, UTC)
_DID = Did("did:mesh:" + "0" * 32)


@dataclass(frozen=True)
class Target:
    """Something to fuzz."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    longest: int = 4096
    """Bytes of an input."""


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# --- codecs -----------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """A frame of a relay. What is read twice is read the same, in the fast way and in the careful one."""
    with contextlib.suppress(MalformedFrame):
        frame = codec.decode(data)
        if isinstance(frame, codec.Message) and data.rstrip().endswith(b"}"):
            careful = codec.decode(data.rstrip()[:-1] + b',"extra":[]}')
            assert careful == frame, "the fast way and the careful one disagree"


def payloads(data: bytes) -> None:
    """What a peer has encrypted: payload, envelope, part of a file."""
    for read in (codec.decode_payload, codec.decode_plaintext_payload):
        with contextlib.suppress(MalformedFrame):
            payload = read(data)
            envelopes.envelope_type(payload)
            for look in (envelopes.read_envelope, transfers.read_transfer):
                with contextlib.suppress(MalformedFrame):
                    look(payload)


_ANSWERS: tuple[Callable[[registry.Answer], object], ...] = (
    registry.read_discovered,
    registry.read_upload,
    partial(registry.read_registration, did=_DID),
    partial(registry.read_agent, did=_DID),
    partial(registry.read_presence, did=_DID),
    partial(registry.read_reputation, did=_DID),
    partial(registry.read_done, did=_DID),
    lambda answer: registry.read_bundle(answer, _DID).checked(_DID),
)


def answers(data: bytes) -> None:
    """An answer of a registry, as any of what a client may have asked for. The first byte chooses the status."""
    status = (200, 201, 400, 401, 404, 409, 422, 429, 500)[data[0] % 9] if data else 200
    for read in _ANSWERS:
        with contextlib.suppress(ServiceError, MeshError):
            read(registry.Answer(status, data[1:]))


def daemons(data: bytes) -> None:
    """A line on a daemon's socket."""
    for line in data.split(b"\n"):
        with contextlib.suppress(MalformedFrame):
            daemon.decode(line)


def snapshots(data: bytes) -> None:
    """A record of a damaged store."""
    for unpack in (
        snapshot.unpack_session,
        snapshot.unpack_identity,
        snapshot.unpack_signed_prekey,
        snapshot.unpack_one_time_prekey,
    ):
        with contextlib.suppress(MeshError):
            unpack(data)


def texts(data: bytes) -> None:
    """The small texts inside of frames: times, ids, DIDs, base64, JSON."""
    text = _text(data)
    for read in (encoding.parse_timestamp, encoding.parse_message_id, parse_did, encoding.websocket_url):
        with contextlib.suppress(InvalidValue):
            read(text)
    encoding.unb64(text)
    with contextlib.suppress(MalformedFrame):
        encoding.atob(text)
    with contextlib.suppress(MalformedFrame):
        value = encoding.parse_json(data)
        with contextlib.suppress(InvalidValue):
            encoding.js_json(value)


# --- the relay --------------------------------------------------------------------------------------------------------


def routing(data: bytes) -> None:
    """The routing members of a frame: what the relay reads is what a recipient's parser reads."""
    with contextlib.suppress(MalformedFrame):
        read = envelope.read(data)
        theirs = json.loads(data)
        assert theirs["type"] == read.type
        for name, ours in (("from", read.sender), ("to", read.recipient), ("id", read.id)):
            assert theirs.get(name, envelope.msgspec.UNSET) == ours, f"{name} is read in two ways"
        if read.sender is envelope.msgspec.UNSET and read.type in envelope.ROUTED:
            assert json.loads(envelope.stamp(data, _DID))["from"] == _DID


_UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
FRAME_SIZE = 1000


def sockets(data: bytes) -> None:
    """A socket's bytes, after a handshake if the first byte is even, trusted if it is divisible by four."""
    if not data:
        return
    connection = Connection(FRAME_SIZE)
    kind, step = data[0], 1 + data[-1] % 64
    stream = (_UPGRADE if kind % 2 == 0 else b"") + data[1:]
    for start in range(0, len(stream), step):
        events = connection.receive(stream[start : start + step])
        while events:
            for event in events:
                if isinstance(event, Asked):
                    connection.upgrade({"Mesh-Challenge": "x"})
                    if kind % 4 == 0:
                        connection.trust(FRAME_SIZE)
                else:
                    assert not isinstance(event, bytes) or len(event) <= FRAME_SIZE
            events = connection.receive(b"") if connection.held else []
        connection.writes()
        connection.take_irregular()


def answered_sockets(data: bytes) -> None:
    """Bytes of a relay after the handshake, in steps: a client reads the messages that the library reads."""
    if not data:
        return
    step, stream = 1 + data[0] % 64, data[1:]
    protocol, oracle = (ClientProtocol(parse_uri("ws://a/ws"), max_size=FRAME_SIZE, state=State.OPEN) for _ in "ab")
    ours = Frames(protocol, FRAME_SIZE, bytes)
    read: list[bytes] = []
    expected: list[bytes] = []
    parts: list[bytes] = []
    for start in range(0, len(stream), step):
        read += ours.receive(stream[start : start + step])
        oracle.receive_data(stream[start : start + step])
        for frame in oracle.events_received():
            if isinstance(frame, Frame) and frame.opcode <= Opcode.BINARY:
                parts.append(bytes(frame.data))
                if frame.fin:
                    expected.append(b"".join(parts))
                    parts = []
    assert read == expected or ours.in_pieces


_SMALL = replace(
    Limits(),
    **{"pair_frames": 4, "recipient_frames": 6, "sender_frames": 8, "total_frames": 10, "sender_recipients": 3},
    **{"frame_size": 2000, "acked_memory": 8, "acked_each": 4, "live_frames": 2, "outgoing_high": 2000},
    **{"outgoing_low": 500, "page_frames": 2, "credentials": 4, "proofs": 4, "unproven": 3, "addresses": 3},
)


def relays(data: bytes) -> None:
    """Frames, one per line, of two agents and a stranger by turns; an empty line lets a transaction happen."""
    inbox = MemoryInbox()
    core = RelayCore(_SMALL, inbox.open(), NOW, ttl=60.0, allow_legacy=True)
    links = [core.open(f"192.0.2.{number}", "nonce", NOW) for number in range(3)]
    for who, link in zip((ALICE, BOB), links, strict=False):
        core.receive(link, connect_frame(who, UTC, features=["receipts"] if who is BOB else None), NOW)
    for number, line in enumerate(data.split(b"\n")):
        now = Instant(1000.0 + number, UTC + number)
        if line:
            link = links[number % 3]
            core.receive(link, line, now)
            core.heard(link, 1, now)
        else:
            core.tick(now)
            if core.work_waiting:
                work = core.take_work(now)
                core.stored(work, inbox.run(work), now)
        _settle(core, links, now)
        frames_kept, size, _ = core.kept
        assert 0 <= frames_kept <= _SMALL.total_frames + _SMALL.live_frames * 3
        assert size >= 0
        assert len(core.acked) <= _SMALL.acked_memory
    core.shut_down()
    assert core.connected == core.unproven == 0


def _settle(core: RelayCore, links: list[Link], now: Instant) -> None:
    for effect in core.effects():
        if isinstance(effect, Send):
            for payload in effect.payloads:
                json.loads(payload)
            core.flushed(effect.link, 0)
        elif isinstance(effect, Close):
            links[links.index(effect.link)] = core.open("192.0.2.9", "nonce", now)


# --- the registry -----------------------------------------------------------------------------------------------------

_BODIES = (
    bodies.RegisterBody,
    bodies.UpdateBody,
    bodies.PrekeysBody,
    bodies.ReputationBody,
    bodies.SessionBody,
    bodies.VerifyBody,
)


def published(data: bytes) -> None:
    """A request's body, as each endpoint reads it."""
    for kind in _BODIES:
        with contextlib.suppress(Refusal):
            body: Any = bodies.parse(data, kind)
            if isinstance(body, bodies.PrekeysBody):
                body.signed()
                body.one_time()
            elif isinstance(body, bodies.RegisterBody):
                bodies.capabilities_of(body.capabilities)
                bodies.metadata_of(body.metadata)


def requests(data: bytes) -> None:
    """A request to each endpoint: lines are path, query, authorization, bound signature, and the rest is the body."""
    did, query, authorization, bound, body = (data.split(b"\n", 4) + [b""] * 5)[:5]
    core = Core(Policy(allow_legacy=bool(data) and data[0] % 2 == 0))
    for endpoint in Endpoint:
        request = Request(
            endpoint=endpoint,
            method="POST",
            target=query.decode("latin-1"),
            did=did.decode("utf-8", "replace"),
            query=query.decode("latin-1"),
            body=body,
            authorization=authorization.decode("utf-8", "replace") or None,
            bound=bound.decode("utf-8", "replace") or None,
            requester=did.decode("latin-1"),
        )
        with contextlib.suppress(Refusal):
            core.account_needed(request)
            core.decide(request, None, NOW)


# --- inputs to start from ---------------------------------------------------------------------------------------------


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_KEY = encoding.b64(bytes(range(32)))
_HEADER = {"dh": _KEY, "pn": 0, "n": 1}
_FRAMES = [
    _compact({"v": 1, "type": kind, "from": ALICE.did, "to": BOB.did, "id": "1", "ts": "t", **more})
    for kind, more in {
        "message": {"header": _HEADER, "ciphertext": _KEY},
        "knock": {"intent": {"a": [1.5]}, "establishment": {"ik": _KEY, "ek": _KEY, "otk": 1}},
        "knock_accept": {"knock_id": "2"},
        "knock_reject": {"knock_id": "2", "reason": "no"},
        "pending_messages": {"messages": [{"type": "ack", "id": "1"}]},
        "connected": {"features": ["receipts"], "server_time": "t"},
        "error": {"detail": "\u2028\ud83d\ude00", "code": 4005},
        "receipt": {"state": "stored"},
        "heartbeat": {},
    }.items()
]
_PAYLOADS = [
    b"null",
    b'{"raw_b64":"AAAA"}',
    b'"text"',
    _compact({"type": "task_request", "message_id": "1", "content": "do", "from_agent": "a", "timestamp": "t"}),
    _compact({"type": "task_response", "content": "x", "ok": True, "in_reply_to": "1", "artifacts": [{"name": "a"}]}),
    _compact({"type": "task_progress", "in_reply_to_id": "1", "task_id": "1", "stage": "started", "tick": 1}),
    _compact({"type": "file_transfer", "file_name": "a", "file_data": "AAAA", "size_bytes": 3}),
    _compact(
        {"type": "mesh:transfer_manifest", "transfer_id": "1", "total_chunks": 1, "total_bytes": 3, "chunk_hashes": []}
    ),
    _compact({"type": "mesh:transfer_chunk", "transfer_id": "1", "chunk_index": 0, "data": "AAAA", "hash": "0"}),
]
_SIGNED = {"key_id": 1, "public_key": _KEY, "signature": encoding.b64(bytes(64))}
_BUNDLE = {
    "identity_key": _KEY,
    "identity_key_ed": _KEY,
    "signed_pre_key": _SIGNED,
    "one_time_pre_keys": [{"key_id": 1, "public_key": _KEY}],
    "one_time_pre_key": {"key_id": 1, "public_key": _KEY},
}
_AGENT = {"did": ALICE.did, "capabilities": ["a"], "metadata": {"a": "b"}, "last_seen": "2026-01-01T00:00:00.000Z"}
_BODY = {"public_key": _KEY, "proof": encoding.b64(bytes(64)), "proof_timestamp": "2026-01-01T00:00:00.000Z", **_AGENT}
_AUTHORIZATION = f"Ed25519-Timestamp {ALICE.did} 2026-01-01T00:00:00.000Z {encoding.b64url(bytes(64))}".encode()


def _lines() -> list[daemon.Frame]:
    errors = (AmbiguousName("bob", ["did:mesh:1"]), KnockRefused("did:mesh:1", "no"), MalformedFrame("what", id="3"))
    return [
        daemon.Called(1, daemon_values.Send("bob", {"a": [1, None, "x"]})),
        daemon.Called(2, daemon_values.Receive()),
        daemon.Returned(1, daemon_values.write("did:mesh:1")),
        *(daemon.Raised.of(number, error) for number, error in enumerate(errors)),
    ]


def _records() -> list[bytes]:
    """One record of each kind, a session that has turned and skipped among them."""
    draw = random.Random(7).randbytes
    signed, (one_time,) = make_signed_prekey(BOB, 1, draw), make_one_time_prekeys(2, 1, draw)
    bundle = make_bundle(BOB, signed, one_time)
    ours, opening = Session.initiate(ALICE, ALICE.did, BOB.did, bundle, Dialect.AGT5, draw)
    theirs = Session.respond(BOB, BOB.did, ALICE.did, opening, signed, one_time, Dialect.AGT5)
    for _ in range(3):
        ours, header, ciphertext = ours.encrypt(b"null", draw)
    theirs, _ = theirs.decrypt(header, ciphertext, draw)  # and keeps the keys of two that are missing
    theirs, _, _ = theirs.encrypt(b"null", draw)
    packed = [snapshot.pack_session(session) for session in (ours, theirs)]
    return [
        *packed,
        snapshot.pack_identity(ALICE),
        snapshot.pack_signed_prekey(signed),
        snapshot.pack_one_time_prekey(one_time),
    ]


_MASKED = b"\x81\x82\0\0\0\0{}"

TARGETS = {
    "frames": Target(frames, _FRAMES),
    "payloads": Target(payloads, _PAYLOADS),
    "answers": Target(answers, [b"\0" + _compact(one) for one in (_BUNDLE, _AGENT, {"results": [_AGENT], "total": 1})]),
    "daemons": Target(daemons, [daemon.encode(line).rstrip(b"\n") for line in _lines()]),
    "snapshots": Target(snapshots, _records()),
    "texts": Target(
        texts, [b"2026-01-01T00:00:00.000Z", ALICE.did.encode(), b"AAAA-_==", b'{"a":[1e9,"\\ud800"]}', b"wss://a:1/b"]
    ),
    "routing": Target(routing, [*_FRAMES, message(BOB.did, "1"), ack("1"), b'{"type":"message","\\u0074o":"x"}']),
    "sockets": Target(
        sockets,
        [
            b"\0" + _MASKED * 3,
            b"\0" + b"\x01\x81\0\0\0\0a\x80\x81\0\0\0\0b",
            b"\2" + b"\x89\x84\0\0\0\0ping" + b"\x88\x82\0\0\0\0\x03\xe8",
            b"\1" + _UPGRADE + _MASKED,
            b"\0" + b"\x81\xfe\x03\x00\0\0\0\0" + b"x" * 768,
        ],
    ),
    "answered_sockets": Target(
        answered_sockets,
        [
            b"\x3f" + b"\x81\x02{}" * 3,
            b"\x02" + b"\x01\x01a\x89\x04ping\x80\x01b\x82\x01c",
            b"\x0c" + b"\x81\x7e\x03\x00" + b"x" * 768 + b"\x88\x02\x03\xe8\x81\x02{}",
            b"\x00" + _MASKED + b"\x81\x7f\0\0\0\0\0\1\0\0",
        ],
    ),
    "relays": Target(
        relays,
        [
            b"\n".join(
                (message(BOB.did, "1"), ack("1"), b"{}", b"", message(ALICE.did, "2"), ack("2", **{"from": "x"}))
            ),
            b"\n".join([message(BOB.did, "1", kind="knock"), b'{"type":"fetch_pending"}', b"null", b"", b"", b""]),
            b"\n".join([message(BOB.did, str(n)) for n in range(9)]),
            b"\n".join([b'{"type":"disconnect"}', b'{"type":"heartbeat"}', connect_frame(ALICE, UTC), b""]),
        ],
    ),
    "published": Target(published, [_compact(_BODY), _compact(_BUNDLE), b'{"score":0.5}', b'{"amid":"a"}']),
    "requests": Target(
        requests,
        [
            b"\n".join((ALICE.did.encode(), b"capability=a&limit=5", _AUTHORIZATION, b"", _compact(_BODY))),
            b"\n".join(
                (b"did:x:y", b"capability=%ff&capability=", b"a b c", encoding.b64url(bytes(64)).encode(), b"[]")
            ),
        ],
    ),
}
