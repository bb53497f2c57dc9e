"""Log lines: an event and its fields, as text for people or JSON for machines. One form for clients and servers.

Owns the form, so that the logs of a client, a relay and a recipient can be laid beside each other. Leaves what is
logged to whoever logs: never a payload, a key or a token.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Literal, TextIO

from meshlib.wire.encoding import timestamp

LogStyle = Literal["text", "json"]

_OURS = ("meshlib", "mesh_relay", "mesh_registry")
_BARE = re.compile(r"[!#-<>-~]+")
"""Text that needs no quotes in a line of text: ASCII without spaces, quotes and equals signs."""


class LogEvent:
    """What happened, as the message of a log record: ``log.debug(LogEvent("queued", id=message, peer=did))``.

    Under any other formatter it is text; under ours the fields stay fields.
    """

    __slots__ = ("fields", "name")

    def __init__(self, name: str, /, **fields: object) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.name}{_spelled(self.fields)}"


class EventFormatter(logging.Formatter):
    """One line per event: time, level, event, then its fields; a traceback below it, or in JSON as a field.

    Fields are those of an :class:`LogEvent`. Records of foreign libraries bring the name of their logger.
    """

    def __init__(self, style: LogStyle) -> None:
        super().__init__()
        self._as_json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        name, fields = _parts(record)
        if record.name.partition(".")[0] not in _OURS:
            fields = {"logger": record.name, **fields}
        time, level = timestamp(record.created), record.levelname.lower()
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            members = {"time": time, "level": level, "event": name, **fields}
            return json.dumps(members if trace is None else members | {"traceback": trace}, default=str)
        line = f"{time} {level:7} {name}{_spelled(fields)}"
        return line if trace is None else f"{line}\n{trace}"


def handler_for(stream: TextIO, style: LogStyle) -> logging.Handler:
    """A handler that writes such lines to ``stream``."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(EventFormatter(style))
    return handler


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    if isinstance(record.msg, LogEvent):
        return record.msg.name, record.msg.fields
    return record.getMessage(), {}


def _spelled(fields: Mapping[str, object]) -> str:
    """Fields as text. Whatever could pass for another field or another line is quoted and escaped."""
    return "".join(f" {name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: object) -> str:
    if isinstance(value, str):
        return str(value) if _BARE.fullmatch(value) else json.dumps(value)
    return json.dumps(value, default=str)
