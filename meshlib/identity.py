"""Who an agent is: its Ed25519 key, its DID, and the exact bytes of every proof of possession.

Owns the binding between a DID, an Ed25519 key and an X25519 key. Leaves keeping keys on disk to
:mod:`meshlib.store` and frames that carry the proofs to :mod:`meshlib.wire`.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NewType

import nacl.bindings
import nacl.exceptions

from meshlib.crypto.keys import Ed25519Private, Ed25519Public, Entropy, X25519Private, X25519Public
from meshlib.crypto.primitives import constant_time_equal, sha256, sign, verify
from meshlib.errors import InvalidValue, NotAuthentic, WeakKey

Did = NewType("Did", str)
"""A decentralised identifier, ``did:<method>:<id>``; made by :func:`parse_did` or :func:`did_of`."""

MESH_METHOD = "did:mesh:"
DID_HEX_DIGITS = 32
MAX_DID_LENGTH = 256
"""Characters. The registry's key column and every frame carry it; real DIDs have under 100."""

_FIELD_PRIME = 2**255 - 19


def did_of(key: Ed25519Public) -> Did:
    """The DID of an agent: ``did:mesh:`` and the first 32 hex digits of SHA-256 over its Ed25519 key."""
    return Did(MESH_METHOD + sha256(bytes(key)).hex()[:DID_HEX_DIGITS])


def sdk_did(key: Ed25519Public, option: str) -> Did:
    """The DID under which an agt-5 SDK goes for its option ``agentDid``.

    It keeps any text that starts with ``did:mesh:``, even one its key cannot prove, and replaces everything else.
    """
    return Did(option) if option.startswith(MESH_METHOD) else did_of(key)


def parse_did(text: str) -> Did:
    """Check that ``text`` has the shape of a DID.

    Any printable ``did:<method>:<id>`` passes, because old SDKs choose theirs freely; one of ``did:mesh:`` that
    can be no hash is still a name no key can prove.

    Raises:
        InvalidValue: not a DID, longer than 256 characters, or with white space or control characters.
    """
    return _checked(text)


@lru_cache(maxsize=4096)  # a conversation names the same two in every frame
def _checked(text: str) -> Did:
    parts = text.split(":", 2)
    if len(parts) != 3 or parts[0] != "did" or not parts[1] or not parts[2]:
        raise InvalidValue("a DID looks like did:mesh:<32 hex digits>")
    if len(text) > MAX_DID_LENGTH:
        raise InvalidValue(f"a DID has at most {MAX_DID_LENGTH} characters, not {len(text)}")
    if not text.isprintable() or " " in text or "|" in text:
        raise InvalidValue("a DID holds no white space, control characters or '|'")
    return Did(text)


def commits_to_key(did: Did) -> bool:
    """Whether the DID is a hash of its key, so that nobody needs to be believed. True for ``did:mesh:``."""
    return did.startswith(MESH_METHOD)


def check_did(did: Did, key: Ed25519Public) -> None:
    """Check that a ``did:mesh:`` DID is the hash of ``key``.

    Raises:
        NotAuthentic: it is not, or the DID is of a method that commits to no key.
    """
    if not constant_time_equal(did.encode(), did_of(key).encode()):
        raise NotAuthentic(f"{did} is not the DID of the presented Ed25519 key")


def to_x25519(key: Ed25519Public) -> X25519Public:
    """The X25519 key of an Ed25519 key (birational map of RFC 7748, section 4.1).

    Raises:
        WeakKey: the key is no point of the curve, or one of small order.
    """
    try:
        return X25519Public(nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(bytes(key)))
    except (nacl.exceptions.CryptoError, nacl.exceptions.RuntimeError, ValueError) as error:
        raise WeakKey("an Ed25519 key is no point of the prime-order group") from error


def recover_ed25519(key: X25519Public, did: Did) -> Ed25519Public:
    """Find the Ed25519 key behind an X25519 key, by the DID that hashes it.

    The map to X25519 forgets one sign bit: y = (u - 1) / (u + 1) mod p has two candidates, and one of the two must
    hash to the DID. This binds the ``ik`` of a knock to its ``from`` offline, without trusting relay or registry.

    Raises:
        NotAuthentic: neither candidate hashes to ``did``.
    """
    u = int.from_bytes(bytes(key), "little")
    if u < _FIELD_PRIME - 1:  # the map has no value at u = -1, and a canonical u is below the prime
        y = (u - 1) * pow(u + 1, -1, _FIELD_PRIME) % _FIELD_PRIME
        for sign_bit in (0, 1):
            candidate = Ed25519Public((y | sign_bit << 255).to_bytes(32, "little"))
            if constant_time_equal(did_of(candidate).encode(), did.encode()):
                return candidate
    raise NotAuthentic(f"the X25519 identity key is not that of {did}")


@dataclass(frozen=True)
class Identity:
    """An agent's long-term key. Its repr shows the DID only."""

    signing_key: Ed25519Private

    @classmethod
    def generate(cls, entropy: Entropy) -> "Identity":
        """A new identity from 32 bytes of ``entropy``."""
        return cls(Ed25519Private.generate(entropy))

    @classmethod
    def from_secret(cls, secret: bytes, public: bytes) -> "Identity":
        """The identity of a key pair another library kept.

        Args:
            secret: the seed (32 bytes), or seed and public key (64 bytes) as NaCl and the SDK write it.
            public: the Ed25519 public key (32 bytes). A pair that does not fit signs for nobody, so it is refused.
        Raises:
            InvalidValue: another length, or the public key is not that of the seed.
        """
        identity = cls(Ed25519Private(secret[:32]))
        if identity.public_key != Ed25519Public(public) or secret[32:] not in (b"", public):
            raise InvalidValue("the Ed25519 public key does not belong to the secret key")
        return identity

    @cached_property
    def public_key(self) -> Ed25519Public:
        """The Ed25519 key that everything about this agent is bound to."""
        return self.signing_key.public

    @cached_property
    def did(self) -> Did:
        """The DID derived from the key."""
        return did_of(self.public_key)

    @cached_property
    def agreement_key(self) -> X25519Private:
        """The X25519 form of the key: SHA-512 of the seed, clamped (RFC 8032 section 5.1.5, RFC 7748 section 5)."""
        pair = bytes(self.signing_key) + bytes(self.public_key)
        return X25519Private(nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(pair))

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature over ``message``, 64 bytes."""
        return sign(self.signing_key, message)

    def __repr__(self) -> str:
        return f"Identity({self.did})"


# --- the exact bytes of every proof ---------------------------------------------------------------------------------
# The SDK signs bare texts; what only our clients send carries a domain in front, so that no proof serves twice.


def timestamp_statement(timestamp: str) -> bytes:
    """What relay ``connect`` and registry ``Authorization`` sign: the ISO timestamp's text alone."""
    return timestamp.encode()


def registration_statement(public_key_text: str, timestamp: str) -> bytes:
    """What a registration signs: the base64url text of the public key, then the text of the timestamp."""
    return (public_key_text + timestamp).encode()


def challenge_statement(did: Did, timestamp: str, nonce: str) -> bytes:
    """What ``connect`` signs when the relay has sent a challenge: useless on any other connection."""
    return "\n".join(("mesh-relay-connect-v1", did, timestamp, nonce)).encode()


def bound_request_statement(did: Did, timestamp: str, method: str, target: str, body: bytes) -> bytes:
    """What a bound registry request signs: useless for another method, target or body.

    Args:
        method: upper case.
        target: path and query exactly as sent, percent-encoding included.
    """
    return "\n".join(("mesh-registry-request-v1", did, timestamp, method, target, sha256(body).hex())).encode()


def verify_proof(key: Ed25519Public, statement: bytes, signature: bytes) -> None:
    """Check a proof of possession.

    Raises:
        NotAuthentic: the signature does not verify.
    """
    verify(key, statement, signature)
