"""What a model thought before it answered, and the answer. Only the answer travels.

Models mark their thinking with ``<think>`` or ``<thinking>``. A tag counts wherever it stands, in code, too: an answer
that speaks of the tag loses a part of itself, which is less bad than thoughts that travel.

A peer may have a model or a program say whatever it likes, so the time this takes grows no faster than the text.
"""

import re
from typing import NamedTuple

PASSES = 10
"""How often a text is gone through. Each pass may put another tag together from what it leaves; no model does that."""

_TAG = re.compile(r"<\s{0,8}(/?)\s{0,8}think(?:ing)?\b[^<>]*?(/?)(?:>|\Z)", re.IGNORECASE)


class Parts(NamedTuple):
    """A model's text, taken apart."""

    answer: str
    reasoning: str


def without_reasoning(text: str) -> Parts:
    """Take the thinking out of a text.

    Blocks may be nested and several. What follows one that is never closed is thinking; so is everything before a
    closing tag that nothing opened, since some models leave the opening one out. A text that builds tags out of tags
    again and again is thinking altogether.
    """
    thoughts: list[str] = []
    for _ in range(PASSES):
        if not _TAG.search(text):
            return Parts(text.strip(), "".join(thoughts).strip())
        text, thought = _take_apart(text)
        thoughts.append(thought)
    return Parts("", "".join((*thoughts, text)).strip())


def _take_apart(text: str) -> Parts:
    answer: list[str] = []
    reasoning: list[str] = []
    depth = at = 0
    for tag in _TAG.finditer(text):
        (reasoning if depth else answer).append(text[at : tag.start()])
        at = tag.end()
        closing, empty = bool(tag[1]), bool(tag[2])
        if closing and depth:
            depth -= 1
        elif closing:
            reasoning.extend(answer)
            answer.clear()
        elif not empty:
            depth += 1
    (reasoning if depth else answer).append(text[at:])
    return Parts("".join(answer), "".join(reasoning))
