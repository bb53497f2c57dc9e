"""What a responder's answers say: only what can travel, and no more of it than fits a message.

What a runtime returns is foreign. Its texts may hold halves of surrogate pairs, which no UTF-8 has, and be as long as
they like; in a message that would be refused, nobody would ever hear of the task again.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from meshlib.clock import Instant
from meshlib.responder.runtimes.protocol import Done
from meshlib.wire.encoding import js_json, timestamp
from meshlib.wire.envelopes import Artifact, TaskResponse, Telemetry, write_envelope
from meshlib.wire.members import count_of

ANSWER_LIMIT = 256 * 1024
"""Characters of an answer; fewer where they do not fit the message as JSON. What is longer is cut and says so."""
REASON_LIMIT = 1_000
"""Characters of the sentence that says why there is no answer."""
WORD_LIMIT = 40
"""Characters of the word for programs, as a requester reads it."""
FILES = 100
"""Files an answer names: a requester reads no more of them."""

_HALF = re.compile("[\ud800-\udfff]")


class Answers:
    """Writes answers.

    Args:
        name: the display name peers are told.
        room: bytes of a message as JSON.
    """

    def __init__(self, name: str, room: int) -> None:
        self._name = name
        self._room = room

    def yes(self, request_id: str, done: Done, now: Instant) -> TaskResponse:
        """An answer."""
        names = [_name(path) for path in done.artifacts[:FILES]]
        response = TaskResponse(
            request_id=request_id,
            content=_text(done.content),
            artifacts=tuple(Artifact(name, name) for name in names),
            telemetry=_numbers(done.telemetry),
            from_agent=self._name,
            timestamp=timestamp(now.utc),
        )
        return self._fitting(response, ANSWER_LIMIT, _cut_answer)

    def no(self, request_id: str, error: str, why: str, now: Instant) -> TaskResponse:
        """Why there is none."""
        response = TaskResponse(
            request_id=request_id,
            content=_text(why),
            ok=False,
            error=_text(error)[:WORD_LIMIT],
            from_agent=self._name,
            timestamp=timestamp(now.utc),
        )
        return self._fitting(response, REASON_LIMIT, _cut_sentence)

    def _fitting(self, response: TaskResponse, limit: int, cut: Callable[[str, int], str]) -> TaskResponse:
        """The answer, its content cut until the whole envelope fits."""

        def shortened(length: int) -> TaskResponse:
            return replace(response, content=cut(response.content, length))

        def size(length: int) -> int:
            return len(js_json(write_envelope(shortened(length))).encode())

        length = min(len(response.content), limit)
        if size(length) > self._room:
            length = max(0, bisect_right(range(length), self._room, key=size) - 1)
        return shortened(length)


def _cut_answer(content: str, length: int) -> str:
    left_out = len(content) - length
    return f"{content[:length]}\n[the answer was cut here: {left_out} characters are left out]" if left_out else content


def _cut_sentence(content: str, length: int) -> str:
    return content if length >= len(content) else f"{content[: max(0, length - 1)]}\u2026"


def _text(text: str) -> str:
    return _HALF.sub("\ufffd", text)


def _name(file: Path) -> str:
    """A file's name as text: names are bytes, and those that are no UTF-8 cannot travel as they are."""
    return _HALF.sub("_", file.name)


def _numbers(telemetry: Telemetry) -> Telemetry:
    return Telemetry(*(count_of(getattr(telemetry, name)) for name in Telemetry.__struct_fields__))
