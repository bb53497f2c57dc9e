"""The bare primitives a message cannot do without, from OpenSSL and libsodium: what no Python library gets below."""

from __future__ import annotations

import hashlib
import hmac
import os

import nacl.bindings
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from bench.worker import Operation, serve

_INNER, _OUTER = bytes(x ^ 0x36 for x in range(256)), bytes(x ^ 0x5C for x in range(256))
_AD = bytes(180)


def _step(key: bytes) -> tuple[bytes, bytes]:
    """HMAC-SHA256 of two messages under one key, the fastest way found."""
    padded, sha = key.ljust(64, b"\0"), hashlib.sha256
    inner, outer = padded.translate(_INNER), padded.translate(_OUTER)
    return sha(outer + sha(inner + b"\1").digest()).digest(), sha(outer + sha(inner + b"\2").digest()).digest()


def _root(root: bytes, secret: bytes) -> tuple[bytes, bytes]:
    key = hmac.digest(root, secret, "sha256")
    first = hmac.digest(key, b"AgentMesh_Ratchet_v1\1", "sha256")
    return first, hmac.digest(key, first + b"AgentMesh_Ratchet_v1\2", "sha256")


def seal(payload: int) -> Operation:
    """Two chain steps, a nonce, one seal, one open."""
    plaintext, sending, receiving = os.urandom(payload), bytes(32), bytes(32)

    def once() -> None:
        nonlocal sending, receiving
        key, sending = _step(sending)
        nonce = os.urandom(12)
        sealed = ChaCha20Poly1305(key).encrypt(nonce, plaintext, _AD)
        key, receiving = _step(receiving)
        ChaCha20Poly1305(key).decrypt(nonce, sealed, _AD)

    return once


def turn(payload: int) -> Operation:
    """Twice a new key, two agreements, two root steps and what :func:`seal` does."""
    message, own, root = seal(payload), os.urandom(32), bytes(32)
    other = nacl.bindings.crypto_scalarmult_base(os.urandom(32))

    def once() -> None:
        nonlocal own, root
        for _ in range(2):
            root, _chain = _root(root, nacl.bindings.crypto_scalarmult(own, other))
            own = os.urandom(32)
            nacl.bindings.crypto_scalarmult_base(own)
            root, _chain = _root(root, nacl.bindings.crypto_scalarmult(own, other))
            message()

    return once


def meet() -> Operation:
    """X3DH on both sides with a one-time key, one signature checked, the first turn and message."""
    own, other = os.urandom(32), nacl.bindings.crypto_scalarmult_base(os.urandom(32))
    public, secret = nacl.bindings.crypto_sign_keypair()
    signed, message = nacl.bindings.crypto_sign(other, secret), seal(5)

    def once() -> None:
        nacl.bindings.crypto_sign_open(signed, public)
        for _ in range(2):  # the ephemeral key and the first ratchet key
            nacl.bindings.crypto_scalarmult_base(os.urandom(32))
        for _ in range(4 + 1 + 4 + 1):  # X3DH and the first turn, on each side
            nacl.bindings.crypto_scalarmult(own, other)
        nacl.bindings.crypto_scalarmult_base(os.urandom(32))  # the responder's answering key
        nacl.bindings.crypto_scalarmult(own, other)
        for _ in range(2 + 3):  # HKDF: two agreements, three root steps
            _root(bytes(32), own)
        message()

    return once


if __name__ == "__main__":
    serve({"seal": seal, "turn": turn, "meet": meet})
