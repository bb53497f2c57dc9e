"""The daemon's protocol: what is written is read as it was, and nothing else is read at all."""

import json
import math
from dataclasses import fields
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import errors
from meshlib.daemon.protocol import (
    MAX_LINE,
    Called,
    Cancel,
    Hello,
    Lines,
    Noted,
    Raised,
    Returned,
    decode,
    encode,
)
from meshlib.daemon.values import VERBS, Call, Receive, Send, Taken, read, read_answer, write
from meshlib.errors import AmbiguousName, InvalidValue, KnockRefused, MalformedFrame, MeshError, StoreError

numbers = st.integers(0, 2**53 - 1)
texts = st.text() | st.just("half a pair: \ud800")  # both halves would come back as one character, as in JavaScript
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)
payloads = plain | st.binary()
BY_TYPE = {
    str: texts,
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    object: payloads,
    str | None: st.none() | texts,
    float | None: st.none() | st.floats(allow_nan=False, allow_infinity=False),
    tuple[str, ...] | None: st.none() | st.lists(texts).map(tuple),
}
calls = st.sampled_from(sorted(VERBS.values(), key=lambda verb: verb.__name__)).flatmap(
    lambda verb: st.builds(verb, **{one.name: BY_TYPE[one.type] for one in fields(verb)})
)
known_errors = st.sampled_from(
    [
        AmbiguousName("bob", ["did:mesh:1", "did:mesh:2"]),
        KnockRefused("did:mesh:1", "no"),
        MalformedFrame("what", sender="did:mesh:1", id="3"),
        StoreError("full"),
        InvalidValue("wrong"),
    ]
)


def is_bytes_in_disguise(payload):
    return isinstance(payload, dict) and payload.keys() == {"raw_b64"}


@given(numbers, calls)
def test_calls_arrive_as_they_were_made(number, call):
    line = encode(Called(number, call))
    assert line.endswith(b"\n")
    assert line.isascii()
    assert line.count(b"\n") == 1
    if not is_bytes_in_disguise(getattr(call, "payload", None)):
        assert decode(line[:-1]) == Called(number, call)


@given(numbers, texts, payloads, st.booleans())
def test_messages_arrive_as_they_were(number, sender, payload, flag):
    taken = Taken(sender, "id", payload, flag, not flag)
    frame = decode(encode(Returned(number, taken))[:-1])
    assert isinstance(frame, Returned)
    if not is_bytes_in_disguise(payload):
        assert read_answer(Receive(), frame.value) == taken
    assert read_answer(Receive(), None) is None


@given(numbers, known_errors)
def test_errors_arrive_as_the_same_type_with_the_same_facts(number, error):
    frame = decode(encode(Raised.of(number, error))[:-1])
    assert isinstance(frame, Raised)
    arrived = frame.error
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))


def test_every_error_can_travel():
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, MeshError):
            error = kind.__new__(kind, "text")
            assert type(Raised.of(1, error).error).__name__ == name


class PrivateError(StoreError):
    """Of a type that the other side does not know."""


def test_unknown_errors_become_what_they_are_a_kind_of():
    assert type(Raised.of(1, PrivateError("x")).error) is StoreError
    assert type(Raised(1, "NewInTheNextVersion", "x").error) is MeshError
    assert type(Raised(1, "SystemExit", "x").error) is MeshError


@given(texts, st.dictionaries(texts, plain))
def test_facts_overwrite_nothing_an_exception_has(text, facts):
    error = Raised(1, "StoreError", text, {**facts, "args": [1], "__class__": "int", "with_traceback": 1}).error
    assert str(error) == text
    assert type(error) is StoreError
    assert callable(error.with_traceback)


def frame_or_fault(line):
    try:
        return decode(line)
    except MalformedFrame as fault:
        return fault


@given(st.binary(max_size=200) | st.from_regex(rb'\{"(call|return|raise|note|cancel|hello)":.{0,60}\}', fullmatch=True))
def test_whatever_arrives_is_a_frame_or_malformed(line):
    read = frame_or_fault(line)
    assert not isinstance(read, MalformedFrame) or read.id is None or read.id.isdigit()


@given(numbers, plain)
def test_whatever_a_call_carries_is_a_call_or_a_fault_that_can_be_answered(number, members):
    for verb in VERBS:
        read = frame_or_fault(json.dumps({"call": number, "verb": verb, "with": members}).encode())
        assert read.id == (str(number) if isinstance(read, MalformedFrame) else number)


@given(st.lists(st.binary().map(lambda raw: raw.replace(b"\n", b""))), st.lists(st.integers(1, 20)))
def test_lines_are_cut_wherever_the_pieces_end(lines, sizes):
    raw = b"".join(line + b"\n" for line in lines) + b"rest"
    cutter, got, start = Lines(), [], 0
    for size in [*sizes, len(raw)]:
        got += cutter.feed(raw[start : start + size])
        start += size
    assert got == lines


def test_lines_are_bounded():
    cutter = Lines(10)
    assert cutter.feed(b"x" * 10) == []
    with pytest.raises(MalformedFrame):
        cutter.feed(b"x")
    with pytest.raises(MalformedFrame):
        Lines(10).feed(b"x" * 11 + b"\n")
    with pytest.raises(InvalidValue, match="at most"):
        encode(Called(1, Send("bob", "x" * MAX_LINE)))


def test_largest_payload_fits_a_line_whatever_its_letters():
    for letter in ("x", "ü", "語", "💌", "\x00"):
        escaped = 6 if letter == "\x00" else len(letter.encode())
        assert encode(Called(1, Send("bob", letter * (512 * 1024 // escaped))))


@pytest.mark.parametrize("payload", [object(), {1: 2}, [b"inside"], {"a": {"b": {3, 4}}}, 1j])
def test_what_is_no_json_is_refused(payload):
    with pytest.raises(InvalidValue):
        encode(Called(1, Send("bob", payload)))


def test_members_of_later_versions_are_passed_over():
    assert read(Hello, {"version": 1, "did": "d", "colour": "blue"}) == Hello(1, "d")


@pytest.mark.parametrize("value", ["1", True, None, math.inf, [1.0]])
def test_types_are_not_bent(value):
    with pytest.raises(MalformedFrame):
        read(float, value)


def test_every_verb_says_what_it_answers():
    for verb in VERBS.values():
        assert issubclass(verb, Call)
        assert get_type_hints(verb) is not None
    assert write(Noted(1, None)) == {"id": 1, "value": None}
    assert decode(b'{"cancel":3}') == Cancel(3)
