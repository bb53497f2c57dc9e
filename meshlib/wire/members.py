"""Members of the JSON objects agents put into messages: bounded, and never believed.

Owns falling back where a member is missing or of the wrong kind. Leaves what the envelopes are to
:mod:`meshlib.wire.envelopes` and :mod:`meshlib.wire.transfers`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from meshlib.errors import MalformedFrame
from meshlib.wire.encoding import js_json

MAX_ID = 200
"""Characters of the id of a task or a file. UUIDs have 36; the bound keeps what is remembered of each small."""
MAX_NAME = 200
"""Characters kept of the display name a peer gives itself."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Members:
    """Members of an envelope: those it cannot do without are checked, the others fall back to a default."""

    def __init__(self, members: Mapping[str, Any], kind: str, message_id: str) -> None:
        self._members = members
        self._kind = kind
        self._message_id = message_id

    def task_id(self, *names: str) -> str:
        """The first usable id among ``names``, else the id of the message."""
        for name in names:
            value = self._members.get(name)
            if isinstance(value, str) and value:
                if len(value) > MAX_ID or _CONTROL.search(value):
                    raise MalformedFrame(
                        f"{name} of a {self._kind} must have at most {MAX_ID} printable characters",
                        frame_type=self._kind,
                    )
                return value
        if not self._message_id:
            raise MalformedFrame(f"a {self._kind} names no task", frame_type=self._kind)
        return self._message_id

    def text(self, name: str) -> str:
        """A text the envelope cannot do without; another JSON value becomes its text."""
        value = self._members.get(name)
        if value is None:
            raise MalformedFrame(f"a {self._kind} has no {name}", frame_type=self._kind, id=self._readable_id())
        return value if isinstance(value, str) else js_json(value)

    def _readable_id(self) -> str | None:
        try:
            return self.task_id("request_id", "message_id")
        except MalformedFrame:
            return None

    def name(self, name: str, limit: int = MAX_NAME) -> str:
        """A short text without control characters; empty if there is none."""
        value = self._members.get(name)
        return _CONTROL.sub("", value[:limit]) if isinstance(value, str) else ""

    def count(self, name: str, limit: int = 2**53) -> int:
        """A number of things; 0 if there is none."""
        return count_of(self._members.get(name), limit)

    def seconds(self, name: str) -> float | None:
        """A span of time, if there is one."""
        value = self._members.get(name)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        return float(value) if usable and value is not None else None

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no, or the default."""
        value = self._members.get(name)
        return value if isinstance(value, bool) else default

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object; empty if there is none."""
        value = self._members.get(name)
        return value if isinstance(value, dict) else {}

    def several(self, name: str) -> list[Any]:
        """A list; empty if there is none."""
        value = self._members.get(name)
        return value if isinstance(value, list) else []


def count_of(value: object, limit: int = 2**53) -> int:
    """A number that counts something, from 0 to ``limit``; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return 0
    return int(min(value, limit))
