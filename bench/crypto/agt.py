"""Upstream's Python package: SecureChannel, as its documentation uses it."""

from __future__ import annotations

import os

import nacl.bindings
from agentmesh.encryption.channel import SecureChannel  # type: ignore[import-not-found]
from agentmesh.encryption.x3dh import X3DHKeyManager  # type: ignore[import-not-found]

from bench.worker import Operation, serve


def _manager() -> X3DHKeyManager:
    public, secret = nacl.bindings.crypto_sign_keypair()
    manager = X3DHKeyManager.from_ed25519_keys(secret, public)
    manager.generate_signed_pre_key()
    return manager


def _met(initiator: X3DHKeyManager, responder: X3DHKeyManager, one_time: object = None) -> tuple[object, object]:
    bundle = responder.get_public_bundle()
    if one_time is not None:
        bundle.one_time_pre_key, bundle.one_time_pre_key_id = one_time.key_pair.public_key, one_time.key_id  # type: ignore[attr-defined]
        responder.one_time_pre_keys[one_time.key_id] = one_time  # type: ignore[attr-defined]
    alice, establishment = SecureChannel.create_sender(initiator, bundle, b"a|b")
    bob = SecureChannel.create_receiver(responder, establishment, b"a|b")
    bob.receive(alice.send(b"hello"))
    return alice, bob


def seal(payload: int) -> Operation:
    """One message is sealed and opened; the ratchet does not turn."""
    alice, bob = _met(_manager(), _manager())
    plaintext = os.urandom(payload)
    return lambda: bob.receive(alice.send(plaintext))  # type: ignore[attr-defined]


def turn(payload: int) -> Operation:
    """A message and its answer: the ratchet turns twice."""
    alice, bob = _met(_manager(), _manager())
    plaintext = os.urandom(payload)

    def once() -> None:
        alice.receive(bob.send(plaintext))  # type: ignore[attr-defined]
        bob.receive(alice.send(plaintext))  # type: ignore[attr-defined]

    return once


def meet() -> Operation:
    """Both sides of a session, from the bundle to the first message that was read."""
    initiator, responder = _manager(), _manager()
    one_time = responder.generate_one_time_pre_keys(1)[0]
    return lambda: _met(initiator, responder, one_time)


if __name__ == "__main__":
    serve({"seal": seal, "turn": turn, "meet": meet})
