"""What a model thought before it answered, and the answer. Only the answer travels.

Models mark their thinking with ``<think>`` or ``<thinking>``. A tag counts wherever it stands, in code, too: an answer
that speaks of the tag loses a part of itself, which is less bad than thoughts that travel.
"""

import re
from typing import NamedTuple

_TAG = re.compile(r"<\s*(/?)\s*think(?:ing)?\b[^<>]*?(/?)(?:>|\Z)", re.IGNORECASE)


class Parts(NamedTuple):
    """A model's text, taken apart."""

    answer: str
    reasoning: str


def without_reasoning(text: str) -> Parts:
    """Take the thinking out of a text.

    Blocks may be nested and several. What follows one that is never closed is thinking; so is everything before a
    closing tag that nothing opened, since some models leave the opening one out.
    """
    thoughts: list[str] = []
    while _TAG.search(text):  # again, because what stood around a block may be a tag itself now
        text, thought = _take_apart(text)
        thoughts.append(thought)
    return Parts(text.strip(), "".join(thoughts).strip())


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
