"""vodozemac: Olm in Rust, through its Python binding.

AES-256-CBC and HMAC instead of ChaCha20-Poly1305; 3DH instead of X3DH, without a signature to check.
"""

from __future__ import annotations

import os

import vodozemac  # type: ignore[import-not-found]

from bench.worker import Operation, serve


def _met() -> tuple[object, object]:
    alice, bob = vodozemac.Account(), vodozemac.Account()
    return _meet(alice, bob)


def _meet(alice: object, bob: object) -> tuple[object, object]:
    bob.generate_one_time_keys(1)  # type: ignore[attr-defined]
    one_time = next(iter(bob.one_time_keys.values()))  # type: ignore[attr-defined]
    bob.mark_keys_as_published()  # type: ignore[attr-defined]
    sending = alice.create_outbound_session(bob.curve25519_key, one_time)  # type: ignore[attr-defined]
    first = sending.encrypt(b"hello").to_pre_key()
    receiving, _ = bob.create_inbound_session(alice.curve25519_key, first)  # type: ignore[attr-defined]
    return sending, receiving


def seal(payload: int) -> Operation:
    """One message is sealed and opened; the ratchet does not turn."""
    alice, bob = _met()
    alice.decrypt(bob.encrypt(b"hello"))  # type: ignore[attr-defined]
    plaintext = os.urandom(payload)
    return lambda: bob.decrypt(alice.encrypt(plaintext))  # type: ignore[attr-defined]


def turn(payload: int) -> Operation:
    """A message and its answer: the ratchet turns twice."""
    alice, bob = _met()
    plaintext = os.urandom(payload)

    def once() -> None:
        alice.decrypt(bob.encrypt(plaintext))  # type: ignore[attr-defined]
        bob.decrypt(alice.encrypt(plaintext))  # type: ignore[attr-defined]

    return once


def meet() -> Operation:
    """Both sides of a session, with the one-time key it needs, to the first message that was read."""
    alice, bob = vodozemac.Account(), vodozemac.Account()
    return lambda: _meet(alice, bob)


if __name__ == "__main__":
    serve({"seal": seal, "turn": turn, "meet": meet})
