"""Messages that wait: in which order, how many, how long. What they wait for is in test_core.py."""

import pytest

from meshlib.client.held import Held, HeldMessages, in_line
from meshlib.config import Limits
from meshlib.identity import Did
from meshlib.wire.frames import Message, MessageHeader

ALICE, BOB = Did("did:mesh:alice"), Did("did:mesh:bob")


def message(name: str, after: str | None = None, size: int = 1) -> Message:
    return Message(ALICE, BOB, name, "t", MessageHeader(bytes(32), 0, 0), bytes(size), after)


def names(held: list[Held]) -> list[str]:
    return [one.frame.id for one in held]


@pytest.mark.parametrize(
    ("arrived", "line"),
    [
        (["a<-", "b<a", "c<b"], "abc"),
        (["c<b", "a<-", "b<a"], "abc"),
        (["b<a", "d<c", "c<b", "a<-"], "abcd"),
        (["y<x", "b<a", "z<y"], "ybz"),  # two lines: each in its order
        (["b<?", "a<?"], "ba"),  # nothing is known: as they came
        (["a<a", "b<a"], "ab"),
        (["a<b", "b<a"], "ba"),  # no order is right, and none is lost
    ],
)
def test_each_is_behind_the_one_it_names(arrived: list[str], line: str) -> None:
    held = [Held(message(text[0], text[2]), 0.0, False, 1) for text in arrived]
    assert "".join(names(in_line(held))) == line


def test_an_early_message_waits_until_it_is_told_to_and_for_longer_if_asked() -> None:
    held = HeldMessages(Limits(held_seconds=3.0))
    held.hold(ALICE, message("early", "missing"), 100.0, connection=1, early_until=110.0)
    held.hold(BOB, message("unreadable"), 100.0, connection=1)
    assert [names(waited) for waited in held.expire(103.0).values()] == [["unreadable"]]
    assert held.next_deadline() == 110.0
    held.prolong(ALICE, 20.0)
    held.prolong(BOB, 20.0)
    assert held.expire(129.0) == {}
    assert [names(waited) for waited in held.expire(130.0).values()] == [["early"]]
    assert (len(held), held.size) == (0, 0)


def test_what_is_taken_out_leaves_room() -> None:
    held = HeldMessages(Limits())
    for name in "abc":
        held.hold(ALICE, message(name, size=10), 0.0, connection=1, early_until=30.0)
    taken = held.take(ALICE, lambda frame: frame.id == "b")
    assert taken is not None
    assert taken.frame.id == "b"
    assert (len(held), held.size) == (2, 2 * (10 + 4 * len("at")))
    assert held.take(ALICE, lambda frame: frame.id == "b") is None
    assert held.take(BOB, lambda frame: True) is None
    while held.take(ALICE, lambda frame: True) is not None:
        pass
    assert (len(held), held.size, held.next_deadline()) == (0, 0, float("inf"))


def test_a_peer_loses_its_oldest_first_and_of_too_many_peers_the_first() -> None:
    held = HeldMessages(Limits(asked_frames_per_peer=2, held_peers=1))
    assert [held.hold(ALICE, message(name), 0.0, connection=1, early_until=30.0) for name in "ab"] == [[], []]
    assert names(held.hold(ALICE, message("c"), 0.0, connection=1, early_until=30.0)) == ["a"]
    assert names(held.hold(BOB, message("d"), 0.0, connection=1, early_until=30.0)) == ["b", "c"]


def test_what_a_peer_writes_beside_the_ciphertext_counts() -> None:
    held = HeldMessages(Limits(held_bytes=5000))
    frame = Message(ALICE, BOB, "i" * 250, "\N{PILE OF POO}" * 1024, MessageHeader(bytes(32), 0, 0), b"", "a" * 250)
    assert held.hold(ALICE, frame, 0.0, connection=1, early_until=30.0) == [Held(frame, 30.0, False, 1)]
