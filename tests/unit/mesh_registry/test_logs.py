import io
import json
import logging
from collections.abc import Iterator

import pytest
from mesh_registry import logs

from meshlib.logs import LogEvent


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("mesh_registry", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_events_carry_fields_as_json() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    log = logging.getLogger("mesh_registry.test")
    log.debug("hidden")
    log.info(LogEvent("listening", port=1, text="a\nb"))
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {"level": "info", "event": "listening", "port": 1, "text": "a\nb"}


def test_events_carry_fields_as_text_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure("debug", "text", stream)
    logging.getLogger("mesh_registry.test").warning(LogEvent("odd", text="a\nb"))
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('warning odd text="a\\nb"')


def test_a_failure_brings_its_traceback() -> None:
    for form in ("json", "text"):
        stream = io.StringIO()
        logs.configure("info", form, stream)  # type: ignore[arg-type]
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("mesh_registry.test").exception("request_failed")
        assert "RuntimeError: broken" in stream.getvalue()
        assert "request_failed" in stream.getvalue()
