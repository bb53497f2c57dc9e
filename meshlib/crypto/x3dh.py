"""X3DH: the two halves of the key agreement, as pure functions.

Owns the two derivations in the field and the order of the Diffie-Hellman outputs. Keeping, retiring and consuming
prekeys is left to the caller: :func:`respond` gives the same answer however often it is asked, and a one-time prekey
is deleted when the first message authenticates.

Source: Signal X3DH rev. 1, sections 3.3 and 3.4; vectors/x3dh/x3dh_agt5.json, x3dh_agt4.json.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from meshlib.crypto.keys import Entropy, SecretBytes, X25519Private, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, PrekeyBundle, SignedPrekey, verify_bundle
from meshlib.crypto.primitives import hkdf_sha256, refuse_low_order, x25519
from meshlib.errors import InvalidValue, MalformedFrame, UnknownPrekey
from meshlib.identity import Did, Identity

_INFO = b"AgentMesh_X3DH_v1"
_FF = b"\xff" * 32
_ZERO = b"\x00" * 32


class Dialect(StrEnum):
    """Which derivation both sides use. A session belongs to one; the establishment does not say which."""

    AGT5 = "agt-5"
    """Today's: HKDF salt of 32 zero bytes, IKM = 0xFF * 32 || DH outputs."""
    AGT4 = "agt-4"
    """npm's 4.0.0: HKDF salt of 0xFF * 32, IKM = DH outputs."""


class Opening(NamedTuple):
    """What the initiator tells the responder: identity key, ephemeral key, and the one-time key it used, if any."""

    ik: X25519Public
    ek: X25519Public
    one_time_key_id: int | None = None

    @classmethod
    def from_bytes(cls, ik: bytes, ek: bytes, one_time_key_id: int | None = None) -> "Opening":
        """Make it of raw bytes.

        Raises:
            MalformedFrame: a key has not 32 bytes.
        """
        try:
            return cls(X25519Public(ik), X25519Public(ek), one_time_key_id)
        except InvalidValue as error:
            raise MalformedFrame(f"an opening cannot be used: {error}") from None


class Agreement(NamedTuple):
    """The outcome on either side.

    ``associated_data`` is the initiator's identity key and then the responder's (X25519, 64 bytes).
    """

    secret: SecretBytes
    associated_data: bytes


def derive(dialect: Dialect, agreements: bytes) -> SecretBytes:
    """The shared secret from ``DH1 || DH2 || DH3 [|| DH4]``."""
    match dialect:
        case Dialect.AGT5:
            return SecretBytes(hkdf_sha256(salt=_ZERO, ikm=_FF + agreements, info=_INFO, length=32))
        case Dialect.AGT4:
            return SecretBytes(hkdf_sha256(salt=_FF, ikm=agreements, info=_INFO, length=32))


def initiate(
    identity: Identity, peer: Did, bundle: PrekeyBundle, dialect: Dialect, entropy: Entropy
) -> tuple[Agreement, Opening]:
    """Derive the initiator's half. Draws the ephemeral key (32 bytes), after the bundle has verified.

    Raises:
        NotAuthentic: the bundle is not that of ``peer`` (:func:`~meshlib.crypto.prekeys.verify_bundle`).
        WeakKey: a key of the bundle is of low order.
        MalformedFrame: the bundle names half a one-time prekey.
    """
    verify_bundle(bundle, peer)
    ephemeral = X25519Private.generate(entropy)
    agreements = [
        x25519(identity.agreement_key, bundle.signed_prekey),
        x25519(ephemeral, bundle.identity_key),
        x25519(ephemeral, bundle.signed_prekey),
    ]
    if bundle.one_time_prekey is not None:
        agreements.append(x25519(ephemeral, bundle.one_time_prekey))
    own = identity.agreement_key.public
    return (
        Agreement(derive(dialect, b"".join(agreements)), bytes(own) + bytes(bundle.identity_key)),
        Opening(own, ephemeral.public, bundle.one_time_prekey_id),
    )


def respond(
    identity: Identity,
    opening: Opening,
    signed_prekey: SignedPrekey,
    one_time_prekey: OneTimePrekey | None,
    dialect: Dialect,
) -> Agreement:
    """Derive the responder's half for one signed prekey and one dialect. Draws nothing, consumes nothing.

    Whether the opening's identity key belongs to whoever sent it is not asked here.

    Raises:
        UnknownPrekey: the opening names a one-time key, and ``one_time_prekey`` is not it.
        WeakKey: a key of the opening is of low order.
        InvalidValue: a one-time prekey the opening does not name.
    """
    return next(respond_all(identity, opening, (signed_prekey,), one_time_prekey, (dialect,)))[2]


def respond_all(
    identity: Identity,
    opening: Opening,
    signed_prekeys: Iterable[SignedPrekey],
    one_time_prekey: OneTimePrekey | None,
    dialects: Iterable[Dialect],
) -> Iterator[tuple[SignedPrekey, Dialect, Agreement]]:
    """Derive the responder's half for every signed prekey and dialect the opening may have meant.

    The agreements that do not depend on the signed prekey are made once: a knock costs its receiver two agreements
    and two more per signed prekey, however many dialects there are.

    Raises:
        UnknownPrekey, WeakKey, InvalidValue: as :func:`respond`, before anything is yielded.
    """
    _check_one_time(opening, one_time_prekey)
    refuse_low_order(bytes(opening.ik))
    refuse_low_order(bytes(opening.ek))
    wanted = tuple(dialects)
    second = x25519(identity.agreement_key, opening.ek)
    fourth = b"" if one_time_prekey is None else x25519(one_time_prekey.private, opening.ek)
    associated_data = bytes(opening.ik) + bytes(identity.agreement_key.public)
    for signed in signed_prekeys:
        first, third = x25519(signed.private, opening.ik), x25519(signed.private, opening.ek)
        agreements = first + second + third + fourth
        for dialect in wanted:
            yield signed, dialect, Agreement(derive(dialect, agreements), associated_data)


def _check_one_time(opening: Opening, one_time_prekey: OneTimePrekey | None) -> None:
    if opening.one_time_key_id is None:
        if one_time_prekey is not None:
            raise InvalidValue("the opening names no one-time prekey, so none takes part")
    elif one_time_prekey is None or one_time_prekey.key_id != opening.one_time_key_id:
        raise UnknownPrekey(opening.one_time_key_id)
