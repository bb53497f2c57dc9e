"""One peer's conversation as a value: the table of our own way in, and which session sends."""

import itertools
from types import SimpleNamespace

import pytest

from meshlib.client.peers import ENTRY_TABLE, Entry, Peer, Strand, Wish
from meshlib.crypto.ratchet import Header
from meshlib.crypto.x3dh import Dialect
from meshlib.identity import Did
from meshlib.wire.encoding import MessageId

ALICE, BOB = Did("did:mesh:" + "a" * 32), Did("did:mesh:" + "b" * 32)
HEADER = Header(bytes(32), 0, 0)
OPENING = SimpleNamespace(ik=bytes(32), one_time_key_id=None)


def session(name, initiator=ALICE, *, can_send=True, matches=False):
    """As much of a session as a conversation looks at."""
    return SimpleNamespace(
        id=name.encode(),
        initiator=initiator,
        dialect=Dialect.AGT5,
        can_send=can_send,
        remote_key_matches=lambda header: matches,
    )


def names(peer):
    return [strand.session.id.decode() for strand in peer.strands]


def test_every_state_of_our_way_in_is_reached_and_left():
    assert {entry for entry, _ in ENTRY_TABLE} == set(Entry)
    assert set(ENTRY_TABLE.values()) == set(Entry)


def test_a_transition_that_is_not_in_the_table_is_a_mistake():
    missing = set(itertools.product(Entry, Wish)) - set(ENTRY_TABLE)
    assert missing
    for entry, wish in missing:
        with pytest.raises(KeyError):
            Peer(BOB, entry=entry).step(wish)


def test_a_value_is_never_changed():
    peer = Peer(BOB)
    peer.opened_by_us(session("s"), MessageId("k"), b"knock", 4)
    assert peer == Peer(BOB)
    with pytest.raises(AttributeError):
        peer.verified = True


def test_what_we_open_sends_at_once():
    peer = Peer(BOB).opened_by_us(session("ours"), MessageId("k"), b"knock", 4)
    assert peer.sending().session.id == b"ours"
    assert (peer.entry, peer.knock_id) == (Entry.KNOCKING, "k")


def test_a_session_that_cannot_send_is_passed_over():
    peer = Peer(BOB, strands=(Strand(session("mute", can_send=False), 1), Strand(session("voice"), 0)))
    assert peer.sending().session.id == b"voice"
    assert Peer(BOB).sending() is None


def test_hearing_on_the_session_of_our_knock_answers_it():
    peer = Peer(BOB).opened_by_us(session("ours"), MessageId("k"), b"knock", 4).heard(session("ours"), None, 4)
    assert (peer.entry, peer.knock_id, peer.verified) == (Entry.IDLE, None, True)


def test_a_straggler_of_an_older_session_does_not_push_back_a_fresh_knock():
    peer = Peer(BOB, strands=(Strand(session("old"), 0, heard=True),), counter=1)
    peer = peer.opened_by_us(session("fresh"), MessageId("k"), b"knock", 4).heard(session("old"), None, 4)
    assert names(peer) == ["fresh", "old"]


def test_hearing_an_other_session_promotes_it():
    heard = (Strand(session("a"), 1, heard=True), Strand(session("b"), 0, heard=True))
    assert names(Peer(BOB, strands=heard).heard(session("b"), None, 4)) == ["b", "a"]


@pytest.mark.parametrize("order", [("ours", "theirs"), ("theirs", "ours")])
@pytest.mark.parametrize(("me", "them"), [(ALICE, BOB), (BOB, ALICE)])
def test_crossing_sessions_settle_on_the_one_of_the_smaller_did(me, them, order):
    made = {"ours": session("ours", me), "theirs": session("theirs", them)}
    peer = Peer(them).opened_by_us(made["ours"], MessageId("k"), b"knock", 4)
    peer = peer.knocked(MessageId("k2"), OPENING, (made["theirs"],), 4)
    for name in order:
        candidate = peer.candidates[0] if name == "theirs" else None
        peer = peer.heard(made[name], candidate, 4)
    winner = "ours" if me < them else "theirs"
    assert names(peer)[0] == winner
    for name in order * 2:  # and it stays
        peer = peer.heard(made[name], None, 4)
        assert names(peer)[0] == winner


def test_a_peer_that_ignores_our_session_is_followed():
    peer = Peer(BOB).opened_by_us(session("ours", ALICE), MessageId("k"), b"knock", 4)
    theirs = session("theirs", BOB)
    peer = peer.knocked(MessageId("k2"), OPENING, (theirs,), 4)
    peer = peer.heard(theirs, peer.candidates[0], 4)
    assert names(peer)[0] == "theirs"


def test_a_knock_of_a_peer_that_has_let_us_in_crosses_nothing():
    peer = Peer(BOB).opened_by_us(session("ours", ALICE), MessageId("k"), b"knock", 4).accepted()
    theirs = session("theirs", BOB)
    peer = peer.knocked(MessageId("k2"), OPENING, (theirs,), 4)
    peer = peer.heard(theirs, peer.candidates[0], 4)
    assert names(peer) == ["theirs", "ours"]
    assert peer.heard(session("ours", ALICE), None, 4).heard(theirs, None, 4).sending().session.id == b"theirs"


def test_a_restarted_peer_wins_over_a_session_it_forgot():
    peer = Peer(BOB, strands=(Strand(session("forgotten", ALICE), 0, heard=True),), counter=1)
    fresh = session("fresh", BOB)
    peer = peer.knocked(MessageId("k2"), OPENING, (fresh,), 4)
    peer = peer.heard(fresh, peer.candidates[0], 4)
    assert names(peer) == ["fresh", "forgotten"]


def test_sessions_and_candidates_are_bounded():
    peer = Peer(BOB)
    for number in range(10):
        peer = peer.opened_by_us(session(f"s{number}"), MessageId("k"), b"knock", 4)
        peer = peer.knocked(MessageId(f"k{number}"), OPENING, (), 3)
    assert names(peer) == ["s9", "s8", "s7", "s6"]
    assert [candidate.knock_id for candidate in peer.candidates] == ["k9", "k8", "k7"]


def test_a_reject_drops_only_what_was_never_heard():
    peer = Peer(BOB, strands=(Strand(session("old"), 0, heard=True),), counter=1)
    peer = peer.opened_by_us(session("fresh"), MessageId("k"), b"knock", 4).rejected()
    assert names(peer) == ["old"]
    assert (peer.entry, peer.knock_id) == (Entry.IDLE, None)


def test_the_likeliest_session_is_tried_first_and_every_one_is_tried():
    strands = (Strand(session("no"), 1), Strand(session("yes", matches=True), 0))
    peer = Peer(BOB, strands=strands, counter=2)
    peer = peer.knocked(MessageId("k"), OPENING, (session("new"),), 4)
    tried = [(one.id.decode(), candidate is not None) for one, candidate in peer.attempts(HEADER)]
    assert tried == [("yes", False), ("new", True), ("no", False)]


def test_sending_advances_one_session_and_no_other():
    peer = Peer(BOB, strands=(Strand(session("a"), 1), Strand(session("b"), 0)))
    advanced = session("b")
    assert peer.advanced(advanced).strands[1].session is advanced
    assert peer.advanced(advanced).strands[0] is peer.strands[0]
