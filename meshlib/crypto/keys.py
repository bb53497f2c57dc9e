"""Key value types: fixed length, constant-time equality, and a repr that shows no secret.

Private keys keep their library object, because rebuilding it from bytes doubles the cost of an operation.
Which library serves which operation is decided in :mod:`meshlib.crypto.primitives`.
"""

import hmac
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from meshlib.errors import InvalidValue

Entropy = Callable[[int], bytes]
"""A source of randomness: a number of bytes in, as many bytes out. Production passes ``os.urandom``."""


class _Key:
    """A fixed number of bytes with constant-time equality."""

    SIZE: ClassVar[int] = 32
    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if type(raw) is not bytes or len(raw) != self.SIZE:
            size = f"{len(raw)} bytes" if isinstance(raw, bytes | bytearray) else type(raw).__name__
            raise InvalidValue(f"{type(self).__name__} takes {self.SIZE} bytes, not {size}")
        self._raw = raw

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash((type(self), self._raw))

    def __bytes__(self) -> bytes:
        return self._raw


class _PublicKey(_Key):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._raw.hex()})"


class _SecretKey(_Key):
    # Without __dict__ removed a cached library object lives beside the bytes; neither is ever printed or pickled.
    def __repr__(self) -> str:
        return f"{type(self).__name__}(<secret>)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{type(self).__name__} is not pickled: use meshlib.snapshot")

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """Draw a new key from ``entropy``, a function from a number of bytes to as many random bytes."""
        return cls(entropy(cls.SIZE))


class X25519Public(_PublicKey):
    """A Diffie-Hellman public key, 32 bytes as they travel (RFC 7748 u-coordinate, not normalised)."""

    __slots__ = ()


class Ed25519Public(_PublicKey):
    """A signature verification key, 32 bytes (RFC 8032)."""

    __slots__ = ()


class X25519Private(_SecretKey):
    """A Diffie-Hellman private key, 32 bytes, clamped or not."""

    @cached_property
    def handle(self) -> X25519PrivateKey:
        """The library object; made once."""
        return X25519PrivateKey.from_private_bytes(self._raw)

    @cached_property
    def public(self) -> X25519Public:
        """The public key that belongs to it."""
        return X25519Public(self.handle.public_key().public_bytes_raw())


class Ed25519Private(_SecretKey):
    """A signing key as its 32-byte seed (RFC 8032)."""

    @cached_property
    def handle(self) -> Ed25519PrivateKey:
        """The library object; made once."""
        return Ed25519PrivateKey.from_private_bytes(self._raw)

    @cached_property
    def public(self) -> Ed25519Public:
        """The public key that belongs to it."""
        return Ed25519Public(self.handle.public_key().public_bytes_raw())


class SecretBytes(_SecretKey):
    """32 bytes of key material: a shared secret, a root, chain or message key."""

