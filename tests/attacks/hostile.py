"""A relay or registry that means harm, in a process of its own: ``python -m tests.attacks.hostile KIND``.

Prints ``listening <port>``, then a line per connection when it has ended: ``told <bytes> <heard>``, how much the client
has let itself be sent, and the close code of its WebSocket (0 without one); before, ``came <seconds>`` when it came.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator

CONNECTED = json.dumps({"v": 1, "type": "connected", "features": ["receipts", "challenge"]}).encode()
PIECE = 64 * 1024


def say(line: str) -> None:
    """One write, so that lines of several threads stay whole."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def server_frame(payload: bytes, opcode: int = 0x81) -> bytes:
    head = (
        bytes((opcode, len(payload))) if len(payload) < 126 else bytes((opcode, 126)) + len(payload).to_bytes(2, "big")
    )
    return head + payload


def accept(head: bytes, extra: bytes = b"") -> bytes:
    """The handshake's answer."""
    found = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
    key = found[1] if found else b""
    proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nMesh-Challenge: bm9uY2U\r\n"
    )
    return lines + extra + b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n"


def answer(headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + headers


def forever(piece: bytes) -> Iterator[bytes]:
    return itertools.repeat(piece)


def drip(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(0.1)


def says(kind: str, head: bytes) -> Iterator[bytes]:
    """What it answers to a request, piece by piece."""
    match kind:
        case "silent":
            yield from drip(b"")
        case "endless headers":
            yield b"HTTP/1.1 101 Switching Protocols\r\n"
            yield from forever(b"X: " + b"y" * 4000 + b"\r\n")
        case "dripping headers":
            yield b"HTTP/1.1 101 Switching Protocols\r\nX: "
            yield from drip(b"y")
        case "endless refusal":
            yield b"HTTP/1.1 500 Internal Server Error\r\n\r\n"
            yield from forever(b"x" * PIECE)
        case "compression":
            yield accept(head, b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
            yield from drip(b"")
        case "a huge frame":
            yield accept(head) + server_frame(CONNECTED)
            yield b"\x81\x7f" + (1 << 40).to_bytes(8, "big")
            yield from forever(b"x" * PIECE)
        case "endless fragments":
            yield accept(head) + server_frame(CONNECTED) + b"\x01\x00"
            yield from forever(b"\x00\x00" * 1000)
        case "growing fragments":
            yield accept(head) + server_frame(CONNECTED) + b"\x01\x00"
            yield from forever(server_frame(b"x" * 60_000, 0x00))
        case "pings":
            yield accept(head) + server_frame(CONNECTED)
            yield from forever(server_frame(b"ping", 0x89) * 1000)
        case "junk":
            yield accept(head) + server_frame(CONNECTED)
            yield from forever(server_frame(b'{"type":"message","x":' + b"[" * 5000 + b"]" * 5000 + b"}") * 4)
        case "hangs up":
            yield accept(head) + server_frame(CONNECTED) + server_frame(b"\x03\xe9", 0x88)
        case "an endless body":
            yield answer(b"Content-Length: 1000000000000\r\n\r\n")
            yield from forever(b" " * PIECE)
        case "endless chunks":
            yield answer(b"Transfer-Encoding: chunked\r\n\r\n")
            yield from forever(b"1000\r\n" + b" " * 4096 + b"\r\n")
        case "a dripping body":
            yield answer(b"Content-Length: 1000\r\n\r\n")
            yield from drip(b" ")
        case "a bomb":
            bomb = gzip.compress(bytes(64 * 1024 * 1024))
            yield answer(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)) + bomb
        case "deep JSON":
            deep = b"[" * 400_000 + b"]" * 400_000
            yield answer(b"Content-Length: %d\r\n\r\n" % len(deep)) + deep
        case "endless answer headers":
            yield answer()
            yield from forever(b"X: " + b"y" * 4000 + b"\r\n")
        case "another address":
            yield b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"


def serve(kind: str, connection: socket.socket) -> None:
    connection.settimeout(20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    told, heard = 0, bytearray()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(PIECE):
                heard.extend(data[:PIECE])
                del heard[:-PIECE]

    with connection:
        head = b""
        while b"\r\n\r\n" not in head and (more := connection.recv(PIECE)):
            head += more
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        with contextlib.suppress(OSError):
            for piece in says(kind, head):
                connection.sendall(piece)
                told += len(piece)
                if not listener.is_alive():
                    break
            listener.join(5)
    say(f"told {told} {_close_code(bytes(heard))}")


def _close_code(heard: bytes) -> int:
    """The code in the close frame a client ends with."""
    for at in range(len(heard) - 8, max(-1, len(heard) - 132), -1):
        if heard[at] == 0x88 and heard[at + 1] & 0x80 and at + 6 + (heard[at + 1] & 0x7F) == len(heard):
            mask, masked = heard[at + 2 : at + 6], heard[at + 6 : at + 8]
            return (masked[0] ^ mask[0]) << 8 | masked[1] ^ mask[1]
    return 0


def main(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(f"listening {listener.getsockname()[1]}")
        while True:
            connection, _ = listener.accept()
            say(f"came {time.monotonic()}")
            threading.Thread(target=serve, args=(kind, connection), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
