"""Key value types: fixed length, constant-time equality, and a repr that shows no secret.

Which library serves which operation is decided in :mod:`meshlib.crypto.primitives`; the one computation here is a
private key's public half, made once and kept, because it costs as much as half an agreement.
"""

import hmac
from collections.abc import Callable
from typing import ClassVar, Final, NoReturn, Self

import nacl.bindings

from meshlib.errors import InvalidValue

Entropy = Callable[[int], bytes]
"""A source of randomness: a number of bytes in, as many bytes out. Production passes ``os.urandom``."""


class _Key:
    """A fixed number of bytes with constant-time equality."""

    SIZE: ClassVar[int] = 32
    __slots__ = ("raw",)
    raw: Final[bytes]
    """What ``bytes()`` gives, at a third of the price: for what happens once per message."""

    def __init__(self, raw: bytes) -> None:
        if type(raw) is not bytes or len(raw) != self.SIZE:
            raise InvalidValue(f"{type(self).__name__} takes exactly {self.SIZE} bytes")
        self.raw = raw

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self.raw, other.raw)

    def __hash__(self) -> int:
        return hash((type(self), self.raw))

    def __bytes__(self) -> bytes:
        return self.raw

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class _PublicKey(_Key):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.raw.hex()})"


class _SecretKey(_Key):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<secret>)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
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

    __slots__ = ("_public",)
    _public: X25519Public

    @property
    def public(self) -> X25519Public:
        """The public key that belongs to it."""
        try:
            return self._public
        except AttributeError:
            self._public = X25519Public(nacl.bindings.crypto_scalarmult_base(self.raw))
            return self._public


class Ed25519Private(_SecretKey):
    """A signing key as its 32-byte seed (RFC 8032)."""

    __slots__ = ("_public",)
    _public: Ed25519Public

    @property
    def public(self) -> Ed25519Public:
        """The public key that belongs to it."""
        try:
            return self._public
        except AttributeError:
            self._public = Ed25519Public(nacl.bindings.crypto_sign_seed_keypair(self.raw)[0])
            return self._public


class SecretBytes(_SecretKey):
    """32 bytes of key material: a shared secret, a root, chain or message key."""

    __slots__ = ()
