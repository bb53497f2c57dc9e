"""Where the registry's events go: to stderr, in the form of :mod:`meshlib.logs`."""

import logging
from typing import TextIO

from mesh_registry.config import LogFormat, LogLevel
from meshlib.logs import handler_for


def configure(level: LogLevel, form: LogFormat, stream: TextIO) -> None:
    """Send the registry's events, and errors of the HTTP server, to ``stream``."""
    handler = handler_for(stream, form)
    for name, threshold in (("mesh_registry", level.upper()), ("uvicorn", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(threshold)
