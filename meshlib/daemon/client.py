"""A daemon's client for our own processes, native on asyncio and on trio: the same verbs as :class:`MeshClient`.

Owns the connection and matching answers to calls. Plugins in foreign interpreters use :mod:`meshlib.daemon.blocking`,
which loads nothing.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
from anyio.abc import SocketAttribute, TaskGroup

from meshlib.client.events import DeliveryState
from meshlib.client.handles import Agent
from meshlib.client.requests import Answer, Gathering, OnProgress, Progress, TaskState
from meshlib.client.stats import ClientStats, Sighting
from meshlib.client.verbs import PeerSummary
from meshlib.daemon.address import is_ours, short
from meshlib.daemon.blocking import HELLO_SECONDS, checked, hung_up, no_greeting, not_running
from meshlib.daemon.protocol import Called, Cancel, Frame, Noted, Raised, Returned
from meshlib.daemon.stream import FrameStream
from meshlib.daemon.values import (
    Answered,
    Call,
    CancelFile,
    Confirm,
    Discover,
    Follow,
    FollowFile,
    GiveBack,
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
    read,
    read_answer,
    write,
)
from meshlib.errors import MalformedFrame, MeshError, NotConnected, TransferFailed, TransportError, UsageError
from meshlib.files.receipts import FileReceipt, OnTransfer, TransferState
from meshlib.identity import Did, parse_did
from meshlib.wire.encoding import MessageId
from meshlib.wire.envelopes import Artifact, Telemetry

T = TypeVar("T")

CANCEL_SECONDS = 2.0
"""Time to tell the daemon that nobody waits any more; if it has gone, that says the same."""


@dataclass(slots=True)
class _Waiting:
    """A call that waits for its answer."""

    frames: deque[Frame] = field(default_factory=deque)
    news: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.news.set()


class _Line:
    """One connection."""

    def __init__(self, frames: FrameStream, did: Did) -> None:
        self.did = did
        self.ended = anyio.Event()
        self._frames = frames
        self._next_id = 0
        self._waiting: dict[int, _Waiting] = {}

    @classmethod
    async def connect(cls, path: Path) -> "_Line":
        """Connect and read the greeting.

        Raises:
            DaemonNotRunning: nobody listens.
            TransportError: who listens is no daemon of ours.
        """
        try:
            with anyio.fail_after(HELLO_SECONDS), short(path) as address:
                stream = await anyio.connect_unix(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise not_running(path) from error
        except (OSError, anyio.ConnectionFailed) as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
                raise not_running(path) from error
            raise TransportError(f"the daemon at {path} cannot be reached: {error}") from error
        frames = FrameStream(stream)
        try:
            if not is_ours(stream.extra(SocketAttribute.raw_socket)):  # noqa: S610 - not Django's
                raise TransportError(f"what listens at {path} belongs to another user: that is nobody to talk to")
            return cls(frames, parse_did(await _greeting(frames, path)))
        except BaseException:
            await frames.abort()
            raise

    async def run(self) -> None:
        """Take what the daemon says until one of us hangs up."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._frames.write)
                try:
                    while (frame := await self._frames.receive()) is not None:
                        self._take(frame, tasks)
                except MalformedFrame:
                    pass  # the same end for everybody who waits
                tasks.cancel_scope.cancel()
        finally:
            self.ended.set()
            for waiting in self._waiting.values():
                waiting.news.set()
            with anyio.CancelScope(shield=True):
                await self._frames.abort()

    def _take(self, frame: Frame | MalformedFrame, tasks: TaskGroup) -> None:
        if not isinstance(frame, Noted | Returned | Raised):
            return
        waiting = self._waiting.get(frame.id)
        if waiting is not None:
            waiting.tell(frame)
        elif isinstance(frame, Returned):
            tasks.start_soon(self._leave_to_others, frame.value)

    async def _leave_to_others(self, value: object) -> None:
        """A message may have come in the moment in which we stopped waiting for one."""
        try:
            taken: Taken = read(Taken, value)
            await self._frames.send(Called(self._number(), GiveBack(taken.sender, taken.id)))
        except MeshError:
            pass  # something else, or the daemon has gone and hands it over again by itself

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id

    async def ask(self, call: Call[T], on_note: Callable[[object], None] | None = None) -> T:
        """Make a call and wait for its answer. Whoever is cancelled cancels it at the daemon as well."""
        number = self._number()
        waiting = self._waiting[number] = _Waiting()
        answered = False
        try:
            await self._frames.send(Called(number, call))
            while True:
                while not waiting.frames:
                    if self.ended.is_set():
                        answered = True
                        raise TransportError("the daemon has gone: start it again")
                    waiting.news = anyio.Event()
                    await waiting.news.wait()
                match waiting.frames.popleft():
                    case Noted() as note:
                        if on_note is not None:
                            on_note(note.value)
                    case Returned() as answer:
                        answered = True
                        return read_answer(call, answer.value)
                    case Raised() as failure:
                        answered = True
                        raise failure.error
        finally:
            del self._waiting[number]
            if not answered:
                with anyio.move_on_after(CANCEL_SECONDS, shield=True):
                    await self._call_off(number)
                    for frame in waiting.frames:  # the answer came, and so did the end of waiting for it
                        if isinstance(frame, Returned):
                            await self._leave_to_others(frame.value)

    async def _call_off(self, number: int) -> None:
        with suppress(TransportError):  # if the daemon's end is gone, every call has ended
            await self._frames.send(Cancel(number))


async def _greeting(frames: FrameStream, path: Path) -> str:
    try:
        with anyio.fail_after(HELLO_SECONDS):
            frame = await frames.receive()
    except (TimeoutError, MalformedFrame) as error:
        raise no_greeting(path) from error
    if frame is None:
        raise hung_up(path)
    return checked(frame, path).did


class DaemonClient:
    """An agent's place on the mesh, by way of the daemon that owns its identity::

        async with DaemonClient(socket_path(store)) as mesh:
            await mesh.send("bob", "hello")

    Entering connects. When the daemon was restarted meanwhile, the next call connects again; one that is under way
    raises :class:`TransportError`, and messages that were not confirmed are handed over again, to whoever asks next.

    Args:
        path: the socket, see :func:`meshlib.daemon.address.socket_path`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._connecting = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._line: _Line | None = None
        self._left = False

    async def __aenter__(self) -> Self:
        if self._tasks is not None or self._left:
            raise UsageError("a client is entered once: make a new DaemonClient to go on")
        line = await _Line.connect(self.path)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(line.run)
        self._line = line
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks = self._tasks
        assert tasks is not None
        self._left = True
        tasks.cancel_scope.cancel()
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        # What the caller's block raised stays what it is, in no exception group.
        swallowed = await tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
        return swallowed if cancelled else None

    @property
    def did(self) -> Did:
        """The DID of whom we speak for."""
        if self._line is None:
            raise NotConnected("the client is not open: use it inside 'async with DaemonClient(...)'")
        return self._line.did

    # --- verbs -------------------------------------------------------------------------------------------------------

    async def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: DeliveryState | str | None = None,
        message_id: str | None = None,
    ) -> "DaemonReceipt":
        """Send a message; see :meth:`meshlib.MeshClient.send`."""
        sent = await self._ask(Send(peer, payload, None if wait is None else str(wait), message_id))
        return DaemonReceipt(self, sent)

    async def receive(self, senders: Collection[str] | None = None) -> "DaemonMessage":
        """The next message; see :meth:`meshlib.MeshClient.receive`. Several that receive get each message once."""
        line = await self._open()
        while True:
            taken = await line.ask(Receive(None if senders is None else tuple(senders)))
            if taken is not None:
                return DaemonMessage(line, taken)

    async def request(
        self,
        peer: str,
        content: str,
        *,
        timeout: float = 1500.0,  # noqa: ASYNC109 - the agent is told how long we wait
        hops: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Have a peer do something, and wait for its answer; see :meth:`meshlib.MeshClient.request`."""

        def note(value: object) -> None:
            if on_progress is not None:
                on_progress(_progress(read(Progressed, value)))

        line = await self._open()
        return _answer(await line.ask(Request(peer, content, timeout, hops), note))

    def gather(self, contents: Mapping[str, str], *, timeout: float = 1500.0, hops: int = 0) -> Gathering:
        """Have several peers do something at the same time; see :meth:`meshlib.MeshClient.gather`."""
        if self._tasks is None or self._left:
            raise NotConnected("the client is not open: use it inside 'async with DaemonClient(...)'")
        gathering = Gathering(contents)
        for peer, content in contents.items():
            ask = partial(self.request, peer, content, timeout=timeout, hops=hops)
            self._tasks.start_soon(gathering.follow, peer, ask)
        return gathering

    async def send_file(
        self, peer: str, path: Path | str, *, description: str = "", on_progress: OnTransfer | None = None
    ) -> FileReceipt:
        """Send a file, which the daemon reads; see :meth:`meshlib.MeshClient.send_file`."""
        line = await self._open()
        absolute = os.path.abspath(path)  # noqa: ASYNC240 - asks for the current folder only
        sending = await line.ask(SendFile(peer, absolute, description))

        async def cancel() -> None:
            await line.ask(CancelFile(sending.id))

        receipt = FileReceipt(sending.id, parse_did(sending.peer), Path(absolute), sending.name, sending.size, cancel)
        if on_progress is not None:
            receipt.watch(on_progress)
        assert self._tasks is not None
        self._tasks.start_soon(_follow_file, line, receipt)
        return receipt

    async def resolve(self, peer: str) -> Did:
        """The DID of a display name; see :meth:`meshlib.MeshClient.resolve`."""
        return parse_did(await self._ask(Resolve(peer)))

    async def discover(self, capability: str, limit: int = 50) -> list[Agent]:
        """Agents that publish a capability, the freshest first."""
        found = await self._ask(Discover(capability, limit))
        return [Agent(parse_did(one.did), one.capabilities, one.online, one.last_seen) for one in found]

    async def peers(self) -> list[PeerSummary]:
        """The 1,000 peers we have talked to last, the last first."""
        known = await self._ask(Peers())
        return [PeerSummary(parse_did(one.did), one.name, one.verified, one.undelivered) for one in known]

    async def stats(self) -> ClientStats:
        """The numbers of the client behind the daemon; see :meth:`meshlib.MeshClient.stats`."""
        return await self._ask(Stats())

    async def trace(self, message: str) -> tuple[Sighting, ...]:
        """Where a message stands, by its id; see :meth:`meshlib.MeshClient.trace`."""
        return await self._ask(Trace(message))

    async def status(self) -> Standing:
        """How the daemon is."""
        return await self._ask(Status())

    async def stop(self) -> None:
        """End the daemon in order; returns once it has begun to.

        Raises:
            UsageError: who serves the socket does not let itself be stopped this way.
        """
        await self._ask(Stop())

    async def gone(self) -> None:
        """Wait until the daemon hangs up."""
        if self._line is not None:
            await self._line.ended.wait()

    async def _ask(self, call: Call[T]) -> T:
        line = await self._open()
        return await line.ask(call)

    async def _open(self) -> _Line:
        if self._tasks is None or self._left:
            raise NotConnected("the client is not open: use it inside 'async with DaemonClient(...)'")
        async with self._connecting:
            if self._line is None or self._line.ended.is_set():
                self._line = await _Line.connect(self.path)
                self._tasks.start_soon(self._line.run)
            return self._line


class DaemonMessage:
    """A message of a peer; see :class:`meshlib.Message`."""

    def __init__(self, line: _Line, taken: Taken) -> None:
        self._line = line
        self.sender = parse_did(taken.sender)
        self.id = MessageId(taken.id)
        self.payload = taken.payload
        self.encrypted = taken.encrypted
        self.redelivered = taken.redelivered

    async def ack(self) -> None:
        """Confirm that the message has been dealt with. Twice is as good as once.

        Raises:
            TransportError: the connection it came over has ended; it will be handed over again.
        """
        await self._line.ask(Confirm(self.sender, self.id))

    async def give_back(self) -> None:
        """Leave the message to whoever receives next."""
        await self._line.ask(GiveBack(self.sender, self.id))

    def __repr__(self) -> str:
        return f"<Message {self.id} from {self.sender}>"


class DaemonReceipt:
    """What has become of a message of ours; see :class:`meshlib.Receipt`."""

    def __init__(self, client: DaemonClient, sent: Sent) -> None:
        self._client = client
        self.id = MessageId(sent.id)
        self.peer = parse_did(sent.peer)
        self.state = DeliveryState(sent.state)
        self.detail = sent.detail

    async def wait(self, state: DeliveryState | str = DeliveryState.DELIVERED) -> DeliveryState:
        """Wait until the message has come at least as far as ``state``; see :meth:`meshlib.Receipt.wait`."""
        sent = await self._client._ask(Follow(self.id, str(state)))
        self.state, self.detail = DeliveryState(sent.state), sent.detail
        return self.state

    def __repr__(self) -> str:
        return f"<Receipt {self.id} to {self.peer}: {self.state}>"


async def _follow_file(line: _Line, receipt: FileReceipt) -> None:
    def note(value: object) -> None:
        moved: Moved = read(Moved, value)
        receipt.saved_to = moved.saved_to
        receipt.advance(TransferState(moved.state), moved.moved, moved.detail, moved.reason)

    try:
        note(write(await line.ask(FollowFile(receipt.id), note)))
    except TransferFailed as failure:
        end = TransferState.CANCELLED if failure.reason == "cancelled" else TransferState.FAILED
        receipt.advance(end, detail=str(failure), reason=failure.reason)
    except MeshError as error:
        receipt.give_up(error)


def _answer(said: Answered) -> Answer:
    return Answer(
        parse_did(said.peer),
        said.request_id,
        said.content,
        tuple(Artifact(one.name, one.path, one.size_bytes) for one in said.artifacts),
        Telemetry(
            said.telemetry.prompt_tokens,
            said.telemetry.completion_tokens,
            said.telemetry.total_tokens,
            said.telemetry.rounds,
            said.telemetry.tool_calls,
        ),
        said.seconds,
    )


def _progress(said: Progressed) -> Progress:
    return Progress(parse_did(said.peer), said.request_id, TaskState(said.state), said.elapsed, said.tick)
