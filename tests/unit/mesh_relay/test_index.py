"""Where stored frames are."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_relay.inbox.index import Index, key_of

from meshlib.identity import Did

ALICE, BOB = Did("did:mesh:a"), Did("did:mesh:b")


class Counted(int):
    """A number that counts how often numbers are looked up, and how many there are."""

    lookups: ClassVar[int] = 0
    alive: ClassVar[int] = 0

    def __init__(self, _: int) -> None:
        Counted.alive += 1

    def __del__(self) -> None:
        Counted.alive -= 1

    def __hash__(self) -> int:
        Counted.lookups += 1
        return hash(int(self))


@pytest.fixture
def deep() -> Iterator[Index]:
    index = Index()
    for seq in range(1, 10_001):
        index.add(Counted(seq), BOB, seq)
    Counted.lookups = 0
    yield index
    del index


def test_the_cost_of_the_next_numbers_does_not_grow_with_depth(deep: Index) -> None:
    assert deep.after(BOB, 5000, 9) == list(range(5001, 5010))
    assert Counted.lookups < 20


def test_what_is_gone_is_looked_at_once(deep: Index) -> None:
    deep.remove(range(1, 4001))
    Counted.lookups = 0
    assert deep.after(BOB, 0, 9) == list(range(4001, 4010))
    assert Counted.lookups < 4020
    Counted.lookups = 0
    assert deep.after(BOB, 0, 9) == list(range(4001, 4010))
    assert Counted.lookups < 20


def test_what_is_gone_is_forgotten_when_it_is_the_greater_half(deep: Index) -> None:
    deep.remove(range(1, 10_001, 2))
    assert Counted.alive == 10_000
    deep.remove([2])
    assert Counted.alive == 4999
    assert deep.after(BOB, 0, 2) == [4, 6]


def test_a_key_stands_for_recipient_sender_and_id() -> None:
    keys = {key_of(*names) for names in (("a", "b", "c"), ("b", "a", "c"), ("a", "b", "d"), ("a", "c", "c"))}
    assert len(keys) == 4
    assert key_of("a", "b", "c") in keys


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.integers(0, 5), st.lists(st.integers(1, 30), max_size=9))))
def test_it_finds_what_is_there(steps: list[tuple[Did, int, list[int]]]) -> None:
    index = Index()
    there: dict[int, tuple[Did, int]] = {}
    for seq, (recipient, key, removed) in enumerate(steps, 1):
        if (same := index.find(key)) is not None:
            index.remove([same])
            del there[same]
        index.add(seq, recipient, key)
        there[seq] = recipient, key
        gone = [number for number in removed if number <= seq]
        index.remove(gone)
        there = {number: one for number, one in there.items() if number not in gone}
        for did in (ALICE, BOB):
            assert (
                index.after(did, seq // 3, 4)
                == [number for number, (owner, _) in there.items() if owner == did and number > seq // 3][:4]
            )
        assert [index.find(key) for key in range(6)] == [
            next((number for number, (_, held) in there.items() if held == key), None) for key in range(6)
        ]
