"""The client core: what upstream loses, ours keeps. Numbers are rows of the field failures in docs/attacks.md."""

import dataclasses

import pytest

from meshlib.client.core import MISSED_FOR, ClientCore, Link, NotForThisPeer, Profile
from meshlib.client.events import (
    Connected,
    DeliveryChanged,
    DeliveryState,
    Disconnected,
    FaultFound,
    KnockAccepted,
    KnockReceived,
    KnockRejected,
    PeerVerified,
    SessionLost,
)
from meshlib.client.peers import Entry
from meshlib.config import Limits
from meshlib.crypto.prekeys import make_bundle
from meshlib.crypto.ratchet import MAX_SKIP
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import InvalidValue, NotAuthentic, PeerError, QueueFull
from meshlib.identity import Did, Identity
from meshlib.store.protocol import Outgoing, SavedState
from meshlib.testing import MemoryMesh, SeededEntropy
from meshlib.wire import frames
from meshlib.wire.codec import decode, encode, encode_payload
from meshlib.wire.encoding import MessageId, b64, parse_message_id


@pytest.fixture
def mesh():
    return MemoryMesh()


@pytest.fixture
def pair(mesh):
    alice, bob = mesh.agent("alice"), mesh.agent("bob")
    alice.send(bob, "hello")
    mesh.settle()
    bob.send(alice, "welcome")
    mesh.settle()
    assert bob.payloads == ["hello"]
    assert alice.payloads == ["welcome"]
    return alice, bob


def waiting(mesh, client):
    return [decode(raw) for raw in mesh.inboxes[client.did]]


def faults(client):
    return [(event.kind, event.peer) for event in client.told(FaultFound)]


class TestTalking:
    def test_first_message_opens_a_session_and_arrives(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, {"n": 1})
        knock, message = waiting(mesh, bob)
        assert isinstance(knock, frames.Knock)
        assert isinstance(message, frames.Message)
        mesh.settle()
        assert bob.payloads == [{"n": 1}]
        assert bob.told(PeerVerified) == [PeerVerified(alice.did, first=True)]
        assert alice.told(KnockAccepted) == [KnockAccepted(bob.did)]

    def test_an_id_of_the_callers_own_makes_sending_twice_sending_once(self, mesh):
        alice, bob = mesh.agent("alice", connect=False), mesh.agent("bob")
        chosen = parse_message_id("invoice-4711")

        def send():
            assert alice.core.send(bob.did, "pay", mesh.clock.now, chosen) == chosen
            alice.step()

        send()
        send()  # while it waits in the outbox
        assert alice.core.outbox_size == 1
        alice.connect()
        mesh.settle()
        send()  # after it has been delivered
        mesh.settle()
        assert bob.payloads == ["pay"]

    def test_an_id_that_waits_for_another_message_is_refused(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.core.send(bob.did, "pay", mesh.clock.now, parse_message_id("invoice-4711"))
        with pytest.raises(InvalidValue):
            alice.core.send(bob.did, "pay twice", mesh.clock.now, parse_message_id("invoice-4711"))

    def test_relay_sees_no_plaintext(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, "the secret word")
        assert all(b"secret" not in raw for raw in mesh.inboxes[bob.did])

    @pytest.mark.parametrize(
        "payload",
        ["text", "", b"\xff\x00\xfe", b"utf-8 bytes", None, 0, 1.5, True, [1, [2]], {"k": "\U0001f600\u2028"}],
    )
    def test_any_json_value_arrives_as_it_was(self, mesh, payload):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, payload)
        mesh.settle()
        expected = payload.decode() if payload == b"utf-8 bytes" else payload
        assert bob.payloads == [expected]

    def test_messages_of_one_peer_keep_their_order(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        for number in range(200):
            alice.send(bob, number)
        mesh.settle()
        assert bob.payloads == list(range(200))

    def test_messages_wait_for_the_connection(self, mesh):
        alice, bob = mesh.agent("alice", connect=False), mesh.agent("bob")
        message = alice.send(bob, "later")
        assert alice.core.delivery(message).state is DeliveryState.QUEUED
        assert not mesh.inboxes[bob.did]
        alice.connect()
        mesh.settle()
        assert bob.payloads == ["later"]

    def test_an_unknown_peer_is_reported_by_message_id(self, mesh):
        alice, ghost = mesh.agent("alice"), mesh.agent("ghost")
        del mesh.directory[ghost.did]
        message = alice.send(ghost, "anyone?")
        states = [(event.id, event.state) for event in alice.told(DeliveryChanged)]
        assert states == [(message, DeliveryState.REFUSED)]
        assert alice.core.outbox_size == 0

    def test_a_bundle_that_cannot_be_fetched_is_asked_for_again(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        core = alice.core
        core.send(bob.did, "patience", mesh.clock.now)
        assert core.fetches() == [bob.did]
        core.no_bundle(bob.did, NotAuthentic("down"), mesh.clock.now, final=False)
        core.tick(mesh.clock.now)
        assert core.fetches() == []
        assert core.next_deadline() == mesh.clock.now.monotonic + 5
        core.tick(mesh.clock.advance(5))
        assert core.fetches() == [bob.did]

    def test_sending_to_oneself_is_refused(self, mesh):
        alice = mesh.agent("alice")
        with pytest.raises(InvalidValue, match="oneself"):
            alice.send(alice, "me")

    def test_outbox_has_a_bound_and_says_so(self, mesh):
        alice, bob = mesh.agent("alice", limits=Limits(outbox=2), connect=False), mesh.agent("bob")
        alice.send(bob, 1)
        alice.send(bob, 2)
        with pytest.raises(QueueFull, match="2 undelivered"):
            alice.send(bob, 3)

    def test_payload_has_a_bound(self, mesh):
        alice, bob = mesh.agent("alice", limits=Limits(payload=10)), mesh.agent("bob")
        alice.send(bob, "12345678")
        with pytest.raises(InvalidValue, match="limit is 10"):
            alice.send(bob, "123456789")

    def test_a_queued_message_can_be_cancelled_and_a_sent_one_cannot(self, mesh):
        alice, bob = mesh.agent("alice", connect=False), mesh.agent("bob")
        message = alice.send(bob, "oops")
        assert alice.core.cancel(message)
        assert not alice.core.cancel(message)
        alice.connect()
        mesh.settle()
        assert bob.payloads == []


class TestHostileFrames:
    def test_garbage_ciphertext_leaves_the_conversation_intact(self, mesh, pair):  # 1, 2
        alice, bob = pair
        alice.send(bob, "genuine")
        raw = mesh.inboxes[bob.did].pop()
        genuine = decode(raw)
        forged = dataclass_replace(genuine, id="forged", ciphertext=bytes(60))
        bob.receive(encode(forged))
        bob.receive(raw)
        mesh.settle()
        assert bob.payloads == ["hello", "genuine"]
        assert ("decrypt", alice.did) in faults(bob)

    def test_forged_ratchet_key_leaves_the_conversation_intact(self, mesh, pair):  # 1
        alice, bob = pair
        alice.send(bob, "genuine")
        raw = mesh.inboxes[bob.did].pop()
        genuine = decode(raw)
        header = frames.MessageHeader(bytes(range(32)), 0, 0)
        bob.receive(encode(dataclass_replace(genuine, id="forged", header=header)))
        bob.receive(raw)
        assert bob.payloads == ["hello", "genuine"]

    def test_a_duplicate_is_dropped_and_acknowledged_again(self, mesh, pair):  # 1, 3
        alice, bob = pair
        alice.send(bob, "once")
        raw = mesh.inboxes[bob.did].pop()
        bob.receive(raw)
        bob.core.confirm(alice.did, decode(raw).id)
        bob.step()
        before = len(mesh.acked)
        bob.receive(raw)
        alice.send(bob, "next")
        mesh.settle()
        assert bob.payloads == ["hello", "once", "next"]
        assert mesh.acked[before] == (bob.did, decode(raw).id)

    def test_a_message_under_another_id_is_a_replay(self, mesh, pair):  # 1
        alice, bob = pair
        alice.send(bob, "once")
        raw = mesh.inboxes[bob.did].pop()
        bob.receive(raw)
        bob.receive(encode(dataclass_replace(decode(raw), id="relabelled")))
        assert bob.payloads == ["hello", "once"]
        assert ("replay", alice.did) in faults(bob)
        assert mesh.unread == [(bob.did, "relabelled")]

    @pytest.mark.parametrize(
        "raw", [b"", b"null", b"5", b"[1,2]", b'"text"', b"{}", b"not json", b"\xff\xfe", b'{"type":{}}', b"[" * 10_000]
    )
    def test_bytes_that_are_no_frame_change_nothing(self, mesh, pair, raw):
        alice, bob = pair
        bob.receive(raw)
        alice.send(bob, "still here")
        mesh.settle()
        assert bob.payloads == ["hello", "still here"]

    def test_plaintext_flag_selects_nothing(self, mesh, pair):  # 20
        alice, bob = pair
        forged = frames.PlaintextMessage(alice.did, bob.did, "p1", "2026-01-01T00:00:00.000Z", b'"forged"')
        bob.receive(encode(forged))
        assert bob.payloads == ["hello"]
        assert ("decrypt", alice.did) in faults(bob)

    def test_plaintext_is_never_taken_again_once_a_peer_is_verified(self, mesh):  # 20
        alice = mesh.agent("alice")
        bob = mesh.agent("bob", plaintext_peers=frozenset({alice.did}))
        plain = encode(frames.PlaintextMessage(alice.did, bob.did, "p1", "2026-01-01T00:00:00.000Z", b'"plain"'))
        bob.receive(plain)
        assert bob.payloads == ["plain"]
        alice.send(bob, "sealed")
        mesh.settle()
        again = encode(frames.PlaintextMessage(alice.did, bob.did, "p2", "2026-01-01T00:00:00.000Z", b'"forged"'))
        bob.receive(again)
        assert bob.payloads == ["plain", "sealed"]
        restarted = mesh.restart(bob)  # the latch survives
        restarted.receive(again)
        assert restarted.payloads == ["plain", "sealed"] or "forged" not in restarted.payloads

    def test_an_invented_reject_closes_nothing(self, mesh, pair):  # 9
        alice, bob = pair
        reject = frames.KnockReject(bob.did, alice.did, "r1", "invented", "policy_denied", "2026-01-01T00:00:00.000Z")
        alice.receive(encode(reject))
        alice.send(bob, "still open")
        mesh.settle()
        assert bob.payloads == ["hello", "still open"]
        assert alice.told(KnockRejected) == []


class TestKnocks:
    def knock_of(self, mesh, alice, bob):
        alice.send(bob, "hello")
        knock, message = mesh.inboxes[bob.did]
        mesh.inboxes[bob.did].clear()
        return knock, message

    def test_every_knock_frame_is_acknowledged(self, mesh, pair):  # 4
        alice, bob = pair
        kinds = {decode_id for did, decode_id in mesh.acked if did == bob.did}
        assert len(kinds) == 1  # the knock; the message waits for the application
        assert any(did == alice.did for did, _ in mesh.acked)  # the accept

    def test_a_replayed_knock_changes_nothing(self, mesh):  # 4
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, message = self.knock_of(mesh, alice, bob)
        bob.receive(knock)
        bob.receive(message)
        mesh.settle()
        bob.receive(knock)
        (answer,) = waiting(mesh, alice)
        assert isinstance(answer, frames.KnockAccept)
        alice.send(bob, "after")
        mesh.settle()
        assert bob.payloads == ["hello", "after"]

    def test_a_knock_keeps_its_one_time_key_until_a_message_authenticates(self, mesh):  # 11
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        held = len(bob.core.keyring.one_time)
        knock, message = self.knock_of(mesh, alice, bob)
        bob.receive(knock)
        assert len(bob.core.keyring.one_time) == held
        bob.receive(message)
        assert len(bob.core.keyring.one_time) == held - 1

    def test_a_knock_in_anothers_name_is_caught_and_not_answered(self, mesh):  # 14
        alice, bob, mallory = mesh.agent("alice"), mesh.agent("bob"), mesh.agent("mallory")
        knock, _ = self.knock_of(mesh, mallory, bob)
        forged = dataclass_replace(decode(knock), sender=alice.did)
        bob.receive(encode(forged))
        assert faults(bob) == [("knock", alice.did)]
        assert not mesh.inboxes[alice.did]
        assert not bob.core.peer(alice.did).candidates

    def test_a_refusing_policy_gives_a_reject_and_a_reported_message(self, mesh):  # 12
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ask_before_accepting=True, extensions=True)
        message = alice.send(bob, "let me in")
        mesh.settle()
        (question,) = bob.core.open_questions()
        assert bob.told(KnockReceived) == [KnockReceived(*question, {"action": "establish_session"})]
        assert bob.payloads == []
        bob.core.answer_knock(*question, accept=False, now=mesh.clock.now)
        bob.step()
        mesh.settle()
        assert alice.told(KnockRejected) == [KnockRejected(bob.did, "policy_denied")]
        assert alice.told(DeliveryChanged)[-1].id == message
        assert bob.payloads == []

    def test_messages_wait_for_a_slow_policy(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ask_before_accepting=True)
        for number in range(20):
            alice.send(bob, number)
        mesh.settle()
        (question,) = bob.core.open_questions()
        mesh.clock.advance(20)
        bob.core.tick(mesh.clock.now)
        bob.core.answer_knock(*question, accept=True, now=mesh.clock.now)
        bob.step()
        assert bob.payloads == list(range(20))

    @pytest.mark.parametrize("accept", [True, False])
    def test_a_knock_is_acknowledged_once_the_policy_has_answered(self, mesh, accept):
        """Until then a process that dies has it offered again, and asks again."""
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ask_before_accepting=True)
        alice.send(bob, "let me in")
        mesh.settle()
        ((sender, knock),) = bob.core.open_questions()
        assert (bob.did, knock) not in mesh.acked
        bob.core.answer_knock(sender, knock, accept=accept, now=mesh.clock.now)
        bob.step()
        assert (bob.did, knock) in mesh.acked

    def test_a_knock_no_policy_is_asked_about_is_acknowledged_at_once(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ask_before_accepting=True)
        alice.send(bob, "let me in")
        knock = dataclass_replace(decode(mesh.inboxes[bob.did][0]), establishment=None, sender="did:mesh:nobody")
        bob.receive(encode(dataclass_replace(knock, sender=bob.did)))
        assert (bob.did, knock.id) in mesh.acked

    def test_what_waited_for_the_answer_is_called_unread_if_that_explains_nothing(self):
        """Its establishment got lost on the way. What was held for the knock must not be held for ever."""
        mesh = MemoryMesh(receipts=True)
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ask_before_accepting=True)
        message = alice.send(bob, "let me in")
        knock, first = mesh.inboxes[bob.did]
        bob.receive(encode(dataclass_replace(decode(knock), establishment=None)))
        bob.receive(first)
        (question,) = bob.core.open_questions()
        bob.core.answer_knock(*question, accept=True, now=mesh.clock.now)
        bob.core.tick(mesh.clock.advance(Limits().held_seconds))
        bob.step()
        assert mesh.unread == [(bob.did, message)]
        assert len(bob.core.held) == 0

    def test_a_silent_policy_counts_as_no(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ask_before_accepting=True, extensions=True)
        alice.send(bob, "hello?")
        mesh.settle()
        bob.core.tick(mesh.clock.advance(30))
        bob.step()
        mesh.settle()
        assert alice.told(KnockRejected)

    def test_a_message_that_overtakes_its_knock_is_held(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, message = self.knock_of(mesh, alice, bob)
        bob.receive(message)
        assert bob.payloads == []
        bob.receive(knock)
        assert bob.payloads == ["hello"]

    def test_a_held_message_whose_knock_never_comes_is_reported(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        _, message = self.knock_of(mesh, alice, bob)
        bob.receive(message)
        bob.core.tick(mesh.clock.advance(3.1))
        bob.step()
        assert [event.peer for event in bob.told(SessionLost)] == [alice.did]
        assert bob.core.next_deadline() > mesh.clock.now.monotonic

    def test_held_messages_are_bounded_per_peer_and_in_peers(self, mesh):
        bob = mesh.agent("bob", limits=Limits(held_frames_per_peer=2, held_peers=3))
        header = frames.MessageHeader(bytes(range(32)), 0, 0)
        for peer in range(10):
            for number in range(5):
                frame = frames.Message(f"did:mesh:{peer:032x}", bob.did, f"{peer}-{number}", "t", header, bytes(40))
                bob.receive(encode(frame))
        assert len(bob.core.held) == 6

    def test_both_knocking_at_once_lose_nothing_and_settle_on_one_session(self, mesh):  # 7
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, "a1")
        bob.send(alice, "b1")
        mesh.settle()
        alice.send(bob, "a2")
        bob.send(alice, "b2")
        mesh.settle()
        alice.send(bob, "a3")
        bob.send(alice, "b3")
        mesh.settle()
        assert bob.payloads == ["a1", "a2", "a3"]
        assert alice.payloads == ["b1", "b2", "b3"]
        chosen = {client.core.peer(other.did).sending().session.id for client, other in ((alice, bob), (bob, alice))}
        assert len(chosen) == 1
        winner = alice.core.peer(bob.did).sending().session
        assert winner.initiator == min(alice.did, bob.did)

    def test_a_restarted_initiator_is_heard_again(self, mesh, pair):  # 5
        alice, bob = pair
        alice = mesh.restart(alice, keep_state=False)
        alice.send(bob, "new session")
        mesh.settle()
        assert bob.payloads == ["hello", "new session"]
        bob.send(alice, "heard")
        mesh.settle()
        assert alice.payloads == ["heard"]

    def test_what_a_peer_lost_with_its_session_is_encrypted_anew_under_the_same_id(self, mesh):  # 5, 6
        alice, bob = mesh.agent("alice", extensions=True, connect=False), mesh.agent("bob")
        core = alice.core
        core.opened(mesh.clock.now, "bm9uY2U")
        core.receive(encode(frames.Connected(("receipts",))), mesh.clock.now)
        message = alice.send(bob, "precious")
        lost = mesh.inboxes[bob.did].copy()
        mesh.inboxes[bob.did].clear()
        mesh.clock.advance(60)
        bob = mesh.restart(bob, keep_state=False)
        bob.receive(lost[-1])
        assert bob.payloads == []
        bob.send(alice, "I am new here")
        mesh.settle()
        assert alice.payloads == ["I am new here"]
        assert bob.payloads == ["precious"]
        assert bob.received[0].id == message

    def test_a_restart_with_its_state_goes_on_where_it_was(self, mesh, pair):  # 6
        alice, bob = pair
        bob = mesh.restart(bob)
        alice.send(bob, "still there?")
        mesh.settle()
        assert "still there?" in bob.payloads
        bob.send(alice, "yes")
        mesh.settle()
        assert alice.payloads == ["welcome", "yes"]
        assert not any(isinstance(frame, frames.Knock) for frame in waiting(mesh, alice))

    def test_a_responder_may_speak_first(self, mesh):  # 8
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, message = self.knock_of(mesh, alice, bob)
        bob.receive(knock)
        bob.send(alice, "I speak when I am spoken to")
        bob.receive(message)
        bob.core.tick(mesh.clock.now)
        mesh.settle()
        assert bob.payloads == ["hello"]
        assert alice.payloads == ["I speak when I am spoken to"]

    def test_a_rotated_signed_prekey_still_answers(self, mesh):  # 10
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, message = self.knock_of(mesh, alice, bob)
        bob.core.replenish(50, mesh.clock.advance(8 * 86_400))
        assert len(bob.core.keyring.signed) == 2
        bob.receive(knock)
        bob.receive(message)
        assert bob.payloads == ["hello"]

    def test_a_signed_prekey_is_forgotten_after_its_time(self, mesh):
        bob = mesh.agent("bob")
        first = bob.core.keyring.signed[0].prekey.key_id
        bob.core.replenish(50, mesh.clock.advance(8 * 86_400))
        bob.core.replenish(50, mesh.clock.advance(14 * 86_400))
        assert first not in [dated.prekey.key_id for dated in bob.core.keyring.signed]

    def test_prekey_ids_do_not_repeat_those_of_a_lost_store(self, mesh):  # 4
        bob = mesh.agent("bob")
        used = {*bob.core.keyring.one_time, *(one.prekey.key_id for one in bob.core.keyring.signed)}
        mesh.clock.advance(1)
        restarted = mesh.restart(bob, keep_state=False)
        assert not set(restarted.core.keyring.one_time) & used

    def test_prekey_ids_never_start_again(self, mesh):  # 4
        bob = mesh.agent("bob")
        used = {*bob.core.keyring.one_time, *(one.prekey.key_id for one in bob.core.keyring.signed)}
        mesh.directory[bob.did].one_time.clear()
        restarted = mesh.restart(bob)
        fresh = set(restarted.core.keyring.one_time) - set(bob.core.keyring.one_time)
        assert fresh
        assert not fresh & used

    def test_a_replayed_knock_of_a_closed_session_is_rejected(self, mesh):  # 4
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, message = self.knock_of(mesh, alice, bob)
        bob.receive(knock)
        bob.receive(message)
        mesh.inboxes[alice.did].clear()
        bob.core.close_session(alice.did)
        bob.receive(knock)
        (answer,) = waiting(mesh, alice)
        assert isinstance(answer, frames.KnockReject)
        bob.receive(message)
        assert bob.payloads == ["hello"]

    def test_a_knock_that_was_saved_and_never_written_goes_out_later(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.core.send(bob.did, "hello", mesh.clock.now)
        alice.core.fetches()
        entry = mesh.directory[bob.did]
        alice.core.bundle(bob.did, make_bundle(entry.identity, entry.upload.signed), mesh.clock.now)
        alice.store.save(alice.core.changes())  # and here the process dies
        mesh.restart(alice)
        mesh.settle()
        assert bob.payloads == ["hello"]

    def test_silent_strangers_are_forgotten_and_friends_are_not(self, mesh):
        bob = mesh.agent("bob", limits=Limits(strangers=3))
        friend = mesh.agent("friend")
        friend.send(bob, "hello")
        mesh.settle()
        for number in range(10):
            stranger = mesh.agent(f"stranger{number}")
            knock, _ = self.knock_of(mesh, stranger, bob)
            bob.receive(knock)
        kept = bob.store.load().peers
        assert friend.did in kept
        assert len(kept) == 4

    def test_an_unusable_establishment_is_rejected_and_named(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, _ = self.knock_of(mesh, alice, bob)
        text = knock.decode().replace('"ek":"', '"ek":"AAAA')
        bob.receive(text.encode())
        assert ("knock", alice.did) in faults(bob)
        (answer,) = waiting(mesh, alice)
        assert isinstance(answer, frames.KnockReject)

    def test_a_bundle_of_another_key_is_refused_before_anything_is_sent(self, mesh):  # 13
        alice, bob, mallory = mesh.agent("alice"), mesh.agent("bob"), mesh.agent("mallory")
        mesh.directory[bob.did] = mesh.directory[mallory.did]
        message = alice.send(bob, "for bob's eyes only")
        assert not mesh.inboxes[bob.did]
        assert ("registry", bob.did) in faults(alice)
        assert alice.told(DeliveryChanged)[-1] == DeliveryChanged(
            bob.did, message, DeliveryState.REFUSED, alice.told(DeliveryChanged)[-1].detail
        )

    def test_a_legacy_peer_is_bound_to_the_first_key_seen(self, mesh):
        old = Did("did:agentmesh:old")
        alice = mesh.agent("alice")
        first = mesh.agent("first", did=old, dialect=Dialect.AGT4)
        alice.send(first, "hello")
        mesh.settle()
        assert first.payloads == ["hello"]
        pinned = alice.core.peer(old).pinned
        assert pinned == first.core.profile.identity.agreement_key.public
        alice.core.close_session(old)
        other = mesh.agent("other", did=old, dialect=Dialect.AGT4)
        alice.send(other, "are you the same?")
        assert ("registry", old) in faults(alice)
        assert other.payloads == []

    def test_dialects_are_settled_by_the_first_message(self, mesh):
        alice = mesh.agent("alice", peer_dialects={})
        bob = mesh.agent("bob")
        alice.core.profile = dataclasses.replace(alice.core.profile, peer_dialects={bob.did: Dialect.AGT4})
        alice.send(bob, "old words")
        mesh.settle()
        assert bob.payloads == ["old words"]
        assert bob.core.peer(alice.did).dialect is Dialect.AGT4


class TestHealing:
    """Between two of ours, over a relay that sends receipts."""

    @pytest.fixture
    def mesh(self):
        return MemoryMesh(receipts=True)

    @pytest.fixture
    def pair(self, mesh):
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ack_when_saved=True)
        alice.send(bob, "hello")
        mesh.settle()
        bob.send(alice, "welcome")
        mesh.settle()
        return alice, bob

    def pass_time(self, mesh, seconds):
        for _ in range(int(seconds * 4)):
            mesh.clock.advance(0.25)
            for client in list(mesh.clients.values()):
                client.core.tick(mesh.clock.now)
                client.step()
            mesh.settle()

    def test_a_recipient_that_lost_everything_gets_its_mail_all_the_same(self, mesh, pair):  # 6
        alice, bob = pair
        mesh.clock.advance(60)
        bob = mesh.restart(bob, keep_state=False)
        sent = [alice.send(bob, number) for number in range(20)]
        self.pass_time(mesh, 8)
        assert bob.payloads == list(range(20))
        assert [one.id for one in bob.received] == sent
        assert alice.core.outbox_size == 0
        assert alice.told(SessionLost)

    def test_a_knock_for_a_prekey_that_is_gone_is_tried_again_with_a_fresh_one(self, mesh):  # 10
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ack_when_saved=True)
        alice.core.send(bob.did, "hello", mesh.clock.now)
        alice.core.fetches()
        entry = mesh.directory[bob.did]
        alice.core.bundle(bob.did, make_bundle(entry.identity, entry.upload.signed, entry.one_time[0]), mesh.clock.now)
        alice.step()
        mesh.clock.advance(60)
        bob = mesh.restart(bob, keep_state=False)
        self.pass_time(mesh, 8)
        assert bob.payloads == ["hello"]
        assert alice.core.outbox_size == 0
        assert not alice.told(KnockRejected)

    def knock_for_a_key_that_is_gone(self, mesh, alice, bob, **options):
        """Alice knocks at bob, who starts anew before it arrives."""
        message = alice.core.send(bob.did, "hello", mesh.clock.now)
        alice.core.fetches()
        entry = mesh.directory[bob.did]
        alice.core.bundle(bob.did, make_bundle(entry.identity, entry.upload.signed, entry.one_time[0]), mesh.clock.now)
        alice.step()
        mesh.clock.advance(60)
        return message, mesh.agent("bob", identity=bob.core.profile.identity, extensions=False, **options)

    def test_a_reject_of_a_peer_that_gives_no_reason_is_answered_by_one_more_knock(self, mesh):  # 6
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", extensions=False)
        _, bob = self.knock_for_a_key_that_is_gone(mesh, alice, bob, ack_when_saved=True)
        self.pass_time(mesh, 8)
        assert bob.payloads == ["hello"]
        assert alice.core.outbox_size == 0
        assert not alice.told(KnockRejected)

    def test_the_second_reject_is_believed(self, mesh):  # 12
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", extensions=False)
        message, bob = self.knock_for_a_key_that_is_gone(mesh, alice, bob, ask_before_accepting=True)
        for _ in range(20):
            self.pass_time(mesh, 1)
            for question in bob.core.open_questions():
                bob.core.answer_knock(*question, accept=False, now=mesh.clock.now)
                bob.step()
        assert alice.told(KnockRejected) == [KnockRejected(bob.did, "policy_denied")]
        assert alice.core.delivery(message).state is DeliveryState.REFUSED
        assert alice.core.outbox_size == 0

    def test_a_policy_of_ours_is_believed_at_once(self, mesh):  # 12
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ask_before_accepting=True)
        message = alice.send(bob, "let me in")
        mesh.settle()
        (question,) = bob.core.open_questions()
        bob.core.answer_knock(*question, accept=False, now=mesh.clock.now)
        bob.step()
        mesh.settle()
        assert alice.core.delivery(message).state is DeliveryState.REFUSED

    def test_a_reject_costs_nothing_that_can_go_another_way(self, mesh):  # 7, 9
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ask_before_accepting=True)
        bob.send(alice, "late")
        knock, message = mesh.inboxes[alice.did]
        mesh.inboxes[alice.did].clear()
        alice.receive(knock)
        sent = alice.send(bob, "hello")
        self.pass_time(mesh, 4)  # no message follows, so alice knocks, too
        (question,) = bob.core.open_questions()
        alice.receive(message)
        bob.core.answer_knock(*question, accept=False, now=mesh.clock.now)
        bob.step()
        self.pass_time(mesh, 8)
        assert alice.payloads == ["late"]
        assert bob.payloads == ["hello"]
        assert alice.core.delivery(sent).state is not DeliveryState.REFUSED

    def test_a_peer_restored_from_a_backup_is_heard_again(self, mesh, pair):
        alice, bob = pair
        backup = alice.store.load()
        for number in range(5):
            alice.send(bob, number)
        mesh.settle()
        alice = mesh.agent("alice", state=backup, identity=alice.core.profile.identity, ack_when_saved=True)
        alice.send(bob, "after the backup")
        self.pass_time(mesh, 8)
        assert bob.payloads[-1] == "after the backup"
        assert alice.core.outbox_size == 0

    def test_invented_complaints_do_not_drain_prekeys(self, mesh, pair):
        alice, bob = pair
        before = len(mesh.directory[bob.did].one_time)
        mesh.hold_back(bob)
        message = alice.send(bob, "waits")
        for _ in range(200):
            alice.receive(encode(frames.Receipt(message, frames.ReceiptState.UNREAD)))
            self.pass_time(mesh, 0.5)
        assert before - len(mesh.directory[bob.did].one_time) <= 6
        mesh.let_go(bob)
        self.pass_time(mesh, 70)
        assert bob.payloads[-1] == "waits"
        assert bob.payloads.count("waits") == 1

    @pytest.mark.parametrize("answer", ["accept", "reject"])
    def test_an_answer_to_a_knock_that_was_given_up_changes_nothing(self, mesh, answer):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        mesh.hold_back(bob)
        message = alice.send(bob, "hello")
        knock = alice.core.peer(bob.did).knock_id
        alice.receive(encode(frames.Receipt(message, frames.ReceiptState.UNREAD)))
        assert alice.core.peer(bob.did).entry is Entry.FETCHING
        if answer == "accept":
            late = frames.KnockAccept(bob.did, alice.did, MessageId("late"), knock, "now")
        else:
            late = frames.KnockReject(bob.did, alice.did, MessageId("late"), knock, "policy_denied", "now")
        alice.receive(encode(late))
        assert alice.core.peer(bob.did).entry is Entry.FETCHING
        assert alice.core.outbox_size == 1
        mesh.let_go(bob)
        self.pass_time(mesh, 5)
        assert bob.payloads == ["hello"]

    def test_a_peer_that_has_complained_has_the_session_before_it_has_messages(self, mesh):
        """The SDK reads frames behind a knock while it still opens the session, the first of them with the old one."""
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        mesh.hold_back(bob)
        message = alice.send(bob, "hello")
        mesh.inboxes[bob.did].clear()
        alice.receive(encode(frames.Receipt(message, frames.ReceiptState.UNREAD)))
        self.pass_time(mesh, 1)
        (knock,) = waiting(mesh, bob)
        assert isinstance(knock, frames.Knock)
        alice.send(bob, "and more")
        assert waiting(mesh, bob) == [knock]
        mesh.let_go(bob)
        mesh.settle()
        assert bob.payloads == ["hello", "and more"]

    def test_a_peer_that_has_complained_and_answers_no_knock_gets_its_messages_all_the_same(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        mesh.hold_back(bob)
        message = alice.send(bob, "hello")
        mesh.inboxes[bob.did].clear()
        alice.receive(encode(frames.Receipt(message, frames.ReceiptState.UNREAD)))
        self.pass_time(mesh, 7)
        knock, again = waiting(mesh, bob)
        assert isinstance(knock, frames.Knock)
        assert again.id == message

    def test_held_messages_that_are_given_up_are_said_to_be_unread(self, mesh):
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ack_when_saved=True)
        alice.send(bob, "hello")
        _, message = mesh.inboxes[bob.did]
        mesh.inboxes[bob.did].clear()
        bob.receive(message)
        bob.core.tick(mesh.clock.advance(3.1))
        bob.step()
        assert mesh.unread == [(bob.did, decode(message).id)]

    def test_held_messages_of_an_earlier_connection_are_given_up_in_silence(self, mesh):
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ack_when_saved=True)
        alice.send(bob, "hello")
        _, message = mesh.inboxes[bob.did]
        mesh.inboxes[bob.did].clear()
        bob.receive(message)
        bob.core.closed(1006, "")
        bob.connect()
        bob.core.tick(mesh.clock.advance(3.1))
        bob.step()
        # On this connection the relay may have offered a newer copy of it: that one is not what was not read.
        assert mesh.unread == []
        assert len(bob.core.held) == 0

    def test_a_held_copy_of_a_message_read_since_is_not_complained_about(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        message = alice.send(bob, "hello")
        unreadable = mesh.inboxes[bob.did].pop()
        mesh.inboxes[bob.did].clear()
        bob.receive(unreadable)
        bob.send(alice, "opens a session that both can read")
        mesh.settle()
        assert bob.payloads == ["hello"]
        bob.core.tick(mesh.clock.advance(3.1))
        bob.step()
        assert (bob.did, message) not in mesh.unread
        assert bob.told(SessionLost) == []


class TestOrder:
    """Messages encrypted anew, whose older copies are still on their way."""

    @pytest.fixture
    def mesh(self):
        return MemoryMesh(receipts=True)

    @pytest.fixture
    def pair(self, mesh):
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ack_when_saved=True)
        alice.send(bob, "hello")
        mesh.settle()
        return alice, bob

    def replaced(self, mesh, alice, bob, first, *others):
        """Frames of ``others`` as they were written first, then all of them as they were encrypted anew."""
        for payload in (first, *others):
            alice.send(bob, payload)
        older = list(mesh.inboxes[bob.did])[1:]
        mesh.inboxes[bob.did].clear()
        alice.core.close_session(bob.did)
        alice.send(bob, "afterwards")
        newer = list(mesh.inboxes[bob.did])
        mesh.inboxes[bob.did].clear()
        return older, newer

    def test_an_older_copy_does_not_overtake_what_was_encrypted_anew(self, mesh, pair):
        alice, bob = pair
        older, newer = self.replaced(mesh, alice, bob, "one", "two", "three")
        for raw in (*older, *newer):
            bob.receive(raw)
        assert bob.payloads == ["hello", "one", "two", "three", "afterwards"]
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds))
        bob.step()
        assert bob.payloads == ["hello", "one", "two", "three", "afterwards"]
        assert mesh.unread == []

    def test_what_is_missing_is_not_waited_for_long(self, mesh, pair):
        alice, bob = pair
        older, _ = self.replaced(mesh, alice, bob, "one", "two", "three")
        for raw in older:
            bob.receive(raw)
        assert bob.payloads == ["hello"]
        mesh.clock.advance(Limits().missing_seconds)
        assert bob.core.next_deadline() <= mesh.clock.now.monotonic
        bob.core.tick(mesh.clock.now)
        bob.step()
        assert bob.payloads == ["hello", "two", "three"]

    def test_more_than_a_session_could_skip_are_not_let_wait(self, mesh, pair):
        alice, bob = pair
        texts = [str(number) for number in range(300)]
        older, _ = self.replaced(mesh, alice, bob, "missing", *texts)
        for raw in older:
            bob.receive(raw)
        assert mesh.unread == []
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds))
        bob.step()
        assert bob.payloads == ["hello", *texts]

    def test_what_was_not_confirmed_goes_before_what_follows_a_closed_session(self, mesh, pair):
        alice, bob = pair
        alice.send(bob, "under way")
        mesh.inboxes[bob.did].clear()
        alice.core.close_session(bob.did)
        alice.send(bob, "on the new session")
        mesh.settle()
        assert bob.payloads == ["hello", "under way", "on the new session"]

    def test_what_comes_on_another_session_meanwhile_lines_up(self, mesh, pair):
        """A peer that has lost a message encrypts it never anew, and may go on elsewhere."""
        alice, bob = pair
        lost = alice.send(bob, "lost")
        mesh.inboxes[bob.did].clear()
        two = alice.send(bob, "two")
        older = mesh.inboxes[bob.did].pop()
        alice.core.outbox.drop(MessageId(lost))
        alice.core.outbox.drop(MessageId(two))
        alice.core.close_session(bob.did)
        alice.core.outbox.keep(Outgoing(MessageId(two), bob.did, b'"two"', DeliveryState.RELAYED, older))
        alice.send(bob, "three")
        knock, three = mesh.inboxes[bob.did]
        mesh.inboxes[bob.did].clear()
        for raw in (older, knock, three):
            bob.receive(raw)
        assert bob.payloads == ["hello"]
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds + MISSED_FOR))
        bob.step()
        assert bob.payloads == ["hello", "two", "three"]

    def test_what_waited_does_not_overfill_the_inbox(self, mesh):
        alice = mesh.agent("alice", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=2))
        alice.send(bob, "hello")
        mesh.settle()
        older, _ = self.replaced(mesh, alice, bob, "missing", "one", "two", "three")
        for raw in older:
            bob.receive(raw)
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds))
        bob.step()
        assert bob.payloads == ["hello", "one"]
        assert bob.core.overflowed  # the relay offers the others on the next connection

    def test_each_message_names_the_one_before_it_until_that_has_arrived(self, mesh, pair):
        alice, bob = pair
        first = alice.send(bob, "first")
        alice.send(bob, "second")
        assert [one.after for one in waiting(mesh, bob)] == [None, first]
        mesh.settle()
        third = alice.send(bob, "third")
        carol = mesh.agent("carol", ack_when_saved=True)
        alice.send(carol, "to somebody else")
        alice.send(bob, "fourth")
        assert [one.after for one in waiting(mesh, bob)] == [None, third]
        assert [one.after for one in waiting(mesh, carol) if isinstance(one, frames.Message)] == [None]

    def test_a_restarted_sender_goes_on_naming_what_has_not_arrived(self, mesh, pair):
        alice, bob = pair
        mesh.hold_back(bob)
        first = alice.send(bob, "first")
        alice = mesh.restart(alice)
        alice.send(bob, "second")
        assert waiting(mesh, bob)[-1].after == first

    def test_what_is_encrypted_anew_names_what_was_before_it_in_the_outbox(self, mesh, pair):
        alice, bob = pair
        texts = [alice.send(bob, text) for text in ("one", "two", "three")]
        mesh.inboxes[bob.did].clear()
        alice.core.close_session(bob.did)
        texts.append(alice.send(bob, "four"))
        anew = [one for one in waiting(mesh, bob) if isinstance(one, frames.Message)]
        assert [(one.id, one.after) for one in anew] == list(zip(texts, [None, *texts[:-1]], strict=True))

    def test_nothing_is_named_at_a_relay_without_receipts(self):
        mesh = MemoryMesh()
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, "one")
        alice.send(bob, "two")
        assert [one.after for one in waiting(mesh, bob) if isinstance(one, frames.Message)] == [None, None]

    def test_what_can_be_read_waits_for_what_could_not_and_comes_encrypted_anew(self, mesh, pair):
        """The recipient forgot the session of a message on its way; the next one comes on another session."""
        alice, bob = pair
        first = alice.send(bob, "first")
        older = mesh.inboxes[bob.did].pop()
        bob.core.close_session(alice.did)
        alice.core.close_session(bob.did)
        alice.send(bob, "second")
        knock, _, second = mesh.inboxes[bob.did]  # of the first, what was encrypted anew is cut off
        mesh.inboxes[bob.did].clear()
        for raw in (older, knock, second):
            mesh.delivered[bob.did][decode(raw).id] = raw
            bob.receive(raw)
        assert mesh.unread == [(bob.did, first)]
        assert bob.payloads == ["hello"]
        mesh.settle()  # she is told
        alice.core.tick(mesh.clock.advance(1.0))
        alice.step()
        mesh.settle()
        assert bob.payloads == ["hello", "first", "second"]
        assert len(bob.core.overtaking) == 0

    def test_a_sender_that_is_cut_while_it_encrypts_anew_may_come_back_late(self, mesh, pair):
        """The relay has let go of the older copy of the first message, and keeps those of the others."""
        alice, bob = pair
        older, (knock, *newer) = self.replaced(mesh, alice, bob, "one", "two", "three")
        for raw in (*older, knock):
            bob.receive(raw)
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds - 1))
        bob.step()
        assert bob.payloads == ["hello"]
        for raw in newer:
            bob.receive(raw)
        assert bob.payloads == ["hello", "one", "two", "three", "afterwards"]
        assert len(bob.core.overtaking) == 0
        assert mesh.unread == []

    def test_so_many_wait_and_not_one_more(self, mesh, pair):
        alice, bob = pair
        most = Limits().asked_frames_per_peer
        texts = [str(number) for number in range(most + 1)]
        older, _ = self.replaced(mesh, alice, bob, "missing", *texts)
        for raw in older[:-1]:
            bob.receive(raw)
        assert (len(bob.core.overtaking), bob.payloads) == (most, ["hello"])
        bob.receive(older[-1])
        assert (len(bob.core.overtaking), bob.payloads) == (0, ["hello", *texts])

    def test_after_the_wait_they_come_in_the_order_they_were_written(self, mesh, pair):
        alice, bob = pair
        older, _ = self.replaced(mesh, alice, bob, "missing", "one", "two", "three", "four")
        for raw in (older[2], older[0], older[3], older[1]):
            bob.receive(raw)
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds))
        bob.step()
        assert bob.payloads == ["hello", "one", "two", "three", "four"]

    def test_who_names_what_never_comes_is_late_and_nobody_else(self, mesh, pair):
        alice, bob = pair
        carol = mesh.agent("carol", ack_when_saved=True)
        alice.send(bob, "names itself")
        raw = encode(dataclass_replace(decode(mesh.inboxes[bob.did].pop()), after="names itself"))
        bob.receive(raw)
        carol.send(bob, "not late")
        mesh.settle()
        assert bob.payloads == ["hello", "not late"]
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds))
        bob.step()
        assert bob.payloads == ["hello", "not late", "names itself"]

    def test_what_never_comes_is_waited_for_once_and_not_for_long(self, mesh, pair):
        """A relay refused it, or it expired: whatever names it would fill the inbox that it was refused for."""
        alice, bob = pair
        alice.send(bob, "refused")
        mesh.inboxes[bob.did].clear()
        alice.send(bob, "late")
        bob.receive(mesh.inboxes[bob.did].pop())
        assert bob.payloads == ["hello"]
        bob.core.tick(mesh.clock.advance(MISSED_FOR))
        bob.step()
        assert bob.payloads == ["hello", "late"]
        for text in ("in time", "this too"):
            alice.send(bob, text)
            raw = mesh.inboxes[bob.did].pop()
            bob.receive(encode(dataclass_replace(decode(raw), after="refused")))
        assert bob.payloads == ["hello", "late", "in time", "this too"]

    def test_what_came_spoilt_is_waited_for_until_it_comes_again(self, mesh, pair):
        alice, bob = pair
        alice.send(bob, "spoilt")
        spoilt = decode(mesh.inboxes[bob.did].pop())
        alice.send(bob, "next")
        bob.receive(encode(dataclass_replace(spoilt, ciphertext=bytes(60))))
        bob.receive(mesh.inboxes[bob.did].pop())
        bob.core.tick(mesh.clock.advance(Limits().held_seconds + MISSED_FOR))
        bob.step()
        assert mesh.unread == [(bob.did, spoilt.id)]
        assert bob.payloads == ["hello"]  # until what it told her has come back

    def test_who_knocks_anew_is_waited_for_again(self, mesh, pair):
        alice, bob = pair
        self.test_what_never_comes_is_waited_for_once_and_not_for_long(mesh, pair)
        older, (knock, *newer) = self.replaced(mesh, alice, bob, "one", "two")
        for raw in (knock, *older):
            bob.receive(raw)
        assert bob.payloads[4:] == []
        bob.core.tick(mesh.clock.advance(Limits().missing_seconds - 1))
        bob.step()
        for raw in newer:
            bob.receive(raw)
        assert bob.payloads[-3:] == ["one", "two", "afterwards"]

    def test_a_copy_that_gives_way_to_a_newer_one_is_answered(self, mesh, pair):
        """A relay counts an answer to each copy it has pushed: a complaint about the last would pass for another's."""
        alice, bob = pair
        older, newer = self.replaced(mesh, alice, bob, "one", "two")
        bob.receive(older[0])
        bob.receive(newer[0])
        bob.receive(newer[2])
        assert mesh.unread == [(bob.did, decode(older[0]).id)]

    def test_nothing_waits_beyond_a_goodbye(self, mesh, pair):
        alice, bob = pair
        older, _ = self.replaced(mesh, alice, bob, "one", "two")
        bob.receive(older[0])
        assert len(bob.core.overtaking) == 1
        bob.core.goodbye()
        assert len(bob.core.overtaking) == 0

    def test_a_peer_that_says_nothing_of_order_is_not_let_wait(self, mesh, pair):
        """An SDK says nothing, and a client of its kind encrypts nothing anew."""
        alice, bob = pair
        alice.send(bob, "lost")
        mesh.inboxes[bob.did].clear()
        alice.send(bob, "taken")
        bob.receive(encode(dataclass_replace(decode(mesh.inboxes[bob.did].pop()), after=None)))
        assert bob.payloads == ["hello", "taken"]

    def test_a_cut_connection_brings_again_what_waited(self, mesh, pair):
        alice, bob = pair
        older, newer = self.replaced(mesh, alice, bob, "one", "two")
        for raw in older:
            bob.receive(raw)
        bob.core.closed(1006, "")
        bob.connect()
        for raw in (*older, *newer):
            bob.receive(raw)
        assert bob.payloads == ["hello", "one", "two", "afterwards"]

    def test_a_relay_without_receipts_may_reorder(self):
        mesh = MemoryMesh()
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, "hello")
        mesh.settle()
        alice.send(bob, "slow")
        alice.send(bob, "quick")
        mesh.inboxes[bob.did].rotate(1)
        mesh.settle()
        assert bob.payloads == ["hello", "quick", "slow"]

    def test_what_was_dropped_as_a_copy_is_not_missing(self, mesh, pair):
        """Encrypted anew on a session of the recipient's, it was read there before the other encryption came."""
        alice, bob = pair
        alice.core.close_session(bob.did)
        bob.core.close_session(alice.did)
        alice.send(bob, "first")
        knock, first = mesh.inboxes[bob.did]
        mesh.inboxes[bob.did].clear()
        sessions = alice.core.peer(bob.did)
        bob.send(alice, "crosses")
        mesh.settle()
        assert bob.payloads == ["hello", "first"]
        bob.receive(knock)
        bob.receive(first)
        assert sessions.sending() is not None
        second = self.on(sessions.sending().session, alice, bob, "second")
        bob.receive(second)
        assert bob.payloads == ["hello", "first", "second"]
        assert len(bob.core.overtaking) == 0

    def on(self, session, sender, recipient, payload):
        """A frame that the sender writes on a session of an earlier day."""
        _, header, ciphertext = session.encrypt(encode_payload(payload), SeededEntropy("on"))
        header = frames.MessageHeader(header.dh, header.pn, header.n)
        return encode(frames.Message(sender.did, recipient.did, MessageId(payload), "now", header, ciphertext))


class TestHandOver:
    def test_nothing_is_acknowledged_before_it_is_handed_over_and_confirmed(self, mesh):  # 30
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        message = alice.send(bob, "take it")
        mesh.settle()
        assert (bob.did, message) not in mesh.acked
        assert bob.core.confirm(alice.did, MessageId(message))
        bob.step()
        assert (bob.did, message) in mesh.acked

    def test_a_durable_store_acknowledges_once_it_is_saved(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ack_when_saved=True)
        message = alice.send(bob, "take it")
        mesh.settle()
        assert (bob.did, message) in mesh.acked
        assert bob.store.load().inbox[0].id == message

    def test_an_unconfirmed_message_comes_again_marked(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", ack_when_saved=True)
        alice.send(bob, "again")
        mesh.settle()
        assert [one.redelivered for one in bob.received] == [False]
        restarted = mesh.restart(bob)
        assert [(one.payload, one.redelivered) for one in restarted.received] == [("again", True)]

    def test_once_one_is_passed_over_so_is_what_follows_on_the_connection(self, mesh):
        """There is room again; but what was passed over comes first, on the next connection."""
        mesh = MemoryMesh(receipts=True)
        alice = mesh.agent("alice", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=1))
        first = alice.send(bob, "first")
        alice.send(bob, "passed over")
        mesh.settle()
        assert bob.core.confirm(alice.did, MessageId(first))
        alice.send(bob, "follows")
        mesh.settle()
        assert bob.payloads == ["first"]
        bob.core.closed(1006, "")
        bob.connect()
        mesh.settle()
        assert bob.payloads == ["first", "passed over"]

    def test_a_lane_nobody_takes_from_keeps_no_other_waiting(self):
        mesh = MemoryMesh(receipts=True)
        alice, carol = mesh.agent("alice", ack_when_saved=True), mesh.agent("carol", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=2))
        bob.core.add_lane(lambda sender, payload: int(payload == "task"))
        for number in range(3):
            alice.send(bob, number)
        task = alice.send(bob, "task")
        carol.send(bob, "task")
        mesh.settle()
        assert [message.payload for message in bob.core.messages(1)] == ["task", "task"]
        assert bob.payloads == [0, 1]
        assert alice.core.delivery(MessageId(task)).state is DeliveryState.DELIVERED
        assert bob.core.overflowed
        assert not bob.core.inbox_has_room

    def test_what_a_full_lane_passed_over_comes_again_in_order(self):
        mesh = MemoryMesh(receipts=True)
        alice = mesh.agent("alice", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=2))
        bob.core.add_lane(lambda sender, payload: int(payload == "task"))
        for payload in (0, 1, 2, "task", 3, 4):
            alice.send(bob, payload)
        mesh.settle()
        for message in bob.received:
            bob.core.confirm(message.sender, message.id)
        bob.step()
        assert bob.core.inbox_has_room
        bob.core.closed(1006, "")
        bob.connect()
        mesh.settle()
        assert bob.payloads == [0, 1, 2, 3]
        for message in bob.received:
            bob.core.confirm(message.sender, message.id)
        bob.core.closed(1006, "")
        bob.connect()
        mesh.settle()
        assert bob.payloads == [0, 1, 2, 3, 4]
        assert [message.payload for message in bob.core.messages(1)] == ["task"]

    def test_a_lane_that_empties_is_opened_again_while_another_stays_full(self):
        mesh = MemoryMesh(receipts=True)
        alice = mesh.agent("alice", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=2))
        bob.core.add_lane(lambda sender, payload: int(payload == "task"))
        for payload in (0, 1, 2, "task", "task", "task"):
            alice.send(bob, payload)
        mesh.settle()
        bob.core.tick(mesh.clock.advance(1.1))
        bob.step()
        tasks = bob.core.messages(1)
        assert len(tasks) == 2
        for message in tasks:
            bob.core.confirm(message.sender, message.id)
        assert bob.core.inbox_has_room  # nobody takes from the other lane, perhaps for ever

    def test_who_floods_a_full_lane_costs_no_more_than_its_session_can_skip(self):
        mesh = MemoryMesh(receipts=True)
        alice, carol = mesh.agent("alice", ack_when_saved=True), mesh.agent("carol", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=1))
        bob.core.add_lane(lambda sender, payload: int(payload == "task"))
        carol.send(bob, "fills the lane")
        mesh.settle()
        for number in range(MAX_SKIP + 50):
            alice.send(bob, number)
        asked = 0

        def count(sender: Did, payload: object) -> int:
            nonlocal asked
            asked += 1
            return int(payload == "task")

        bob.core.add_lane(count)
        asked = 0
        mesh.settle()
        assert asked == MAX_SKIP + 1

    def test_more_than_a_session_can_skip_is_passed_over_without_a_complaint(self):
        mesh = MemoryMesh(receipts=True)
        alice = mesh.agent("alice", ack_when_saved=True)
        bob = mesh.agent("bob", ack_when_saved=True, limits=Limits(inbox=1))
        bob.core.add_lane(lambda sender, payload: int(payload == "task"))
        for number in range(MAX_SKIP + 3):
            alice.send(bob, number)
        task = alice.send(bob, "task")
        mesh.settle()
        assert bob.core.messages(1) == []
        assert alice.core.delivery(MessageId(task)).state is not DeliveryState.DELIVERED

    def test_what_is_too_long_in_plaintext_is_refused_at_once(self):
        mesh = MemoryMesh()
        alice = mesh.agent("alice", plaintext_peers=frozenset({"did:agentmesh:old"}))
        with pytest.raises(InvalidValue, match="at most"):
            alice.core.send(Did("did:agentmesh:old"), "\u6f22" * 170_000, mesh.clock.now)
        assert alice.core.outbox_size == 0

    def test_answers_leave_half_of_the_outbox_to_the_application(self):
        mesh = MemoryMesh()
        alice, bob = mesh.agent("alice", limits=Limits(outbox=4), connect=False), mesh.agent("bob")
        for number in range(2):
            alice.core.send(bob.did, number, mesh.clock.now, answer=True)
        with pytest.raises(QueueFull, match="the rest is not for answers"):
            alice.core.send(bob.did, "no more", mesh.clock.now, answer=True)
        for number in range(2):
            alice.core.send(bob.did, number, mesh.clock.now)
        with pytest.raises(QueueFull):
            alice.core.send(bob.did, "no more", mesh.clock.now)

    def test_a_full_inbox_stops_the_reading(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", limits=Limits(inbox=2))
        alice.send(bob, 1)
        alice.send(bob, 2)
        mesh.settle()
        assert bob.core.inbox_full
        bob.core.confirm(alice.did, bob.received[0].id)
        assert not bob.core.inbox_full

    def test_an_authentic_message_that_is_no_json_is_reported_once(self, mesh, pair):
        alice, bob = pair
        strand = alice.core.peer(bob.did).sending()
        _, header, ciphertext = strand.session.encrypt(b"no json", SeededEntropy("x"))
        header = frames.MessageHeader(header.dh, header.pn, header.n)
        frame = encode(frames.Message(alice.did, bob.did, "m", "t", header, ciphertext))
        bob.receive(frame)
        assert ("payload", alice.did) in faults(bob)
        assert (bob.did, "m") in mesh.acked

    def test_what_reads_as_plaintext_and_is_no_json_is_called_unread(self):
        """One bit of an encrypted message was bent, in the name of its header. Its sender sends it again."""
        mesh = MemoryMesh(receipts=True)
        alice = mesh.agent("alice")
        bob = mesh.agent("bob", ack_when_saved=True, plaintext_peers=frozenset({alice.did}))
        message = alice.send(bob, "hello")
        knock, first = mesh.inboxes[bob.did]
        mesh.inboxes[bob.did].clear()
        for raw in (knock, first.replace(b'"header"', b'"heades"')):
            mesh.delivered[bob.did][decode(raw).id] = raw
            bob.receive(raw)
        assert mesh.unread == [(bob.did, message)]
        mesh.settle()  # she is told
        alice.core.tick(mesh.clock.advance(1.0))
        alice.step()
        mesh.settle()
        assert bob.payloads == ["hello"]

    def test_seen_ids_are_bounded(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob", limits=Limits(seen=10))
        for number in range(50):
            alice.send(bob, number)
        mesh.settle()
        assert bob.core.inbox.remembered == 10


class TestConnection:
    def profile(self, **options):
        identity = Identity.generate(SeededEntropy("c"))
        return Profile(identity=identity, did=identity.did, **options)

    def core(self, mesh, **options):
        return ClientCore(self.profile(**options), SavedState(), SeededEntropy("core"))

    def test_connect_is_proved_over_the_challenge_and_not_over_the_bare_timestamp(self, mesh):  # 15
        core = self.core(mesh)
        core.opened(mesh.clock.now, challenge="bm9uY2U")
        frame = decode(core.writes()[0])
        assert isinstance(frame, frames.Connect)
        identity = core.profile.identity
        assert frame.features == ("receipts", "challenge")
        assert frame.signature != identity.sign(frame.timestamp.encode())

    def test_an_upstream_relay_gets_the_proof_it_knows(self, mesh):
        core = self.core(mesh)
        core.opened(mesh.clock.now)
        frame = decode(core.writes()[0])
        assert frame.signature == core.profile.identity.sign(frame.timestamp.encode())
        assert "challenge" not in frame.features

    def test_silence_of_an_upstream_relay_counts_as_consent(self, mesh):
        core = self.core(mesh)
        core.opened(mesh.clock.now)
        assert core.link is Link.PROVING
        core.tick(mesh.clock.advance(1.0))
        assert core.link is Link.UP
        assert core.events() == [Connected(frozenset())]

    def test_silence_of_a_relay_that_sent_a_challenge_does_not(self, mesh):
        core = self.core(mesh)
        core.opened(mesh.clock.now, challenge="bm9uY2U")
        core.tick(mesh.clock.advance(20.0))
        assert core.link is Link.PROVING

    def test_nothing_is_sent_before_the_verdict(self, mesh):  # 29
        core = self.core(mesh)
        core.opened(mesh.clock.now, challenge="bm9uY2U")
        core.writes()
        core.send(Did("did:mesh:" + "0" * 32), "early", mesh.clock.now)
        assert core.fetches() == []
        core.receive(encode(frames.Connected(("receipts",))), mesh.clock.now)
        assert core.features == {"receipts"}
        assert core.fetches() == ["did:mesh:" + "0" * 32]

    @pytest.mark.parametrize("code", [4001, 4002, 4003, 4005, 4006])
    def test_codes_that_a_retry_does_not_change_are_terminal(self, mesh, code):  # 29
        core = self.core(mesh)
        core.opened(mesh.clock.now)
        core.closed(code, "")
        (event,) = core.events()
        assert isinstance(event, Disconnected)
        assert not event.retrying
        assert event.reason

    @pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 4004])
    def test_other_codes_are_retried(self, mesh, code):
        core = self.core(mesh)
        core.opened(mesh.clock.now)
        core.closed(code, "")
        assert core.events()[0].retrying

    def test_upstreams_way_of_saying_replaced_is_terminal(self, mesh):
        core = self.core(mesh)
        core.opened(mesh.clock.now)
        core.closed(1000, "session_replaced")
        assert core.terminal

    def test_heartbeats_come_in_time(self, mesh):
        core = self.core(mesh, extensions=False)
        core.opened(mesh.clock.now)
        core.writes()
        assert core.next_deadline() == mesh.clock.now.monotonic + 30
        core.tick(mesh.clock.advance(30))
        assert isinstance(decode(core.writes()[0]), frames.Heartbeat)

    def test_what_was_not_confirmed_goes_out_again_with_the_same_bytes(self, mesh):
        alice, bob = mesh.agent("alice", extensions=True, connect=False), mesh.agent("bob")
        core = alice.core
        core.opened(mesh.clock.now, "bm9uY2U")
        core.receive(encode(frames.Connected(("receipts",))), mesh.clock.now)
        alice.send(bob, "precious")
        first = list(mesh.inboxes[bob.did])
        core.closed(1006, "")
        core.opened(mesh.clock.now, "bm9uY2U")
        core.receive(encode(frames.Connected(("receipts",))), mesh.clock.now)
        alice.step()
        assert list(mesh.inboxes[bob.did]) == [*first, *first]
        mesh.settle()
        assert bob.payloads == ["precious"]

    def test_what_comes_before_the_relay_is_content_switches_no_receipts_off(self, mesh):
        alice, bob = mesh.agent("alice", extensions=True, connect=False), mesh.agent("bob")
        core = alice.core
        core.opened(mesh.clock.now, "bm9uY2U")
        bob.send(alice, "comes early")
        mesh.settle()
        assert core.link is Link.PROVING
        core.receive(encode(frames.Connected(("receipts",))), mesh.clock.now)
        assert core.features == {"receipts"}
        alice.send(bob, "kept until delivered")
        assert core.outbox_size == 1

    def test_without_receipts_an_unanswered_knock_goes_out_again_with_nothing_waiting(self, mesh):
        """A cut connection took it, and the outbox let go of what followed. What follows now needs it all the same."""
        alice, bob = mesh.agent("alice", extensions=True), mesh.agent("bob")

        def taken_at_its_silence():
            alice.core.tick(mesh.clock.advance(1.1))
            alice.step()

        taken_at_its_silence()
        alice.send(bob, "relayed, and lost")
        mesh.inboxes[bob.did].clear()
        assert alice.core.outbox_size == 0
        alice.core.closed(1006, "")
        alice.connect()
        taken_at_its_silence()
        mesh.settle()
        alice.send(bob, "readable")
        mesh.settle()
        assert bob.payloads == ["readable"]

    def test_only_what_was_written_counts_as_relayed(self, mesh):
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        alice.send(bob, "opens the session")
        core = alice.core
        first = core.send(bob.did, "being written", mesh.clock.now)
        core.writes()
        second = core.send(bob.did, "queued meanwhile", mesh.clock.now)
        core.sent()
        assert core.outbox.get(first) is None
        assert core.outbox.get(second) is not None

    def test_a_delivered_receipt_empties_the_outbox(self, mesh):
        alice, bob = mesh.agent("alice", extensions=True, connect=False), mesh.agent("bob")
        core = alice.core
        core.opened(mesh.clock.now, "bm9uY2U")
        core.receive(encode(frames.Connected(("receipts",))), mesh.clock.now)
        message = alice.send(bob, "precious")
        assert core.delivery(message).state is DeliveryState.RELAYED
        alice.receive(encode(frames.Receipt(message, frames.ReceiptState.STORED)))
        assert core.delivery(message).state is DeliveryState.STORED
        alice.receive(encode(frames.Receipt(message, frames.ReceiptState.DELIVERED)))
        assert core.outbox_size == 0
        assert core.delivery(message).state is DeliveryState.DELIVERED
        assert alice.store.load().outcomes == ((message, bob.did, DeliveryState.DELIVERED),)
        assert [event.state for event in alice.told(DeliveryChanged)] == ["relayed", "stored", "delivered"]


def test_reprs_show_no_payload(mesh, pair):
    alice, bob = pair
    alice.send(bob, "the secret word")
    mesh.settle()
    shown = repr((bob.received, bob.store.load(), alice.store.load().outbox, bob.core.peer(alice.did)))
    assert "the secret word" not in shown


def dataclass_replace(frame, **changes):
    """A changed copy of a frame."""
    members = {name: getattr(frame, name) for name in frame.__struct_fields__}
    return type(frame)(**{**members, **changes})


def test_bundles_are_checked_where_they_are_used(mesh):
    alice, bob, mallory = mesh.agent("alice"), mesh.agent("bob"), mesh.agent("mallory")
    entry = mesh.directory[mallory.did]
    with pytest.raises(PeerError):
        alice.core.knock(bob.did, make_bundle(entry.identity, entry.upload.signed, None), mesh.clock.now)
    assert alice.core.peer(bob.did).entry is Entry.IDLE


def test_a_fault_in_anothers_name_is_a_kind_of_its_own():
    assert issubclass(NotForThisPeer, NotAuthentic)
    assert b64(b"") == ""
