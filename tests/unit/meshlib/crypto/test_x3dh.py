"""X3DH: both sides agree, and on nothing when anything differs."""

import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshlib.crypto import x3dh
from meshlib.crypto.keys import X25519Private, X25519Public
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.errors import InvalidValue, MalformedFrame, NotAuthentic, UnknownPrekey, WeakKey
from meshlib.identity import Identity

ALICE, BOB, MALLORY = (Identity.generate(os.urandom) for _ in range(3))
SIGNED, RETIRED = (make_signed_prekey(BOB, number, os.urandom) for number in (2, 1))
ONE_TIME, OTHER = make_one_time_prekeys(5, 2, os.urandom)
LOW_ORDER = X25519Public(bytes(32))


def nothing(*_):
    raise AssertionError("nothing may be drawn")


def initiate(one_time=ONE_TIME, dialect=Dialect.AGT5, signed=SIGNED):
    return x3dh.initiate(ALICE, BOB.did, make_bundle(BOB, signed, one_time), dialect, os.urandom)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("one_time", [None, ONE_TIME])
def test_both_sides_agree(dialect, one_time):
    agreement, opening = initiate(one_time, dialect)
    assert x3dh.respond(BOB, opening, SIGNED, one_time, dialect) == agreement
    assert agreement.associated_data == bytes(ALICE.agreement_key.public) + bytes(BOB.agreement_key.public)
    assert opening.one_time_key_id == (one_time and one_time.key_id)


def test_secret_depends_on_every_key_and_on_the_dialect():
    agreement, opening = initiate()
    secrets = {
        agreement.secret,
        x3dh.respond(BOB, opening, SIGNED, ONE_TIME, Dialect.AGT4).secret,
        x3dh.respond(BOB, opening, RETIRED, ONE_TIME, Dialect.AGT5).secret,
        x3dh.respond(BOB, opening, SIGNED, OTHER._replace(key_id=ONE_TIME.key_id), Dialect.AGT5).secret,
        x3dh.respond(BOB, opening._replace(one_time_key_id=None), SIGNED, None, Dialect.AGT5).secret,
        x3dh.respond(BOB, opening._replace(ik=MALLORY.agreement_key.public), SIGNED, ONE_TIME, Dialect.AGT5).secret,
        x3dh.respond(BOB, opening._replace(ek=MALLORY.agreement_key.public), SIGNED, ONE_TIME, Dialect.AGT5).secret,
        x3dh.respond(MALLORY, opening, SIGNED, ONE_TIME, Dialect.AGT5).secret,
        initiate()[0].secret,
    }
    assert len(secrets) == 9


def test_derivations_are_these_bytes():
    """HKDF-SHA256 of 96 bytes 00 to 5f, made with another library."""
    agreements = bytes(range(96))
    ff = b"\xff" * 32
    for dialect, salt, ikm in ((Dialect.AGT5, bytes(32), ff + agreements), (Dialect.AGT4, ff, agreements)):
        library = HKDF(hashes.SHA256(), 32, salt, b"AgentMesh_X3DH_v1").derive(ikm)
        assert bytes(x3dh.derive(dialect, agreements)) == library


def test_all_answers_are_those_given_one_by_one():
    _, opening = initiate()
    many = list(x3dh.respond_all(BOB, opening, (SIGNED, RETIRED), ONE_TIME, Dialect))
    assert [(signed, dialect) for signed, dialect, _ in many] == [
        (signed, dialect) for signed in (SIGNED, RETIRED) for dialect in Dialect
    ]
    for signed, dialect, agreement in many:
        assert agreement == x3dh.respond(BOB, opening, signed, ONE_TIME, dialect)


def test_answering_twice_gives_the_same_and_consumes_nothing():
    _, opening = initiate()
    assert x3dh.respond(BOB, opening, SIGNED, ONE_TIME, Dialect.AGT5) == x3dh.respond(
        BOB, opening, SIGNED, ONE_TIME, Dialect.AGT5
    )


def test_nothing_is_drawn_for_a_bundle_that_is_refused():
    with pytest.raises(NotAuthentic):
        x3dh.initiate(ALICE, BOB.did, make_bundle(MALLORY, SIGNED), Dialect.AGT5, nothing)


@pytest.mark.parametrize("given", [None, OTHER])
def test_one_time_key_that_is_not_held_is_unknown(given):
    _, opening = initiate()
    with pytest.raises(UnknownPrekey) as caught:
        x3dh.respond(BOB, opening, SIGNED, given, Dialect.AGT5)
    assert caught.value.key_id == ONE_TIME.key_id


def test_one_time_key_id_zero_is_an_id():
    zero = ONE_TIME._replace(key_id=0)
    agreement, opening = initiate(zero)
    assert x3dh.respond(BOB, opening, SIGNED, zero, Dialect.AGT5) == agreement
    with pytest.raises(UnknownPrekey):
        x3dh.respond(BOB, opening, SIGNED, None, Dialect.AGT5)


def test_one_time_key_nobody_named_is_a_mistake_of_the_caller():
    _, opening = initiate(None)
    with pytest.raises(InvalidValue):
        x3dh.respond(BOB, opening, SIGNED, ONE_TIME, Dialect.AGT5)


@pytest.mark.parametrize("place", ["ik", "ek"])
@pytest.mark.parametrize("one_time", [None, ONE_TIME])
def test_low_order_key_in_an_opening_is_weak_before_any_agreement(place, one_time, monkeypatch):
    _, opening = initiate(one_time)
    monkeypatch.setattr(x3dh, "x25519", nothing)
    with pytest.raises(WeakKey):
        x3dh.respond(BOB, opening._replace(**{place: LOW_ORDER}), SIGNED, one_time, Dialect.AGT5)


@pytest.mark.parametrize("sizes", [(31, 32), (33, 32), (32, 0), (32, 64)])
def test_opening_with_keys_of_another_size_is_malformed(sizes):
    with pytest.raises(MalformedFrame):
        Opening.from_bytes(*(os.urandom(size) for size in sizes))


def test_opening_keeps_its_bytes():
    ik, ek = (bytes(X25519Private(os.urandom(32)).public) for _ in range(2))
    opening = Opening.from_bytes(ik, ek, 9)
    assert (bytes(opening.ik), bytes(opening.ek), opening.one_time_key_id) == (ik, ek, 9)
