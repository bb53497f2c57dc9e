"""Answers that are kept: what they are kept for, and what they never outlive."""

import math

import pytest
from mesh_registry.shown import OVERHEAD, Shown, lasts_until


def kept(shown: Shown, name: str, body: bytes = b"body", *, since: float = 100.0, until: float = 200.0) -> None:
    shown.keep(name, 50, body, shown.changes, since, until)


def test_an_answer_is_kept_for_the_same_question_only() -> None:
    shown = Shown()
    kept(shown, "chat")
    assert shown.get("chat", 50, 100.0) == b"body"
    assert shown.get("chat", 10, 100.0) is None
    assert shown.get("maps", 50, 100.0) is None


@pytest.mark.parametrize("utc", [99.9, 200.0, 201.0])
def test_outside_its_time_there_is_no_answer(utc: float) -> None:
    shown = Shown()
    kept(shown, "chat")
    assert shown.get("chat", 50, utc) is None


def test_a_change_ends_the_answers_about_whom_it_names() -> None:
    shown = Shown()
    kept(shown, "chat")
    kept(shown, "maps", b"other")
    shown.forget({"chat", "nobody"})
    assert shown.get("chat", 50, 150.0) is None
    assert shown.get("maps", 50, 150.0) == b"other"


def test_an_answer_read_before_a_change_is_not_kept_after_it() -> None:
    shown = Shown()
    changes = shown.changes
    shown.forget({"chat"})  # while the store was asked
    shown.keep("chat", 50, b"of before", changes, 100.0, 200.0)
    assert shown.get("chat", 50, 150.0) is None


def test_memory_is_bounded_and_what_is_asked_for_stays() -> None:
    shown = Shown(limit=3 * (OVERHEAD + 10))
    for name in ("a", "b", "c"):
        kept(shown, name, bytes(10))
    assert shown.get("a", 50, 150.0) is not None
    kept(shown, "d", bytes(10))
    assert [name for name in "abcd" if shown.get(name, 50, 150.0) is not None] == ["a", "c", "d"]
    kept(shown, "a", bytes(10))
    assert [name for name in "abcd" if shown.get(name, 50, 150.0) is not None] == ["a", "c", "d"], "replaced, not added"
    kept(shown, "long", bytes(4 * OVERHEAD))
    assert shown.get("long", 50, 150.0) is None


def test_it_lasts_until_the_first_agent_goes_offline_or_out_of_sight() -> None:
    assert lasts_until([1000.0, 950.0], 1010.0, 90.0, 500.0) == 1040.0
    assert lasts_until([1000.0, 900.0], 1010.0, 90.0, 500.0) == 1090.0
    assert lasts_until([1000.0, 550.0], 1010.0, 90.0, 500.0) == 1050.0
    assert lasts_until([500.0], 1010.0, 90.0) == math.inf
