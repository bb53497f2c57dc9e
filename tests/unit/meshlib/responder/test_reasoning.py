"""What a model thought never travels."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.responder.runtimes.reasoning import without_reasoning


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("42", "42", ""),
        ("<think>hm</think>42", "42", "hm"),
        ("<thinking>hm</thinking>\n\n42\n", "42", "hm"),
        ("<THINK>hm</Think>42", "42", "hm"),
        ('<think type="deep">hm</think >42', "42", "hm"),
        ("< think >hm</ think >42", "42", "hm"),
        ("a<think>1</think>b<thinking>2</thinking>c", "abc", "12"),
        ("<think>a<think>b</think>c</think>42", "42", "abc"),
        ("<think>never closed 42", "", "never closed 42"),
        ("42 <think>never closed", "42", "never closed"),
        ("42 <think", "42", ""),
        ("hm, so it is</think>42", "42", "hm, so it is"),
        ("a</think>b</think>42", "42", "ab"),
        ("<think/>42", "42", ""),
        ("```\n<think>x</think>\n```", "```\n\n```", "x"),
        ("I think <b>therefore</b> I am", "I think <b>therefore</b> I am", ""),
        ("<thinker>is another tag</thinker>", "<thinker>is another tag</thinker>", ""),
        ("", "", ""),
    ],
)
def test_blocks_are_cut(text, answer, reasoning):
    assert without_reasoning(text) == (answer, reasoning)


pieces = st.sampled_from(("<think>", "</think>", "<thinking>", "</thinking>", "<think", "</", "<", ">", "a", " ", "\n"))


@given(st.lists(pieces, max_size=12).map("".join))
def test_no_answer_holds_a_tag_nor_one_put_together_from_what_is_left(text):
    answer = without_reasoning(text).answer
    assert without_reasoning(answer) == (answer, "")


@given(st.lists(pieces, max_size=6).map("".join), st.text("xyz", min_size=1, max_size=5))
def test_what_stands_in_a_closed_block_is_not_in_the_answer(before, thought):
    assert thought not in without_reasoning(f"{before}<think>{thought}</think>").answer


def nested(depth):
    return "<thi" * depth + "<think/>" + "nk/>" * depth


def test_a_text_that_builds_tags_out_of_tags_is_no_answer():
    assert without_reasoning(f"{nested(3)}42").answer == "42"
    assert without_reasoning(f"{nested(1_000)}42").answer == ""


@pytest.mark.parametrize(
    "hostile",
    [
        lambda size: "<" + " " * size,
        lambda size: "<" * size,
        lambda size: "< " * (size // 2),
        lambda size: "<think" + " " * size + "<",
        lambda size: "<think " * (size // 7),
        lambda size: "<think>" * (size // 7),
        lambda size: "</think>" * (size // 8),
        lambda size: nested(size // 8),
    ],
)
def test_the_time_it_takes_grows_with_the_length_of_a_text_and_no_faster(hostile):
    def seconds(size):
        text = hostile(size)
        started = time.process_time()
        without_reasoning(text)
        return time.process_time() - started

    assert seconds(400_000) < 40 * max(seconds(20_000), 0.01)  # what is quadratic takes 400 times as long


@given(st.text(st.characters(exclude_characters="<"), max_size=60))
def test_a_text_without_tags_is_left_alone(text):
    assert without_reasoning(text).answer == text.strip()
