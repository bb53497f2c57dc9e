"""What a peer, or a relay that invents frames, can and cannot do to a client core."""

import dataclasses
import json
import os
from collections import deque

import msgspec
import pytest

from meshlib.client.core import Profile
from meshlib.client.events import DeliveryState, FaultFound, KnockReceived
from meshlib.client.knocks import SpentOpenings
from meshlib.config import Limits
from meshlib.crypto.prekeys import make_bundle
from meshlib.crypto.x3dh import Dialect
from meshlib.identity import Did, Identity
from meshlib.session import Session
from meshlib.store.protocol import SPENT_KEPT, newest
from meshlib.testing import MemoryClient, MemoryMesh, SeededEntropy
from meshlib.wire import frames
from meshlib.wire.codec import decode, encode
from meshlib.wire.encoding import MessageId

ANSWERS = (frames.KnockAccept, frames.KnockReject)


@pytest.fixture
def mesh() -> MemoryMesh:
    return MemoryMesh()


def changed(raw: bytes, **members: object) -> bytes:
    """A frame with other members."""
    return encode(msgspec.structs.replace(decode(raw), **members))


def with_top_bit(raw: bytes) -> bytes:
    """A knock whose ephemeral key says the same in other bytes."""
    establishment = decode(raw).establishment
    ek = bytearray(establishment.ek)
    ek[31] ^= 0x80
    return changed(raw, id="again", establishment=msgspec.structs.replace(establishment, ek=bytes(ek)))


def opens(mesh: MemoryMesh, alice: MemoryClient, bob: MemoryClient, payload: object = "PAY 100") -> tuple[bytes, bytes]:
    """The knock and the first message of alice, which the relay has not delivered yet."""
    alice.send(bob, payload)
    knock, message = mesh.inboxes[bob.did]
    mesh.inboxes[bob.did].clear()
    return knock, message


def talk(mesh: MemoryMesh, alice: MemoryClient, bob: MemoryClient, rounds: int = 10) -> None:
    for number in range(rounds):
        bob.send(alice, number)
        mesh.settle()
        alice.send(bob, number)
        mesh.settle()


def forged_knock(sender: MemoryClient, recipient: MemoryClient, number: int) -> bytes:
    """A knock that costs its sender nothing: nobody knows its ephemeral key."""
    ik = bytes(sender.core.profile.identity.agreement_key.public)
    ek = os.urandom(31) + b"\x01"
    return encode(frames.Knock(sender.did, recipient.did, f"x{number}", "t", frames.Establishment(ik, ek, None)))


class TestReplayedOpenings:
    def test_ephemeral_key_in_other_bytes_opens_nothing_twice(self, mesh: MemoryMesh) -> None:
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        mesh.directory[bob.did].one_time.clear()
        knock, message = opens(mesh, alice, bob)
        bob.receive(knock)
        bob.receive(message)
        talk(mesh, alice, bob, 40)
        bob.receive(with_top_bit(knock))
        bob.receive(changed(message, id="another"))
        mesh.settle()
        assert bob.payloads.count("PAY 100") == 1
        bob.send(alice, "answer")
        mesh.settle()
        assert alice.payloads[-1] == "answer"

    def test_ephemeral_key_beyond_the_prime_is_refused(self, mesh: MemoryMesh) -> None:
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, _ = opens(mesh, alice, bob)
        establishment = msgspec.structs.replace(
            decode(knock).establishment, ek=(2**255 - 19 + 9).to_bytes(32, "little")
        )
        bob.receive(changed(knock, establishment=establishment))
        assert [event.kind for event in bob.told(FaultFound)] == ["knock"]
        assert not bob.core.peer(alice.did).candidates

    def test_no_second_opening_reads_with_a_one_time_key_that_is_spent(self, mesh: MemoryMesh) -> None:
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        same = mesh.directory[bob.did].one_time[0]
        first = opens(mesh, alice, bob, "first")
        alice.core.close_session(bob.did)
        mesh.directory[bob.did].one_time.appendleft(same)
        alice.core.outbox.drop(decode(first[1]).id)
        second = opens(mesh, alice, bob, "second")
        assert decode(first[0]).establishment.otk == decode(second[0]).establishment.otk
        for raw in (first[0], second[0], first[1], second[1]):
            bob.receive(raw)
        assert bob.payloads == ["first"]
        assert bob.core.peer(alice.did).candidates == ()

    def test_nor_does_one_of_another_peer(self, mesh: MemoryMesh) -> None:
        alice, bob, carol = mesh.agent("alice"), mesh.agent("bob"), mesh.agent("carol")
        same = mesh.directory[bob.did].one_time[0]
        first = opens(mesh, alice, bob, "first")
        mesh.directory[bob.did].one_time.appendleft(same)
        second = opens(mesh, carol, bob, "second")
        for raw in (first[0], second[0], first[1], second[1]):
            bob.receive(raw)
        assert bob.payloads == ["first"]
        assert bob.core.peer(carol.did).candidates == ()

    def test_a_candidate_dies_with_its_signed_prekey(self, mesh: MemoryMesh) -> None:
        alice, bob = mesh.agent("alice"), mesh.agent("bob")
        knock, message = opens(mesh, alice, bob)
        bob.receive(knock)
        bob.core.replenish(50, mesh.clock.advance(8 * 86_400))
        bob.core.replenish(50, mesh.clock.advance(14 * 86_400))
        bob.receive(message)
        assert bob.payloads == []


class TestPins:
    """DIDs outside did:mesh: are bound to the first identity key that authenticates."""

    OLD = Did("did:agentmesh:alice")

    def impostor(self, mesh: MemoryMesh, bob: MemoryClient) -> tuple[Session, bytes]:
        evil = Identity.generate(SeededEntropy("evil"))
        entry = mesh.directory[bob.did]
        bundle = make_bundle(entry.identity, entry.upload.signed)
        session, opening = Session.initiate(evil, self.OLD, bob.did, bundle, Dialect.AGT4, SeededEntropy("e"))
        establishment = frames.Establishment(bytes(opening.ik), bytes(opening.ek), None)
        return session, encode(frames.Knock(self.OLD, bob.did, "evil-knock", "t", establishment))

    def says(self, session: Session, bob: MemoryClient) -> bytes:
        _, header, ciphertext = session.encrypt(b'"I am alice, really"', SeededEntropy("n"))
        header = frames.MessageHeader(header.dh, header.pn, header.n)
        return encode(frames.Message(self.OLD, bob.did, "evil-message", "t", header, ciphertext))

    def test_a_knock_from_before_the_pin_does_not_settle_after_it(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob")
        alice = mesh.agent("alice", did=self.OLD, dialect=Dialect.AGT4)
        session, knock = self.impostor(mesh, bob)
        bob.receive(knock)
        alice.send(bob, "genuine")
        mesh.settle()
        bob.receive(self.says(session, bob))
        assert bob.payloads == ["genuine"]
        assert bob.core.peer(self.OLD).pinned == alice.core.profile.identity.agreement_key.public
        assert not bob.core.peer(self.OLD).candidates

    def test_nor_after_a_pin_that_came_with_the_bundle(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob")
        alice = mesh.agent("alice", did=self.OLD, dialect=Dialect.AGT4)
        session, knock = self.impostor(mesh, bob)
        bob.receive(knock)
        entry = mesh.directory[alice.did]
        bob.core.knock(alice.did, make_bundle(entry.identity, entry.upload.signed), mesh.clock.now)
        bob.step()
        bob.receive(self.says(session, bob))
        assert bob.payloads == []
        assert bob.core.peer(self.OLD).pinned == alice.core.profile.identity.agreement_key.public

    def test_nor_one_that_a_store_kept_beside_the_pin(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob")
        alice = mesh.agent("alice", did=self.OLD, dialect=Dialect.AGT4)
        session, knock = self.impostor(mesh, bob)
        bob.receive(knock)
        state = bob.store.load()
        key = alice.core.profile.identity.agreement_key.public
        pinned = {self.OLD: msgspec.structs.replace(state.peers[self.OLD], pinned=key)}
        bob = mesh.agent("bob", state=dataclasses.replace(state, peers=pinned))
        bob.receive(self.says(session, bob))
        assert bob.payloads == []
        assert bob.core.peer(self.OLD).pinned == key


class TestQuestions:
    """Knocks that wait for the policy's answer."""

    def answer(self, mesh: MemoryMesh, bob: MemoryClient, sender: MemoryClient, knock: str, *, accept: bool) -> None:
        bob.core.answer_knock(sender.did, MessageId(knock), accept=accept, now=mesh.clock.now)
        bob.step()

    def test_an_answer_is_for_one_sender_whatever_ids_others_choose(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob", ask_before_accepting=True)
        alice, mallory = mesh.agent("alice"), mesh.agent("mallory")
        knock, message = opens(mesh, alice, bob, "hi")
        bad_knock, bad_message = opens(mesh, mallory, bob, "evil")
        same = decode(knock).id
        for raw in (knock, changed(bad_knock, id=same), message, bad_message):
            bob.receive(raw)
        assert bob.core.open_questions() == [(alice.did, same), (mallory.did, same)]
        self.answer(mesh, bob, alice, same, accept=True)
        self.answer(mesh, bob, mallory, same, accept=False)
        assert [(one.sender, one.payload) for one in bob.received] == [(alice.did, "hi")]

    def test_a_knock_that_comes_twice_is_asked_about_once(self, mesh: MemoryMesh) -> None:
        bob, alice = mesh.agent("bob", ask_before_accepting=True), mesh.agent("alice")
        knock, _ = opens(mesh, alice, bob)
        bob.receive(knock)
        bob.receive(knock)
        assert len(bob.told(KnockReceived)) == 1

    def test_one_sender_has_two_questions_at_most_and_leaves_those_of_others_alone(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob", ask_before_accepting=True)
        alice, mallory = mesh.agent("alice"), mesh.agent("mallory")
        alice.send(bob, "hi")
        mesh.settle()
        for number in range(10):
            bob.receive(forged_knock(mallory, bob, number))
        assert bob.core.open_questions()[1:] == [(mallory.did, "x8"), (mallory.did, "x9")]
        rejected = [decode(raw) for raw in mesh.inboxes[mallory.did]]
        assert [(one.knock_id, one.detail) for one in rejected] == [(f"x{number}", None) for number in range(8)]
        self.answer(mesh, bob, alice, bob.told(KnockReceived)[0].knock_id, accept=True)
        assert bob.payloads == ["hi"]

    def test_a_question_that_makes_room_is_rejected_and_what_it_held_is_let_go(self) -> None:
        mesh = MemoryMesh(receipts=True)
        bob = mesh.agent("bob", ask_before_accepting=True, ack_when_saved=True, limits=Limits(held_peers=2))
        peers = [mesh.agent(f"peer{number}") for number in range(3)]
        for peer in peers:
            knock, message = opens(mesh, peer, bob, peer.name)
            bob.receive(knock)
            bob.receive(message)
        assert [sender for sender, _ in bob.core.open_questions()] == [peer.did for peer in peers[1:]]
        (reject,) = [decode(raw) for raw in mesh.inboxes[peers[0].did]]
        assert isinstance(reject, frames.KnockReject)
        assert reject.detail == frames.UNKNOWN_PREKEY  # not the policy's word: the peer may try again
        assert len(bob.core.held) == 2
        assert len(mesh.unread) == 1

    def test_a_refusal_lets_the_messages_go_too(self) -> None:
        mesh = MemoryMesh(receipts=True)
        bob, alice = mesh.agent("bob", ask_before_accepting=True), mesh.agent("alice")
        message = alice.send(bob, "hi")
        mesh.settle()
        self.answer(mesh, bob, alice, bob.told(KnockReceived)[0].knock_id, accept=False)
        assert len(bob.core.held) == 0
        mesh.settle()
        assert alice.core.delivery(MessageId(message)).state is DeliveryState.REFUSED

    @pytest.mark.parametrize("first", [True, False])
    def test_what_the_other_question_may_explain_stays(self, mesh: MemoryMesh, first: bool) -> None:
        bob, alice = mesh.agent("bob", ask_before_accepting=True), mesh.agent("alice")
        old, _ = opens(mesh, alice, bob, "lost")
        alice.core.close_session(bob.did)
        alice.core.outbox.drop(alice.core.outbox.all()[0].id) if alice.core.outbox.all() else None
        new, message = opens(mesh, alice, bob, "hi")
        for raw in (old, new, message):
            bob.receive(raw)
        self.answer(mesh, bob, alice, decode(old).id, accept=first)
        assert len(bob.core.held) == 1
        self.answer(mesh, bob, alice, decode(new).id, accept=True)
        assert bob.payloads == ["hi"]

    def test_held_frames_have_a_bound_in_bytes_and_who_holds_most_makes_room(self, mesh: MemoryMesh) -> None:
        limits = Limits(held_bytes=10_000)
        bob = mesh.agent("bob", ask_before_accepting=True, limits=limits)
        alice, mallory = mesh.agent("alice"), mesh.agent("mallory")
        alice.send(bob, "hi")
        mesh.settle()
        for number in range(40):
            mallory.send(bob, f"{number}" + "x" * 1_000)
        mesh.settle()
        assert bob.core.held.size <= 10_000
        self.answer(mesh, bob, alice, bob.told(KnockReceived)[0].knock_id, accept=True)
        assert bob.payloads == ["hi"]
        self.answer(mesh, bob, mallory, bob.told(KnockReceived)[1].knock_id, accept=False)
        assert bob.core.held.size == 0


class TestFloodsOfKnocks:
    def test_a_sender_has_a_burst_of_knocks_and_then_one_at_a_time(self, mesh: MemoryMesh) -> None:
        bob, mallory = mesh.agent("bob"), mesh.agent("mallory")
        for number in range(100):
            bob.receive(forged_knock(mallory, bob, number))
        assert len(bob.told(KnockReceived)) == 20
        assert len(bob.told(FaultFound)) == 1  # said once, not eighty times
        assert len(mesh.inboxes[mallory.did]) == 20  # and the rest is not answered
        assert len(mesh.acked) == 100  # nor offered again by the relay
        mesh.clock.advance(10)
        for number in range(100, 110):
            bob.receive(forged_knock(mallory, bob, number))
        assert len(bob.told(KnockReceived)) == 21

    def test_a_flood_of_one_sender_costs_others_nothing(self, mesh: MemoryMesh) -> None:
        alice, bob, mallory = mesh.agent("alice"), mesh.agent("bob"), mesh.agent("mallory")
        for number in range(100):
            bob.receive(forged_knock(mallory, bob, number))
        alice.send(bob, "hello")
        mesh.settle()
        assert bob.payloads == ["hello"]

    def test_identities_are_free_so_newcomers_share_a_rate(self) -> None:
        mesh = MemoryMesh(receipts=True)
        alice, bob = mesh.agent("alice"), mesh.agent("bob", limits=Limits(newcomers_burst=30, newcomers_every=1.0))
        for number in range(50):
            bob.receive(forged_knock(mesh.agent(f"mallory {number}"), bob, number))
        assert len(bob.told(KnockReceived)) == 30
        alice.send(bob, "hello")  # an honest newcomer is turned down with the others, and comes again
        mesh.settle()
        assert bob.payloads == []
        for _ in range(20):
            mesh.clock.advance(5)
            for agent in (bob, alice):
                agent.core.tick(mesh.clock.now)
                agent.step()
            mesh.settle()
        assert bob.payloads == ["hello"]

    def test_no_flood_brings_an_old_opening_back(self) -> None:
        mesh = MemoryMesh()
        limits = Limits(spent_ephemerals=60, spent_per_peer=30, candidates_per_peer=2, knock_burst=1000)
        alice, bob = mesh.agent("alice"), mesh.agent("bob", limits=limits)
        mesh.directory[bob.did].one_time.clear()
        knock, message = opens(mesh, alice, bob)
        bob.receive(knock)
        bob.receive(message)
        talk(mesh, alice, bob, 40)
        for name in ("mallory", "molly", "mo"):
            flooder = mesh.agent(name)
            for number in range(200):
                bob.receive(forged_knock(flooder, bob, number))
        bob.receive(knock)
        bob.receive(changed(message, id="another"))
        assert bob.payloads.count("PAY 100") == 1


def test_openings_are_remembered_per_sender_and_the_greediest_forgets_first() -> None:
    limits = Limits(spent_ephemerals=10, spent_per_peer=6)
    spent = SpentOpenings((), limits)
    alice, mallory, molly = Did("did:mesh:a"), Did("did:mesh:b"), Did("did:mesh:c")
    spent.add(alice, b"one")
    for number in range(100):
        spent.add(mallory, b"%d" % number)
        spent.add(molly, b"%d" % number)
    assert (alice, b"one") in spent
    assert (mallory, b"99") in spent
    assert (mallory, b"0") not in spent
    assert (molly, b"one") not in spent
    assert len(spent) == 10


def test_a_store_that_keeps_twice_as_many_loses_none_of_them() -> None:
    limits = Limits(spent_ephemerals=10, spent_per_peer=6)
    window: deque[bytes] = deque(maxlen=20)
    spent = SpentOpenings((), limits)
    alice = Did("did:mesh:a")
    spent.add(alice, b"one")
    for number in range(200):
        spent.add(Did(f"did:mesh:{number % 3}"), b"%d" % number)
        window.extend(spent.changes())
        if number % 7 == 0:
            spent = SpentOpenings(newest(window), limits)  # a restart
        assert (alice, b"one") in spent


def test_the_store_keeps_twice_as_many_openings_as_a_client_remembers() -> None:
    assert 2 * Limits().spent_ephemerals == SPENT_KEPT


def test_a_profile_shows_no_token() -> None:
    identity = Identity.generate(SeededEntropy("x"))
    assert "S3CRET" not in repr(Profile(identity=identity, did=identity.did, token="S3CRET"))


@pytest.mark.parametrize("identifier", ["", "\x00", "line\nbreak", "\x7f", "\x85"])
def test_no_ack_names_an_id_that_is_none(mesh: MemoryMesh, identifier: str) -> None:
    alice, bob = mesh.agent("alice"), mesh.agent("bob")
    knock, message = opens(mesh, alice, bob)
    bob.core.writes()
    for raw in (knock, message):
        text = raw.replace(json.dumps(decode(raw).id).encode(), json.dumps(identifier).encode())
        assert text != raw
        bob.core.receive(text, mesh.clock.now)
    acks = [frame for frame in map(decode, bob.core.writes()) if isinstance(frame, frames.Ack)]
    assert acks == []


class TestAmplification:
    def test_knocking_again_and_again_does_not_make_us_send_everything_each_time(self) -> None:
        mesh = MemoryMesh(receipts=True)
        alice, bob = mesh.agent("alice", ack_when_saved=True), mesh.agent("bob", ack_when_saved=True)
        alice.send(bob, "hello")
        mesh.settle()
        sent = [alice.send(bob, number) for number in range(100)]
        mesh.inboxes[bob.did].clear()
        written = 0
        for _ in range(10):
            mesh.clock.advance(0.1)
            bob = mesh.restart(bob, keep_state=False)
            bob.send(alice, "again")
            while mesh.deliver(alice):
                pass
            written += sum(isinstance(decode(raw), frames.Message) for raw in mesh.inboxes[bob.did])
            mesh.inboxes[bob.did].clear()
        assert written <= 300
        bob.send(alice, "and now I listen")
        for _ in range(200):
            mesh.settle()
            mesh.clock.advance(1)
            for client in (alice, bob):
                client.core.tick(mesh.clock.now)
                client.step()
        assert sorted(one.payload for one in bob.received) == list(range(100))
        assert {one.id for one in bob.received} == set(sent)
        assert alice.core.outbox_size == 0


class TestForgottenPeers:
    def heard(self, mesh: MemoryMesh, bob: MemoryClient, name: str, **options: object) -> MemoryClient:
        peer = mesh.agent(name, **options)
        peer.send(bob, "hello")
        mesh.settle()
        bob.core.confirm(peer.did, MessageId(bob.received[-1].id))
        bob.step()
        return peer

    def test_peers_have_a_bound_and_the_longest_unused_goes_first(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob", limits=Limits(peers=5))
        first = self.heard(mesh, bob, "first")
        for number in range(3):
            self.heard(mesh, bob, f"peer{number}")
        first.send(bob, "still here")
        mesh.settle()
        for number in range(3, 7):
            self.heard(mesh, bob, f"peer{number}")
        kept = bob.store.load().peers
        assert len(kept) == 5
        assert first.did in kept

    def test_a_forgotten_peer_is_heard_again(self) -> None:
        mesh = MemoryMesh(receipts=True)
        bob = mesh.agent("bob", limits=Limits(peers=2), ack_when_saved=True)
        first = self.heard(mesh, bob, "first", ack_when_saved=True)
        for number in range(3):
            self.heard(mesh, bob, f"peer{number}")
        assert first.did not in bob.store.load().peers
        first.send(bob, "do you know me?")
        for _ in range(80):
            mesh.settle()
            mesh.clock.advance(0.25)
            for client in list(mesh.clients.values()):
                client.core.tick(mesh.clock.now)
                client.step()
        assert bob.payloads[-1] == "do you know me?"

    def test_who_is_written_to_is_never_forgotten(self) -> None:
        mesh = MemoryMesh(receipts=True)
        bob = mesh.agent("bob", limits=Limits(peers=2))
        friend = self.heard(mesh, bob, "friend")
        mesh.hold_back(friend)
        bob.send(friend, "waits")
        for number in range(6):
            self.heard(mesh, bob, f"peer{number}")
        assert friend.did in bob.store.load().peers

    def test_a_flood_of_peers_replaces_no_pin_and_brings_no_plaintext_back(self, mesh: MemoryMesh) -> None:
        plain = mesh.agent("plain")
        bob = mesh.agent("bob", limits=Limits(peers=4), plaintext_peers=frozenset({plain.did}))
        plain.send(bob, "sealed")
        mesh.settle()
        old = self.heard(mesh, bob, "old", did=Did("did:agentmesh:old"), dialect=Dialect.AGT4)
        for number in range(6):
            self.heard(mesh, bob, f"peer{number}")
        assert bob.core.peer(old.did).pinned is not None
        assert not bob.core.speaks_plaintext_with(plain.did)

    def test_pins_have_the_bound_too(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob", limits=Limits(peers=4))
        for number in range(8):
            self.heard(mesh, bob, f"old{number}", did=Did(f"did:agentmesh:{number}"), dialect=Dialect.AGT4)
        assert len(bob.store.load().peers) == 4
