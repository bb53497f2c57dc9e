"""Signed and one-time prekeys, the bundle a peer fetches, and its verification.

Owns what makes a bundle believable. Leaves key lifetimes to :mod:`meshlib.client` and how bundles travel to
:mod:`meshlib.wire`.
"""

from typing import NamedTuple

from meshlib.crypto.keys import Ed25519Public, Entropy, X25519Private, X25519Public
from meshlib.crypto.primitives import constant_time_equal, refuse_low_order, verify
from meshlib.errors import MalformedFrame, NotAuthentic
from meshlib.identity import Did, Identity, check_did, commits_to_key, to_x25519


class SignedPrekey(NamedTuple):
    """Our half of a signed prekey. ``signature`` is by the identity over the raw public key (64 bytes)."""

    key_id: int
    private: X25519Private
    signature: bytes

    @property
    def public(self) -> X25519Public:
        """What the bundle shows of it."""
        return self.private.public


class OneTimePrekey(NamedTuple):
    """Our half of a one-time prekey. It dies with the first message that authenticates under it, not with a knock:
    otherwise forged knocks would burn the whole supply."""

    key_id: int
    private: X25519Private

    @property
    def public(self) -> X25519Public:
        """What the bundle shows of it."""
        return self.private.public


class PrekeyBundle(NamedTuple):
    """What a registry hands out about an agent. Believe nothing of it before :func:`verify_bundle`."""

    identity_key: X25519Public
    identity_key_ed: Ed25519Public
    signed_prekey_id: int
    signed_prekey: X25519Public
    signed_prekey_signature: bytes
    one_time_prekey_id: int | None = None
    one_time_prekey: X25519Public | None = None


def make_signed_prekey(identity: Identity, key_id: int, entropy: Entropy) -> SignedPrekey:
    """A new signed prekey from 32 bytes of ``entropy``."""
    private = X25519Private.generate(entropy)
    return SignedPrekey(key_id, private, identity.sign(bytes(private.public)))


def make_one_time_prekeys(first_id: int, count: int, entropy: Entropy) -> list[OneTimePrekey]:
    """``count`` new one-time prekeys with consecutive ids, each from 32 bytes of ``entropy``."""
    return [OneTimePrekey(first_id + index, X25519Private.generate(entropy)) for index in range(count)]


def make_bundle(identity: Identity, signed: SignedPrekey, one_time: OneTimePrekey | None = None) -> PrekeyBundle:
    """The bundle that shows ``identity`` and these prekeys."""
    return PrekeyBundle(
        identity.agreement_key.public,
        identity.public_key,
        signed.key_id,
        signed.public,
        signed.signature,
        None if one_time is None else one_time.key_id,
        None if one_time is None else one_time.public,
    )


def verify_bundle(bundle: PrekeyBundle, did: Did) -> None:
    """Check that ``bundle`` is that of ``did``; a registry that substitutes a key is caught here.

    The Ed25519 key must hash to the DID, the X25519 identity key must be its conversion, and it must have signed the
    signed prekey. A DID that commits to no key (agt-4) leaves out the first check only: its caller binds it to the
    first key seen. The one-time prekey is unsigned in X3DH; a substituted one makes the session fail, not leak.

    Raises:
        NotAuthentic: something does not verify.
        WeakKey: a key is of low order or no point of the curve.
        MalformedFrame: a one-time prekey without its id, or an id without its key.
    """
    if (bundle.one_time_prekey is None) != (bundle.one_time_prekey_id is None):
        raise MalformedFrame("a bundle names a one-time prekey by id and key, or not at all")
    if commits_to_key(did):
        check_did(did, bundle.identity_key_ed)
    for key in (bundle.identity_key, bundle.signed_prekey, bundle.one_time_prekey):
        if key is not None:
            refuse_low_order(bytes(key))
    converted = to_x25519(bundle.identity_key_ed)
    verify(bundle.identity_key_ed, bytes(bundle.signed_prekey), bundle.signed_prekey_signature)
    if not constant_time_equal(bytes(converted), bytes(bundle.identity_key)):
        raise NotAuthentic("the bundle's X25519 identity key does not belong to its Ed25519 key")
