"""What a client counts: everything once, by a bounded number of labels."""

from dataclasses import replace

import pytest

from meshlib.client.counters import LABELS, TROUBLES, Counters
from meshlib.client.events import DeliveryChanged, DeliveryState, Disconnected, FaultFound, KnockRejected, SessionLost
from meshlib.client.sightings import look_up
from meshlib.client.stats import ClientStats
from meshlib.daemon.values import read, write
from meshlib.identity import Did
from meshlib.testing import MemoryClient, MemoryMesh
from meshlib.wire import frames
from meshlib.wire.codec import decode, encode, written_type
from meshlib.wire.encoding import MessageId

PEER = Did("did:mesh:00000000000000000000000000000000")
ID = MessageId("m-1")


@pytest.fixture
def mesh() -> MemoryMesh:
    return MemoryMesh("counters", receipts=True)


def counted(mesh: MemoryMesh) -> tuple[Counters, MemoryClient]:
    return Counters(lambda: mesh.clock.now), mesh.agent("alice")


def stats_of(client: MemoryClient) -> ClientStats:
    return Counters(lambda: client.mesh.clock.now).stats(client.core)


@pytest.mark.parametrize(
    "frame",
    [
        frames.Message(PEER, PEER, ID, "t", frames.MessageHeader(bytes(32), 0, 0), b"x"),
        frames.PlaintextMessage(PEER, PEER, ID, "t", b'"x"'),
        frames.Knock(PEER, PEER, ID, "t", None),
        frames.KnockAccept(PEER, PEER, ID, ID, "t"),
        frames.KnockReject(PEER, PEER, ID, ID, "policy_denied", "t", None),
        frames.Connect(PEER, None, None, None, (), None),
        frames.FetchPending(PEER),
        frames.Heartbeat(PEER, "t"),
        frames.Disconnect(PEER),
        frames.Ack(ID, False, PEER),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_frame_is_counted_under_its_name_on_the_wire(frame: frames.Frame) -> None:
    raw = encode(frame)
    assert written_type(raw).decode() == frames.TYPES[type(frame)]
    assert frames.TYPES[type(decode(raw))] == frames.TYPES[type(frame)]


def test_frames_and_bytes_are_counted_by_direction(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    raw = [encode(frames.Heartbeat(PEER, "t")), encode(frames.Ack(ID)), encode(frames.Ack(ID))]
    counters.sent(raw)
    before = alice.core.bytes_received
    for one in raw:
        alice.core.receive(one, mesh.clock.now)
    stats = counters.stats(alice.core)
    assert stats.frames_sent == {"ack": 2, "heartbeat": 1}
    assert stats.bytes_sent == stats.bytes_received - before == sum(map(len, raw))
    assert stats.frames_received["ack"] == 2


def test_frames_of_a_batch_and_of_a_later_day_are_counted(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    alice.core.receive(b'{"v":1,"type":"pending_messages","messages":[{"v":1,"type":"new"}]}', mesh.clock.now)
    received = counters.stats(alice.core).frames_received
    assert (received["pending_messages"], received["other"]) == (1, 1)


def test_age_of_the_oldest_outlives_a_restart(mesh: MemoryMesh) -> None:
    alice, bob = mesh.agent("alice", connect=False), mesh.agent("bob")
    assert stats_of(alice).oldest_undelivered is None
    alice.send(bob, "first")
    mesh.clock.advance(60)
    alice.send(bob, "second")
    assert stats_of(alice).oldest_undelivered == 60
    mesh.clock.advance(5)
    again = mesh.restart(alice)
    assert (stats_of(again).outbox, stats_of(again).oldest_undelivered) == (2, 65)


def test_session_states_are_counted(mesh: MemoryMesh) -> None:
    alice, bob = mesh.agent("alice"), mesh.agent("bob")
    assert stats_of(alice).peers == {}
    alice.send(bob, "hello")
    mesh.settle()
    assert stats_of(alice).peers == stats_of(bob).peers == {"open": 1}
    alice.core.close_session(bob.did)
    assert stats_of(alice).peers == {"none": 1}


def test_deliveries_are_counted_by_state(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    for state in (DeliveryState.RELAYED, DeliveryState.QUEUED, DeliveryState.RELAYED, DeliveryState.DELIVERED):
        counters.told(DeliveryChanged(PEER, ID, state))
    counters.told(DeliveryChanged(PEER, ID, DeliveryState.REFUSED))
    stats = counters.stats(alice.core)
    assert stats.receipts == {"delivered": 1, "unread": 1, "refused": 1, "relayed": 2}
    assert stats.refusals == {"relay": 1}


def test_unreadable_messages_are_counted_by_reason(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    bob = mesh.agent("bob")
    alice.send(bob, "hello")
    mesh.settle()
    forged = frames.Message(
        bob.did, alice.did, MessageId("f"), "t", frames.MessageHeader(bytes([9] * 32), 0, 0), b"x" * 40
    )
    alice.core.receive(encode(forged), mesh.clock.now)
    alice.core.receive(encode(frames.PlaintextMessage(bob.did, alice.did, ID, "t", b'"x"')), mesh.clock.now)
    alice.core.receive(b"\xff", mesh.clock.now)
    for event in alice.core.events():
        counters.told(event)
    stats = counters.stats(alice.core)
    assert stats.decrypt_failures == {"not_authentic": 1, "not_encrypted": 1}
    assert stats.faults == {"decrypt": 2, "frame": 1}
    assert (stats.held, stats.troubles[0].kind) == (1, "decrypt")


def test_labels_that_others_choose_are_bounded(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    for number in range(10 * LABELS):
        counters.told(KnockRejected(PEER, f"reason {number}"))
        counters.told(Disconnected(number, "", retrying=True))
        counters.told(SessionLost(PEER, f"reason {number}"))
    stats = counters.stats(alice.core)
    for counts in (stats.refusals, stats.disconnects):
        assert len(counts) == LABELS + 1
        assert sum(counts.values()) == 10 * LABELS
    assert (stats.sessions_lost, len(stats.troubles)) == (10 * LABELS, TROUBLES)


def test_trouble_that_goes_on_is_told_once_with_its_last_time(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    began = mesh.clock.now.utc
    counters.told(FaultFound("registry", "no bundle"))
    for _ in range(100):
        mesh.clock.advance(1)
        counters.not_connected("no answer")
    stats = counters.stats(alice.core)
    assert [(one.kind, one.at - began) for one in stats.troubles] == [("registry", 0), ("connect", 100)]
    assert stats.connect_failures == 100


def test_stats_travel_to_a_daemons_client_unchanged(mesh: MemoryMesh) -> None:
    counters, alice = counted(mesh)
    counters.sent([encode(frames.Ack(ID))])
    counters.saved(0.25)
    counters.not_connected("no answer")
    stats = replace(counters.stats(alice.core), one_time_keys_published=7)
    assert read(ClientStats, write(stats)) == stats


class TestSightings:
    def test_message_is_seen_at_both_ends(self, mesh: MemoryMesh) -> None:
        alice, bob = mesh.agent("alice", connect=False), mesh.agent("bob")
        message = MessageId(alice.send(bob, "hello"))
        (sent,) = look_up(alice.core, message)
        assert (sent.direction, sent.peer, sent.state, sent.encrypted) == ("sent", bob.did, "queued", False)
        assert (sent.size, sent.queued) == (len('"hello"'), mesh.clock.now.utc)
        alice.connect()
        mesh.settle()
        assert [one.state for one in look_up(alice.core, message)] == ["relayed"]
        assert [one.state for one in look_up(bob.core, message)] == ["handed_over"]
        bob.core.confirm(alice.did, message)
        bob.step()
        mesh.settle()
        assert [one.state for one in look_up(alice.core, message)] == ["delivered"]
        assert [one.state for one in look_up(bob.core, message)] == ["acked"]

    def test_received_one_goes_from_received_to_acked(self, mesh: MemoryMesh) -> None:
        bob = mesh.agent("bob")
        bob.core.leave_notice(PEER, ID, "hello")
        assert [one.state for one in look_up(bob.core, ID)] == ["received"]
        bob.core.messages()
        assert [one.state for one in look_up(bob.core, ID)] == ["handed_over"]
        bob.core.confirm(PEER, ID)
        assert [one.state for one in look_up(bob.core, ID)] == ["acked"]

    def test_unknown_one_is_not_seen(self, mesh: MemoryMesh) -> None:
        assert look_up(mesh.agent("alice").core, ID) == ()
