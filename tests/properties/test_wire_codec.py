"""Whatever bytes arrive, the codec returns a frame or raises MalformedFrame; what it writes, it reads."""

import contextlib
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from meshlib.errors import MalformedFrame
from meshlib.wire import codec
from meshlib.wire.codec import (
    decode,
    decode_payload,
    decode_plaintext_payload,
    encode,
    encode_payload,
    encode_plaintext_payload,
)
from meshlib.wire.encoding import atob, b64, b64url, js_json, parse_json, unb64, unb64url
from meshlib.wire.frames import (
    Ack,
    Connect,
    Connected,
    Disconnect,
    Error,
    Establishment,
    FetchPending,
    Frame,
    Heartbeat,
    Knock,
    KnockAccept,
    KnockReject,
    Message,
    MessageHeader,
    PendingMessages,
    PlaintextMessage,
    Receipt,
    ReceiptState,
)

TELLING = 'abz09:-_/ "\\\u007f\u0080éÿĀ\u2028\ufeff\uffff\U0001f600'
names = st.text(TELLING.replace("\u007f", ""), min_size=1, max_size=40)
maybe = st.text(TELLING.replace("\u007f", ""), max_size=40)
keys = st.binary(min_size=32, max_size=32)
counters = st.integers(0, codec.MAX_COUNTER)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(TELLING + "\0\n\x1f"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(TELLING), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: not (isinstance(value, dict) and "raw_b64" in value))
openings = st.builds(Establishment, keys, keys, st.none() | counters)
intents = st.dictionaries(st.text(TELLING + "\0\n\x1f"), json_values, max_size=3)

messages = st.builds(
    Message,
    names,
    maybe,
    names,
    maybe,
    st.builds(MessageHeader, keys, counters, counters),
    st.binary(),
    st.none() | names,
)
simple: st.SearchStrategy[Frame] = st.one_of(
    st.builds(
        Connect,
        names,
        st.none() | keys,
        st.none() | names,
        st.none() | st.binary(min_size=64, max_size=64),
        st.lists(names, max_size=codec.MAX_FEATURES).map(tuple),
        st.none() | names,
    ),
    st.builds(Connected, st.lists(names, max_size=codec.MAX_FEATURES).map(tuple), st.none() | names),
    st.builds(FetchPending, names),
    st.builds(Heartbeat, names, maybe),
    st.builds(Disconnect, names),
    st.builds(Knock, names, maybe, names, maybe, st.none() | openings, intents),
    st.builds(KnockAccept, names, maybe, names, names, maybe),
    st.builds(KnockReject, names, maybe, names, names, maybe, maybe),
    messages,
    st.builds(PlaintextMessage, names, maybe, names, maybe, st.binary()),
    st.builds(Ack, names),
    st.builds(Error, maybe),
    st.builds(Receipt, names, st.sampled_from(ReceiptState)),
)
frames = simple | st.lists(simple, max_size=4).map(lambda batch: PendingMessages(tuple(batch)))

# Objects that are nearly frames: real member names, values of every kind.
odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary().map(b64) | st.lists(st.none())
header_like = st.fixed_dictionaries({}, optional={"dh": odd | keys.map(b64), "pn": odd | counters, "n": odd | counters})
opening_like = st.fixed_dictionaries({}, optional={"ik": odd | keys.map(b64), "ek": odd | keys.map(b64), "otk": odd})
types = st.sampled_from([
    "connect", "connected", "fetch_pending", "heartbeat", "disconnect", "knock", "knock_accept", "knock_reject",
    "message", "ack", "pending_messages", "error", "receipt", "presence",
])  # fmt: skip
nearly = st.recursive(
    st.fixed_dictionaries(
        {"type": types | odd},
        optional={
            "v": odd, "from": odd | names, "to": odd | names, "id": odd | names, "ts": odd | names,
            "knock_id": odd | names, "reason": odd, "detail": odd, "state": odd, "intent": odd, "features": odd,
            "public_key": odd | keys.map(b64), "signature": odd, "timestamp": odd, "token": odd, "plaintext": odd,
            "header": odd | header_like, "establishment": odd | opening_like, "ciphertext": odd, "messages": odd,
            "after": odd | names,
        },
    ),
    lambda inner: st.fixed_dictionaries({"type": st.just("pending_messages"), "messages": st.lists(inner | odd)}),
    max_leaves=4,
)  # fmt: skip


def survives(raw: bytes | str) -> Frame | None:
    try:
        return decode(raw)
    except MalformedFrame:
        return None


@given(frames)
def test_what_is_written_is_read_back(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(frames)
def test_what_is_written_is_what_a_plain_json_writer_would_write(frame: Frame) -> None:
    wire = encode(frame).decode()
    parsed = json.loads(wire)
    if "intent" not in wire:  # JavaScript orders the keys of an intent in its own way
        assert json.dumps(parsed, ensure_ascii=False, separators=(",", ":")) == wire


@given(st.binary(max_size=400) | st.text(max_size=400))
@example(b"null")
@example("\ud800")
@example(b"\xff" * 10)
@example(b'{"type":"ack","id":' + b"9" * 5000 + b"}")
@example(b'{"type":"message","header":{"n":1e999}}')
@example(b'{"a":' * 5000)
def test_any_bytes_give_a_frame_or_malformed_frame(raw: bytes | str) -> None:
    survives(raw)


@given(nearly)
def test_any_object_gives_a_frame_or_malformed_frame(members: dict[str, Any]) -> None:
    frame = survives(json.dumps(members))
    if frame is not None and not isinstance(frame, PendingMessages):
        assert isinstance(frame, Frame)


@given(frames, st.data())
def test_a_damaged_frame_gives_a_frame_or_malformed_frame(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(raw))


usual_texts = st.one_of(
    messages.map(encode).map(bytes.decode),
    nearly.map(lambda members: json.dumps({**members, "type": "message"})),
    st.builds(Receipt, names, st.sampled_from(ReceiptState)).map(encode).map(bytes.decode),
    nearly.map(lambda members: json.dumps({"v": 1, "type": "receipt"} | members | {"type": "receipt"})),
    st.text(TELLING + "{[]}:", max_size=8).map(
        lambda text: f'{{"v":1,"type":"receipt","id":"{text}","state":"stored"}}'
    ),
)


def outcome(text: str) -> object:
    try:
        return decode(text)
    except MalformedFrame as fault:
        return (str(fault), fault.sender, fault.id, fault.frame_type)


@given(usual_texts)
@example('{"v":1,"type":"receipt","id":"a\u007f","state":"stored"}')
@example(
    '{"type":"message","from":"a","to":"b","id":"a\u007f","ts":"t",'
    f'"header":{{"dh":"{b64(bytes(32))}","pn":0,"n":0}},"ciphertext":"AAAA"}}'
)
def test_an_extra_member_changes_nothing(text: str) -> None:
    """The empty list sends a frame down the careful way, so this holds the fast way against it."""
    assert outcome(text) == outcome(text[:-1] + ',"extra":[]}')


@given(st.binary())
def test_base64_comes_back_in_every_dialect(data: bytes) -> None:
    assert unb64(b64(data)) == unb64(b64url(data)) == unb64url(b64url(data)) == atob(b64(data)) == data
    assert unb64("\n".join(b64(data))) == atob(b64(data).rstrip("=")) == data


@given(st.text())
def test_any_text_is_base64_of_something_or_refused(text: str) -> None:
    unb64(text)
    with contextlib.suppress(MalformedFrame):
        assert atob(text) == unb64(text)


@given(json_values)
def test_payloads_come_back(value: object) -> None:
    assert decode_payload(encode_payload(value)) == value
    assert decode_plaintext_payload(encode_plaintext_payload(value)) == value


@given(st.binary())
def test_bytes_come_back_as_bytes_or_as_the_text_they_are(data: bytes) -> None:
    back = decode_payload(encode_payload(data))
    assert (back.encode() if isinstance(back, str) else back) == data


@given(json_values)
@example({"5": 1, "b": 2})
@example({"b": [2**60], "c": {"d": None}})
@example(["\ud83d", {"\ude00": "\ud83d\ude00"}])
def test_a_payload_is_written_the_same_however_deep_it_is(value: object) -> None:
    """Only what is flat goes the short way, so this holds it against the long one."""
    assert js_json([[[[[value]]]]]) == f"[[[[[{js_json(value)}]]]]]"


@given(json_values, st.booleans())
@example([2**53 + 1, 10**30, -(10**20)], True)
@example({"5": "\ud83d", "b": -0.0, "c": 1e-7}, True)
def test_json_is_read_the_same_however_deep_it_is(value: object, ascii_only: bool) -> None:
    """Only what is flat goes the short way, so this holds it against the long one."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert repr(parse_json(f"[[[[[{text}]]]]]")) == f"[[[[[{parse_json(text)!r}]]]]]"


@given(st.text(TELLING + "\ud800\ud83d\ude00\udc00"))
def test_any_javascript_string_comes_back(text: str) -> None:
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert decode_payload(encode_payload(text)) == joined
    assert decode_plaintext_payload(encode_plaintext_payload(text)) == joined


@given(st.binary())
def test_any_payload_bytes_give_a_value_or_malformed_frame(data: bytes) -> None:
    for reader in (decode_payload, decode_plaintext_payload):
        with contextlib.suppress(MalformedFrame):
            reader(data)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_is_read_back_from_its_text(value: float) -> None:
    assert parse_json(encode_payload(value)) == value
