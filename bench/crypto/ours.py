"""Our sessions, as the client uses them."""

from __future__ import annotations

import os

from bench.worker import Operation, serve
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.x3dh import Dialect
from meshlib.identity import Identity
from meshlib.session import Session

ENTROPY = os.urandom


class Responder:
    """An agent with one signed and one one-time prekey, which it hands out again and again."""

    def __init__(self) -> None:
        self.identity = Identity.generate(ENTROPY)
        self.signed = make_signed_prekey(self.identity, 1, ENTROPY)
        self.one_time = make_one_time_prekeys(1, 1, ENTROPY)[0]
        self.bundle = make_bundle(self.identity, self.signed, self.one_time)

    def met_by(self, initiator: Identity) -> tuple[Session, Session]:
        """Both ends of a new session, after its first message."""
        me, peer = initiator.did, self.identity.did
        alice, opening = Session.initiate(initiator, me, peer, self.bundle, Dialect.AGT5, ENTROPY)
        alice, header, sealed = alice.encrypt(b"hello", ENTROPY)
        bob = Session.respond(self.identity, peer, me, opening, self.signed, self.one_time, Dialect.AGT5)
        bob, _ = bob.decrypt(header, sealed, ENTROPY)
        return alice, bob


def seal(payload: int) -> Operation:
    """One message is sealed and opened; the ratchet does not turn."""
    alice, bob = Responder().met_by(Identity.generate(ENTROPY))
    plaintext = os.urandom(payload)

    def once() -> None:
        nonlocal alice, bob
        alice, header, sealed = alice.encrypt(plaintext, ENTROPY)
        bob, _ = bob.decrypt(header, sealed, ENTROPY)

    return once


def turn(payload: int) -> Operation:
    """A message and its answer: the ratchet turns twice."""
    alice, bob = Responder().met_by(Identity.generate(ENTROPY))
    plaintext = os.urandom(payload)

    def once() -> None:
        nonlocal alice, bob
        bob, header, sealed = bob.encrypt(plaintext, ENTROPY)
        alice, _ = alice.decrypt(header, sealed, ENTROPY)
        alice, header, sealed = alice.encrypt(plaintext, ENTROPY)
        bob, _ = bob.decrypt(header, sealed, ENTROPY)

    return once


def meet() -> Operation:
    """Both sides of a session, from the checked bundle to the first message that was read."""
    initiator, responder = Identity.generate(ENTROPY), Responder()
    return lambda: responder.met_by(initiator)


if __name__ == "__main__":
    serve({"seal": seal, "turn": turn, "meet": meet})
