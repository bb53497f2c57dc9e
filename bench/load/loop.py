"""Connections on one epoll loop: opened many at a time, read and written without waiting."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from bench.load.wire import ACK_AFTER, ACK_BEFORE, ID_LENGTH, PONG, UPGRADE, Agent, Lane, client_frame, cut

Take = Callable[[bytes], None]

PATIENCE = 30.0
"""Seconds without any progress after which a run is given up and what is missing counts as lost."""

_CHALLENGE = re.compile(rb"mesh-challenge: *([\w-]+)", re.IGNORECASE)
_PROBE = 0xFFFFFFFF
"""The lane of the message an agent sends to itself to see that the relay knows it."""


class LoadError(Exception):
    """The run says nothing: a server refused or stopped answering."""


class Connection:
    """One socket. ``take`` gets whatever arrives."""

    __slots__ = ("_loop", "agent", "closed", "fd", "rest", "sock", "take", "unsent")

    def __init__(self, loop: Loop, agent: Agent | None, take: Take) -> None:
        self._loop, self.agent, self.take = loop, agent, take
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        self.unsent, self.rest, self.closed = b"", b"", False

    @property
    def did(self) -> str:
        """Whose connection it is."""
        assert self.agent is not None
        return self.agent.did

    def send(self, data: bytes) -> None:
        """Write as much as the socket takes; the rest follows."""
        if self.unsent:
            self.unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.closed = True
            return
        if sent < len(data):
            self.unsent = data[sent:]
            self._loop.watch(self)

    def flush(self) -> None:
        """The socket takes more."""
        data, self.unsent = self.unsent, b""
        self.send(data)
        if not self.unsent:
            self._loop.watch(self)

    def idle(self, data: bytes) -> None:
        """The ``take`` of a connection that only lives: answers pings."""
        frames, self.rest = cut(self.rest + data)
        for opcode, payload in frames:
            if opcode == 9:
                self.send(client_frame(payload, PONG))
            elif opcode == 8:
                self.closed = True


class Loop:
    """All connections of a run to one port of 127.0.0.1."""

    def __init__(self, port: int, *, answers_connect: bool, receipts: bool = True) -> None:
        self._address = ("127.0.0.1", port)
        self._answers_connect, self._receipts = answers_connect, receipts
        self._poll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._view = memoryview(bytearray(512 * 1024))
        self.progress = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for connection in list(self._by_fd.values()):
            self.close(connection, hard=True)  # leaves no port behind in TIME_WAIT
        self._poll.close()

    def watch(self, connection: Connection) -> None:
        """Ask for what the connection waits for now."""
        wanted = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
        if connection.fd in self._by_fd:
            self._poll.modify(connection.fd, wanted)

    def close(self, connection: Connection, *, hard: bool = False) -> None:
        """Close without a farewell; ``hard`` resets, as a crashed process or a pulled cable does."""
        if self._by_fd.pop(connection.fd, None) is not None:
            if hard:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self._poll.unregister(connection.fd)
            connection.sock.close()
            connection.closed = True

    def step(self, wait: float = 0.05) -> None:
        """Serve what is ready."""
        for fd, events in self._poll.poll(wait):
            connection = self._by_fd.get(fd)
            if connection is None:
                continue
            if events & select.EPOLLOUT:
                connection.flush()
            if events & ~select.EPOLLOUT:
                try:
                    size = connection.sock.recv_into(self._view)
                except BlockingIOError:
                    continue
                except OSError:
                    size = 0
                if not size:
                    self.close(connection)
                    continue
                self.progress = time.monotonic()
                connection.take(bytes(self._view[:size]))

    def spin(self, done: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Serve until ``done``; False when nothing arrives any more."""
        self.progress = time.monotonic()
        while not done():
            self.step()
            if time.monotonic() - self.progress > patience:
                return False
        return True

    def open(
        self,
        agents: Sequence[Agent],
        at_once: int = 64,
        *,
        probe: bool | None = None,
        take: Callable[[Connection], Take] | None = None,
    ) -> list[Connection]:
        """Connect agents, ``at_once`` at a time, and wait until the relay has bound each.

        Args:
            probe: have each send a message to itself and wait for that; by default where the relay says nothing.
            take: what gets the bytes that arrive afterwards, :meth:`Connection.idle` by default.
        Raises:
            LoadError: the relay does not take them all.
        """
        probe = not self._answers_connect if probe is None else probe
        waiting, opened, pending = deque(agents), [], 0

        def bound(connection: Connection) -> None:
            nonlocal pending
            pending -= 1
            connection.rest = b""
            connection.take = take(connection) if take else connection.idle
            opened.append(connection)

        self.progress = time.monotonic()
        while len(opened) < len(agents):
            while waiting and pending < at_once:
                self.dial(waiting.popleft(), bound, probe=probe)
                pending += 1
            self.step()
            if time.monotonic() - self.progress > PATIENCE:
                raise LoadError(f"the relay bound {len(opened)} of {len(agents)} agents")
        return opened

    def half_open(self, agents: Sequence[Agent], take: Callable[[Connection], Take]) -> list[Callable[[], None]]:
        """Connect agents up to their proof. Returns what sends the proof of each; then ``take`` gets what arrives."""
        ready: list[Callable[[], None]] = []

        def upgraded(connection: Connection, hello: bytes) -> None:
            connection.take = take(connection)
            ready.append(lambda: connection.send(hello))

        waiting, dialled = deque(agents), 0
        self.progress = time.monotonic()
        while len(ready) < len(agents):
            while waiting and dialled - len(ready) < 64:
                self.dial(waiting.popleft(), upgraded=upgraded)
                dialled += 1
            self.step()
            if time.monotonic() - self.progress > PATIENCE:
                raise LoadError(f"the relay upgraded {len(ready)} of {len(agents)} connections")
        return ready

    def plain(self, take: Callable[[Connection, bytes], None], first: bytes) -> Connection:
        """A connection of another protocol than ours, which begins by writing ``first``."""
        connection = Connection(self, None, lambda _: None)
        connection.take = lambda data: take(connection, data)
        self._dial(connection, first)
        return connection

    def _dial(self, connection: Connection, first: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            connection.sock.connect(self._address)
        self._by_fd[connection.fd] = connection
        connection.unsent = first
        self._poll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def dial(
        self,
        agent: Agent,
        bound: Callable[[Connection], None] | None = None,
        *,
        probe: bool = False,
        upgraded: Callable[[Connection, bytes], None] | None = None,
    ) -> Connection:
        """Connect one agent; ``bound`` is told once the relay knows it, ``upgraded`` before it proves who it is."""
        connection = Connection(self, agent, lambda _: None)

        def take(data: bytes) -> None:
            hello = self._hello(connection, data)
            if hello is None:
                return
            if upgraded is not None:
                upgraded(connection, hello)
            elif bound is not None:
                self._introduce(connection, hello, bound, probe)

        connection.take = take
        self._dial(connection, UPGRADE)
        return connection

    def _hello(self, connection: Connection, data: bytes) -> bytes | None:
        """The connect frame, once the answer to the upgrade is there."""
        head, end, rest = (connection.rest + data).partition(b"\r\n\r\n")
        if not end:
            connection.rest = head
            return None
        if not head.startswith(b"HTTP/1.1 101"):
            raise LoadError(f"no WebSocket: {head[:200]!r}")
        connection.rest = rest
        challenge = _CHALLENGE.search(head)
        text = challenge[1].decode() if challenge else None
        assert connection.agent is not None
        return connection.agent.connect(text, time.time(), receipts=self._receipts)

    def _introduce(
        self, connection: Connection, hello: bytes, bound: Callable[[Connection], None], probe: bool
    ) -> None:
        wanted = b'"type":"connected"'
        if probe:
            did = connection.did
            number = time.monotonic_ns() % 10**12  # of its own each: a relay drops a second frame of the same id
            hello += Lane.between(_PROBE, did, did, 16).frame(number)
            wanted = b'"id":"%08x-0000-4000-8000-%012d"' % (_PROBE, number)

        def take(data: bytes) -> None:
            connection.rest += data
            if (at := connection.rest.find(wanted)) >= 0:
                if probe:
                    connection.send(ACK_BEFORE + connection.rest[at + 6 : at + 6 + ID_LENGTH] + ACK_AFTER)
                bound(connection)
            elif b'"type":"error"' in connection.rest:
                raise LoadError(f"the relay refused: {connection.rest[:300]!r}")

        connection.take = take
        connection.send(hello)
