"""Syndace's DoubleRatchet, the pure Python library of its kind, with its recommended parts (AES-256-CBC and HMAC)."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any

import doubleratchet  # type: ignore[import-not-found]
from doubleratchet.recommended import (  # type: ignore[import-not-found]
    HashFunction,
    aead_aes_hmac,
    diffie_hellman_ratchet_curve25519,
    kdf_hkdf,
    kdf_separate_hmacs,
)

from bench.worker import Operation, serve


class _Ratchet(doubleratchet.DoubleRatchet):  # type: ignore[misc]
    @staticmethod
    def _build_associated_data(associated_data: bytes, header: Any) -> bytes:
        lengths = (header.previous_sending_chain_length, header.sending_chain_length)
        return b"".join((associated_data, header.ratchet_pub, *(length.to_bytes(4, "big") for length in lengths)))


class _Aead(aead_aes_hmac.AEAD):  # type: ignore[misc]
    @staticmethod
    def _get_hash_function() -> Any:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"bench message"


class _Root(kdf_hkdf.KDF):  # type: ignore[misc]
    @staticmethod
    def _get_hash_function() -> Any:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"bench root"


class _Chain(kdf_separate_hmacs.KDF):  # type: ignore[misc]
    @staticmethod
    def _get_hash_function() -> Any:
        return HashFunction.SHA_256


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Its coroutines wait for nothing, so no event loop is measured with them."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a coroutine waits")


def _met() -> tuple[Any, Any]:
    own = os.urandom(32)
    public = diffie_hellman_ratchet_curve25519.X25519PrivateKey.from_private_bytes(own).public_key().public_bytes_raw()
    common: dict[str, Any] = {
        "diffie_hellman_ratchet_class": diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet,
        "root_chain_kdf": _Root,
        "message_chain_kdf": _Chain,
        "message_chain_constant": b"\x01\x02",
        "dos_protection_threshold": 100,
        "max_num_skipped_message_keys": 2000,
        "aead": _Aead,
        "shared_secret": bytes(32),
        "associated_data": b"a|b",
    }
    alice, first = _run(_Ratchet.encrypt_initial_message(**common, recipient_ratchet_pub=public, message=b"hello"))
    bob, _ = _run(_Ratchet.decrypt_initial_message(**common, own_ratchet_priv=own, message=first))
    return alice, bob


def seal(payload: int) -> Operation:
    """One message is sealed and opened; the ratchet does not turn."""
    alice, bob = _met()
    plaintext = os.urandom(payload)
    return lambda: _run(bob.decrypt_message(_run(alice.encrypt_message(plaintext, b"a|b")), b"a|b"))


def turn(payload: int) -> Operation:
    """A message and its answer: the ratchet turns twice."""
    alice, bob = _met()
    plaintext = os.urandom(payload)

    def once() -> None:
        _run(alice.decrypt_message(_run(bob.encrypt_message(plaintext, b"a|b")), b"a|b"))
        _run(bob.decrypt_message(_run(alice.encrypt_message(plaintext, b"a|b")), b"a|b"))

    return once


if __name__ == "__main__":
    serve({"seal": seal, "turn": turn})
