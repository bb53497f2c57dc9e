"""Primitives against other implementations of the same standards, and their single failure types."""

import contextlib
import hmac
import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from meshlib.crypto import primitives
from meshlib.crypto.keys import Ed25519Private, Ed25519Public, X25519Private, X25519Public
from meshlib.errors import NotAuthentic, WeakKey

P = 2**255 - 19
LOW_ORDER_U = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
)
L = 2**252 + 27742317777372353535851937790883648493

keys = st.binary(min_size=32, max_size=32)


@given(keys, st.binary(max_size=80), st.binary(max_size=80))
def test_two_macs_at_once_are_two_macs(key, first, second):
    plain = hmac.digest(key, first, "sha256"), hmac.digest(key, second, "sha256")
    assert primitives.hmac_sha256_twice(key, first, second) == plain
    assert primitives.hmac_sha256(key, first) == plain[0]


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, b"\x00" * 31 + b"\x01", b"\x01" + bytes(31), bytes(64), b""])
def test_two_macs_at_once_pad_the_key_as_rfc_2104_says(key):
    expected = tuple(hmac.digest(key, message, "sha256") for message in (b"\x01", b"\x02"))
    assert primitives.hmac_sha256_twice(key, b"\x01", b"\x02") == expected


@given(st.binary(max_size=64), st.binary(max_size=160), st.binary(max_size=40), st.integers(1, 130))
def test_hkdf_is_that_of_the_library(salt, ikm, info, length):
    library = HKDF(hashes.SHA256(), length, salt, info).derive(ikm)
    assert primitives.hkdf_sha256(salt=salt, ikm=ikm, info=info, length=length) == library


@given(keys, keys)
def test_agreement_is_that_of_the_other_library(private, peer):
    public = X25519PrivateKey.from_private_bytes(peer).public_key()
    expected = X25519PrivateKey.from_private_bytes(private).exchange(public)
    assert primitives.x25519(X25519Private(private), X25519Public(public.public_bytes_raw())) == expected
    assert bytes(X25519Private(peer).public) == public.public_bytes_raw()


@given(keys, st.binary(max_size=100))
def test_signature_is_that_of_the_other_library(seed, message):
    other = Ed25519PrivateKey.from_private_bytes(seed)
    private = Ed25519Private(seed)
    assert bytes(private.public) == other.public_key().public_bytes_raw()
    signature = primitives.sign(private, message)
    assert signature == other.sign(message)
    primitives.verify(private.public, message, signature)
    Ed25519PublicKey.from_public_bytes(bytes(private.public)).verify(signature, message)


@pytest.mark.parametrize("u", LOW_ORDER_U)
@pytest.mark.parametrize("top_bit", [0, 1])
def test_low_order_key_is_refused_before_and_in_the_agreement(u, top_bit):
    encoded = (u | top_bit << 255).to_bytes(32, "little")
    with pytest.raises(WeakKey):
        primitives.refuse_low_order(encoded)
    for _ in range(3):
        with pytest.raises(WeakKey):
            primitives.x25519(X25519Private(os.urandom(32)), X25519Public(encoded))


@given(keys)
def test_honest_key_is_not_taken_for_one_of_low_order(seed):
    primitives.refuse_low_order(bytes(X25519Private(seed).public))


def test_all_zero_agreement_never_comes_out():
    """Whatever libsodium thinks of an encoding, 32 zero bytes are no secret."""
    private = X25519Private(os.urandom(32))
    for u in range(64):
        for encoded in (u, P + u if P + u < 2**255 else u, u | 1 << 255):
            with contextlib.suppress(WeakKey):
                assert primitives.x25519(private, X25519Public(encoded.to_bytes(32, "little"))) != bytes(32)


def test_top_bit_of_a_public_key_is_ignored_in_the_agreement():
    private, public = X25519Private(os.urandom(32)), bytes(X25519Private(os.urandom(32)).public)
    twisted = public[:31] + bytes((public[31] ^ 0x80,))
    assert primitives.x25519(private, X25519Public(twisted)) == primitives.x25519(private, X25519Public(public))


def test_signature_with_unreduced_s_is_refused():
    private = Ed25519Private(os.urandom(32))
    signature = primitives.sign(private, b"m")
    malleated = signature[:32] + (int.from_bytes(signature[32:], "little") + L).to_bytes(32, "little")
    with pytest.raises(NotAuthentic):
        primitives.verify(private.public, b"m", malleated)


def test_small_order_signer_is_refused():
    identity_point = Ed25519Public((1).to_bytes(32, "little"))
    with pytest.raises(NotAuthentic):
        primitives.verify(identity_point, b"any", (1).to_bytes(32, "little") + bytes(32))


@pytest.mark.parametrize("size", [0, 63, 65, 128])
def test_signature_of_another_size_is_refused(size):
    with pytest.raises(NotAuthentic):
        primitives.verify(Ed25519Private(bytes(32)).public, b"m", bytes(size))


def test_signature_over_a_shifted_split_of_message_and_signature_is_refused():
    private = Ed25519Private(os.urandom(32))
    signature = primitives.sign(private, b"message")
    with pytest.raises(NotAuthentic):
        primitives.verify(private.public, b"essage", signature[1:] + b"m")


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_sealed_text_opens_again(plaintext, associated_data):
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = primitives.seal(key, nonce, plaintext, associated_data)
    assert len(sealed) == len(plaintext) + primitives.TAG_SIZE
    assert primitives.unseal(key, nonce, sealed, associated_data) == plaintext


def test_any_change_to_a_sealed_text_is_noticed():
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = primitives.seal(key, nonce, b"text", b"data")
    for changed in (
        (bytes(32), nonce, sealed, b"data"),
        (key, bytes(12), sealed, b"data"),
        (key, nonce, sealed[:-1], b"data"),
        (key, nonce, sealed + b"\x00", b"data"),
        (key, nonce, b"", b"data"),
        (key, nonce, sealed, b"Data"),
        (key, nonce, sealed, b""),
        *(
            (key, nonce, sealed[:at] + bytes((sealed[at] ^ 1 << bit,)) + sealed[at + 1 :], b"data")
            for at in range(len(sealed))
            for bit in range(8)
        ),
    ):
        with pytest.raises(NotAuthentic):
            primitives.unseal(*changed)


def test_comparison_tells_equal_from_different():
    assert primitives.constant_time_equal(b"abc", b"abc")
    assert not primitives.constant_time_equal(b"abc", b"abd")
    assert not primitives.constant_time_equal(b"abc", b"ab")
