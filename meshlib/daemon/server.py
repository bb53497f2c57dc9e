"""The daemon: one client's verbs for other processes of the same user, over a Unix socket.

Owns the socket, its guards, and what each connection holds: calls under way, messages not confirmed. When a connection
ends, however it ends, its calls end and its messages are handed over again. Leaves what the verbs do to
:class:`meshlib.MeshClient`, and running a process to :mod:`meshlib.cli.daemon`.
"""

import logging
import os
import socket
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from meshlib.client.handles import Message, Receipt
from meshlib.client.mesh import MeshClient
from meshlib.client.requests import Answer, Progress
from meshlib.daemon.address import is_ours, short, socket_path
from meshlib.daemon.protocol import CANCELLED, VERSION, Called, Cancel, Frame, Hello, Noted, Raised, Returned
from meshlib.daemon.stream import FrameStream
from meshlib.daemon.values import (
    Answered,
    Call,
    CancelFile,
    Confirm,
    Cost,
    Discover,
    File,
    Follow,
    FollowFile,
    GiveBack,
    Known,
    Listed,
    Moved,
    Peers,
    Progressed,
    Receive,
    Request,
    Resolve,
    Send,
    SendFile,
    Sent,
    Standing,
    Stats,
    Status,
    Stop,
    Taken,
    Trace,
)
from meshlib.errors import InvalidValue, MalformedFrame, MeshError, QueueFull, StoreError, TransportError, UsageError
from meshlib.files.receipts import FileReceipt
from meshlib.logs import LogEvent
from meshlib.store.lock import Holder, holder_of

log = logging.getLogger("meshlib.daemon")

CONNECTIONS = 64
"""Processes that may be connected. Beyond it the one that has been idle for longest makes room, if any is idle."""
CALLS = 128
"""Calls under way on one connection: a gathering of a hundred agents and some more."""
HELD = 1_000
"""Messages one connection may hold unconfirmed: as many as a client's inbox takes before it holds the relay back."""
FILES = 1_000
"""Files sent by way of the daemon whose end can still be asked for, the newest."""
PEERS = 1_000
"""Peers told of, the last ones: they fit a line whatever they are called."""
DRAIN_SECONDS = 5.0
"""For calls that should take milliseconds, when the daemon stops. Those that wait for peers end at once."""
_PATIENT = (Receive, Follow, FollowFile, Request)


def serve_daemon(
    client: MeshClient, path: Path | None = None, *, on_stop: Callable[[], None] | None = None
) -> "Daemon":
    """Offer an open client to other processes of this user while the ``async with`` block lasts.

    The inbox is theirs then: a host that takes messages itself does so by a route, or by :meth:`~MeshClient.receive`.

    Args:
        path: the socket; by default ``daemon.sock`` in the client's store, where others look for it.
        on_stop: called when somebody asks the daemon to end; ``None``: that is refused.
    Raises:
        StoreError: on entering: the socket cannot be made there; the message says why.
        UsageError: the client has no folder, and no path was given.
    """
    if path is None:
        if client.config.store is None:
            raise UsageError("a client without a store has no place for a daemon's socket: give it a store, or a path")
        path = socket_path(Path(client.config.store))
    return Daemon(client, path, on_stop)


class Daemon:
    """What :func:`serve_daemon` returns."""

    def __init__(self, client: MeshClient, path: Path, on_stop: Callable[[], None] | None) -> None:
        self.client = client
        self.path = path
        self.on_stop = on_stop
        self.stopping = False
        self.connections: dict[_Connection, None] = {}
        """The one idle for longest first."""
        self.files: OrderedDict[str, FileReceipt] = OrderedDict()
        self._accepting = anyio.CancelScope()
        self._tasks: TaskGroup | None = None
        self._inode = 0
        self._changed = anyio.Event()

    async def __aenter__(self) -> Self:
        listener = await _listen(self.path, ours=_owns(self.client, self.path))
        self._inode = self.path.stat().st_ino
        self._tasks = await anyio.create_task_group().__aenter__()
        tasks = self._tasks

        async def accept() -> None:
            with self._accepting:
                try:
                    await listener.serve(self._connected, tasks)
                finally:
                    with anyio.CancelScope(shield=True):
                        await listener.aclose()

        tasks.start_soon(accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks = self._tasks
        assert tasks is not None
        self.stopping = True
        self._accepting.cancel()
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        with anyio.move_on_after(DRAIN_SECONDS, shield=True):
            for connection in list(self.connections):
                connection.drain()
            while any(connection.busy for connection in self.connections):
                await self._changed.wait()
            for connection in list(self.connections):
                connection.finish()
            while self.connections:
                await self._changed.wait()
        tasks.cancel_scope.cancel()
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        # What the caller's block raised stays what it is, in no exception group.
        swallowed = await tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
        return swallowed if cancelled else None

    async def _connected(self, stream: SocketStream) -> None:
        frames = FrameStream(stream)
        try:
            if not is_ours(stream.extra(SocketAttribute.raw_socket)):  # noqa: S610 - not Django's
                log.warning(LogEvent("other_user_turned_away"))
                return
            if not await self._room(frames):
                return
            connection = _Connection(self, frames)
            self.connections[connection] = None
            try:
                await connection.run()
            finally:
                del self.connections[connection]
                self.tell()
        except Exception:  # a mistake of ours on one connection must not end the others
            log.exception(LogEvent("connection_failed"))
        finally:
            with anyio.CancelScope(shield=True):
                await frames.abort()

    async def _room(self, frames: FrameStream) -> bool:
        """Whether there is room for a connection; an idle one is asked to make some."""
        if len(self.connections) < CONNECTIONS:
            return True
        idle = next((one for one in self.connections if one.idle), None)
        if idle is not None:
            idle.finish()
            return True
        with anyio.move_on_after(1):
            full = QueueFull(f"{CONNECTIONS} processes use the daemon, the limit: end one of them")
            await frames.send(Raised.of(0, full))
            frames.finish()
            await frames.write()
        return False

    def used(self, connection: "_Connection") -> None:
        """A connection is at work, and was not idle for longest any more."""
        self.connections[connection] = self.connections.pop(connection, None)

    def remember(self, sending: FileReceipt) -> None:
        """A file is on its way; it may be over before anybody asks what became of it."""
        self.files[sending.id] = sending
        while len(self.files) > FILES:
            self.files.popitem(last=False)

    def tell(self) -> None:
        """Something has ended."""
        self._changed.set()
        self._changed = anyio.Event()


async def _listen(path: Path, *, ours: bool) -> anyio.abc.Listener[SocketStream]:
    """A socket that only we may use.

    Args:
        ours: whether the identity's lock is ours, so that a socket that is there already belongs to nobody any more.
    """
    try:
        _make_way(path, ours)
        with short(path) as address:
            return await anyio.create_unix_listener(address, mode=0o600)
    except OSError as error:
        raise StoreError(f"cannot listen at {path}: {error.strerror or error}") from error


def _make_way(path: Path, ours: bool) -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise StoreError("this system has no Unix sockets: run without a daemon")
    folder = path.parent.stat()
    if folder.st_uid != os.getuid() or folder.st_mode & 0o077:
        raise StoreError(f"{path.parent} is open to other users: chmod 700 it, or name another folder")
    with suppress(FileNotFoundError):
        found = path.lstat()
        if not (ours and stat.S_ISSOCK(found.st_mode)):
            raise StoreError(f"{path} is there already: stop whoever listens there, or remove it")
        path.unlink()


def _owns(client: MeshClient, path: Path) -> bool:
    """Whether the folder of a socket is the store of ``client``, locked by this process."""
    store = client.config.store
    if store is None:
        return False
    folder = Path(store).expanduser()
    holder = holder_of(folder)
    with suppress(OSError):
        return folder.samefile(path.parent) and holder is not None and holder.pid == os.getpid()
    return False


class _Connection:
    """One process that uses the daemon."""

    def __init__(self, daemon: Daemon, frames: FrameStream) -> None:
        self._daemon = daemon
        self._client = daemon.client
        self._frames = frames
        self._calls: dict[int, tuple[Call[object], anyio.CancelScope]] = {}
        self._held: dict[tuple[str, str], Message] = {}
        self._leaving = False
        self._followers: dict[str, set[int]] = {}
        """Calls that wait for a file."""

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._calls)

    @property
    def idle(self) -> bool:
        """Whether nothing is lost when the connection ends."""
        return not (self._calls or self._held or self._leaving)

    def drain(self) -> None:
        """End the calls that could take long."""
        for call, scope in self._calls.values():
            if isinstance(call, _PATIENT) or (isinstance(call, Send) and call.wait is not None):
                scope.cancel()

    def finish(self) -> None:
        """Hang up once everything is said."""
        self._leaving = True
        self._frames.finish()

    async def run(self) -> None:
        """Serve until one of us hangs up."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._frames.write)
                try:
                    await self._say(Hello(VERSION, self._client.did))
                    while (frame := await self._frames.receive()) is not None:
                        await self._take(frame, tasks)
                except MalformedFrame as fault:
                    log.warning(LogEvent("foreign_connection_ended", detail=fault))
                tasks.cancel_scope.cancel()
        finally:
            # The last one first: each goes before those that wait already.
            for message in reversed(self._held.values()):
                self._client.give_back(message)
            self._held.clear()

    async def _take(self, frame: Frame | MalformedFrame, tasks: TaskGroup) -> None:
        match frame:
            case MalformedFrame():
                await self._say(Raised.of(int(frame.id or 0), InvalidValue(str(frame))))
            case Called():
                refusal = self._refusal(frame)
                if refusal is not None:
                    await self._say(Raised.of(frame.id, refusal))
                    return
                self._daemon.used(self)
                scope = anyio.CancelScope()
                self._calls[frame.id] = frame.call, scope
                tasks.start_soon(self._serve, frame, scope)
            case Cancel() if frame.id in self._calls:
                self._calls[frame.id][1].cancel()
            case _:
                pass  # the call to cancel has ended meanwhile; the rest is for the other direction

    def _refusal(self, frame: Called) -> MeshError | None:
        if frame.id in self._calls:
            raise MalformedFrame("two calls have one number")
        if self._daemon.stopping:
            return _stopping()
        if len(self._calls) >= CALLS:
            return QueueFull(f"{CALLS} calls are under way on this connection, the limit: wait for some of them")
        if isinstance(frame.call, Receive) and len(self._held) >= HELD:
            return QueueFull(f"{HELD} messages of this connection are not confirmed, the limit: confirm some of them")
        return None

    async def _serve(self, frame: Called, scope: anyio.CancelScope) -> None:
        """Answer one call, exactly once."""
        said = False
        value: object = None
        with scope:
            try:
                value = await self._do(frame.id, frame.call)
                await self._say(Returned(frame.id, value))
            except MeshError as error:
                await self._say(Raised.of(frame.id, error))
            except Exception as error:  # a mistake of ours is the caller's answer, too
                log.exception(LogEvent("call_failed"))
                await self._say(
                    Raised.of(frame.id, MeshError(f"the daemon failed ({type(error).__name__}); its log says where"))
                )
            said = True
        if not said:
            if isinstance(value, Taken):
                self._give_back(value.sender, value.id)
            cancelled = Raised(frame.id, CANCELLED, "the call was cancelled")
            await self._say(Raised.of(frame.id, _stopping()) if self._daemon.stopping else cancelled)
        del self._calls[frame.id]
        self._daemon.tell()

    async def _say(self, frame: Frame) -> None:
        with suppress(TransportError):  # whoever reads has gone; the reader notices, too
            await self._frames.send(frame)

    async def _do(self, number: int, call: Call[object]) -> object:
        client = self._client
        match call:
            case Send():
                return _sent(await client.send(call.peer, call.payload, wait=call.wait, message_id=call.message_id))
            case Follow():
                return await self._follow(call)
            case Receive():
                message: Message | None = None
                with anyio.move_on_after(call.timeout):
                    message = await client.receive(call.senders)
                return None if message is None else self._hold(message)
            case Confirm():
                held = self._held.pop((call.sender, call.message), None)
                if held is not None:
                    await held.ack()
            case GiveBack():
                self._give_back(call.sender, call.message)
            case Resolve():
                return await client.resolve(call.peer)
            case Discover():
                found = await client.discover(call.capability, call.limit)
                return tuple(Listed(one.did, one.capabilities, one.online, one.last_seen) for one in found)
            case Request():
                answer = await client.request(
                    call.peer,
                    call.content,
                    timeout=call.timeout,
                    hops=call.hops,
                    on_progress=lambda progress: self._frames.send_soon(Noted(number, _progressed(progress))),
                )
                return _answered(answer)
            case SendFile():
                if not os.path.isabs(call.path):
                    raise InvalidValue("the daemon runs in another folder: name a file by its absolute path")
                sending = await client.send_file(call.peer, call.path, description=call.description)
                self._daemon.remember(sending)
                return _moved(sending)
            case FollowFile():
                return await self._follow_file(number, self._file(call.file))
            case CancelFile():
                await self._file(call.file).cancel()
            case Peers():
                known = await client.peers()
                return tuple(Known(one.did, one.name, one.verified, one.undelivered) for one in known[:PEERS])
            case Stats():
                return await client.stats()
            case Trace():
                return await client.trace(call.message)
            case Status():
                return self._standing()
            case Stop():
                if self._daemon.on_stop is None:
                    command = Holder.this_process().command
                    raise UsageError(f"the daemon is a part of {command} (process {os.getpid()}): stop that")
                self._daemon.on_stop()
        return None

    async def _follow(self, call: Follow) -> Sent:
        receipt = self._client.receipt(call.message)
        if receipt is None:
            raise InvalidValue(f"no message {call.message!r} of ours is known; the last 10,000 are remembered")
        await receipt.wait(call.state)
        return _sent(receipt)

    def _file(self, file: str) -> FileReceipt:
        known = self._daemon.files.get(file)
        known = known or next((one for one in self._client.transfers() if one.id == file), None)
        if known is None:
            raise InvalidValue(f"no file {file!r} is on its way")
        return known

    async def _follow_file(self, number: int, receipt: FileReceipt) -> Moved:
        if receipt.id not in self._followers:
            self._followers[receipt.id] = set()
            receipt.watch(self._note_file)
        self._followers[receipt.id].add(number)
        try:
            await receipt.wait()
        finally:
            self._followers[receipt.id].discard(number)
        return _moved(receipt)

    def _note_file(self, receipt: FileReceipt) -> None:
        for number in self._followers[receipt.id]:
            self._frames.send_soon(Noted(number, _moved(receipt)))

    def _hold(self, message: Message) -> Taken:
        self._held[message.sender, message.id] = message
        return Taken(message.sender, message.id, message.payload, message.encrypted, message.redelivered)

    def _give_back(self, sender: str, message: str) -> None:
        held = self._held.pop((sender, message), None)
        if held is not None:
            self._client.give_back(held)

    def _standing(self) -> Standing:
        client = self._client
        return Standing(
            did=client.did,
            name=client.config.name,
            connected=client.connected,
            features=tuple(sorted(client.features)),
            relay=client.config.relay_url,
            registry=client.config.registry_url,
            pid=os.getpid(),
            command=Holder.this_process().command,
            connections=len(self._daemon.connections),
            undelivered=len(client.undelivered()),
        )


def _stopping() -> TransportError:
    return TransportError("the daemon is stopping: start it again, then ask it again")


def _sent(receipt: Receipt) -> Sent:
    return Sent(receipt.id, receipt.peer, receipt.state, receipt.detail)


def _moved(receipt: FileReceipt) -> Moved:
    return Moved(
        receipt.id,
        receipt.peer,
        receipt.name,
        receipt.size,
        receipt.state,
        receipt.moved,
        receipt.detail,
        receipt.reason,
        receipt.saved_to,
    )


def _progressed(progress: Progress) -> Progressed:
    return Progressed(progress.peer, progress.request_id, progress.state, progress.elapsed, progress.tick)


def _answered(answer: Answer) -> Answered:
    cost = answer.telemetry
    return Answered(
        answer.peer,
        answer.request_id,
        answer.content,
        tuple(File(one.name, one.path, one.size_bytes) for one in answer.artifacts),
        Cost(cost.prompt_tokens, cost.completion_tokens, cost.total_tokens, cost.rounds, cost.tool_calls),
        answer.seconds,
    )
