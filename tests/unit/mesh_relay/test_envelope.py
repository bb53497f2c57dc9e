"""Pitfalls 20, 22 and 28, and what may never reach a receiver."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_relay import envelope

from meshlib.errors import MalformedFrame

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"message","to":"did:x:a","to":"did:x:b"}',
        b'{"type":"message","to":"did:x:a","\\u0074o":"did:x:b"}',
        b'{"type":"message","\\u0074o":"did:x:a","to":"did:x:b"}',
        b'{"type":"knock","ty\\u0070e":"message","to":"did:x:b"}',
        b'{"from":"did:x:a","type":"message","fro\\u006d":"did:x:b","to":"did:x:b"}',
        b'{"id":"1","type":"message","id":"2","to":"did:x:b"}',
    ],
)
def test_the_last_of_equal_keys_counts_as_for_the_receiver(frame: bytes) -> None:
    read, received = envelope.read(frame), json.loads(frame)
    for member, name in (("type", "type"), ("recipient", "to"), ("sender", "from"), ("id", "id")):
        assert getattr(read, member) == received.get(name, msgspec.UNSET)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"null",
        b"[1,2]",
        b"1",
        b'"text"',
        b"true",
        b"{",
        b"{}",
        b'{"type":null}',
        b'{"type":5}',
        b'{"type":"message","to":{}}',
        b'{"type":"message","to":null}',
        b'{"type":"message","id":7}',
        b'{"type":"message","from":null}',
        b'{"type":"message","x":NaN}',
        b'{"type":"message","x":Infinity}',
        b'{"type":"message","x":-Infinity}',
        b'{"type":"message","x":01}',
        b'{"type":"message","x":1.}',
        b'{"type":"message","x":.5}',
        b'{"type":"message","x":+1}',
        b'{"type":"message","x":1e}',
        b'{"type":"message","x":"\\q"}',
        b'{"type":"message","x":"\\u12"}',
        b'{"type":"message","x":"\\ud800"}',
        b'{"type":"message","x":"a\nb"}',
        b'{"type":"message","x":"a\x00b"}',
        b'{"type":"message","x":tru}',
        b'{"type":"message","x":[1,]}',
        b'{"type":"message",}',
        b'{"type":"message"}x',
        b'{"type":"message"}{}',
        b'{"type":"message"}\x00',
        b"{'type':'message'}",
        b'{"type":"message"/**/}',
        b'\xef\xbb\xbf{"type":"message"}',
        b'{"type":"message","x":"\xff"}',
        b'{"type":"message","x":"\xc0\xaf"}',
        b'{"type":"message","x":"\xed\xa0\x80"}',
        b'{"type":"message","\xff":1}',
        b'{"type":"message","x":{"y":["\xe2\x82"]}}',
        b'{"type":"message","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"type":"message","x":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"type":"message","x":' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"type":"message","x":' + b'{"x":' * 600 + b"1" + b"}" * 600 + b"}",
    ],
)
def test_what_a_receiver_could_not_read_is_refused(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        envelope.read(frame)


@pytest.mark.parametrize(
    "inside", [b"[" * 500 + b"]" * 500, b'{"x":' * 500 + b"1" + b"}" * 500, b"[[]]", b"[{},{},{},{}]"]
)
def test_nesting_that_the_clients_take_is_taken(inside: bytes) -> None:
    assert envelope.read(b'{"type":"message","to":"did:x:b","x":' + inside + b"}").recipient == "did:x:b"


@given(st.binary())
def test_arbitrary_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        envelope.read(raw)
    except MalformedFrame:
        return
    assert isinstance(json.loads(raw), dict)


@given(st.dictionaries(st.sampled_from(("type", "to", "from", "id", "x", "ciphertext")), _JSON))
def test_what_passes_is_an_object_to_every_parser(frame: dict[str, object]) -> None:
    raw = json.dumps(frame).encode()
    try:
        read = envelope.read(raw)
    except MalformedFrame:
        return
    assert read.type == json.loads(raw)["type"]


@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_frame_damaged_anywhere_is_read_as_others_read_it_or_refused(damage: bytes, position: int) -> None:
    frame = b'{"v":1,"type":"message","from":"did:x:a","to":"did:x:b","id":"1","header":{"n":0},"ciphertext":"AAAA"}'
    raw = frame[:position] + damage + frame[position + len(damage) :]
    try:
        read = envelope.read(raw)
    except MalformedFrame:
        return
    received = json.loads(raw.decode("utf-8"))
    assert received["type"] == read.type
    assert received.get("to", msgspec.UNSET) == read.recipient


@pytest.mark.parametrize(
    "frame", [b'{"type":"message"}', b' \n\t{ "type":"message","x":{}}', b'{"x":"{","type":"message"}']
)
def test_stamping_adds_from_and_changes_nothing_else(frame: bytes) -> None:
    stamped = envelope.stamp(frame, "did:mesh:é")
    assert json.loads(stamped) == json.loads(frame) | {"from": "did:mesh:é"}
    assert envelope.read(stamped).sender == "did:mesh:é"


def test_error_names_facts_for_machines_after_the_detail() -> None:
    assert envelope.error("no", id=None) == b'{"type":"error","detail":"no"}'
    assert envelope.error("no", id="1") == b'{"type":"error","detail":"no","id":"1"}'


def test_receipt_and_connected_have_the_bytes_of_the_contract() -> None:
    assert envelope.receipt('a"b', b"stored") == b'{"v":1,"type":"receipt","id":"a\\"b","state":"stored"}'
    assert (
        envelope.connected(("receipts",), "T")
        == b'{"v":1,"type":"connected","features":["receipts"],"server_time":"T"}'
    )
