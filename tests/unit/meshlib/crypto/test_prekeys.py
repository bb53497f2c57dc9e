"""A bundle is believed when DID, Ed25519 key, X25519 key and signature hang together, and never otherwise."""

import os

import pytest

from meshlib.crypto.keys import Ed25519Public, X25519Private, X25519Public
from meshlib.crypto.prekeys import (
    OneTimePrekey,
    make_bundle,
    make_one_time_prekeys,
    make_signed_prekey,
    verify_bundle,
)
from meshlib.errors import MalformedFrame, NotAuthentic, WeakKey
from meshlib.identity import Did, Identity

BOB = Identity.generate(os.urandom)
MALLORY = Identity.generate(os.urandom)
SIGNED = make_signed_prekey(BOB, 3, os.urandom)
ONE_TIME = make_one_time_prekeys(7, 1, os.urandom)[0]
BUNDLE = make_bundle(BOB, SIGNED, ONE_TIME)
FORGED = make_bundle(MALLORY, make_signed_prekey(MALLORY, 3, os.urandom), ONE_TIME)
LEGACY = Did("did:agentmesh:bob")


def key(raw=None):
    return X25519Public(raw or bytes(X25519Private(os.urandom(32)).public))


def test_honest_bundle_is_believed():
    verify_bundle(BUNDLE, BOB.did)
    verify_bundle(make_bundle(BOB, SIGNED), BOB.did)


def test_bundle_of_somebody_else_is_refused():
    with pytest.raises(NotAuthentic):
        verify_bundle(FORGED, BOB.did)


@pytest.mark.parametrize(
    "change",
    [
        {"identity_key_ed": MALLORY.public_key},
        {"identity_key": MALLORY.agreement_key.public},
        {"identity_key": key()},
        {"identity_key": FORGED.identity_key, "identity_key_ed": FORGED.identity_key_ed},
        {"signed_prekey": FORGED.signed_prekey},
        {"signed_prekey": FORGED.signed_prekey, "signed_prekey_signature": FORGED.signed_prekey_signature},
        {"signed_prekey_signature": FORGED.signed_prekey_signature},
        {"signed_prekey_signature": bytes(64)},
        {"signed_prekey_signature": b""},
        {"signed_prekey_signature": BUNDLE.signed_prekey_signature + b"\x00"},
        {"signed_prekey_signature": BUNDLE.signed_prekey_signature[:63]},
        {"signed_prekey_signature": BOB.sign(bytes(SIGNED.public).hex().encode())},
    ],
)
def test_bundle_with_one_part_substituted_is_refused(change):
    with pytest.raises(NotAuthentic):
        verify_bundle(BUNDLE._replace(**change), BOB.did)


@pytest.mark.parametrize(
    "change",
    [
        {"identity_key": MALLORY.agreement_key.public},
        {"signed_prekey": FORGED.signed_prekey},
        {"signed_prekey_signature": bytes(64)},
    ],
)
def test_a_did_that_commits_to_nothing_still_has_all_other_checks(change):
    verify_bundle(BUNDLE, LEGACY)
    with pytest.raises(NotAuthentic):
        verify_bundle(BUNDLE._replace(**change), LEGACY)


@pytest.mark.parametrize("place", ["identity_key", "signed_prekey", "one_time_prekey"])
def test_low_order_key_in_any_place_is_weak(place):
    weak = X25519Public(bytes(32))
    bundle = BUNDLE._replace(**{place: weak})
    if place == "signed_prekey":
        bundle = bundle._replace(signed_prekey_signature=BOB.sign(bytes(weak)))
    with pytest.raises(WeakKey):
        verify_bundle(bundle, BOB.did)


def test_ed25519_key_of_small_order_is_weak():
    identity_point = Ed25519Public((1).to_bytes(32, "little"))
    with pytest.raises(WeakKey):
        verify_bundle(BUNDLE._replace(identity_key_ed=identity_point), LEGACY)


def test_another_encoding_of_the_identity_key_is_refused():
    raw = bytes(BUNDLE.identity_key)
    twisted = key(raw[:31] + bytes((raw[31] | 0x80,)))
    with pytest.raises(NotAuthentic):
        verify_bundle(BUNDLE._replace(identity_key=twisted), BOB.did)


@pytest.mark.parametrize("half", [{"one_time_prekey": None}, {"one_time_prekey_id": None}])
def test_half_a_one_time_prekey_is_malformed(half):
    with pytest.raises(MalformedFrame):
        verify_bundle(BUNDLE._replace(**half), BOB.did)


def test_one_time_prekeys_have_consecutive_ids_and_different_keys():
    made = make_one_time_prekeys(40, 5, os.urandom)
    assert [one.key_id for one in made] == [40, 41, 42, 43, 44]
    assert len({one.public for one in made}) == 5
    assert make_one_time_prekeys(1, 0, os.urandom) == []


def test_prekeys_show_no_private_key():
    shown = repr([SIGNED, ONE_TIME, BUNDLE, OneTimePrekey(1, X25519Private(bytes(range(32))))])
    for private in (SIGNED.private, ONE_TIME.private, X25519Private(bytes(range(32)))):
        assert bytes(private).hex() not in shown
        assert repr(bytes(private))[2:-1] not in shown
