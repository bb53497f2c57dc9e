"""The relay's shell on trio: sockets, the storage thread, the clock. Decides nothing.

Three tasks share one core, which nobody holds across an await: one serves every ready socket, one runs transactions in
a thread, one ticks. After each step they carry out the core's effects and write once per socket. Writes go straight
to the socket; only when it is full does anyone wait for it.
"""

import contextlib
import errno
import http
import ipaddress
import logging
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from mesh_relay import metrics
from mesh_relay.addresses import LOOPBACK
from mesh_relay.config import MEMORY_STORE, RelayConfig
from mesh_relay.connection import Asked, Connection, Ended, Event, Oversized, Phase
from mesh_relay.core import Ping, RelayCore, Send
from mesh_relay.inbox.memory import MemoryInbox
from mesh_relay.inbox.protocol import Inbox
from mesh_relay.inbox.sqlite import SqliteInbox
from mesh_relay.links import Link
from mesh_relay.readiness import READ, WRITE, Readiness, best_readiness
from mesh_relay.records import Done, Work
from mesh_relay.tls import Tls, TlsFailed
from meshlib.clock import Instant
from meshlib.crypto.keys import Entropy
from meshlib.errors import StoreError
from meshlib.logs import LogEvent
from meshlib.prometheus import CONTENT_TYPE
from meshlib.wire.encoding import b64url

log = logging.getLogger("mesh_relay")

_Result = TypeVar("_Result")

_UNIX = getattr(socket, "AF_UNIX", None)

PATH = "/ws"
_PAGES = ("/health", "/health/live", "/health/ready", "/metrics")
_JSON = "application/json"
NONCE_SIZE = 32

_RECEIVE = 64 * 1024
_ACCEPT_AT_ONCE = 64
_BACKLOG = 4096
_IRREGULAR = 20  # what a control frame or a fragment counts, in frames: about what it costs
_TICK = 1.0
_DEAF = 8  # times outgoing_high: receipts and errors for somebody who reads nothing at all
_RETRY = 1.0  # seconds after a failed transaction, or without file descriptors for another socket
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def system_clock() -> Instant:
    """Trio's clock, which tests may wind, and the system's."""
    return Instant(trio.current_time(), time.time())


def open_inbox(config: RelayConfig) -> Inbox:
    """The inbox the configuration names, not opened yet."""
    if config.store == MEMORY_STORE:
        return MemoryInbox()
    return SqliteInbox(config.store, strict=config.durability == "strict")


async def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listen on every TCP address of ``host``; with port 0 all get the same port."""
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, address in await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port or listeners[0].getsockname()[1], *address[2:]))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class _Socket:
    """A socket and what is known of it here."""

    __slots__ = ("connection", "deadline", "full", "interest", "link", "paused", "raw", "shut", "tls", "unsent")

    def __init__(self, raw: socket.socket, connection: Connection, link: Link, tls: Tls | None) -> None:
        self.raw = raw
        self.tls = tls  # between raw and connection; None: what travels is what the connection reads and writes
        self.connection = connection
        self.link = link
        self.unsent: memoryview | bytes = b""
        self.interest = READ
        self.full = False  # the kernel takes no more: waits to become writable
        self.paused = False  # not read from for a while
        self.shut = False  # our half of the stream is closed
        self.deadline: float | None = None  # monotonic, of a closing socket


class RelayServer:
    """One relay: ``await server.serve()`` runs it until :meth:`drain` or cancellation.

    Args:
        listeners: listening, non-blocking sockets; closed at the end.
        inbox: not opened yet; closed at the end.
        tls: what TCP listeners speak TLS with; Unix sockets never do.
    """

    def __init__(
        self,
        config: RelayConfig,
        listeners: Sequence[socket.socket],
        inbox: Inbox,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], Instant] = system_clock,
        entropy: Entropy = os.urandom,
        readiness: Callable[[trio.Nursery], Readiness] = best_readiness,
    ) -> None:
        self._config = config
        self._limits = config.limits
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._inbox = inbox
        self._tls = tls
        self._clock = clock
        self._entropy = entropy
        self._make_readiness = readiness
        self._seen = metrics.ShellCounters()
        self._sockets: dict[Link, _Socket] = {}
        self._by_fd: dict[int, _Socket] = {}
        self._dirty: dict[_Socket, None] = {}
        self._closing: dict[_Socket, None] = {}
        self._draining, self._deserted = trio.Event(), trio.Event()
        self._hurry = trio.Event()
        self._leaving = False  # the listeners are closed

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run.

        Raises:
            StoreError: the inbox cannot be opened.
        """
        try:
            contents = await self._in_thread(self._inbox.open)
            self._started = now = self._clock()
            self._core = RelayCore(
                self._limits,
                contents,
                now,
                ttl=self._config.ttl,
                allow_legacy=self._config.allow_legacy,
                durability=self._config.durability,
                trace=_trace if log.isEnabledFor(logging.DEBUG) else None,
            )
            self._accepted_at, self._accept_tokens = now.monotonic, self._limits.accept_burst
            self._work, self._urgent = trio.Event(), trio.Event()
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._readiness = self._make_readiness(nursery)
                    self._watch_listeners()
                    nursery.start_soon(self._serve_sockets)
                    nursery.start_soon(self._run_transactions)
                    nursery.start_soon(self._tick)
                    task_status.started()
                    await self._draining.wait()
                    await self._say_goodbye()
                    nursery.cancel_scope.cancel()
            finally:
                self._readiness.close()
                with trio.CancelScope(shield=True):
                    await self._settle()
        finally:
            for raw in [*self._listeners.values(), *(connected.raw for connected in self._sockets.values())]:
                raw.close()
            with trio.CancelScope(shield=True):
                await self._in_thread(self._inbox.close)

    def drain(self) -> None:
        """Stop: for ``drain_seconds`` only be not ready, then accept nobody, close every socket with 1001, commit, and
        return from :meth:`serve`. Called again: at once."""
        if self._draining.is_set():
            self._hurry.set()
        self._draining.set()

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(self._config.drain_seconds):
            await self._hurry.wait()
        self._leaving = True
        for fd, listener in self._listeners.items():
            self._readiness.forget(fd)
            listener.close()
        self._core.shut_down()
        self._carry_out(self._clock())
        if not self._sockets:
            return
        with trio.move_on_after(self._limits.close_seconds):
            await self._deserted.wait()

    async def _settle(self) -> None:
        """Nothing accepted stays in memory only."""
        if self._core.work_waiting:
            work = self._core.take_work(self._clock(), everything=True)
            self._core.stored(work, await self._transact(work), self._clock())

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        """Storage that waits for a disk is called in a thread, one call at a time; cancelling waits for its end."""
        if self._inbox.blocking:
            return await trio.to_thread.run_sync(call)
        return call()

    # --- storage ------------------------------------------------------------------------------------------------------

    async def _run_transactions(self) -> None:
        while True:
            await self._work.wait()
            if not self._urgent.is_set():
                with trio.move_on_after(self._limits.commit_seconds):
                    await self._urgent.wait()
            self._work, self._urgent = trio.Event(), trio.Event()
            work = self._core.take_work(self._clock())
            try:
                done = await self._transact(work) if work.due else Done()
            except StoreError as error:
                log.error(LogEvent("commit_failed", error=error))
                self._seen.commit_failures += 1
                self._seen.healthy = False
                self._core.failed(work)
                self._work.set()
                await trio.sleep(_RETRY)
            else:
                self._seen.healthy = True
                now = self._clock()
                self._core.stored(work, done, now)
                self._carry_out(now)

    async def _transact(self, work: Work) -> Done:
        began = time.perf_counter()
        done = await self._in_thread(lambda: self._inbox.run(work))
        self._seen.commits.observe(time.perf_counter() - began)
        return done

    # --- time ---------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            now = self._clock()
            self._core.tick(now)
            self._carry_out(now)
            for connected in [late for late in self._closing if (late.deadline or 0.0) <= now.monotonic]:
                self._drop(connected)
            due = trio.current_time() + _TICK
            await trio.sleep_until(due)
            self._seen.lag.observe(trio.current_time() - due)

    # --- sockets ------------------------------------------------------------------------------------------------------

    async def _serve_sockets(self) -> None:
        while True:
            ready = await self._readiness.wait()
            now = self._clock()
            for fd, mask in ready:
                connected = self._by_fd.get(fd)
                if connected is None:
                    if (listener := self._listeners.get(fd)) is not None:
                        self._accept(listener, now)
                    continue
                if mask & WRITE and connected.full:
                    connected.full = False
                    self._dirty[connected] = None
                if mask & READ:
                    try:
                        self._read(connected, now)
                    except Exception:  # whatever one socket sends, the others go on
                        log.exception("unexpected")
                        self._drop(connected)
            self._carry_out(now)

    def _watch_listeners(self) -> None:
        for fd in self._listeners:
            self._readiness.watch(fd, READ)

    def _pause_listeners(self, seconds: float) -> None:
        for fd in self._listeners:
            self._readiness.watch(fd, 0)

        async def resume() -> None:
            await trio.sleep(seconds)
            if not self._leaving:
                self._watch_listeners()

        self._nursery.start_soon(resume)

    def _accept(self, listener: socket.socket, now: Instant) -> None:
        limits = self._limits
        earned = (now.monotonic - self._accepted_at) * limits.accept_rate
        self._accepted_at, self._accept_tokens = now.monotonic, min(limits.accept_burst, self._accept_tokens + earned)
        for _ in range(_ACCEPT_AT_ONCE):
            if self._accept_tokens < 1:
                self._core.counters.accepts_delayed += 1
                self._pause_listeners(max(0.01, 1 / limits.accept_rate))
                return
            try:
                raw, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    log.error(LogEvent("accept_failed", error=error))
                    self._pause_listeners(_RETRY)
                    return
                continue  # the peer has gone already
            self._accept_tokens -= 1
            local = listener.family == _UNIX
            tls = None if local or self._tls is None else Tls(self._tls)
            raw.setblocking(False)
            origin = LOOPBACK if local else _origin(address[0], self._config.exempt_loopback)
            crowded = len(self._sockets) >= limits.connections
            if crowded or not self._core.welcome(origin, now):
                self._core.counters.overcrowded += crowded
                if tls is None:
                    _say_no(raw, http.HTTPStatus.SERVICE_UNAVAILABLE if crowded else http.HTTPStatus.TOO_MANY_REQUESTS)
                raw.close()
                continue
            if not local:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = self._core.open(origin, b64url(self._entropy(NONCE_SIZE)), now)
            connected = _Socket(raw, Connection(limits.first_frame_size), link, tls)
            self._sockets[link] = self._by_fd[raw.fileno()] = connected
            self._readiness.watch(raw.fileno(), READ)

    def _read(self, connected: _Socket, now: Instant) -> None:
        tls = connected.tls
        if tls is not None and not tls.admitted:
            tls.admitted = True
            if wait := self._core.begins_tls(now):
                self._pause(connected, wait)
                return
        try:
            data = connected.raw.recv(_RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connected)
            return
        self._seen.bytes_in += len(data)
        if tls is not None and not (data := self._unseal(connected, tls, data, now)):
            return
        connection, link = connected.connection, connected.link
        frames = 0
        events = connection.receive(data)
        while True:
            messages: list[bytes] = []
            for event in events:
                if type(event) is bytes:
                    messages.append(event)
                    continue
                frames += self._core.receive_all(link, messages, now)
                messages = []
                if not link.open:
                    break
                self._handle(connected, event, now)
            frames += self._core.receive_all(link, messages, now)
            if link.binding is not None and not connection.trusted:
                connection.trust(self._limits.frame_size)
            if not connection.held or not link.open:
                break
            events = connection.receive(b"")
        self._dirty[connected] = None  # pongs and closing frames may be waiting
        if connection.trusted:  # before, the connection itself counts them, for as long as it lasts
            irregular = connection.take_irregular()
            self._seen.control += irregular
            frames += _IRREGULAR * irregular
        if tls is not None and tls.ended:
            self._drop(connected)
        elif pause := self._core.heard(link, frames, now):
            self._pause(connected, pause)

    def _unseal(self, connected: _Socket, tls: Tls, data: bytes, now: Instant) -> bytes:
        """The plaintext in what has been received; empty when TLS kept all of it, or has failed."""
        self._dirty[connected] = None  # the handshake's next step, or an alert, may be waiting
        try:
            plaintext = tls.receive(data)
        except TlsFailed as error:
            log.debug(LogEvent("tls_failed", reason=error))
            self._core.tls_failed(connected.link, now)
            connected.connection.receive_eof()
            self._expect_end(connected, now)
            return b""
        if tls.ended and not plaintext:
            self._drop(connected)
        return plaintext

    def _pause(self, connected: _Socket, seconds: float) -> None:
        """Read nothing from this socket for a while."""
        connected.paused = True
        self._watch(connected)
        self._nursery.start_soon(self._resume, connected, seconds)

    def _handle(self, connected: _Socket, event: Event, now: Instant) -> None:
        if isinstance(event, Asked):
            self._answer(connected, event, now)
        elif isinstance(event, Oversized):
            self._core.oversized(connected.link, event.size)
        elif isinstance(event, Ended):
            if connected.connection.broke:
                self._core.broke_rules(connected.link, connected.connection.broke, now)
            self._core.lost(connected.link, connected.connection.close_code)
            self._expect_end(connected, now)

    def _answer(self, connected: _Socket, asked: Asked, now: Instant) -> None:
        connection, status, headers = connected.connection, http.HTTPStatus.OK, {}
        content_type, body = "text/plain; charset=utf-8", b""
        if asked.method != "GET":
            status, headers = http.HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"}
        elif asked.path == PATH and asked.upgrade:
            if connection.upgrade({"Mesh-Challenge": connected.link.nonce}):
                return
            self._core.broke_rules(connected.link, connection.broke, now)
            self._core.lost(connected.link)
            self._expect_end(connected, now)
            return
        elif asked.path == PATH:
            status, body = http.HTTPStatus.UPGRADE_REQUIRED, b"This address speaks WebSocket.\n"
            headers = {"Upgrade": "websocket"}
        elif asked.path in _PAGES:
            status, content_type, body = self._page(asked.path, now)
        else:
            status, body = http.HTTPStatus.NOT_FOUND, f"Here are {', '.join((PATH, *_PAGES))}.\n".encode()
        self._core.lost(connected.link)
        connection.respond(status, content_type, body, **headers)
        self._expect_end(connected, now)

    def _page(self, path: str, now: Instant) -> tuple[http.HTTPStatus, str, bytes]:
        if path == "/health/live":
            return http.HTTPStatus.OK, _JSON, metrics.alive()
        standing = self._standing(now)
        if path == "/metrics":
            return http.HTTPStatus.OK, CONTENT_TYPE, metrics.prometheus(self._core, self._seen, standing)
        if path == "/health":
            return http.HTTPStatus.OK, _JSON, metrics.health(self._core, self._seen, standing)
        status = http.HTTPStatus.OK if standing.not_ready is None else http.HTTPStatus.SERVICE_UNAVAILABLE
        return status, _JSON, metrics.ready(standing)

    def _standing(self, now: Instant) -> metrics.Standing:
        free = self._free()
        not_ready: metrics.NotReady | None = None
        if self._draining.is_set():
            not_ready = "draining"
        elif free is not None and free < self._limits.free_bytes:
            not_ready = "disk_full"
        elif not self._seen.healthy:
            not_ready = "commit_failed"
        return metrics.Standing(self._started, now, self._config.durability, len(self._sockets), free, not_ready)

    def _free(self) -> int | None:
        """Bytes left where the store is."""
        if not self._inbox.blocking:
            return None
        try:
            return shutil.disk_usage(Path(self._config.store).parent).free
        except OSError:
            return None

    def _expect_end(self, connected: _Socket, now: Instant) -> None:
        connected.deadline = now.monotonic + self._limits.close_seconds
        self._closing[connected] = None
        self._dirty[connected] = None

    def _carry_out(self, now: Instant) -> None:
        """Do what the core has decided, then write once per socket."""
        while True:
            for effect in self._core.effects():
                connected = self._sockets.get(effect.link)
                if connected is None:
                    continue
                if isinstance(effect, Send):
                    connected.connection.send(*effect.payloads)
                    self._dirty[connected] = None
                elif isinstance(effect, Ping):
                    connected.connection.ping()
                    self._dirty[connected] = None
                else:
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug(LogEvent("closing", code=effect.code, reason=effect.reason))
                    connected.connection.close(effect.code, effect.reason)
                    self._expect_end(connected, now)
            if not self._dirty:
                break
            dirty, self._dirty = self._dirty, {}
            for connected in dirty:
                if not connected.full:
                    self._flush(connected)
                elif connected.connection.waiting > _DEAF * self._limits.outgoing_high:
                    self._drop(connected)
                else:
                    self._watch(connected)
        if self._core.work_waiting:
            self._work.set()
            if self._core.work_urgent:
                self._urgent.set()

    def _flush(self, connected: _Socket) -> None:
        connection = connected.connection
        while True:
            data = connected.unsent
            if not data:
                writes = connection.writes()
                if connected.tls is not None:
                    try:
                        data = connected.tls.seal(writes, last=connection.phase is Phase.ENDED)
                    except TlsFailed:
                        self._drop(connected)
                        return
                else:
                    data = b"".join(writes)
                if not data:
                    break
            try:
                sent = connected.raw.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._drop(connected)
                return
            self._seen.bytes_out += sent
            connected.unsent = memoryview(data)[sent:] if sent < len(data) else b""
            if connected.unsent:
                connected.full = True
                break
        self._core.flushed(connected.link, len(connected.unsent))
        self._watch(connected)
        if connection.phase is Phase.ENDED and not connected.full and not connected.shut:
            self._shut(connected)

    def _shut(self, connected: _Socket) -> None:
        connected.shut = True
        try:
            connected.raw.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connected)

    def _watch(self, connected: _Socket) -> None:
        """Ask for what the socket is waiting for now. Who does not read what we send is not read from either."""
        deaf = connected.full and connected.connection.waiting > self._limits.outgoing_high
        interest = (WRITE if connected.full else 0) | (0 if connected.paused or deaf else READ)
        if interest != connected.interest:
            self._core.counters.deaf += deaf and bool(connected.interest & READ)
            connected.interest = interest
            self._readiness.watch(connected.raw.fileno(), interest)

    async def _resume(self, connected: _Socket, pause: float) -> None:
        await trio.sleep(pause)
        connected.paused = False
        if connected.link in self._sockets:
            self._watch(connected)

    def _drop(self, connected: _Socket) -> None:
        """The socket has ended."""
        self._core.lost(connected.link)
        if self._sockets.pop(connected.link, None) is not None:
            fd = connected.raw.fileno()
            del self._by_fd[fd]
            self._readiness.forget(fd)
            connected.raw.close()
            if self._leaving and not self._sockets:
                self._deserted.set()
        self._dirty.pop(connected, None)
        self._closing.pop(connected, None)


def _trace(event: str, fields: Mapping[str, object]) -> None:
    log.debug(LogEvent(event, **fields))


def _say_no(raw: socket.socket, status: http.HTTPStatus) -> None:
    """Say why a socket is closed. Nothing is read or waited for: a flood must cost no more than accepting it."""
    answer = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    with contextlib.suppress(OSError):
        raw.send(f"{answer}Retry-After: 10\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())


def _origin(address: str, exempt_loopback: bool) -> str:
    """What limits per address count by: IPv4 addresses, /64 networks of IPv6, one name for loopback if it is exempt."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback and exempt_loopback:
        return LOOPBACK
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
