"""The shorter path through WebSocket framing does what ServerProtocol does."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_relay.connection import (
    LARGEST_FRAGMENTS,
    LARGEST_HEAD,
    LARGEST_SKIP,
    Asked,
    Connection,
    Ended,
    Event,
    Oversized,
    Phase,
)
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

LIMIT = 1000

REQUEST = (
    b"GET /ws?token=1 HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def opened(*, trusted: bool = True) -> tuple[Connection, ClientProtocol]:
    """Both ends after the handshake; the client is websockets' own."""
    client = ClientProtocol(parse_uri("ws://relay/ws"), max_size=None)
    connection = Connection(LIMIT)
    client.send_request(client.connect())
    assert connection.receive(b"".join(client.data_to_send())) == [Asked("GET", "/ws", True)]
    assert connection.upgrade({"Mesh-Challenge": "abc"})
    if trusted:
        connection.trust(LIMIT)
    client.receive_data(b"".join(connection.writes()))
    (response,) = client.events_received()
    assert response.headers["Mesh-Challenge"] == "abc"  # type: ignore[union-attr]
    assert "Sec-WebSocket-Extensions" not in response.headers  # type: ignore[union-attr]
    return connection, client


def frame(data: bytes, opcode: int = 1, *, fin: bool = True, mask: bool = True) -> bytes:
    return Frame(Opcode(opcode), data, fin).serialize(mask=mask)


def chunks(data: bytes, seed: int) -> Iterator[bytes]:
    source = random.Random(seed)
    while data:
        size = source.choice((1, 2, 3, 5, 50, 5000))
        yield data[:size]
        data = data[size:]


def test_the_request_is_reported_without_its_query() -> None:
    connection = Connection(LIMIT)
    assert connection.receive(REQUEST) == [Asked("GET", "/ws", True)]
    assert connection.phase is Phase.DECISION


def test_a_request_may_drip_in() -> None:
    connection = Connection(LIMIT)
    events: list[Event] = []
    for chunk in chunks(REQUEST, 1):
        events += connection.receive(chunk)
    assert events == [Asked("GET", "/ws", True)]


def test_frames_sent_with_the_request_wait_for_the_decision() -> None:
    connection = Connection(LIMIT)
    assert connection.receive(REQUEST + frame(b"one") + frame(b"two")) == [Asked("GET", "/ws", True)]
    assert connection.upgrade({})
    assert connection.held
    assert connection.receive(b"") == [b"one"]
    assert connection.held
    connection.trust(LIMIT)
    assert connection.receive(b"") == [b"two"]
    assert not connection.held


def test_before_trust_messages_come_one_by_one() -> None:
    connection, client = opened(trusted=False)
    for text in (b"one", b"two"):
        client.send_text(text)
    big = frame(b"x" * 5000)
    assert connection.receive(b"".join(client.data_to_send()) + big) == [b"one"]
    assert connection.held
    connection.trust(6000)
    assert connection.receive(b"") == [b"two", b"x" * 5000]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"junk\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"GET /ws HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", (400, 414)),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", (400, 431)),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * LARGEST_HEAD, 431),
        (b"x" * (LARGEST_HEAD + 1), 431),
    ],
)
def test_what_is_no_request_is_answered_and_ends(head: bytes, status: int | tuple[int, ...]) -> None:
    connection = Connection(LIMIT)
    assert connection.receive(head) == [Ended()]
    answer = b"".join(connection.writes())
    assert int(answer.split(b" ")[1]) in (status if isinstance(status, tuple) else (status,))
    assert connection.phase is Phase.ENDED
    assert connection.receive(b"more") == []


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS"])
def test_other_methods_are_reported_or_refused(method: bytes) -> None:
    """As the installed version of websockets does it: 16 and later report the method, 15 takes GET alone."""
    connection = Connection(LIMIT)
    (event,) = connection.receive(method + b" /health HTTP/1.1\r\nHost: x\r\n\r\n")
    if isinstance(event, Ended):
        assert b" 405 " in b"".join(connection.writes())
    else:
        assert event == Asked(method.decode(), "/health", False)


@pytest.mark.parametrize(
    "missing", [b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"Sec-WebSocket-Version: 13\r\n"]
)
def test_an_improper_handshake_is_answered_400_and_ends(missing: bytes) -> None:
    connection = Connection(LIMIT)
    connection.receive(REQUEST.replace(missing, b""))
    assert not connection.upgrade({"Mesh-Challenge": "abc"})
    answer = b"".join(connection.writes())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Mesh-Challenge" not in answer
    assert connection.phase is Phase.ENDED


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_what_is_sent_is_what_the_client_receives(size: int) -> None:
    connection, client = opened()
    payload = b"x" * size
    connection.send(payload)
    assert connection.waiting > size
    client.receive_data(b"".join(connection.writes()))
    assert connection.waiting == 0
    assert client.events_received() == [Frame(Opcode.TEXT, payload)]


@given(
    st.lists(
        st.tuples(st.sampled_from(("text", "binary", "fragments", "ping", "pong")), st.binary(max_size=300)), max_size=8
    ),
    st.integers(0, 1000),
)
def test_any_split_of_the_stream_gives_what_serverprotocol_gives(messages: list[tuple[str, bytes]], seed: int) -> None:
    stream = b""
    expected = []
    for kind, data in messages:
        if kind == "fragments":
            middle = len(data) // 2
            stream += frame(data[:middle], 1, fin=False) + frame(b"!", 9) + frame(data[middle:], 0)
        elif kind in ("ping", "pong"):
            stream += frame(data[:125], 9 if kind == "ping" else 10)
        else:
            stream += frame(data, 1 if kind == "text" else 2)
        if kind in ("text", "binary", "fragments"):
            expected.append(data)
    plain = ServerProtocol(state=State.OPEN, max_size=None)
    plain.receive_data(stream)
    connection, _ = opened()
    events: list[Event] = []
    for chunk in chunks(stream, seed):
        events += connection.receive(chunk)
    assert events == expected
    assert b"".join(connection.writes()) == b"".join(plain.data_to_send())  # the pongs


@given(st.binary(max_size=200), st.integers(0, 100))
def test_arbitrary_bytes_never_raise(data: bytes, seed: int) -> None:
    fresh, (running, _) = Connection(LIMIT), opened()
    for chunk in chunks(data, seed):
        fresh.receive(chunk)
        running.receive(chunk)
    running.close(1000)
    running.receive(data)
    running.writes()


@pytest.mark.parametrize("size", [LIMIT + 1, 65536, LARGEST_SKIP])
@pytest.mark.parametrize("step", [1 << 16, 1 << 20])
def test_an_oversized_message_is_dropped_and_the_next_is_read(size: int, step: int) -> None:
    connection, _ = opened()
    header = frame(b"x" * 70_000)[:14] if size > 65535 else frame(b"x" * size)[:8]
    if size > 65535:
        header = header[:2] + size.to_bytes(8, "big") + header[10:]
    events = connection.receive(header)
    left = size
    while left:
        events += connection.receive(b"x" * min(step, left))
        left -= min(step, left)
    events += connection.receive(frame(b"next"))
    assert events == [Oversized(size), b"next"]
    assert connection.phase is Phase.OPEN


def test_an_oversized_message_that_comes_at_once_is_dropped_too() -> None:
    connection, _ = opened()
    assert connection.receive(frame(b"a") + frame(b"x" * 1001) + frame(b"b")) == [b"a", Oversized(1001), b"b"]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (frame(b"x" * LIMIT, fin=False) + frame(b"y", 0), 1009),
        (b"\x81\xff" + (LARGEST_SKIP + 1).to_bytes(8, "big") + b"mask", 1009),
        (b"\x81\xff" + b"\xff" * 8 + b"mask", 1009),
        (frame(b"hello", mask=False), 1002),
        (b"\xc1\x80mask", 1002),
        (b"\x83\x80mask", 1002),
        (b"\x89\xfe\x00\x7emask" + b"x" * 126, 1002),
        (frame(b"y", 0), 1002),
        (frame(b"x", fin=False) + frame(b"y"), 1002),
        (b"\x88\x81mask\x00", 1002),
    ],
    ids=[
        "fragments over the limit",
        "more than is skipped",
        "length over 63 bits",
        "no mask",
        "reserved bit",
        "unknown opcode",
        "long ping",
        "continues nothing",
        "a message within a message",
        "short close",
    ],
)
def test_broken_framing_closes(stream: bytes, code: int) -> None:
    connection, _ = opened()
    assert connection.receive(stream)[-1] == Ended()
    assert connection.phase is Phase.ENDED
    sent = b"".join(connection.writes())
    assert sent[0] == 0x88
    assert Close.parse(sent[2:]).code == code
    assert connection.receive(frame(b"more")) == []


def test_before_trust_an_oversized_message_closes() -> None:
    connection, _ = opened(trusted=False)
    assert connection.receive(frame(b"x" * (LIMIT + 1))) == [Ended()]
    assert Close.parse(b"".join(connection.writes())[2:]).code == 1009


def test_a_message_in_more_than_1024_fragments_closes() -> None:
    connection, _ = opened()
    connection.receive(frame(b"x", fin=False) + frame(b"", 0, fin=False) * (LARGEST_FRAGMENTS - 2))
    assert connection.receive(frame(b"y", 0)) == [b"xy"]
    connection.receive(frame(b"x", fin=False) + frame(b"", 0, fin=False) * (LARGEST_FRAGMENTS - 1))
    assert connection.receive(frame(b"y", 0)) == [Ended()]
    assert Close.parse(b"".join(connection.writes())[2:]).code == 1009


@pytest.mark.parametrize(
    "irregular", [frame(b"", 9), frame(b"", 10), frame(b"", 9) + frame(b"", 10)], ids=["pings", "pongs", "both"]
)
def test_before_trust_only_a_handful_of_control_frames_is_taken(irregular: bytes) -> None:
    connection, _ = opened(trusted=False)
    assert connection.receive(irregular * 4) == []
    assert connection.receive(frame(b"one")) == [b"one"]
    assert connection.receive(irregular * 40)[-1] == Ended()
    assert Close.parse(connection.writes()[-1][2:]).code == 1008


def test_control_frames_and_fragments_are_counted() -> None:
    connection, _ = opened()
    connection.receive(frame(b"whole") + frame(b"", 9) + frame(b"", 10) + frame(b"x", fin=False) + frame(b"y", 0))
    assert connection.take_irregular() == 4
    assert connection.take_irregular() == 0


def test_once_closing_messages_are_skipped_and_the_peers_close_is_found() -> None:
    for trusted in (True, False):
        connection, client = opened(trusted=trusted)
        connection.close(4003)
        client.receive_data(b"".join(connection.writes()))
        answer = b"".join(client.data_to_send())
        assert connection.receive(frame(b"late") * 3 + frame(b"", 9) + frame(b"x", fin=False) + answer) == [Ended()]
        assert connection.writes() == []


def test_the_peers_close_is_answered() -> None:
    connection, client = opened()
    client.send_close(1000, "bye")
    assert connection.receive(b"".join(client.data_to_send())) == [Ended()]
    client.receive_data(b"".join(connection.writes()))
    assert client.close_rcvd == Close(1000, "bye")
    assert connection.phase is Phase.ENDED


def test_our_close_waits_for_the_peers_and_sends_nothing_more() -> None:
    connection, client = opened()
    connection.receive(frame(b"half")[:3])
    connection.close(4006, "é" * 100)
    connection.send(b"late")
    client.receive_data(b"".join(connection.writes()))
    assert client.close_rcvd == Close(4006, "é" * 61)
    assert connection.phase is Phase.CLOSING


def test_the_rest_of_a_frame_may_come_before_the_peers_close() -> None:
    connection, client = opened()
    half = frame(b"half")
    connection.receive(half[:3])
    connection.close(4004)
    client.receive_data(b"".join(connection.writes()))
    connection.receive(half[3:])
    assert connection.receive(b"".join(client.data_to_send())) == [Ended()]
    assert connection.phase is Phase.ENDED


@pytest.mark.parametrize(("code", "answer"), [(4005, b"HTTP/1.1 408 "), (1001, b"HTTP/1.1 503 ")])
def test_closing_before_the_request_is_whole_answers_it(code: int, answer: bytes) -> None:
    connection = Connection(LIMIT)
    connection.receive(REQUEST[:20])
    connection.close(code)
    assert connection.phase is Phase.ENDED
    assert b"".join(connection.writes()).startswith(answer)


@pytest.mark.parametrize(
    ("stream", "broke"),
    [
        (b"\x81\x00", 1002),  # not masked
        (b"\xc1\x80\0\0\0\0", 1002),  # compressed, which nobody agreed to
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4), 1009),
        (b"\x88\x82\0\0\0\0\x03\xe8", 0),  # an honest goodbye
    ],
)
def test_who_breaks_the_rules_is_told_apart_from_who_leaves(stream: bytes, broke: int) -> None:
    connection, _ = opened()
    assert connection.receive(stream) == [Ended()]
    assert connection.broke == broke


def test_payloads_are_not_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(0):
        connection, client = opened()
        client.send_text(b"a secret", fin=False)
        client.send_continuation(b"another", fin=True)
        connection.receive(b"".join(client.data_to_send()))
    assert [record for record in caplog.records if record.name.startswith("mesh_relay")] == []
