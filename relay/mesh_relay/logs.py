"""Where the relay's events go: to stderr, in the form of :mod:`meshlib.logs`."""

import logging
import sys
from typing import TextIO

from mesh_relay.config import LogFormat, LogLevel
from meshlib.logs import handler_for


def configure(level: LogLevel, form: LogFormat, stream: TextIO | None = None) -> None:
    """Send the relay's log to ``stream`` (stderr), in place of what was configured before."""
    root = logging.getLogger("mesh_relay")
    root.handlers[:] = [handler_for(stream or sys.stderr, form)]
    root.propagate = False
    root.setLevel(level.upper())
