"""Routing, keeping, acking and replaying, one transition at a time: pitfalls 4, 22 to 28."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mesh_relay.core import Close, Send
from mesh_relay.links import Link
from mesh_relay.records import Load, Work

from meshlib.clock import Instant
from meshlib.identity import Did, Identity
from tests.unit.mesh_relay.kit import ALICE, BOB, CAROL, MALLORY, Relay, ack, connect_frame, dump, message

FEATURES = ["receipts", "challenge"]
FETCH = dump({"v": 1, "type": "fetch_pending", "from": BOB.did})


@pytest.fixture
def relay() -> Relay:
    return Relay()


def test_a_live_frame_is_forwarded_byte_for_byte(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    frame = b' { "type" :"message","to":"%s", "from":"%s","id":"1","x":"\xe2\x80\xa8", "n":1.0 }' % (
        BOB.did.encode(),
        ALICE.did.encode(),
    )
    relay.say(alice, frame)
    assert relay.raw[bob] == [frame]


@pytest.mark.parametrize("kind", ["message", "knock", "knock_accept", "knock_reject"])
def test_all_routed_types_travel_and_wait(relay: Relay, kind: str) -> None:
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "1", kind=kind))
    relay.commit()
    bob = relay.join(BOB)
    relay.commit()
    assert [frame["type"] for frame in relay.got[bob]] == [kind]


def test_a_missing_from_is_stamped(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    assert relay.got[bob][0]["from"] == ALICE.did


def test_what_is_sent_to_a_socket_in_a_row_is_one_effect_and_closing_ends_the_row(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    for number in range(3):
        relay.core.receive(alice, message(BOB.did, str(number)), relay.now)
        relay.core.receive(alice, b"{}", relay.now)
    relay.core.receive(alice, b'{"type":"disconnect"}', relay.now)
    relay.core.receive(alice, b"{}", relay.now)
    relay.core.receive(bob, b"{}", relay.now)
    effects = relay.core.effects()
    assert [(type(effect), effect.link) for effect in effects] == [(Send, bob), (Send, alice), (Close, alice)]
    assert [len(effect.payloads) for effect in effects if isinstance(effect, Send)] == [4, 3]
    relay.core.receive(bob, b"{}", relay.now)
    (effect,) = relay.core.effects()
    assert isinstance(effect, Send)
    assert len(effect.payloads) == 1


def test_a_foreign_from_is_dropped_with_an_error(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", sender=CAROL.did))
    assert relay.got[bob] == []
    assert relay.got[alice] == [{"type": "error", "detail": "from is not the DID of this connection", "id": "1"}]


BAD_FRAMES = [
    b"[1,2]",
    b"null",
    b"17",
    b'"text"',
    b"",
    b"\xff\xfe",
    b'{"type":"message","to":{}}',
    b'{"type":"message"}',
    dump({"type": "message", "to": BOB.did}),
    dump({"type": "message", "to": BOB.did, "id": ""}),
    dump({"type": "message", "to": BOB.did, "id": "x" * 129}),
    dump({"type": "message", "to": BOB.did, "id": 5}),
    dump({"type": "message", "to": "bob", "id": "1"}),
    dump({"type": "message", "to": "did:x:" + "y" * 300, "id": "1"}),
    dump({"type": "message", "to": "did:x:a b", "id": "1"}),
    dump({"type": "message", "id": "1"}),
    dump({"type": "message", "to": BOB.did, "id": "1", "from": None}),
    dump({"type": "ack"}),
    dump({"type": "unheard of"}),
    dump({"type": None}),
    dump({}),
    b'{"type":"message","to":"did:x:y","id":"1","x":NaN}',
    b"[" * 100_000,
    connect_frame(ALICE, 0.0),
]


@pytest.mark.parametrize("frame", BAD_FRAMES)
def test_a_bad_frame_gets_an_error_and_costs_nothing_else(relay: Relay, frame: bytes) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, frame, message(BOB.did, "good"))
    assert relay.closed == {}
    assert len(relay.errors(alice)) == 1
    assert relay.ids(bob) == ["good"]
    assert relay.core.kept[0] == 1


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_bytes_never_raise_nor_reach_anyone(frames: list[bytes]) -> None:
    relay = Relay()
    alice, bob, stranger = relay.join(ALICE), relay.join(BOB), relay.open()
    relay.say(alice, *frames)
    relay.say(stranger, *frames)
    relay.commit()
    assert relay.got[bob] == []
    assert set(relay.closed) <= {stranger}
    assert relay.core.kept == (0, 0, 0)


# --- keeping and replaying --------------------------------------------------------------------------------------------


def test_a_frame_forwarded_live_is_kept_until_it_is_acked(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"))
    relay.say(bob, ack("1"))
    relay.commit()
    relay.core.lost(bob)
    again = relay.join(BOB)
    relay.commit()
    assert relay.ids(again) == ["2"]


def test_a_frame_acked_before_its_commit_never_reaches_the_inbox(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.commit()
    relay.say(alice, message(BOB.did, "1"))
    relay.say(bob, ack("1"))
    work = relay.core.take_work(relay.now, everything=True)
    assert (work.frames, work.removals) == ([], [])


def test_most_frames_get_a_moment_to_be_acked_and_none_more_than_one(relay: Relay) -> None:
    alice = relay.join(ALICE)
    relay.commit()
    relay.say(alice, message(BOB.did, "1"))
    for expected in ([], ["1"]):
        work = relay.core.take_work(relay.now)
        assert [stored.id for stored in work.frames] == expected
        relay.core.stored(work, relay.inbox.run(work), relay.now)


def test_a_frame_acked_during_its_commit_is_removed_after(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    work = relay.core.take_work(relay.now, everything=True)
    relay.say(bob, ack("1"))
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.inbox.open().usage == []


def test_everything_kept_survives_a_restart_in_order(relay: Relay) -> None:
    alice, carol = relay.join(ALICE), relay.join(CAROL)
    for number in range(20):
        relay.say(alice if number % 3 else carol, message(BOB.did, str(number)))
    relay.commit()
    restarted = Relay(relay.inbox, page_frames=3)
    bob = restarted.join(BOB)
    restarted.commit()
    assert restarted.ids(bob) == [str(number) for number in range(20)]


def test_fetch_pending_repeats_nothing_and_is_answered(relay: Relay) -> None:
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "1"))
    relay.commit()
    bob = relay.join(BOB)
    relay.say(bob, FETCH)  # as the SDK does: in the same breath
    relay.commit()
    relay.say(bob, FETCH)
    relay.commit()
    assert [frame["type"] for frame in relay.got[bob]] == ["message", "pending_messages", "pending_messages"]
    assert relay.got[bob][1]["messages"] == []


@pytest.mark.parametrize("arrival", ["before the transaction", "during the transaction", "after it"])
def test_live_frames_do_not_overtake_stored_ones(arrival: str) -> None:
    relay = Relay(page_frames=2)
    alice = relay.join(ALICE)
    relay.say(alice, *(message(BOB.did, str(number)) for number in range(5)))
    relay.commit()
    bob = relay.join(BOB)
    live = message(BOB.did, "live")
    if arrival == "before the transaction":
        relay.say(alice, live)
    work = relay.core.take_work(relay.now)
    if arrival == "during the transaction":
        relay.say(alice, live)
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    if arrival == "after it":
        relay.say(alice, live)
    relay.commit(everything=False)
    assert relay.ids(bob) == ["0", "1", "2", "3", "4", "live"]
    relay.say(alice, message(BOB.did, "later"))
    assert relay.ids(bob)[-1] == "later"


def test_a_slow_reader_spills_to_its_inbox_and_catches_up_without_reconnecting() -> None:
    relay = Relay(outgoing_high=1000, outgoing_low=100)
    alice, bob, carol = relay.join(ALICE), relay.join(BOB), relay.join(CAROL)
    relay.stalled.add(bob)
    for number in range(50):
        relay.say(alice, message(BOB.did, f"{number}", body="x" * 100), message(CAROL.did, f"{number}"))
    relay.commit()
    assert 3 < len(relay.ids(bob)) < 10  # what was under way when the queue was full
    assert len(relay.ids(carol)) == 50
    relay.drain(bob)
    relay.commit()
    assert relay.ids(bob) == [str(number) for number in range(50)]
    relay.say(alice, message(BOB.did, "live"))
    assert relay.ids(bob)[-1] == "live"


def test_a_reader_that_stalls_while_catching_up_gets_each_frame_once() -> None:
    relay = Relay(outgoing_high=1000, outgoing_low=100, page_bytes=2000)
    alice = relay.join(ALICE)
    relay.say(alice, *(message(BOB.did, str(number), body="x" * 100) for number in range(50)))
    relay.commit()
    bob = relay.join(BOB)
    for _ in range(60):
        relay.stalled.add(bob)
        relay.commit()
        relay.drain(bob)
    assert relay.ids(bob) == [str(number) for number in range(50)]


def test_a_retransmission_while_its_recipient_catches_up_is_not_delivered_twice(relay: Relay) -> None:
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "1"))
    relay.commit()
    bob = relay.join(BOB)
    work = relay.core.take_work(relay.now)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"))
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.commit()
    assert relay.ids(bob) == ["1", "2"]
    assert relay.core.kept[0] == 2


@pytest.mark.parametrize("acked", ["at once", "before the next transaction", "never"])
@pytest.mark.parametrize("page_frames", [1, 512])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_copy_sent_while_its_recipient_catches_up_leaves_nothing_behind(
    acked: str, page_frames: int, copies: int
) -> None:
    """After a restart the relay knows of the stored frame only what its pages say."""
    before = Relay()
    before.say(before.join(ALICE), message(BOB.did, "1"), message(BOB.did, "2"))
    before.commit()
    relay = Relay(before.inbox, page_frames=page_frames)
    relay.wait(1)
    relay.commit()
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB, FEATURES)
    work = relay.core.take_work(relay.now)
    relay.say(alice, *[message(BOB.did, "1")] * copies)
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    if acked == "at once":
        relay.say(bob, ack("1"))
    work = relay.core.take_work(relay.now)
    if acked == "before the next transaction":
        relay.say(bob, ack("1"))
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    relay.commit()
    assert relay.ids(bob) == ["1", "2"]
    assert relay.receipts(alice)
    assert relay.core.kept[0] == (2 if acked == "never" else 1)
    relay.core.lost(bob)
    again = relay.join(BOB, FEATURES)
    relay.commit()
    assert relay.ids(again) == (["1", "2"] if acked == "never" else ["2"])
    assert relay.core.uncommitted == 0


def test_of_two_copies_in_memory_only_one_is_kept(relay: Relay) -> None:
    relay.say(relay.join(ALICE), message(BOB.did, "0"))
    relay.commit()
    bob, alice = relay.join(BOB), relay.join(ALICE)
    work = relay.core.take_work(relay.now)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "1"))
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    relay.say(bob, ack("0"), ack("1"))
    relay.commit()
    assert relay.ids(bob) == ["0", "1"]
    assert relay.core.kept == (0, 0, 0)


def test_catching_up_with_what_is_in_memory_minds_the_slow_reader() -> None:
    relay = Relay(outgoing_high=1000, outgoing_low=100)
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "first"))
    bob = relay.join(BOB)
    relay.stalled.add(bob)
    work = relay.core.take_work(relay.now, everything=True)
    relay.say(alice, *(message(BOB.did, str(number), body="x" * 100) for number in range(50)))
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    assert 1 < len(relay.ids(bob)) < 10
    relay.drain(bob)
    relay.commit()
    assert relay.ids(bob) == ["first", *(str(number) for number in range(50))]


def test_a_frame_pushed_to_a_socket_that_died_before_its_commit_reaches_the_next_socket(relay: Relay) -> None:
    alice, dead = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    assert relay.ids(dead) == ["1"]
    bob = relay.join(BOB)
    work = relay.core.take_work(relay.now)  # reads the page; the frame waits for the next transaction
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    assert relay.ids(bob) == ["1"]


def test_a_page_for_a_connection_that_is_gone_is_not_pushed(relay: Relay) -> None:
    relay.say(relay.join(ALICE), message(BOB.did, "1"))
    relay.commit()
    bob = relay.join(BOB)
    work = relay.core.take_work(relay.now)
    relay.core.lost(bob)
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.carry_out()
    assert relay.got[bob] == []
    again = relay.join(BOB)
    relay.commit()
    assert relay.ids(again) == ["1"]


def test_a_page_that_could_not_be_read_is_read_again(relay: Relay) -> None:
    relay.say(relay.join(ALICE), message(BOB.did, "1"))
    relay.commit()
    bob = relay.join(BOB)
    relay.core.failed(relay.core.take_work(relay.now))
    relay.commit()
    assert relay.ids(bob) == ["1"]


# --- acks -------------------------------------------------------------------------------------------------------------


def test_only_the_recipient_can_ack(relay: Relay) -> None:
    alice, bob, carol = relay.join(ALICE), relay.join(BOB), relay.join(CAROL)
    relay.say(alice, message(BOB.did, "1"))
    relay.say(alice, ack("1"))
    relay.say(carol, ack("1", **{"from": BOB.did}))
    assert relay.core.kept[0] == 1
    relay.say(bob, ack("1"))
    assert relay.core.kept[0] == 0


def test_an_id_claimed_by_another_sender_harms_nobody(relay: Relay) -> None:
    alice, carol = relay.join(ALICE), relay.join(CAROL)
    relay.say(carol, message(BOB.did, "1", body="carol"))
    relay.say(alice, message(BOB.did, "1", body="alice"))
    relay.commit()
    bob = relay.join(BOB)
    relay.commit()
    assert [frame["body"] for frame in relay.got[bob]] == ["carol", "alice"]


def test_an_ack_does_not_remove_another_senders_frame_that_was_not_pushed_yet() -> None:
    relay = Relay(outgoing_high=100, outgoing_low=10)
    alice, carol, bob = relay.join(ALICE), relay.join(CAROL), relay.join(BOB)
    relay.stalled.add(bob)
    relay.say(carol, message(BOB.did, "1", body="carol" * 50))
    relay.say(alice, message(BOB.did, "1", body="alice"))  # bob is behind: not pushed
    relay.say(bob, ack("1"))
    relay.drain(bob)
    relay.commit()
    assert [frame["body"] for frame in relay.got[bob]] == ["carol" * 50, "alice"]
    assert relay.core.kept[0] == 1


@pytest.mark.parametrize(
    ("named", "left"), [(None, [ALICE]), (ALICE, [CAROL]), (CAROL, [ALICE]), (BOB, [ALICE]), (MALLORY, [CAROL, ALICE])]
)
@pytest.mark.parametrize("features", [None, FEATURES])
def test_an_ack_removes_one_frame_the_named_senders_or_else_the_oldest(
    relay: Relay, named: Identity | None, left: list[Identity], features: list[str] | None
) -> None:
    """Otherwise who uses another's id has the recipient delete what it has not read."""
    alice, carol, bob = relay.join(ALICE, FEATURES), relay.join(CAROL, FEATURES), relay.join(BOB, features)
    relay.say(carol, message(BOB.did, "1"))
    relay.say(alice, message(BOB.did, "1"))
    relay.say(bob, ack("1", **({"from": named.did} if named else {})))
    assert relay.core.kept[0] == len(left)
    assert (relay.receipts(alice) == []) is (ALICE in left)
    assert (relay.receipts(carol) == []) is (CAROL in left)
    relay.core.lost(bob)
    again = relay.join(BOB, features)
    relay.commit()
    assert [frame["from"] for frame in relay.got[again] if frame["type"] == "message"] == [who.did for who in left]


def test_an_ack_without_sender_does_not_take_a_replacement_for_the_oldest(relay: Relay) -> None:
    alice, carol, bob = relay.join(ALICE), relay.join(CAROL), relay.join(BOB, FEATURES)
    relay.say(carol, message(BOB.did, "1", body="old"))
    relay.say(alice, message(BOB.did, "1"))
    relay.say(carol, message(BOB.did, "1", body="new"))
    relay.say(bob, ack("1"))
    relay.commit()
    assert [usage.sender for usage in relay.inbox.open().usage] == [CAROL.did]


def test_who_acks_messages_alone_does_not_mean_a_knock_of_the_same_id(relay: Relay) -> None:
    alice, carol, bob = relay.join(ALICE), relay.join(CAROL), relay.join(BOB)
    relay.say(carol, message(BOB.did, "1", kind="knock"))
    relay.say(alice, message(BOB.did, "1"))
    relay.say(carol, message(BOB.did, "2"))
    relay.say(bob, ack("1"))
    assert relay.core.kept[0] == 1  # carol's message: alice's was acked, and the knock is overtaken


def test_an_ack_naming_another_sender_removes_nothing(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    relay.say(bob, ack("1", **{"from": CAROL.did}))
    assert relay.core.kept[0] == 1
    relay.say(bob, ack("1", **{"from": ALICE.did}))
    assert relay.core.kept[0] == 0


def test_an_ack_that_comes_on_the_next_connection_counts_and_prevents_the_replay(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"))
    relay.commit()
    relay.core.lost(bob)
    again = relay.join(BOB)
    relay.say(again, ack("1"))
    relay.commit()
    assert relay.ids(again) == ["2"]


def test_acking_twice_or_something_unknown_is_no_error(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    relay.say(bob, ack("1"), ack("1"), ack("never"))
    assert relay.errors(bob) == []
    assert relay.core.counters.delivered == 1


# --- retransmissions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["pending", "stored", "acked", "offline", "reconnected"])
def test_the_same_bytes_are_not_delivered_twice(relay: Relay, when: str) -> None:
    """An SDK ends its session over a duplicate."""
    alice = relay.join(ALICE, FEATURES)
    bob = None if when == "offline" else relay.join(BOB)
    frame = message(BOB.did, "1", body="x")
    relay.say(alice, frame)
    if when != "pending":
        relay.commit()
    if when == "acked" and bob:
        relay.say(bob, ack("1"))
    if when == "reconnected" and bob:
        relay.core.lost(bob)
        bob = relay.join(BOB)
    relay.say(alice, frame)
    bob = bob or relay.join(BOB)
    relay.commit()
    assert relay.ids(bob).count("1") == 1
    assert relay.core.kept[0] == (0 if when == "acked" else 1)
    state = "delivered" if when == "acked" else "stored"
    assert relay.receipts(alice)[-1] == ("1", state)
    if when != "acked":
        relay.say(bob, ack("1"))
        relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.inbox.open().usage == []


@pytest.mark.parametrize("when", ["pending", "stored", "acked", "offline", "reconnected"])
def test_a_message_encrypted_anew_takes_the_place_of_the_old_one(relay: Relay, when: str) -> None:
    alice = relay.join(ALICE)
    bob = None if when == "offline" else relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", body="old"), message(BOB.did, "2"))
    if when != "pending":
        relay.commit()
    if when == "acked" and bob:
        relay.say(bob, ack("1"))
    if when == "reconnected" and bob:
        relay.core.lost(bob)
    relay.say(alice, message(BOB.did, "1", body="new"))
    if when in ("offline", "reconnected"):
        bob = relay.join(BOB)
    assert bob
    relay.commit()
    assert [frame.get("body") for frame in relay.got[bob] if frame["id"] == "1"][-1] == "new"
    assert relay.core.kept[0] == 2
    relay.core.lost(bob)
    again = relay.join(BOB)
    relay.commit()
    assert [(frame["id"], frame.get("body")) for frame in relay.got[again]] == [("2", None), ("1", "new")]
    relay.say(again, ack("1"), ack("2"))
    relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.inbox.open().usage == []


def inbox_bodies(relay: Relay) -> list[str]:
    """What a relay killed now would find."""
    page = relay.inbox.run(Work(loads=[Load(BOB.did, 0)], page_frames=100, page_bytes=100_000)).pages[0]
    return [json.loads(frame)["body"] for *_, frame in page.frames]


@pytest.mark.parametrize("failing", [(), (1,), (0, 1), (2,)])
def test_a_stored_frame_stays_until_its_replacement_is(relay: Relay, failing: tuple[int, ...]) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", body="0"))
    relay.commit()
    for step in range(6):
        if step in (0, 1, 3):
            relay.say(alice, message(BOB.did, "1", body=str(step + 1)))
        work = relay.core.take_work(relay.now)
        if step in failing:
            relay.core.failed(work)
        else:
            relay.core.stored(work, relay.inbox.run(work), relay.now)
        assert len(inbox_bodies(relay)) == 1
        assert relay.core.kept[0] == 1
    assert inbox_bodies(relay) == ["4"]
    relay.say(bob, ack("1"))
    relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.inbox.open().usage == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_replacement_of_the_replacement_under_way_loses_nothing(relay: Relay, fails: bool) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", body="old"))
    relay.commit()
    relay.say(alice, message(BOB.did, "1", body="new"))
    work = relay.core.take_work(relay.now, everything=True)
    relay.say(alice, message(BOB.did, "1", body="old"))
    if fails:
        relay.core.failed(work)
    else:
        relay.core.stored(work, relay.inbox.run(work), relay.now)
    assert len(inbox_bodies(relay)) == 1
    work = relay.core.take_work(relay.now)
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    assert len(inbox_bodies(relay)) == 1
    relay.core.lost(bob)
    relay.commit()
    assert inbox_bodies(relay) == ["old"]
    again = relay.join(BOB)
    relay.commit()
    assert relay.ids(again) == ["1"]
    relay.say(again, ack("1"))
    relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.core.uncommitted == 0
    assert relay.inbox.open().usage == []


def test_the_ack_of_a_replacement_not_stored_yet_removes_what_it_replaced(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    for body in ("a", "b", "c"):
        relay.say(alice, message(BOB.did, "1", body=body))
        if body == "a":
            relay.commit()
    relay.say(bob, ack("1"))
    relay.commit()
    assert inbox_bodies(relay) == []
    assert relay.core.kept == (0, 0, 0)


def test_a_frame_is_not_read_from_the_inbox_once_its_replacement_has_come(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", body="old"))
    relay.commit()
    relay.say(alice, message(BOB.did, "1", body="new"))
    relay.core.lost(bob)
    again = relay.join(BOB)
    relay.commit(everything=False)
    assert [frame["body"] for frame in relay.got[again]] == ["new"]


def test_a_replacement_beyond_the_quota_is_refused_and_the_old_one_stays() -> None:
    relay = Relay(pair_bytes=1000)
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", body="old"))
    relay.commit()
    relay.say(alice, message(BOB.did, "1", body="x" * 1000))
    assert relay.receipts(alice)[-1] == ("1", "refused")
    relay.say(bob, ack("1"))
    assert relay.receipts(alice)[-1] == ("1", "delivered")
    relay.commit()
    assert relay.core.kept == (0, 0, 0)


@pytest.mark.parametrize("limits", [{"pair_frames": 1}, {"pair_bytes": 800}, {"total_frames": 1}, {"total_bytes": 800}])
def test_a_replacement_needs_only_the_room_it_adds(limits: dict[str, Any]) -> None:
    relay = Relay(**limits)
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1", body="x" * 400))
    relay.commit()
    relay.say(alice, message(BOB.did, "1", body="y" * 400))
    assert relay.errors(alice) == []
    assert len(relay.ids(bob)) == 2


def test_who_acks_much_does_not_make_the_relay_forget_what_others_acked() -> None:
    relay = Relay(acked_each=10)
    alice, bob, carol = relay.join(ALICE), relay.join(BOB), relay.join(CAROL)
    relay.say(alice, message(BOB.did, "1"))
    relay.say(bob, ack("1"))
    for number in range(1000):
        relay.say(carol, message(CAROL.did, str(number)))
        relay.say(carol, ack(str(number)))
    relay.say(alice, message(BOB.did, "1"))
    assert relay.ids(bob) == ["1"]
    relay.say(carol, message(CAROL.did, "999"), message(CAROL.did, "1"))
    assert relay.ids(carol)[1000:] == ["1"]
    assert len(relay.core.acked) <= 11
    relay.wait(700)
    assert len(relay.core.acked) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), max_size=80))
@example([(recipient, number) for recipient in range(5) for number in range(3)])  # nothing is old when it is full
def test_the_memory_of_acks_is_bounded(acked: list[tuple[int, int]]) -> None:
    relay = Relay(acked_each=6, acked_memory=12)
    for recipient, number in acked:
        relay.core.acked.add(Did(f"did:x:{recipient}"), ALICE.did, [(str(number), 7)])
        assert len(relay.core.acked) <= 12


# --- receipts ---------------------------------------------------------------------------------------------------------


def test_stored_is_said_after_the_commit_and_delivered_after_the_ack(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    assert relay.receipts(alice) == []
    relay.commit()
    assert relay.receipts(alice) == [("1", "stored")]
    relay.say(bob, ack("1"))
    assert relay.receipts(alice) == [("1", "stored"), ("1", "delivered")]


def test_stored_is_not_said_when_delivered_was(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    work = relay.core.take_work(relay.now, everything=True)
    relay.say(bob, ack("1"))
    relay.core.stored(work, relay.inbox.run(work), relay.now)
    relay.commit()
    assert relay.receipts(alice) == [("1", "delivered")]


def test_receipts_go_to_the_senders_newest_connection_and_only_if_wanted(relay: Relay) -> None:
    first = relay.join(ALICE, FEATURES)
    relay.say(first, message(BOB.did, "1"))
    relay.commit()
    second = relay.join(ALICE, FEATURES)
    bob = relay.join(BOB)
    relay.commit()
    relay.say(bob, ack("1"), message(ALICE.did, "2"))
    relay.say(second, ack("2"))
    assert relay.receipts(second) == [("1", "delivered")]
    assert relay.receipts(bob) == []


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_newer_connection_replaces_the_older_one(relay: Relay) -> None:
    old = relay.join(BOB)
    new = relay.join(BOB)
    relay.core.lost(old)  # its socket closes a moment later
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "1"))
    assert relay.closed[old][0] == 4006
    assert relay.ids(new) == ["1"]
    assert relay.core.connected == 2


def test_nothing_is_taken_from_a_replaced_connection(relay: Relay) -> None:
    old, alice = relay.join(BOB), relay.join(ALICE)
    relay.join(BOB)
    relay.say(old, message(ALICE.did, "1"))
    assert relay.ids(alice) == []


def test_disconnect_closes_1000(relay: Relay) -> None:
    bob = relay.join(BOB)
    relay.say(bob, dump({"v": 1, "type": "disconnect", "from": BOB.did}))
    assert relay.closed[bob][0] == 1000
    assert relay.core.connected == 0


def test_heartbeats_are_not_answered(relay: Relay) -> None:
    bob = relay.join(BOB)
    relay.say(bob, dump({"v": 1, "type": "heartbeat", "from": BOB.did, "ts": "x"}))
    assert relay.got[bob] == []


def test_ninety_seconds_of_silence_close_4004(relay: Relay) -> None:
    bob = relay.join(BOB)
    relay.wait(89)
    assert relay.closed == {}
    relay.wait(2)
    assert relay.closed[bob][0] == 4004


@pytest.mark.parametrize("frame", [ack("x"), FETCH, message(ALICE.did, "1"), b"junk"])
def test_any_frame_is_life(relay: Relay, frame: bytes) -> None:
    bob = relay.join(BOB)
    for _ in range(5):
        relay.wait(60)
        relay.say(bob, frame)
    assert relay.closed == {}


def test_a_websocket_ping_is_life(relay: Relay) -> None:
    relay.join(BOB)
    for _ in range(5):
        relay.wait(60)
        relay.core.heard(next(iter(relay.got)), 0, relay.now)
    assert relay.closed == {}


def test_an_unread_frame_is_reported_and_its_new_encryption_arrives(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, features=FEATURES), relay.join(BOB, features=FEATURES)
    relay.say(alice, message(BOB.did, "1", ciphertext="b2xk"))
    relay.say(bob, dump({"v": 1, "type": "ack", "id": "1", "unread": True}))
    assert relay.receipts(alice)[-1] == ("1", "unread")
    relay.say(alice, message(BOB.did, "1", ciphertext="bmV3"))
    assert len(relay.frames(bob, "message")) == 2


def unread(frame_id: str) -> bytes:
    return dump({"v": 1, "type": "ack", "id": frame_id, "from": ALICE.did, "unread": True})


def test_a_complaint_about_an_older_copy_leaves_the_newer_one(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, features=FEATURES), relay.join(BOB, features=FEATURES)
    relay.say(alice, message(BOB.did, "1", ciphertext="b2xk"), message(BOB.did, "2", ciphertext="b2xk"))
    relay.say(alice, message(BOB.did, "1", ciphertext="bmV3"), message(BOB.did, "2", ciphertext="bmV3"))
    relay.commit()
    relay.say(bob, unread("1"))  # of the old copy; without the new one "2" would come before "1"
    assert ("1", "unread") not in relay.receipts(alice)
    relay.core.lost(bob)
    again = relay.join(BOB, features=FEATURES)
    relay.commit()
    assert relay.ids(again) == ["1", "2"]


def test_a_recipient_that_reads_no_copy_is_believed_after_the_last(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, features=FEATURES), relay.join(BOB, features=FEATURES)
    for ciphertext in ("b2xk", "bmV3", "bmV3ZXI="):
        relay.say(alice, message(BOB.did, "1", ciphertext=ciphertext))
    relay.say(bob, unread("1"), unread("1"))
    assert ("1", "unread") not in relay.receipts(alice)
    relay.say(bob, unread("1"))
    assert relay.receipts(alice)[-1] == ("1", "unread")


def test_a_copy_that_was_read_settles_all_of_them(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, features=FEATURES), relay.join(BOB, features=FEATURES)
    relay.say(alice, message(BOB.did, "1", ciphertext="b2xk"), message(BOB.did, "1", ciphertext="bmV3"))
    relay.say(bob, dump({"v": 1, "type": "ack", "id": "1", "from": ALICE.did}), unread("1"))
    assert relay.receipts(alice)[-1] == ("1", "delivered")
    relay.say(alice, message(BOB.did, "1", ciphertext="bmV3ZXI="))
    relay.say(bob, unread("1"))  # nothing is open from before
    assert relay.receipts(alice)[-1] == ("1", "unread")


def test_copies_of_an_earlier_connection_are_none_of_this_ones(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, features=FEATURES), relay.join(BOB, features=FEATURES)
    relay.say(alice, message(BOB.did, "1", ciphertext="b2xk"))
    relay.commit()
    relay.core.lost(bob)
    relay.say(alice, message(BOB.did, "1", ciphertext="bmV3"))
    relay.commit()
    again = relay.join(BOB, features=FEATURES)
    relay.commit()
    relay.say(again, unread("1"))
    assert relay.receipts(alice)[-1] == ("1", "unread")


def test_the_relay_pings_only_the_silent_and_not_when_told_not_to() -> None:
    quiet, relay = Relay(ping_seconds=math.inf), Relay()
    quiet.join(BOB)
    quiet.wait(80)
    assert quiet.pings == []
    bob, alice = relay.join(BOB), relay.join(ALICE)
    for _ in range(8):
        relay.wait(10)
        relay.say(alice, ack("alive"))
    assert relay.pings == [bob, bob]


def test_shutting_down_closes_everyone_1001(relay: Relay) -> None:
    links = [relay.join(ALICE), relay.join(BOB), relay.open()]
    relay.core.shut_down()
    relay.carry_out()
    assert {code for code, _ in relay.closed.values()} == {1001}
    assert len(relay.closed) == len(links)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        ({"pair_frames": 3}, 3),
        ({"pair_bytes": 800}, 3),
        ({"recipient_frames": 2}, 2),
        ({"recipient_bytes": 800}, 3),
        ({"sender_frames": 2}, 2),
        ({"sender_bytes": 800}, 3),
        ({"total_frames": 1}, 1),
        ({"total_bytes": 800}, 3),
    ],
)
def test_quotas_refuse_and_say_so_and_an_ack_makes_room(limits: dict[str, Any], accepted: int) -> None:
    relay = Relay(**limits)
    alice = relay.join(ALICE, FEATURES)
    for number in range(5):
        relay.say(alice, message(BOB.did, str(number), body="x" * 100))
    relay.commit()
    refused = [frame_id for frame_id, state in relay.receipts(alice) if state == "refused"]
    assert refused == [str(number) for number in range(accepted, 5)]
    assert [frame["id"] for frame in relay.frames(alice, "error")] == refused
    bob = relay.join(BOB)
    relay.commit()
    relay.say(bob, ack("0"))
    relay.say(alice, message(BOB.did, "again", body="x" * 100))
    assert relay.ids(bob)[-1] == "again"


@pytest.mark.parametrize("limits", [{"sender_frames": 3}, {"sender_bytes": 650}, {"sender_recipients": 3}])
def test_one_sender_does_not_fill_the_relay_for_others(limits: dict[str, Any]) -> None:
    relay = Relay(**limits)
    alice, carol = relay.join(ALICE, FEATURES), relay.join(CAROL)
    for number in range(5):
        relay.say(alice, message(f"did:x:{number}", "1", body="x" * 100))
    assert relay.core.kept[0] == relay.core.kept[2] == 3
    assert len(relay.errors(alice)) == 2
    relay.say(carol, message("did:x:9", "1", body="x" * 100))
    assert relay.errors(carol) == []
    relay.commit()
    restarted = Relay(relay.inbox, **limits)
    restarted.wait(1)
    alice = restarted.join(ALICE)
    restarted.say(alice, message("did:x:8", "1", body="x" * 100))
    assert len(restarted.errors(alice)) == 1
    assert restarted.core.kept[2] == 4


def test_further_frames_for_the_same_recipients_are_not_further_recipients() -> None:
    relay = Relay(sender_recipients=1)
    alice = relay.join(ALICE)
    relay.say(alice, *(message(BOB.did, str(number)) for number in range(3)))
    assert relay.errors(alice) == []
    relay.say(alice, message(CAROL.did, "1"))
    assert len(relay.errors(alice)) == 1
    bob = relay.join(BOB)
    relay.commit()
    relay.say(bob, *(ack(str(number)) for number in range(3)))
    relay.say(alice, message(CAROL.did, "1"))
    assert len(relay.errors(alice)) == 1


@pytest.mark.parametrize("limits", [{"total_frames": 1}, {"total_bytes": 250}, {"sender_frames": 1}])
def test_a_full_relay_still_serves_those_who_read(limits: dict[str, Any]) -> None:
    relay = Relay(live_frames=3, live_bytes=5000, **limits)
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(CAROL.did, "1", body="x" * 80))
    for number in range(20):
        relay.say(alice, message(BOB.did, str(number), body="x" * 80))
        relay.say(bob, ack(str(number)))
    assert len(relay.ids(bob)) == 20
    assert relay.errors(alice) == []
    relay.say(alice, *(message(BOB.did, f"unacked {number}") for number in range(5)))
    assert len(relay.errors(alice)) == 2
    relay.core.lost(bob)
    relay.join(BOB)
    relay.say(alice, message(BOB.did, "behind"))
    assert len(relay.errors(alice)) == 3


@given(st.lists(st.tuples(st.sampled_from("sacr"), st.integers(0, 5)), max_size=30))
def test_what_is_counted_is_what_is_kept(steps: list[tuple[str, int]]) -> None:
    relay = Relay()
    alice, carol = relay.join(ALICE), relay.join(CAROL)
    for step, number in steps:
        if step == "s":
            relay.say(alice, message(f"did:x:{number}", "1", body=str(len(relay.got))))
            relay.say(carol, message(BOB.did, str(number)))
        elif step == "a":
            bob = relay.join(BOB)
            relay.commit()
            relay.say(bob, *(ack(frame_id) for frame_id in relay.ids(bob)[: number + 1]))
        elif step == "c":
            relay.commit()
        else:
            relay.commit()
            relay = Relay(relay.inbox)
            relay.wait(number + 1)
            alice, carol = relay.join(ALICE), relay.join(CAROL)
    relay.commit()
    usage = relay.inbox.open().usage
    assert relay.core.kept == (
        sum(used.frames for used in usage),
        sum(used.size for used in usage),
        len({used.recipient for used in usage}),
    )


def test_one_senders_quota_does_not_shut_out_others() -> None:
    relay = Relay(pair_frames=1)
    alice, carol = relay.join(ALICE), relay.join(CAROL)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"))
    relay.say(carol, message(BOB.did, "3"))
    assert (len(relay.errors(alice)), len(relay.errors(carol))) == (1, 0)


def test_frames_expire_and_their_sender_learns_it(relay: Relay) -> None:
    alice = relay.join(ALICE, FEATURES)
    relay.say(alice, message(BOB.did, "1"))
    relay.commit()
    for _ in range(70):
        relay.wait(60)
        relay.say(alice, ack("alive"))
        relay.commit()
    assert relay.receipts(alice) == [("1", "stored"), ("1", "expired")]
    assert relay.core.kept == (0, 0, 0)
    assert relay.inbox.open().usage == []


def test_an_expired_frame_is_not_delivered_before_the_sweeper_comes(relay: Relay) -> None:
    relay.say(relay.join(ALICE), message(BOB.did, "1"), message(BOB.did, "2"))
    relay.commit()
    restarted = Relay(relay.inbox, ttl=3600.0)
    restarted.now = Instant(restarted.now.monotonic, restarted.now.utc + 3601)
    bob = restarted.join(BOB)
    restarted.say(restarted.join(ALICE), message(BOB.did, "3"))
    restarted.commit()
    assert restarted.ids(bob) == ["3"]


def test_a_frame_acked_while_it_expires_is_counted_once(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"))
    for _ in range(60):
        relay.commit()
        relay.wait(61)
        relay.say(alice, ack("alive"))
        relay.say(bob, ack("alive"))
    work = relay.core.take_work(relay.now)
    assert work.sweep is not None
    relay.say(bob, ack("1"))
    done = relay.inbox.run(work)
    assert [removed.id for removed in done.expired] == ["1"]
    relay.core.stored(work, done, relay.now)
    relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.receipts(alice) == [("1", "stored"), ("1", "delivered")]


def test_a_sweep_takes_as_many_rounds_as_it_needs() -> None:
    relay = Relay(sweep_frames=2)
    relay.say(relay.join(ALICE), *(message(BOB.did, str(number)) for number in range(7)))
    relay.commit()
    relay.wait(3700)
    relay.commit()
    assert relay.core.counters.expired == 7
    assert relay.core.kept == (0, 0, 0)


def test_a_fast_sender_is_slowed_and_loses_nothing() -> None:
    relay = Relay(frame_rate=100, frame_burst=100)
    alice, bob = relay.join(ALICE), relay.join(BOB)
    assert relay.core.heard(alice, 50, relay.now) == 0
    assert relay.core.heard(alice, 150, relay.now) == pytest.approx(1.0, rel=0.1)
    assert relay.core.heard(bob, 50, relay.now) == 0


def test_senders_are_slowed_while_the_disk_is_behind() -> None:
    relay = Relay(uncommitted_bytes=100)
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "1"))
    assert relay.core.heard(alice, 1, relay.now) > 0
    relay.commit()
    assert relay.core.heard(alice, 1, relay.now) == 0


def test_reconnecting_does_not_refill_the_bucket() -> None:
    relay = Relay(frame_rate=100, frame_burst=100)
    relay.core.heard(relay.join(ALICE), 300, relay.now)
    assert relay.core.heard(relay.join(ALICE), 1, relay.now) > 1


def test_an_oversized_frame_is_an_error_and_the_connection_stays(relay: Relay) -> None:
    alice = relay.join(ALICE)
    relay.core.oversized(alice, 1024 * 1024 + 1)
    relay.carry_out()
    assert "1048577" in relay.errors(alice)[0]


def test_stamping_does_not_lift_a_frame_over_the_limit() -> None:
    relay = Relay(frame_size=300)
    alice, bob = relay.join(ALICE), relay.join(BOB)
    frame = message(BOB.did, "1", body="")
    relay.say(alice, message(BOB.did, "1", body="x" * (300 - len(frame))))
    assert relay.ids(bob) == []
    assert len(relay.errors(alice)) == 1


# --- failing storage --------------------------------------------------------------------------------------------------


def test_a_failed_transaction_promises_nothing_and_loses_nothing(relay: Relay) -> None:
    alice = relay.join(ALICE, FEATURES)
    bob = relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"), message(CAROL.did, "3"))
    work = relay.core.take_work(relay.now, everything=True)
    relay.say(bob, ack("1"))
    relay.say(alice, message(CAROL.did, "4"))
    relay.core.failed(work)
    assert relay.receipts(alice) == [("1", "delivered")]
    relay.commit()
    assert relay.receipts(alice) == [("1", "delivered"), ("2", "stored"), ("3", "stored"), ("4", "stored")]
    carol = relay.join(CAROL)
    relay.commit()
    assert relay.ids(carol) == ["3", "4"]
    relay.say(bob, ack("2"))
    relay.say(carol, ack("3"), ack("4"))
    relay.commit()
    assert relay.core.kept == (0, 0, 0)
    assert relay.core.uncommitted == 0
    assert relay.inbox.open().usage == []


# --- strict -----------------------------------------------------------------------------------------------------------


def test_strict_forwards_after_the_commit_in_order() -> None:
    relay = Relay(durability="strict")
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"))
    assert relay.ids(bob) == []
    relay.commit()
    assert relay.ids(bob) == ["1", "2"]
    relay.core.lost(bob)
    relay.say(alice, message(BOB.did, "3"))
    again = relay.join(BOB)
    relay.say(alice, message(BOB.did, "4"))
    relay.commit()
    assert relay.ids(again) == ["1", "2", "3", "4"]


# --- knocks -----------------------------------------------------------------------------------------------------------


def handled(relay: Relay, bob: Link) -> bool:
    """Whether bob's next connection would not get it again."""
    relay.core.lost(bob)
    again = relay.join(BOB)
    relay.commit()
    return relay.ids(again) == []


@pytest.mark.parametrize("kind", ["knock", "knock_accept", "knock_reject"])
@pytest.mark.parametrize("features", [None, FEATURES])
def test_a_knock_lost_with_its_connection_comes_again(relay: Relay, kind: str, features: list[str] | None) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB, features)
    relay.say(alice, message(BOB.did, "k", kind=kind))
    relay.core.lost(bob)
    again = relay.join(BOB, features)
    relay.commit()
    assert relay.ids(again) == ["k"]


def test_a_knock_is_handled_once_an_sdk_acks_a_later_message(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "k", kind="knock"), message(BOB.did, "m"))
    relay.say(bob, ack("m"))
    assert handled(relay, bob)


def test_an_ack_of_an_earlier_message_says_nothing_about_a_knock(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "m"), message(BOB.did, "k", kind="knock"))
    relay.say(bob, ack("m"))
    assert not handled(relay, bob)


@pytest.mark.parametrize("answer", ["knock_accept", "knock_reject"])
def test_a_knock_is_handled_once_it_is_answered(relay: Relay, answer: str) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "k", kind="knock"))
    relay.say(bob, message(ALICE.did, "a", kind=answer, knock_id="k"))
    assert handled(relay, bob)


def test_only_an_answer_to_the_knocker_counts(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "k", kind="knock"))
    relay.say(bob, message(CAROL.did, "a", kind="knock_accept", knock_id="k"))
    relay.say(bob, message(ALICE.did, "b", kind="knock_accept", knock_id="other"))
    assert not handled(relay, bob)


def test_a_reject_is_handled_once_its_connection_lives_a_minute_longer(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, message(BOB.did, "r", kind="knock_reject"))
    relay.wait(59)
    relay.say(bob, ack("alive"))
    relay.wait(29)
    assert relay.core.kept[0] == 1
    relay.say(bob, ack("alive"))
    relay.wait(1)
    assert handled(relay, bob)


def test_a_client_that_acks_knocks_decides_itself(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB, FEATURES)
    relay.say(alice, message(BOB.did, "k", kind="knock"), message(BOB.did, "m"))
    relay.say(bob, ack("m"), message(ALICE.did, "a", kind="knock_accept", knock_id="k"))
    relay.wait(80)
    relay.say(bob, ack("alive"))
    relay.wait(80)
    assert relay.core.kept[0] == 2  # the knock, and bob's answer
    relay.say(bob, ack("k"))
    assert relay.core.kept[0] == 1


# --- frames an SDK cannot read ----------------------------------------------------------------------------------------


def test_what_a_connection_passed_over_is_not_replayed_to_the_next(relay: Relay) -> None:
    """A frame that ended an SDK's session would end the next one as well, at every reconnect for 72 hours."""
    alice, carol, bob = relay.join(ALICE, FEATURES), relay.join(CAROL), relay.join(BOB)
    relay.say(alice, message(BOB.did, "poison"))
    relay.say(carol, message(BOB.did, "other"))
    relay.say(alice, message(BOB.did, "read"), message(BOB.did, "unread"))
    relay.commit()
    relay.say(bob, ack("read"))
    assert relay.core.kept[0] == 3
    relay.core.lost(bob)
    again = relay.join(BOB)
    relay.commit()
    assert relay.ids(again) == ["other", "unread"]
    assert relay.receipts(alice)[-1] == ("poison", "unread")
    assert relay.core.counters.abandoned == 1


def test_a_late_ack_still_counts_while_its_connection_lasts(relay: Relay) -> None:
    alice, bob = relay.join(ALICE, FEATURES), relay.join(BOB)
    relay.say(alice, message(BOB.did, "slow"), message(BOB.did, "quick"))
    relay.say(bob, ack("quick"), ack("slow"))
    assert relay.receipts(alice)[-1] == ("slow", "delivered")


def test_a_client_that_acks_everything_may_do_so_in_any_order(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB, FEATURES)
    relay.say(alice, message(BOB.did, "1"), message(BOB.did, "2"))
    relay.say(bob, ack("2"))
    relay.core.lost(bob)
    again = relay.join(BOB, FEATURES)
    relay.commit()
    assert relay.ids(again) == ["1"]


def test_a_flood_of_knocks_is_settled_in_one_go(relay: Relay) -> None:
    alice, bob = relay.join(ALICE), relay.join(BOB)
    relay.say(alice, *(message(BOB.did, f"k{number}", kind="knock") for number in range(3000)), message(BOB.did, "m"))
    relay.say(bob, ack("m"))
    assert relay.core.kept[0] == 0


# --- addresses --------------------------------------------------------------------------------------------------------


def test_all_agents_of_an_address_share_its_rate_of_frames() -> None:
    relay = Relay(address_frame_rate=10.0, address_frame_burst=20.0)
    links = [relay.join(who) for who in (ALICE, BOB)]
    assert relay.core.heard(links[0], 18, relay.now) == 0  # and two connect frames
    assert relay.core.heard(links[1], 10, relay.now) == pytest.approx(1.0, abs=0.5)
    assert relay.core.counters.throttled == 1


def knocks(relay: Relay, who: Identity, count: int) -> float:
    """The pause after so many knocks at once."""
    link = relay.join(who)
    for number in range(count):
        relay.core.receive(link, message(CAROL.did, str(number), kind="knock", sender=who.did), relay.now)
    return relay.core.heard(link, count, relay.now)


def test_knocks_have_a_rate_of_their_own_per_agent_and_address() -> None:
    relay = Relay(knock_rate=1.0, knock_burst=2.0, address_knock_rate=1.0, address_knock_burst=4.0)
    assert knocks(relay, ALICE, 2) == 0
    assert knocks(relay, BOB, 3) == pytest.approx(1.0, abs=0.1)
    assert knocks(relay, MALLORY, 2) == pytest.approx(3.0, abs=0.1)  # its own are few, but its address had five


def test_acks_of_what_others_have_sent_cost_nothing() -> None:
    relay = Relay(frame_rate=1.0, frame_burst=10.0)
    alice, bob = relay.join(ALICE), relay.join(BOB)
    for number in range(9):
        relay.core.receive(alice, message(BOB.did, str(number), sender=ALICE.did), relay.now)
        relay.core.receive(bob, ack(str(number)), relay.now)
    assert relay.core.heard(bob, 9, relay.now) == 0
    for _ in range(12):
        relay.core.receive(bob, ack("unheard of"), relay.now)
    assert relay.core.heard(bob, 12, relay.now) == pytest.approx(3.0, abs=0.1)


def test_remembered_addresses_are_bounded_and_the_oldest_starts_anew() -> None:
    relay = Relay(addresses=2, address_burst=1.0, address_rate=0.001)
    assert [relay.core.welcome("192.0.2.1", relay.now) for _ in range(2)] == [True, False]
    for last in (2, 3):
        assert relay.core.welcome(f"192.0.2.{last}", relay.now)
    assert relay.core.welcome("192.0.2.1", relay.now)


def test_who_breaks_the_rules_before_a_proof_uses_up_the_address() -> None:
    relay = Relay(bad_proof_burst=2.0, bad_proof_rate=0.001)
    for _ in range(3):
        relay.core.broke_rules(relay.open(), 1002, relay.now)
    assert not relay.core.welcome("192.0.2.1", relay.now)
    assert relay.core.counters.rule_breaks == {1002: 3}


def test_an_error_repeats_no_id_that_is_none() -> None:
    relay = Relay()
    alice = relay.join(ALICE)
    relay.say(alice, message(BOB.did, "i" * 128, sender=BOB.did), message(BOB.did, "i" * 129, sender=BOB.did))
    assert [error.get("id") for error in relay.frames(alice, "error")] == ["i" * 128, None]
