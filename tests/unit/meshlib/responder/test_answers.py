"""Whatever a runtime returns, what is answered fits a message and can be written down."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.clock import Instant
from meshlib.config import Limits
from meshlib.responder.answers import ANSWER_LIMIT, REASON_LIMIT, Answers
from meshlib.responder.runtimes.protocol import Done
from meshlib.wire.codec import encode_payload
from meshlib.wire.envelopes import Artifact, Telemetry, write_envelope

NOW = Instant(0.0, 1_767_225_600.0)
ROOM = Limits.payload


def size(response):
    return len(encode_payload(write_envelope(response)))


@pytest.mark.parametrize("character", ["x", "\u4e2d", "\U0001f600", "\0", '"', "\ud800"])
def test_an_answer_fits_a_message_whatever_it_is_made_of_and_leaves_no_room(character):
    response = Answers("analyst", ROOM).yes("r1", Done(character * 1_000_000), NOW)
    assert size(response) <= ROOM
    assert response.content.endswith("characters are left out]")
    kept = len(response.content.splitlines()[0])
    assert kept == ANSWER_LIMIT or size(response) > ROOM - 12
    assert f"{1_000_000 - kept} characters" in response.content


def test_a_short_answer_stays_as_it_is():
    assert Answers("analyst", ROOM).yes("r1", Done("42"), NOW).content == "42"


@given(st.text(st.characters(exclude_categories=()), max_size=3_000), st.integers(700, 2_000))
def test_any_text_can_be_sent_and_written_down(text, room):
    for response in (
        Answers("analyst", room).yes("r1", Done(text), NOW),
        Answers("analyst", room).no("r1", text, text, NOW),
    ):
        assert size(response) <= room
        assert len(response.content) <= max(REASON_LIMIT, len(text)) + 100
        msgspec.json.encode(response)


def test_the_sentence_that_says_why_not_has_a_bound():
    response = Answers("analyst", ROOM).no("r1", "e" * 1_000, "why " * 100_000, NOW)
    assert len(response.content) == REASON_LIMIT
    assert len(response.error) < 50


def test_numbers_and_names_of_foreign_code_are_bounded():
    done = Done("42", Telemetry(10**400, -1, "many"), [Path("a/caf\udce9"), *[Path("b")] * 500])
    response = Answers("analyst", ROOM).yes("r1", done, NOW)
    assert response.artifacts[0] == Artifact("caf_", "caf_")
    assert len(response.artifacts) == 100
    assert json.loads(encode_payload(write_envelope(response)))["telemetry"]["completion_tokens"] == 0
    msgspec.json.encode(response)
