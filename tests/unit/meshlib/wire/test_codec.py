"""Frames and payloads, to bytes and back. The SDK's own bytes are in vectors/wire/frames_*.json."""

import json
from typing import Any

import pytest

from meshlib.errors import InvalidValue, MalformedFrame
from meshlib.wire import codec
from meshlib.wire.codec import (
    decode,
    decode_payload,
    decode_plaintext_payload,
    encode,
    encode_payload,
    encode_plaintext_payload,
)
from meshlib.wire.encoding import b64
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
    Unknown,
    Unusable,
)

KEY = bytes(range(32))
KEY_TEXT = b64(KEY)
ENVELOPE: dict[str, Any] = {"v": 1, "type": "message", "from": "did:a:1", "to": "did:a:2", "id": "i", "ts": "t"}
HEADER: dict[str, Any] = {"dh": KEY_TEXT, "pn": 0, "n": 3}
MESSAGE: dict[str, Any] = {**ENVELOPE, "header": HEADER, "ciphertext": "AAAA"}
KNOCK: dict[str, Any] = {**ENVELOPE, "type": "knock", "establishment": {"ik": KEY_TEXT, "ek": KEY_TEXT, "otk": 1}}


def text(members: object) -> bytes:
    return json.dumps(members).encode()


def fault(raw: bytes | str) -> MalformedFrame:
    with pytest.raises(MalformedFrame) as caught:
        decode(raw)
    return caught.value


FRAMES: list[tuple[Frame, str]] = [
    (Connect("d"), '{"v":1,"type":"connect","from":"d"}'),
    (
        Connect("d", KEY, "t", KEY + KEY, ("receipts",), "token"),
        f'{{"v":1,"type":"connect","from":"d","public_key":"{KEY_TEXT}","timestamp":"t",'
        f'"signature":"{b64(KEY + KEY)}","token":"token","features":["receipts"]}}',
    ),
    (FetchPending("d"), '{"v":1,"type":"fetch_pending","from":"d"}'),
    (Heartbeat("d", "t"), '{"v":1,"type":"heartbeat","from":"d","ts":"t"}'),
    (Disconnect("d"), '{"v":1,"type":"disconnect","from":"d"}'),
    (
        Knock("a", "b", "i", "t", Establishment(KEY, KEY, 0)),
        '{"v":1,"type":"knock","from":"a","to":"b","id":"i","ts":"t","intent":{"action":"establish_session"},'
        f'"establishment":{{"ik":"{KEY_TEXT}","ek":"{KEY_TEXT}","otk":0}}}}',
    ),
    (
        Knock("a", "b", "i", "t", Establishment(KEY, KEY), {}),
        '{"v":1,"type":"knock","from":"a","to":"b","id":"i","ts":"t","intent":{},'
        f'"establishment":{{"ik":"{KEY_TEXT}","ek":"{KEY_TEXT}"}}}}',
    ),
    (
        KnockAccept("a", "b", "i", "k", "t"),
        '{"v":1,"type":"knock_accept","from":"a","to":"b","id":"i","knock_id":"k","ts":"t"}',
    ),
    (
        KnockReject("a", "b", "i", "k", "policy_denied", "t"),
        '{"v":1,"type":"knock_reject","from":"a","to":"b","id":"i","knock_id":"k","reason":"policy_denied","ts":"t"}',
    ),
    (
        Message("a", "b", "i", "t", MessageHeader(KEY, 1, 2), b"\xff\xfe"),
        '{"v":1,"type":"message","from":"a","to":"b","id":"i","ts":"t",'
        f'"header":{{"dh":"{KEY_TEXT}","pn":1,"n":2}},"ciphertext":"//4="}}',
    ),
    (
        Message("a", "b", "i", "t", MessageHeader(KEY, 1, 2), b"\xff\xfe", "h"),
        '{"v":1,"type":"message","from":"a","to":"b","id":"i","ts":"t",'
        f'"header":{{"dh":"{KEY_TEXT}","pn":1,"n":2}},"ciphertext":"//4=","after":"h"}}',
    ),
    (
        PlaintextMessage("a", "b", "i", "t", b'"hi"'),
        '{"v":1,"type":"message","from":"a","to":"b","id":"i","ts":"t","ciphertext":"ImhpIg==","plaintext":true}',
    ),
    (Ack('é😀\u2028"\\'), '{"v":1,"type":"ack","id":"é😀\u2028\\"\\\\"}'),
    (
        PendingMessages((Ack("1"), Ack("2"))),
        '{"v":1,"type":"pending_messages","messages":[{"v":1,"type":"ack","id":"1"},{"v":1,"type":"ack","id":"2"}]}',
    ),
    (Error("no"), '{"type":"error","detail":"no"}'),
    (Connected(("receipts",), "t"), '{"v":1,"type":"connected","features":["receipts"],"server_time":"t"}'),
    (Receipt("i", ReceiptState.STORED), '{"v":1,"type":"receipt","id":"i","state":"stored"}'),
]


@pytest.mark.parametrize(("frame", "wire"), FRAMES, ids=lambda value: type(value).__name__)
def test_every_frame_has_one_text_and_comes_back_from_it(frame: Frame, wire: str) -> None:
    assert encode(frame).decode() == wire
    assert decode(wire) == decode(wire.encode()) == decode(bytearray(wire.encode())) == frame


def test_a_type_from_the_future_is_unknown_and_not_malformed() -> None:
    assert decode('{"type":"presence","from":5}') == Unknown("presence")


@pytest.mark.parametrize("raw", ["null", "[]", "[1,2]", "5", '"text"', "true", "", " ", "not json", "{", '{"a":1}'])
def test_what_is_no_object_with_a_type_is_malformed(raw: str) -> None:
    assert fault(raw).frame_type is None


def test_a_fault_tells_sender_id_and_type_when_they_can_be_read() -> None:
    error = fault(text({**MESSAGE, "header": {"dh": KEY_TEXT, "n": -1}}))
    assert (error.sender, error.id, error.frame_type) == ("did:a:1", "i", "message")
    assert str(error) == "message: header.n must be an integer from 0 to 4294967295"


def test_a_fault_repeats_nothing_that_is_unsafe_to_store() -> None:
    error = fault(text({**MESSAGE, "from": "a\x00", "id": "\ud800", "header": 1}))
    assert (error.sender, error.id) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from": None}, "message: from is missing"),
        ({"from": ""}, "message: from is empty"),
        ({"from": 5}, "message: from must be text"),
        ({"from": "x" * 257}, "message: from has at most 256 characters, not 257"),
        ({"to": {}}, "message: to must be text"),
        ({"to": "x" * 257}, "message: to has at most 256 characters, not 257"),
        ({"id": None}, "message: id is missing"),
        ({"id": 12}, "message: id must be text"),
        ({"id": "i" * 257}, "message: id has at most 256 characters, not 257"),
        ({"id": "a\x1fb"}, "message: id holds control characters or half a surrogate pair"),
        ({"id": "\udc00"}, "message: id holds control characters or half a surrogate pair"),
        ({"ts": 1}, "message: ts must be text"),
        ({"ts": "t" * 1025}, "message: ts has at most 1024 characters, not 1025"),
        ({"header": []}, "message: header must be an object"),
        ({"header": "x"}, "message: header must be an object"),
        ({"header": {}}, "message: header.dh is missing"),
        ({"header": {**HEADER, "dh": 5}}, "message: header.dh must be base64 text"),
        ({"header": {**HEADER, "dh": ""}}, "message: header.dh must be 32 bytes in base64, not 0"),
        ({"header": {**HEADER, "dh": b64(KEY + b"x")}}, "message: header.dh must be 32 bytes in base64, not 33"),
        ({"header": {**HEADER, "n": None}}, "message: header.n must be an integer from 0 to 4294967295"),
        ({"header": {**HEADER, "n": "1"}}, "message: header.n must be an integer from 0 to 4294967295"),
        ({"header": {**HEADER, "n": True}}, "message: header.n must be an integer from 0 to 4294967295"),
        ({"header": {**HEADER, "n": 1.5}}, "message: header.n must be an integer from 0 to 4294967295"),
        ({"header": {**HEADER, "n": 2**32}}, "message: header.n must be an integer from 0 to 4294967295"),
        ({"header": {**HEADER, "pn": -1}}, "message: header.pn must be an integer from 0 to 4294967295"),
        ({"header": {**HEADER, "pn": 1e300}}, "message: header.pn must be an integer from 0 to 4294967295"),
        ({"ciphertext": None}, "message: ciphertext is missing"),
        ({"ciphertext": 5}, "message: ciphertext must be base64 text"),
        ({"after": 5}, "message: after must be text"),
        ({"after": "i" * 257}, "message: after has at most 256 characters, not 257"),
    ],
)
def test_a_member_of_the_wrong_type_gets_a_clear_message(changes: dict[str, Any], message: str) -> None:
    assert str(fault(text({**MESSAGE, **changes}))) == message


def test_a_message_at_every_limit_is_read() -> None:
    members = {**MESSAGE, "from": "f" * 256, "to": "t" * 256, "id": "i" * 256, "ts": "s" * 1024}
    frame = decode(text({**members, "header": {"dh": KEY_TEXT, "pn": 2**32 - 1, "n": 2**32 - 1}}))
    assert isinstance(frame, Message)
    assert frame.header == MessageHeader(KEY, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    "raw",
    [
        text({**MESSAGE, "header": {"dh": KEY_TEXT, "n": 3}}),
        text({**MESSAGE, "header": {"dh": KEY_TEXT, "pn": None, "n": 3.0}}),
        text({**MESSAGE, "v": "one", "extra": [{}], "signature": "x"}),
        text({key: MESSAGE[key] for key in reversed(MESSAGE)}),
        text({**MESSAGE, "header": {**HEADER, "dh": KEY_TEXT[:9] + "\r\n " + KEY_TEXT[9:].rstrip("=")}}),
        text({**MESSAGE, "plaintext": False}),
        text({**MESSAGE, "after": None}),
        text({**MESSAGE, "after": ""}),
        text(MESSAGE).replace(b'"n": 3', b'"n": 9, "n": 3'),
        text(MESSAGE).replace(b'"type"', b'"\\u0074ype"'),
        b"\xef\xbb\xbf \n" + text(MESSAGE) + b"\t",
    ],
)
def test_the_same_message_in_any_form_reads_the_same(raw: bytes) -> None:
    assert decode(raw) == decode(text(MESSAGE))


def test_members_no_receiver_needs_may_be_missing() -> None:
    frame = decode(text({key: value for key, value in MESSAGE.items() if key not in ("v", "to", "ts")}))
    assert isinstance(frame, Message)
    assert (frame.recipient, frame.ts) == ("", "")


def test_the_header_decides_and_not_the_plaintext_flag() -> None:
    assert isinstance(decode(text({**MESSAGE, "plaintext": True})), Message)


def test_a_message_without_header_is_plaintext_whether_flagged_or_not() -> None:
    members = {**ENVELOPE, "ciphertext": b64(b"[1]")}
    frame = decode(text(members))
    assert frame == decode(text({**members, "plaintext": True}))
    assert isinstance(frame, PlaintextMessage)
    assert frame.text == b"[1]"


def test_an_old_python_message_holds_its_header_in_the_ciphertext() -> None:
    packed = (40).to_bytes(4, "big") + KEY + (1).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"secret"
    frame = decode(text({**ENVELOPE, "ciphertext": b64(packed)}))
    assert frame == Message("did:a:1", "did:a:2", "i", "t", MessageHeader(KEY, 1, 2), b"secret")


def test_an_old_python_knock_uses_longer_names() -> None:
    old = {"initiator_identity_key": KEY_TEXT, "ephemeral_public_key": KEY_TEXT, "used_one_time_key_id": 7}
    frame = decode(text({**KNOCK, "establishment": old}))
    assert isinstance(frame, Knock)
    assert frame.establishment == Establishment(KEY, KEY, 7)


@pytest.mark.parametrize("establishment", [None, ...])
def test_a_knock_may_come_without_establishment(establishment: object) -> None:
    members = {**KNOCK, "establishment": establishment}
    frame = decode(text({key: value for key, value in members.items() if value is not ...}))
    assert isinstance(frame, Knock)
    assert frame.establishment is None


@pytest.mark.parametrize(
    ("establishment", "reason"),
    [
        ("text", "establishment must be an object"),
        ([], "establishment must be an object"),
        (True, "establishment must be an object"),
        ({}, "establishment.ik is missing"),
        ({"ik": KEY_TEXT}, "establishment.ek is missing"),
        ({"ik": 5, "ek": KEY_TEXT}, "establishment.ik must be base64 text"),
        ({"ik": KEY_TEXT, "ek": b64(KEY[:31])}, "establishment.ek must be 32 bytes in base64, not 31"),
        ({"ik": KEY_TEXT, "ek": KEY_TEXT, "otk": "1"}, "establishment.otk must be an integer from 0 to 4294967295"),
        ({"ik": KEY_TEXT, "ek": KEY_TEXT, "otk": 2**32}, "establishment.otk must be an integer from 0 to 4294967295"),
    ],
)
def test_a_broken_establishment_is_a_knock_that_can_be_answered(establishment: object, reason: str) -> None:
    frame = decode(text({**KNOCK, "establishment": establishment}))
    assert isinstance(frame, Knock)
    assert frame.establishment == Unusable(reason)
    with pytest.raises(InvalidValue):
        encode(frame)


@pytest.mark.parametrize("intent", [None, 5, "x", []])
def test_an_intent_that_is_no_object_is_an_empty_one(intent: object) -> None:
    frame = decode(text({**KNOCK, "intent": intent}))
    assert isinstance(frame, Knock)
    assert frame.intent == {}


def test_connect_without_sender_can_be_told_from_other_faults() -> None:
    error = fault('{"v":1,"type":"connect"}')
    assert (error.frame_type, error.sender) == ("connect", None)


@pytest.mark.parametrize("changes", [{"public_key": KEY_TEXT[:-4]}, {"signature": KEY_TEXT}, {"timestamp": 5}])
def test_a_connect_with_a_broken_proof_is_malformed(changes: dict[str, Any]) -> None:
    assert fault(text({"type": "connect", "from": "d", **changes})).sender == "d"


def test_one_bad_frame_in_a_batch_costs_itself_only() -> None:
    batch = [MESSAGE, None, 5, "x", [], {"type": "message", "from": "a", "id": "i"}, KNOCK]
    frame = decode(text({"type": "pending_messages", "messages": batch}))
    assert isinstance(frame, PendingMessages)
    assert [type(entry) for entry in frame.frames] == [Message, Knock]
    assert [entry.sender for entry in frame.faults] == [None, None, None, None, "a"]


def test_batches_do_not_nest() -> None:
    frame = decode(text({"type": "pending_messages", "messages": [{"type": "pending_messages", "messages": []}]}))
    assert isinstance(frame, PendingMessages)
    assert (frame.frames, len(frame.faults)) == ((), 1)


@pytest.mark.parametrize("messages", [None, {}, 5, "x"])
def test_a_batch_that_is_no_list_is_malformed(messages: object) -> None:
    assert fault(text({"type": "pending_messages", "messages": messages})).frame_type == "pending_messages"


def test_an_error_is_read_however_odd_its_detail() -> None:
    assert decode('{"type":"error"}') == decode('{"type":"error","detail":{"a":1}}') == Error("")
    assert decode(text({"type": "error", "detail": "a\x1b[31m" + "x" * 2000})) == Error("a\ufffd[31m" + "x" * 1018)


def test_invalid_utf8_is_malformed() -> None:
    assert str(fault(b'{"type":"ack","id":"\xff"}')) == "the frame is not UTF-8"


def test_half_a_surrogate_pair_in_the_text_is_malformed() -> None:
    assert str(fault('{"type":"ack","id":"\ud800"}')) == "the frame holds half a surrogate pair"


@pytest.mark.parametrize("depth", [511, 512, 600, 100_000])
def test_nesting_in_unknown_members_is_bounded(depth: int) -> None:
    raw = text(MESSAGE)[:-1] + b',"extra":' + b"[" * depth + b"]" * depth + b"}"
    if depth < 512:
        assert decode(raw) == decode(text(MESSAGE))
    else:
        assert "nested deeper" in str(fault(raw))


@pytest.mark.parametrize(
    ("members", "key", "limit"),
    [
        (MESSAGE, "from", codec.MAX_NAME),
        (MESSAGE, "to", codec.MAX_NAME),
        (MESSAGE, "id", codec.MAX_ID),
        (MESSAGE, "ts", codec.MAX_TEXT),
        (KNOCK, "id", codec.MAX_ID),
        ({**ENVELOPE, "type": "knock_accept"}, "knock_id", codec.MAX_ID),
        ({**ENVELOPE, "type": "knock_reject"}, "reason", codec.MAX_TEXT),
        ({**ENVELOPE, "type": "connect"}, "timestamp", codec.MAX_TEXT),
        ({**ENVELOPE, "type": "connect"}, "token", codec.MAX_TOKEN),
        ({**ENVELOPE, "type": "heartbeat"}, "from", codec.MAX_NAME),
        ({**ENVELOPE, "type": "ack"}, "id", codec.MAX_ID),
        ({**ENVELOPE, "type": "connected"}, "server_time", codec.MAX_TEXT),
        ({**ENVELOPE, "state": "stored", "type": "receipt"}, "id", codec.MAX_ID),
    ],
)
def test_every_text_is_read_at_its_limit_and_not_beyond(members: dict[str, Any], key: str, limit: int) -> None:
    decode(text({**members, key: "é" * limit}))
    assert f"{key} has at most {limit} characters" in str(fault(text({**members, key: "é" * (limit + 1)})))


@pytest.mark.parametrize("kind", ["connect", "connected"])
def test_features_are_read_at_their_limits_and_not_beyond(kind: str) -> None:
    members = {**ENVELOPE, "type": kind}
    decode(text({**members, "features": ["x" * codec.MAX_NAME] * codec.MAX_FEATURES}))
    assert "at most 32 names" in str(fault(text({**members, "features": ["x"] * (codec.MAX_FEATURES + 1)})))
    assert "at most 256 characters" in str(fault(text({**members, "features": ["x" * (codec.MAX_NAME + 1)]})))


def test_a_type_is_read_at_its_limit_and_not_beyond() -> None:
    assert decode(text({"type": "x" * codec.MAX_TEXT})) == Unknown("x" * codec.MAX_TEXT)
    assert str(fault(text({"type": "x" * (codec.MAX_TEXT + 1)}))) == "type must be short text"


def test_a_batch_is_read_at_its_limit_and_not_beyond() -> None:
    entry = {"type": "ack", "id": "i"}
    frame = decode(text({"type": "pending_messages", "messages": [entry] * codec.MAX_PENDING}))
    assert isinstance(frame, PendingMessages)
    assert len(frame.frames) == codec.MAX_PENDING
    too_many = text({"type": "pending_messages", "messages": [entry] * (codec.MAX_PENDING + 1)})
    assert str(fault(too_many)) == "pending_messages: messages must be a list of at most 4096 frames"


def test_a_frame_of_a_mebibyte_is_read_and_one_byte_more_is_not() -> None:
    raw = text(MESSAGE)
    assert decode(raw + b" " * (codec.MAX_FRAME - len(raw))) == decode(raw)
    assert (
        str(fault(raw + b" " * (codec.MAX_FRAME - len(raw) + 1)))
        == "a frame has at most 1048576 bytes, this one 1048577"
    )


def test_a_frame_that_is_too_large_is_not_written() -> None:
    room = codec.MAX_FRAME - len(encode(Message("a", "b", "i", "t", MessageHeader(KEY, 0, 0), b"")))
    encode(Message("a", "b", "i", "t", MessageHeader(KEY, 0, 0), bytes(room // 4 * 3)))
    with pytest.raises(InvalidValue):
        encode(Message("a", "b", "i", "t", MessageHeader(KEY, 0, 0), bytes(room // 4 * 3 + 3)))


@pytest.mark.parametrize(
    "frame",
    [
        Message("a", "b", "i", "t", MessageHeader(KEY[:31], 0, 0), b""),
        Message("a", "b", "i", "t", MessageHeader(KEY, -1, 0), b""),
        Message("a", "b", "i", "t", MessageHeader(KEY, 0, 2**32), b""),
        Knock("a", "b", "i", "t", Establishment(KEY, KEY + KEY)),
        Knock("a", "b", "i", "t", Establishment(KEY, KEY, -1)),
        Connect("a", KEY + b"x"),
        Connect("a", KEY, "t", KEY),
        Unknown("future"),
    ],
)
def test_what_no_receiver_could_read_is_not_written(frame: Frame) -> None:
    with pytest.raises(InvalidValue):
        encode(frame)


@pytest.mark.parametrize(
    ("value", "plaintext"),
    [
        ("text", b'"text"'),
        (b"text", b'"text"'),
        (b"\xff\x00", b'{"raw_b64":"/wA="}'),
        (None, b"null"),
        ({"a": [1.0, True]}, b'{"a":[1,true]}'),
        ("\u2028\U0001f600", '"\u2028\U0001f600"'.encode()),
        ("\ud800", b'"\\ud800"'),
    ],
)
def test_payloads_travel_as_the_sdk_writes_them(value: object, plaintext: bytes) -> None:
    assert encode_payload(value) == plaintext


def test_bytes_that_are_no_text_come_back_as_bytes() -> None:
    assert decode_payload(encode_payload(bytes(range(256)))) == bytes(range(256))


@pytest.mark.parametrize("value", [{"raw_b64": 5}, {"raw_b64": "AA"}, {"raw_b64": "AA==", "more": 1}, {"raw_b64": "!"}])
def test_what_only_looks_like_bytes_stays_what_it_is(value: object) -> None:
    assert decode_payload(json.dumps(value).encode()) == value


@pytest.mark.parametrize("data", [b"", b" ", b"NaN", b"undefined", b"{'a':1}", b"01", b"[1,]", b"\xff\xfe1\x002\x00"])
def test_a_payload_that_is_no_json_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_payload(data)


def test_a_payload_at_the_limit_fits_a_frame() -> None:
    payload = encode_payload("a" * (codec.MAX_PAYLOAD - 2))
    overhead = 12 + 16  # nonce and tag
    header = MessageHeader(KEY, 2**32 - 1, 2**32 - 1)
    ciphertext = payload + bytes(overhead)
    encode(Message("f" * 256, "t" * 256, "i" * 256, "2026-03-01T12:00:00.000Z", header, ciphertext, "a" * 256))
    with pytest.raises(InvalidValue):
        encode_payload("a" * (codec.MAX_PAYLOAD - 1))


def test_plaintext_payloads_are_latin_1_as_the_sdk_writes_them() -> None:
    assert encode_plaintext_payload("café ÿ") == b'"caf\xe9 \xff"'


@pytest.mark.parametrize("value", ["\u0100", "café €", "\U0001f600", {"ключ": "é"}])
def test_a_plaintext_payload_beyond_latin_1_is_escaped(value: object) -> None:
    data = encode_plaintext_payload(value)
    assert data.isascii()
    assert decode_plaintext_payload(data) == value


def test_plaintext_payloads_are_read_as_latin_1() -> None:
    assert decode_plaintext_payload('"café"'.encode()) == "cafÃ©"
