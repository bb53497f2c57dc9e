"""The short path of a client's WebSocket against the library's own, in both directions."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from meshlib.client.websocket import MAX_FRAGMENTS, Frames

MAX_SIZE = 300


def opened() -> tuple[ClientProtocol, ServerProtocol]:
    """Both ends after the handshake."""
    client, server = ClientProtocol(parse_uri("ws://relay.test/ws"), max_size=MAX_SIZE), ServerProtocol(max_size=None)
    client.send_request(client.connect())
    server.receive_data(b"".join(client.data_to_send()))
    (request,) = server.events_received()
    server.send_response(server.accept(request))
    client.receive_data(b"".join(server.data_to_send()))
    client.events_received()
    assert client.state is State.OPEN
    return client, server


def frame(data: bytes, first: int = 0x81, width: int = 0, mask: bytes = b"") -> bytes:
    """A frame of any kind: ``first`` is its first byte, ``width`` the bytes its length takes (0: as few as it may)."""
    width = max(width, 0 if len(data) < 126 else 2 if len(data) < 65536 else 8)
    small = {0: len(data), 2: 126, 8: 127}[width] | (0x80 if mask else 0)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data)) if mask else data
    return bytes((first, small)) + len(data).to_bytes(8, "big")[8 - width :] + mask + masked


def cut(stream: bytes, sizes: list[int]) -> Iterator[bytes]:
    position = 0
    for size in [*sizes, len(stream)]:
        if position < len(stream):
            yield stream[position : position + size]
            position += size


def by_the_library(client: ClientProtocol, pieces: Iterator[bytes]) -> list[bytes]:
    messages: list[bytes] = []
    parts: list[bytes] = []
    for piece in pieces:
        client.receive_data(piece)
        for event in client.events_received():
            assert isinstance(event, Frame)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                parts.append(bytes(event.data))
                if event.fin:
                    messages.append(b"".join(parts))
                    parts = []
    return messages


def said(client: Protocol, server: ServerProtocol) -> list[tuple[Opcode, bytes]]:
    """What a client has to say by itself, as its server reads it: masks are never the same."""
    server.receive_data(b"".join(client.data_to_send()))
    return [(event.opcode, bytes(event.data)) for event in server.events_received() if isinstance(event, Frame)]


def verdict(client: ClientProtocol) -> object:
    return client.state, client.close_sent, client.close_rcvd, type(client.parser_exc)


firsts = st.sampled_from([0x81] * 6 + [0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88, 0x09, 0x83, 0x8B, 0xC1, 0x91])
contents = st.sampled_from([b"", b"{}", b"\xff\xfe", b"\x03\xe8", b"\x03\xe8bye", b"x" * 125, b"y" * 126, b"z" * 301])
streams = st.lists(
    st.builds(frame, contents | st.binary(max_size=20), firsts, st.sampled_from([0, 0, 0, 2, 8]), st.just(b""))
    | st.builds(frame, contents, firsts, st.just(0), st.sampled_from([b"", b"", b"", b"mask"])),
    max_size=12,
)


@given(streams, st.lists(st.integers(1, 40), max_size=30))
@example([frame(b"a"), frame(b"", 0x89), frame(b"b" * 200), frame(b"\x03\xe8", 0x88), frame(b"c")], [1] * 40)
@example([frame(b"a", 0x01), frame(b"ping", 0x89), frame(b"b", 0x80), frame(b"c")], [3, 3, 3])
@example([frame(b"a", 0x01), frame(b"b")], [])
@example([frame(b"z" * 301), frame(b"a")], [2, 2])
@example([frame(b"a", mask=b"mask"), frame(b"a")], [])
@example([frame(b"x" * 126, 0x89)], [2])
def test_any_stream_is_read_as_the_library_reads_it(frames: list[bytes], sizes: list[int]) -> None:
    (plain, plain_server), (short, short_server) = opened(), opened()
    ours = Frames(short, MAX_SIZE, os.urandom)
    stream = b"".join(frames)
    expected = by_the_library(plain, cut(stream, sizes))
    assert [message for piece in cut(stream, sizes) for message in ours.receive(piece)] == expected
    assert said(short, short_server) == said(plain, plain_server)
    assert verdict(short) == verdict(plain)


@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"x" * 125, b"x" * 126, b"x" * 65535, b"x" * 65536])))
def test_whatever_is_written_the_library_reads(messages: list[bytes]) -> None:
    client, server = opened()
    server.receive_data(Frames(client, MAX_SIZE, os.urandom).write(messages))
    read = server.events_received()
    assert [(event.opcode, bytes(event.data)) for event in read if isinstance(event, Frame)] == [
        (Opcode.TEXT, message) for message in messages
    ]
    assert server.parser_exc is None


def test_every_message_has_a_mask_of_its_own_drawn_anew() -> None:
    client, _ = opened()
    written = Frames(client, MAX_SIZE, lambda size: bytes(range(size))).write([b"\0\0\0\0", b"\0\0\0\0\0"])
    assert written == b"\x81\x84\x00\x01\x02\x03\x00\x01\x02\x03" + b"\x81\x85\x04\x05\x06\x07\x04\x05\x06\x07\x04"


def test_a_message_in_many_empty_pieces_is_given_up() -> None:
    client, _ = opened()
    ours = Frames(client, MAX_SIZE, os.urandom)
    assert ours.receive(frame(b"", 0x01) + frame(b"", 0x00) * (MAX_FRAGMENTS - 1)) == []
    assert not ours.in_pieces
    assert ours.receive(frame(b"", 0x00) + frame(b"never")) == []
    assert ours.in_pieces
    assert ours.receive(frame(b"never") * 100) == []
    assert client.events_received() == [], "what comes after the end is kept by nobody"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_large_message_that_drips_in_is_whole(step: int) -> None:
    client = opened()[0]
    ours = Frames(client, 70_000, os.urandom)
    stream = frame(b"x" * 70_000) + frame(b"next")
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert [message for piece in pieces for message in ours.receive(piece)] == [b"x" * 70_000, b"next"]
