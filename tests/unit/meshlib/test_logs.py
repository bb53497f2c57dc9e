"""Log lines: fields stay fields, and none can pass for another line."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from meshlib.logs import LogEvent, LogStyle, handler_for


@pytest.fixture
def logging_to() -> Iterator[Callable[[str, LogStyle], tuple[logging.Logger, io.StringIO]]]:
    """Loggers that write into a text; they are silenced afterwards."""
    used: list[logging.Logger] = []

    def make(name: str, style: LogStyle) -> tuple[logging.Logger, io.StringIO]:
        stream = io.StringIO()
        log = logging.getLogger(name)
        log.handlers = [handler_for(stream, style)]
        log.propagate = False
        log.setLevel(logging.DEBUG)
        used.append(log)
        return log, stream

    yield make
    for log in used:
        log.handlers, log.propagate = [], True
        log.setLevel(logging.NOTSET)


def test_event_is_an_object_in_json(logging_to) -> None:
    log, stream = logging_to("meshlib.test_logs", "json")
    log.debug(LogEvent("sent", id="m-1", bytes=3))
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {"level": "debug", "event": "sent", "id": "m-1", "bytes": 3}


def test_text_is_one_line_whatever_a_field_holds(logging_to) -> None:
    log, stream = logging_to("meshlib.test_logs", "text")
    log.warning(LogEvent("odd", plain="did:mesh:ab", forged='x id="y"\n2026 info fine', number=1, none=None))
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r' warning odd plain=did:mesh:ab forged="x id=\"y\"\n2026 info fine" number=1 none=null')


def test_other_libraries_are_named(logging_to) -> None:
    log, stream = logging_to("elsewhere", "json")
    log.warning("%s happened", "something")
    line = json.loads(stream.getvalue())
    assert (line["logger"], line["event"]) == ("elsewhere", "something happened")


def test_event_can_be_read_under_any_formatter() -> None:
    assert str(LogEvent("sent", id="m-1", detail=ValueError("no such thing"))) == 'sent id=m-1 detail="no such thing"'


@pytest.mark.parametrize("style", ["json", "text"])
def test_failure_brings_its_traceback(logging_to, style: LogStyle) -> None:
    log, stream = logging_to("meshlib.test_logs", style)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        log.exception(LogEvent("task_failed"))
    assert "RuntimeError: broken" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1 or style == "text"
