"""What a client may send, and how long it may take, before anyone looks at it."""

from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from mesh_registry.http import HEAD_TIMEOUT, MAX_HEAD, BoundedHttp
from uvicorn.server import ServerState

REQUEST = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"


class Timer:
    def __init__(self, delay: float, callback: Callable[[], None]) -> None:
        self.delay = delay
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Task:
    def add_done_callback(self, _: object) -> None:
        pass


class Loop:
    """Keeps timers and drops tasks: nobody answers in these tests."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[[], None], *_: object) -> Timer:
        self.timers.append(Timer(delay, callback))
        return self.timers[-1]

    def create_task(self, coroutine: Any, **_: object) -> Task:
        coroutine.close()
        return Task()


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else None

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Connection:
    """A protocol with a client's end."""

    def __init__(self) -> None:
        async def app(scope: object, receive: object, send: object) -> None:
            raise AssertionError("no application runs here")

        self.loop = Loop()
        self.transport = Transport()
        config = uvicorn.Config(app, http=BoundedHttp, log_config=None, ws="none", lifespan="off")
        self.protocol = BoundedHttp(config, ServerState(), {}, self.loop)  # type: ignore[arg-type]
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    @property
    def deadlines(self) -> list[Timer]:
        return [timer for timer in self.loop.timers if timer.delay == HEAD_TIMEOUT and not timer.cancelled]


@pytest.fixture
def connection() -> Connection:
    return Connection()


def test_a_silent_connection_is_closed(connection: Connection) -> None:
    (deadline,) = connection.deadlines
    deadline.callback()
    assert connection.transport.closed


def test_headers_that_never_end_are_given_up(connection: Connection) -> None:
    connection.protocol.data_received(b"POST /x HTTP/1.1\r\nhost: x\r\n")
    (deadline,) = connection.deadlines
    connection.protocol.data_received(b"x-more: y\r\n")
    assert connection.deadlines == [deadline], "trickling does not win time"
    deadline.callback()
    assert connection.transport.closed


def test_the_end_of_the_headers_ends_the_deadline(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST)
    assert connection.deadlines == []
    assert not connection.transport.closed


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * (MAX_HEAD + 1),
        b"GET / HTTP/1.1\r\nx: " + b"y" * (MAX_HEAD + 1),
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEAD,
    ],
    ids=["target", "value", "number"],
)
def test_a_head_too_long_is_answered_400_and_closed(connection: Connection, data: bytes) -> None:
    for start in range(0, len(data), 4096):
        if connection.transport.closed:
            break
        connection.protocol.data_received(data[start : start + 4096])
    assert connection.transport.written.startswith(b"HTTP/1.1 400 ")
    assert connection.transport.closed


def test_a_long_body_is_no_head(connection: Connection) -> None:
    head = REQUEST.replace(b": 4", b": 200000")
    connection.protocol.data_received(head + b"x" * 100_000)
    connection.protocol.data_received(b"x" * 100_000)
    assert not connection.transport.closed
    assert connection.transport.written == b""


def test_later_requests_have_a_deadline_of_their_own(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST + b"body")
    assert connection.deadlines == []
    connection.protocol.data_received(b"GET /y HTTP/1.1\r\n")
    assert len(connection.deadlines) == 1
