"""What a client may send, and how long it may take, before anyone looks at it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from mesh_registry.config import Limits
from mesh_registry.http import BoundedHttp, bounded
from uvicorn.server import ServerState

LIMITS = Limits(unread_seconds=21.0)
REQUEST = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
        self.cycles: list[Any] = []

    def call_later(self, delay: float, callback: Callable[[], None], *_: object) -> Timer:
        self.timers.append(Timer(delay, callback))
        return self.timers[-1]

    def create_task(self, coroutine: Any, **_: object) -> Task:
        self.cycles.append(coroutine.cr_frame.f_locals["self"])
        coroutine.close()
        return Task()


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else None

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Connection:
    """A protocol with a client's end."""

    def __init__(self, protocol: type[BoundedHttp] | None = None) -> None:
        async def app(scope: object, receive: object, send: object) -> None:
            raise AssertionError("no application runs here")

        self.loop = Loop()
        self.transport = Transport()
        config = uvicorn.Config(app, http=BoundedHttp, log_config=None, ws="none", lifespan="off")
        kind = protocol or bounded(LIMITS, Counter(), ())
        self.protocol = kind(config, ServerState(), {}, self.loop)  # type: ignore[arg-type]
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    @property
    def deadlines(self) -> list[Timer]:
        return [timer for timer in self.loop.timers if timer.delay == LIMITS.head_seconds and not timer.cancelled]

    async def respond(self) -> None:
        """Answer the request whose turn it is, as the application would."""
        cycle = self.loop.cycles.pop(0)
        await cycle.send({"type": "http.response.start", "status": 204, "headers": []})
        await cycle.send({"type": "http.response.body", "body": b""})


@pytest.fixture
def connection() -> Connection:
    return Connection()


def test_a_silent_connection_is_closed(connection: Connection) -> None:
    (deadline,) = connection.deadlines
    deadline.callback()
    assert connection.transport.written.startswith(b"HTTP/1.1 408 ")
    assert connection.transport.closed
    assert connection.protocol.refused == {"slow": 1}


def test_no_408_passes_for_the_answer_to_an_earlier_request(connection: Connection) -> None:
    connection.protocol.data_received(GET + GET[:10])
    (deadline,) = connection.deadlines
    deadline.callback()
    assert connection.transport.written == b""
    assert connection.transport.closed


@pytest.mark.parametrize("exempt", [(), ("127.0.0.1",)])
def test_connections_of_one_address_are_counted_unless_it_is_exempt(exempt: tuple[str, ...]) -> None:
    kind = bounded(Limits(address_connections=2), Counter(), exempt)
    connections = [Connection(kind) for _ in range(3)]
    assert [connection.transport.closed for connection in connections] == [False, False, not exempt]
    assert connections[2].transport.written.startswith(b"" if exempt else b"HTTP/1.1 429 ")
    for connection in connections:
        connection.protocol.connection_lost(None)
    assert not kind.connected
    assert not Connection(kind).transport.closed


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
        b"GET /" + b"x" * (LIMITS.head_size + 1),
        b"GET / HTTP/1.1\r\nx: " + b"y" * (LIMITS.head_size + 1),
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * LIMITS.head_size,
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


def body_deadlines(connection: Connection) -> list[Timer]:
    return [one for one in connection.loop.timers if one.delay == LIMITS.body_seconds and not one.cancelled]


@pytest.mark.anyio
async def test_a_body_that_does_not_end_is_given_up_and_whoever_waits_for_it_told(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST + b"bo")
    (deadline,) = body_deadlines(connection)
    connection.protocol.data_received(b"d")
    assert body_deadlines(connection) == [deadline], "trickling does not win time"
    deadline.callback()
    assert connection.transport.written.startswith(b"HTTP/1.1 408 ")
    assert connection.transport.closed
    assert connection.protocol.refused == {"slow": 1}
    connection.protocol.connection_lost(None)
    assert (await connection.loop.cycles.pop().receive())["type"] == "http.disconnect"


def test_a_whole_body_has_no_deadline(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST + b"bo")
    connection.protocol.data_received(b"dy")
    assert body_deadlines(connection) == []
    connection.protocol.data_received(REQUEST + b"body")
    assert body_deadlines(connection) == []


def test_no_408_for_a_slow_body_passes_for_an_earlier_answer(connection: Connection) -> None:
    connection.protocol.data_received(GET + REQUEST + b"bo")
    (deadline,) = body_deadlines(connection)
    deadline.callback()
    assert connection.transport.written == b""
    assert connection.transport.closed


@pytest.mark.anyio
async def test_no_408_follows_an_answer_that_did_not_wait_for_the_body(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST + b"bo")
    await connection.respond()
    answered = connection.transport.written
    (deadline,) = body_deadlines(connection)
    deadline.callback()
    assert connection.transport.written == answered
    assert connection.transport.closed


GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 50])
def test_too_many_requests_before_an_answer_close_the_connection(connection: Connection, pieces: int) -> None:
    for _ in range(pieces):
        if not connection.transport.closed:
            connection.protocol.data_received(GET * (1000 // pieces))
    assert connection.transport.closed
    assert connection.transport.written == b"", "a 400 would pass for the answer to the first request"
    assert len(connection.protocol.pipeline) == 0


@pytest.mark.anyio
async def test_a_few_requests_at_once_are_served_in_turn_and_nothing_is_read_meanwhile(connection: Connection) -> None:
    connection.protocol.data_received(GET * (1 + LIMITS.pipelined))
    for _ in range(LIMITS.pipelined):
        assert not connection.transport.reading
        await connection.respond()
    await connection.respond()
    assert connection.transport.reading
    assert connection.transport.written.count(b"HTTP/1.1 204 ") == 1 + LIMITS.pipelined
    connection.protocol.data_received(GET)
    await connection.respond()
    assert not connection.transport.closed


def test_who_does_not_read_the_answers_is_cut_off(connection: Connection) -> None:
    def waiting() -> list[Timer]:
        return [timer for timer in connection.loop.timers if timer.delay == LIMITS.unread_seconds]

    connection.protocol.pause_writing()
    connection.protocol.resume_writing()
    assert [timer.cancelled for timer in waiting()] == [True]
    connection.protocol.pause_writing()
    waiting()[-1].callback()
    assert connection.transport.closed
    connection.protocol.connection_lost(None)
    assert waiting()[-1].cancelled
