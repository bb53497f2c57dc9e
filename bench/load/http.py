"""Prebuilt HTTP requests over a few connections that live: one request at a time on each, answers checked."""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from bench import machine
from bench.measures import Run

CONNECTIONS = 32
PATIENCE = 30.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
Answered = Callable[[int, bytes], bool]
"""Gets status and body; says whether that is right."""


def request(method: str, target: str, body: bytes | None = None, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class _Line:
    """One connection and its answer so far."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""

    def answer(self) -> tuple[int, bytes] | None:
        """Status and body once they are complete."""
        self.data += self.sock.recv(262_144)
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self.data, 0, end)
        size = int(length[1]) if length else 0
        if len(self.data) < end + 4 + size:
            return None
        status, body = int(self.data[9:12]), self.data[end + 4 :]
        self.data = b""
        return status, body


def ask(port: int, pid: int, requests: Iterable[bytes], right: Answered, connections: int = CONNECTIONS) -> Run:
    """Send all requests as fast as they are answered; requests per second, wrong answers counted as ``refused``."""
    waiting: Iterator[bytes] = iter(requests)
    lines = {line.sock.fileno(): line for line in (_Line(port) for _ in range(connections))}
    poll, wrong, done, open_requests = select.epoll(), Counter[int](), 0, 0
    try:
        for fd in lines:
            poll.register(fd, select.EPOLLIN)
        server, own, began = machine.cpu_seconds(pid), time.process_time(), time.perf_counter()
        for line in lines.values():
            if (first := next(waiting, None)) is not None:
                line.sock.sendall(first)
                open_requests += 1
        while open_requests:
            ready = poll.poll(PATIENCE)
            if not ready:
                wrong[0] += open_requests
                break
            for fd, _ in ready:
                line = lines[fd]
                answer = line.answer()
                if answer is None:
                    continue
                done += 1
                if not right(*answer):
                    wrong[answer[0]] += 1
                if (following := next(waiting, None)) is not None:
                    line.sock.sendall(following)
                else:
                    open_requests -= 1
        spent = time.perf_counter() - began
        server, own = machine.cpu_seconds(pid) - server, time.process_time() - own
    finally:
        poll.close()
        for line in lines.values():
            line.sock.close()
    shares = {"server": server / spent, "load": own / spent, "us": server / max(1, done) * 1e6}
    return Run(done / spent, shares | {"refused": sum(wrong.values())})
