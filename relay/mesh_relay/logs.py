"""Log lines: an event and its fields, as text for people or JSON for machines, on stderr."""

import json
import logging
import sys
from typing import TextIO

from meshlib.wire.encoding import timestamp


class _Formatter(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        head = {"time": timestamp(record.created), "level": record.levelname.lower(), "event": record.getMessage()}
        if self._as_json:
            return json.dumps(head | fields, default=str)
        return " ".join([*head.values(), *(f"{name}={value}" for name, value in fields.items())])


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send the relay's log to ``stream`` (stderr), in place of what was configured before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(style == "json"))
    root = logging.getLogger("mesh_relay")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
