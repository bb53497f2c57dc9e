"""A session: key agreement, ratchet and associated data in one frozen value. The only crypto the client sees.

Owns what a session is bound to. Leaves to the client which sessions it keeps, which one it tries and when a prekey
is spent; a responder's session is a guess until :meth:`Session.decrypt` has succeeded once.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum

from msgspec import Struct

from meshlib.crypto import ratchet, x3dh
from meshlib.crypto.keys import Ed25519Public, Entropy, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, PrekeyBundle, SignedPrekey
from meshlib.crypto.primitives import sha256
from meshlib.crypto.ratchet import MAX_SKIP, Header
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.identity import Did, Identity, commits_to_key, recover_ed25519


class Role(StrEnum):
    """Which half of the agreement is ours."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Terms(Struct, frozen=True, gc=False):
    """What was settled when the session began; all of it is public."""

    id: bytes
    role: Role
    dialect: Dialect
    initiator: Did
    responder: Did
    initiator_key: X25519Public
    responder_key: X25519Public

    def associated_data(self) -> bytes:
        """``<initiator DID>|<responder DID> || IK_A || IK_B``, the same in both directions.

        :func:`meshlib.identity.parse_did` keeps ``|`` out of DIDs, so the text splits one way only.
        """
        names = f"{self.initiator}|{self.responder}".encode()
        return names + bytes(self.initiator_key) + bytes(self.responder_key)


class Session(Struct, frozen=True, gc=False):
    """One end of a conversation. Encrypting and decrypting return the next value; a value never changes."""

    terms: Terms
    associated_data: bytes
    state: ratchet.State

    @classmethod
    def initiate(
        cls, identity: Identity, me: Did, peer: Did, bundle: PrekeyBundle, dialect: Dialect, entropy: Entropy
    ) -> "tuple[Session, Opening]":
        """Open a session with ``peer``. Draws the ephemeral key, then the ratchet key (32 bytes each).

        Returns:
            The session, ready to send, and what the peer needs to find the same secret.
        Raises:
            NotAuthentic: the bundle is not that of ``peer`` (:func:`~meshlib.crypto.prekeys.verify_bundle`).
            WeakKey: a key of the bundle is of low order.
            MalformedFrame: the bundle names half a one-time prekey.
        """
        agreement, opening = x3dh.initiate(identity, peer, bundle, dialect, entropy)
        terms = _terms(Role.INITIATOR, dialect, me, peer, opening, bundle.identity_key, bundle.signed_prekey)
        state = ratchet.initiate(agreement.secret, bundle.signed_prekey, entropy)
        return cls(terms, terms.associated_data(), state), opening

    @classmethod
    def respond(
        cls,
        identity: Identity,
        me: Did,
        peer: Did,
        opening: Opening,
        signed_prekey: SignedPrekey,
        one_time_prekey: OneTimePrekey | None,
        dialect: Dialect,
    ) -> "Session":
        """Answer an opening as if it meant this signed prekey and this dialect. Draws and consumes nothing.

        Raises:
            NotAuthentic: the opening's identity key is not that of ``peer`` (:func:`check_opening`).
            UnknownPrekey: the opening names a one-time key, and ``one_time_prekey`` is not it.
            WeakKey: a key of the opening is of low order.
        """
        return next(candidates(identity, me, peer, opening, (signed_prekey,), one_time_prekey, (dialect,)))

    @property
    def id(self) -> bytes:
        """32 bytes, the same on both sides, made of the public values of the handshake."""
        return self.terms.id

    @property
    def role(self) -> Role:
        """Whether we knocked or the peer did."""
        return self.terms.role

    @property
    def dialect(self) -> Dialect:
        """The derivation of the shared secret."""
        return self.terms.dialect

    @property
    def initiator(self) -> Did:
        """Who knocked."""
        return self.terms.initiator

    @property
    def responder(self) -> Did:
        """Who was knocked for."""
        return self.terms.responder

    @property
    def can_send(self) -> bool:
        """Whether :meth:`encrypt` works. A responder's does once it has received."""
        return ratchet.can_send(self.state)

    def remote_key_matches(self, header: Header) -> bool:
        """Whether the message is under a ratchet key known here; tells at no cost which session to try first."""
        return ratchet.knows_key(self.state, header)

    def encrypt(self, plaintext: bytes, entropy: Entropy) -> "tuple[Session, Header, bytes]":
        """Seal a message. Draws the nonce (12 bytes).

        Raises:
            SessionNotReady: :attr:`can_send` is false.
        """
        state, header, ciphertext = ratchet.encrypt(self.state, plaintext, self.associated_data, entropy)
        return Session(self.terms, self.associated_data, state), header, ciphertext

    def decrypt(
        self, header: Header, ciphertext: bytes, entropy: Entropy, *, max_skip: int = MAX_SKIP
    ) -> "tuple[Session, bytes]":
        """Open a message. Draws a ratchet key (32 bytes) if the ratchet turns, after the message has authenticated.

        Raises:
            NotAuthentic, WeakKey, Replayed, TooManySkipped, MalformedFrame: as :func:`meshlib.crypto.ratchet.decrypt`.
        """
        state, plaintext = ratchet.decrypt(
            self.state, header, ciphertext, self.associated_data, entropy, max_skip=max_skip
        )
        return Session(self.terms, self.associated_data, state), plaintext

    def __repr__(self) -> str:
        return (
            f"Session({self.id.hex()[:8]}, {self.dialect}, {self.role} of {self.initiator} -> {self.responder}, "
            f"{type(self.state).__name__})"
        )


def check_opening(opening: Opening, peer: Did) -> Ed25519Public:
    """Check that an opening's identity key is that of ``peer``, a DID of ``did:mesh:``, and find its Ed25519 key.

    Without it a relay could knock in anybody's name. Costs no agreement: ask before :func:`candidates`.

    Raises:
        NotAuthentic: it is not, or the DID commits to no key.
    """
    return recover_ed25519(opening.ik, peer)


def candidates(
    identity: Identity,
    me: Did,
    peer: Did,
    opening: Opening,
    signed_prekeys: Iterable[SignedPrekey],
    one_time_prekey: OneTimePrekey | None,
    dialects: Iterable[Dialect],
) -> Iterator[Session]:
    """The sessions an opening may mean, in order of prekeys, then dialects. The first message tells which.

    For a peer of ``did:mesh:`` the opening is bound to it here, whoever checked before. For others the caller
    compares ``opening.ik`` with the key first seen.

    Raises:
        NotAuthentic, UnknownPrekey, WeakKey: as :meth:`Session.respond`, before anything is yielded.
    """
    if commits_to_key(peer):
        check_opening(opening, peer)
    own = identity.agreement_key.public
    answers = x3dh.respond_all(identity, opening, signed_prekeys, one_time_prekey, dialects)
    for signed, dialect, agreement in answers:
        terms = _terms(Role.RESPONDER, dialect, peer, me, opening, own, signed.public)
        yield Session(terms, terms.associated_data(), ratchet.respond(agreement.secret, signed.private))


def opening_ids(
    identity: Identity,
    me: Did,
    peer: Did,
    opening: Opening,
    signed_prekeys: Iterable[SignedPrekey],
    dialects: Iterable[Dialect],
) -> frozenset[bytes]:
    """The ids of the sessions an opening may have led to. Needs no one-time key, so it works after that was spent."""
    own = identity.agreement_key.public
    return frozenset(
        _terms(Role.RESPONDER, dialect, peer, me, opening, own, signed.public).id
        for signed in signed_prekeys
        for dialect in dialects
    )


def _terms(
    role: Role,
    dialect: Dialect,
    initiator: Did,
    responder: Did,
    opening: Opening,
    responder_key: X25519Public,
    signed_prekey: X25519Public,
) -> Terms:
    names = f"{initiator}|{responder}|{dialect}|{opening.one_time_key_id}".encode()
    keys = bytes(opening.ik) + bytes(opening.ek) + bytes(responder_key) + bytes(signed_prekey)
    return Terms(
        sha256(b"meshlib-session-v1|" + keys + names),
        role,
        dialect,
        initiator,
        responder,
        opening.ik,
        responder_key,
    )
