"""Sessions: what they are bound to, which of several an opening meant, and what they never show."""

import dataclasses
import gc
import logging
import os
import random
import traceback

import pytest
from msgspec import Struct
from msgspec.structs import astuple

from meshlib.crypto import x3dh
from meshlib.crypto.keys import SecretBytes, X25519Private, X25519Public
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.ratchet import Header
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.errors import MeshError, NotAuthentic, PeerError, SessionNotReady, UnknownPrekey, WeakKey
from meshlib.identity import Did, Identity
from meshlib.session import Role, Session, candidates, check_opening, opening_ids

ALICE, BOB, MALLORY = (Identity.generate(os.urandom) for _ in range(3))
SIGNED, RETIRED = (make_signed_prekey(BOB, number, os.urandom) for number in (9, 8))
ONE_TIME, OTHER = make_one_time_prekeys(20, 2, os.urandom)


def opened(dialect=Dialect.AGT5, signed=SIGNED, one_time=ONE_TIME, identity=ALICE, me=None):
    bundle = make_bundle(BOB, signed, one_time)
    return Session.initiate(identity, me or identity.did, BOB.did, bundle, dialect, os.urandom)


def answered(opening, dialect=Dialect.AGT5, signed=SIGNED, one_time=ONE_TIME, peer=ALICE.did):
    return Session.respond(BOB, BOB.did, peer, opening, signed, one_time, dialect)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("one_time", [None, ONE_TIME])
def test_two_peers_talk(dialect, one_time):
    alice, opening = opened(dialect, one_time=one_time)
    bob = answered(opening, dialect, one_time=one_time)
    alice, header, ciphertext = alice.encrypt(b"hello", os.urandom)
    bob, text = bob.decrypt(header, ciphertext, os.urandom)
    assert text == b"hello"
    bob, header, ciphertext = bob.encrypt(b"hello yourself", os.urandom)
    assert alice.decrypt(header, ciphertext, os.urandom)[1] == b"hello yourself"


def test_randomness_is_drawn_in_the_order_of_the_vectors():
    sizes = []

    def entropy(size):
        sizes.append(size)
        return os.urandom(size)

    bundle = make_bundle(BOB, SIGNED, ONE_TIME)
    alice, opening = Session.initiate(ALICE, ALICE.did, BOB.did, bundle, Dialect.AGT5, entropy)
    assert sizes == [32, 32]
    alice, header, ciphertext = alice.encrypt(b"x", entropy)
    assert sizes == [32, 32, 12]
    answered(opening).decrypt(header, ciphertext, entropy)
    assert sizes == [32, 32, 12, 32]


def test_both_sides_know_the_session_by_one_id_and_no_other_session_has_it():
    first, opening = opened()
    assert answered(opening).id == first.id
    assert len(first.id) == 32
    others = [
        opened()[0],
        answered(opening, Dialect.AGT4),
        answered(opening, signed=RETIRED),
        answered(opening._replace(one_time_key_id=None), one_time=None),
        answered(opening._replace(one_time_key_id=OTHER.key_id), one_time=OTHER),
    ]
    assert len({session.id for session in [first, *others]}) == 6


def test_id_is_made_the_same_way_by_every_version():
    """Stores keep ids; a peer of another version must come to the same one."""
    entropy = random.Random(7).randbytes
    alice, bob = (Identity.generate(entropy) for _ in range(2))
    bundle = make_bundle(bob, make_signed_prekey(bob, 1, entropy), make_one_time_prekeys(5, 1, entropy)[0])
    session, _ = Session.initiate(alice, alice.did, bob.did, bundle, Dialect.AGT5, entropy)
    assert session.id.hex() == "cbd87040be4ea67cddb67f5ed93c84a85925da07253369c85f05a03b19e8beba"


def test_ids_of_what_an_opening_led_to_are_known_without_its_one_time_key():
    _, opening = opened()
    ids = opening_ids(BOB, BOB.did, ALICE.did, opening, (SIGNED, RETIRED), Dialect)
    guesses = candidates(BOB, BOB.did, ALICE.did, opening, (SIGNED, RETIRED), ONE_TIME, Dialect)
    assert ids == {guess.id for guess in guesses}
    assert len(ids) == 4


def test_session_says_who_and_how():
    alice, opening = opened(Dialect.AGT4)
    bob = answered(opening, Dialect.AGT4)
    assert (alice.role, bob.role) == (Role.INITIATOR, Role.RESPONDER)
    for session in (alice, bob):
        assert (session.initiator, session.responder, session.dialect) == (ALICE.did, BOB.did, Dialect.AGT4)
        names = f"{ALICE.did}|{BOB.did}".encode()
        keys = bytes(ALICE.agreement_key.public) + bytes(BOB.agreement_key.public)
        assert session.associated_data == names + keys


def test_responder_sends_after_it_has_received():
    alice, opening = opened()
    bob = answered(opening)
    assert alice.can_send
    assert not bob.can_send
    with pytest.raises(SessionNotReady):
        bob.encrypt(b"early", os.urandom)
    _, header, ciphertext = alice.encrypt(b"x", os.urandom)
    bob, _ = bob.decrypt(header, ciphertext, os.urandom)
    assert bob.can_send


def test_matching_key_is_found_without_decrypting():
    alice, opening = opened()
    bob, other = answered(opening), answered(opened()[1])
    alice, header, ciphertext = alice.encrypt(b"x", os.urandom)
    assert not bob.remote_key_matches(header)
    bob, _ = bob.decrypt(header, ciphertext, os.urandom)
    assert bob.remote_key_matches(header)
    assert not other.remote_key_matches(header)


# --- which prekey and which dialect --------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("signed", [SIGNED, RETIRED])
def test_exactly_one_candidate_reads_the_first_message(dialect, signed):
    alice, opening = opened(dialect, signed)
    _, header, ciphertext = alice.encrypt(b"x", os.urandom)
    guesses = list(candidates(BOB, BOB.did, ALICE.did, opening, (SIGNED, RETIRED), ONE_TIME, Dialect))
    assert len(guesses) == 4
    readers = []
    for guess in guesses:
        try:
            guess.decrypt(header, ciphertext, os.urandom)
        except NotAuthentic:
            continue
        readers.append(guess)
    assert [reader.id for reader in readers] == [alice.id]
    assert readers[0].dialect is dialect


def test_candidates_cost_no_more_agreements_than_they_must(monkeypatch):
    made = []
    agree = x3dh.x25519
    monkeypatch.setattr(x3dh, "x25519", lambda *keys: made.append(keys) or agree(*keys))
    _, opening = opened()
    made.clear()
    list(candidates(BOB, BOB.did, ALICE.did, opening, (SIGNED, RETIRED), ONE_TIME, Dialect))
    assert len(made) == 2 + 2 * 2


def test_no_signed_prekey_means_no_candidate():
    assert list(candidates(BOB, BOB.did, ALICE.did, opened(one_time=None)[1], (), None, Dialect)) == []


def test_unknown_one_time_key_is_told_before_anything_is_derived():
    _, opening = opened()
    with pytest.raises(UnknownPrekey):
        next(candidates(BOB, BOB.did, ALICE.did, opening, (SIGNED,), None, Dialect))


# --- who knocks -----------------------------------------------------------------------------------------------------


def test_opening_is_bound_to_the_did_it_comes_from():
    _, opening = opened()
    assert check_opening(opening, ALICE.did) == ALICE.public_key
    for name in (MALLORY.did, BOB.did, Did("did:mesh:alice"), Did("did:agentmesh:alice")):
        with pytest.raises(NotAuthentic):
            check_opening(opening, name)


def test_knock_in_somebody_elses_name_makes_no_session():
    """A relay that knocks with its own key as Alice is refused before any agreement."""
    _, opening = opened(identity=MALLORY, me=ALICE.did)
    with pytest.raises(NotAuthentic):
        answered(opening, peer=ALICE.did)


def test_opening_with_a_foreign_identity_key_leads_nowhere():
    """Alice's public key in Mallory's opening passes the binding; without Alice's private key nothing decrypts."""
    mallory, opening = opened(identity=MALLORY, me=ALICE.did)
    stolen = opening._replace(ik=ALICE.agreement_key.public)
    bob = answered(stolen, peer=ALICE.did)
    _, header, ciphertext = mallory.encrypt(b"I am Alice", os.urandom)
    with pytest.raises(NotAuthentic):
        bob.decrypt(header, ciphertext, os.urandom)


def test_names_are_part_of_what_is_authenticated():
    legacy, opening = opened(me=Did("did:agentmesh:alice"))
    _, header, ciphertext = legacy.encrypt(b"x", os.urandom)
    answered(opening, peer=Did("did:agentmesh:alice")).decrypt(header, ciphertext, os.urandom)
    with pytest.raises(NotAuthentic):
        answered(opening, peer=Did("did:agentmesh:alicia")).decrypt(header, ciphertext, os.urandom)


def test_low_order_opening_is_weak_also_for_a_did_that_commits_to_nothing():
    for opening in (
        Opening(X25519Public(bytes(32)), X25519Private(os.urandom(32)).public),
        Opening(X25519Private(os.urandom(32)).public, X25519Public(bytes(32))),
    ):
        with pytest.raises(WeakKey):
            answered(opening, one_time=None, peer=Did("did:agentmesh:alice"))


def test_substituted_bundle_opens_nothing():
    forged = make_bundle(MALLORY, make_signed_prekey(MALLORY, 1, os.urandom))
    with pytest.raises(NotAuthentic):
        Session.initiate(ALICE, ALICE.did, BOB.did, forged, Dialect.AGT5, os.urandom)


# --- what must not cross -------------------------------------------------------------------------------------------


def test_message_does_not_cross_between_sessions_of_the_same_two_peers():
    one, first = opened()
    _, second = opened(one_time=None)
    _, header, ciphertext = one.encrypt(b"x", os.urandom)
    other = answered(second, one_time=None)
    with pytest.raises(NotAuthentic):
        other.decrypt(header, ciphertext, os.urandom)
    answered(first).decrypt(header, ciphertext, os.urandom)


def test_message_does_not_cross_between_dialects():
    for theirs, ours in ((Dialect.AGT4, Dialect.AGT5), (Dialect.AGT5, Dialect.AGT4)):
        alice, opening = opened(theirs)
        _, header, ciphertext = alice.encrypt(b"x", os.urandom)
        with pytest.raises(NotAuthentic):
            answered(opening, ours).decrypt(header, ciphertext, os.urandom)


def test_message_does_not_come_back_to_its_sender():
    alice, _ = opened()
    alice, header, ciphertext = alice.encrypt(b"x", os.urandom)
    with pytest.raises(NotAuthentic):
        alice.decrypt(header, ciphertext, os.urandom)


def test_agent_may_talk_to_itself():
    bundle = make_bundle(BOB, SIGNED, None)
    one, opening = Session.initiate(BOB, BOB.did, BOB.did, bundle, Dialect.AGT5, os.urandom)
    two = Session.respond(BOB, BOB.did, BOB.did, opening, SIGNED, None, Dialect.AGT5)
    one, header, ciphertext = one.encrypt(b"note", os.urandom)
    assert two.decrypt(header, ciphertext, os.urandom)[1] == b"note"


# --- what is never shown --------------------------------------------------------------------------------------------


def long_session():
    alice, opening = opened()
    bob = answered(opening)
    for _ in range(3):
        for _ in range(3):
            alice, _, _ = alice.encrypt(b"lost", os.urandom)
        alice, header, ciphertext = alice.encrypt(b"x", os.urandom)
        bob, _ = bob.decrypt(header, ciphertext, os.urandom)
        bob, header, ciphertext = bob.encrypt(b"y", os.urandom)
        alice, _ = alice.decrypt(header, ciphertext, os.urandom)
    return alice, opening, bob


def referents(one):
    """What an object refers to; the collector does not know it of structs without cycles."""
    return list(astuple(one)) if isinstance(one, Struct) else gc.get_referents(one)


def reachable(root):
    """Every object that can be reached from ``root`` without going through classes, functions and modules."""
    found, stack = {}, [root]
    while stack:
        one = stack.pop()
        if id(one) in found or isinstance(one, type) or callable(one):
            continue
        found[id(one)] = one
        stack += referents(one)
    return found.values()


def test_no_key_is_shown_by_anything_reachable():
    alice, opening, bob = long_session()
    everything = list(reachable([alice, opening, bob, answered(opening), SIGNED, ONE_TIME, ALICE]))
    secrets = {
        bytes(key) for key in everything if isinstance(key, SecretBytes | X25519Private | type(ALICE.signing_key))
    }
    assert len(secrets) > 20
    shown = []
    for one in everything:
        if isinstance(one, bytes) and one in secrets:
            continue  # the bytes themselves, which only a key object holds
        shown += [repr(one), str(one), f"{one}"]
    text = "\n".join(shown)
    for secret in secrets:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text


def test_keys_are_held_by_key_objects_only():
    """A bare ``bytes`` in a state would be one ``print`` away from a log."""
    alice, _, bob = long_session()
    holders = [one for one in reachable([alice, bob]) if not isinstance(one, bytes)]
    secrets = {bytes(key) for key in holders if isinstance(key, SecretBytes | X25519Private)}
    for one in holders:
        for inner in referents(one):
            if isinstance(inner, bytes) and inner in secrets:
                assert isinstance(one, SecretBytes | X25519Private)


def test_session_is_logged_and_copied_without_a_key(caplog):
    alice, _, _ = long_session()
    with caplog.at_level(logging.INFO):
        logging.getLogger("any").info("%s %r", alice, alice.state)

    @dataclasses.dataclass
    class Holder:
        session: Session

    shown = caplog.text + str(dataclasses.asdict(Holder(alice)))
    for secret in (alice.state.turn.root, alice.state.sending.key, alice.state.turn.own):
        assert bytes(secret).hex() not in shown
        assert repr(bytes(secret))[2:-1] not in shown
    assert repr(alice).startswith(f"Session({alice.id.hex()[:8]}, agt-5, initiator of {ALICE.did} -> {BOB.did}")


def test_no_error_shows_a_key_or_a_payload():
    alice, _, bob = long_session()
    alice, header, ciphertext = alice.encrypt(b"the payload", os.urandom)
    secrets = [bytes(key) for key in reachable([alice, bob, SIGNED]) if isinstance(key, SecretBytes | X25519Private)]
    fresh = bytes(X25519Private(os.urandom(32)).public)
    attempts = [
        (Header(fresh, header.pn, 0), ciphertext),
        (Header(header.dh, header.pn, header.n + 1), ciphertext),
        (Header(header.dh, header.pn, 2**32 - 1), ciphertext),
        (Header(bytes(32), 0, 0), ciphertext),
        (header, ciphertext[:5]),
        (header, bytes(len(ciphertext))),
    ]
    for attempt in attempts:
        with pytest.raises(PeerError) as caught:
            bob.decrypt(*attempt, os.urandom)
        text = "".join(traceback.format_exception(caught.value)) + str(vars(caught.value)) + str(caught.value.args)
        assert "the payload" not in text
        for secret in (*secrets, ciphertext):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_every_refusal_is_of_the_tree():
    _, _, bob = long_session()
    for junk in (
        (Header(b"", 0, 0), b""),
        (Header(bytes(32), 0, 0), bytes(99)),
        (Header(os.urandom(32), 3, 9), bytes(99)),
    ):
        with pytest.raises(MeshError):
            bob.decrypt(*junk, os.urandom)
