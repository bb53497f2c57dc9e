"""Key values: sizes, equality, and what they must never show."""

import copy
import os
import pickle

import pytest

from meshlib.crypto.keys import Ed25519Private, Ed25519Public, SecretBytes, X25519Private, X25519Public
from meshlib.errors import InvalidValue

SECRETS = (X25519Private, Ed25519Private, SecretBytes)
ALL = (*SECRETS, X25519Public, Ed25519Public)
RAW = bytes(range(100, 132))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), bytes(64)])
def test_key_of_another_size_is_refused(kind, raw):
    with pytest.raises(InvalidValue):
        kind(raw)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("raw", [bytearray(32), memoryview(bytes(32)), "0" * 32, None, [0] * 32])
def test_key_is_made_of_immutable_bytes_only(kind, raw):
    with pytest.raises(InvalidValue):
        kind(raw)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "{!r}".format, lambda key: f"{key!s}", lambda key: f"{[key]}"]
)
def test_secret_is_never_shown(kind, show):
    shown = show(kind(RAW))
    assert RAW.hex() not in shown
    assert repr(RAW)[2:-1] not in shown
    assert shown.strip("[]") == f"{kind.__name__}(<secret>)"


@pytest.mark.parametrize("kind", SECRETS)
def test_secret_is_not_pickled(kind):
    with pytest.raises(TypeError, match=r"meshlib\.snapshot"):
        pickle.dumps(kind(RAW))


@pytest.mark.parametrize("kind", ALL)
def test_copies_are_the_value_itself(kind):
    key = kind(RAW)
    assert copy.copy(key) is key
    assert copy.deepcopy({"key": key})["key"] is key


@pytest.mark.parametrize("kind", SECRETS)
def test_error_about_a_wrong_size_shows_no_bytes(kind):
    with pytest.raises(InvalidValue) as caught:
        kind(RAW + b"\x00")
    assert RAW.hex() not in str(caught.value)
    assert repr(RAW)[2:-1] not in str(caught.value)


@pytest.mark.parametrize("kind", ALL)
def test_equal_bytes_of_one_kind_are_equal_keys(kind):
    assert kind(RAW) == kind(bytes(RAW))
    assert hash(kind(RAW)) == hash(kind(bytes(RAW)))
    assert kind(RAW) != kind(RAW[:-1] + b"\x00")
    assert kind(RAW) != kind(b"\x00" + RAW[1:])
    assert kind(RAW) != RAW


def test_keys_of_different_kinds_are_never_equal():
    keys = [kind(RAW) for kind in ALL]
    assert len(set(keys)) == len(ALL)


def test_public_half_is_made_once():
    for kind in (X25519Private, Ed25519Private):
        key = kind.generate(os.urandom)
        assert key.public is key.public


def test_generate_refuses_a_short_draw():
    with pytest.raises(InvalidValue):
        X25519Private.generate(lambda size: bytes(size - 1))


def test_key_has_no_room_for_anything_else():
    for kind in ALL:
        assert not hasattr(kind(RAW), "__dict__")
