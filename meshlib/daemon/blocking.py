"""A daemon's client for plugins: synchronous, thread-safe, the standard library and nothing else.

It runs inside other programs' interpreters, with whatever event loop and package versions they have. What peers wrote
is handed on as it is; texts of peers are untrusted.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from meshlib.client.stats import ClientStats, Sighting
from meshlib.daemon.address import is_ours, short
from meshlib.daemon.protocol import (
    VERSION,
    Called,
    Cancel,
    Frame,
    Hello,
    Lines,
    Noted,
    Raised,
    Returned,
    decode,
    encode,
)
from meshlib.daemon.values import (
    Answered,
    Call,
    CancelFile,
    Confirm,
    Discover,
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
    read,
    read_answer,
)
from meshlib.errors import DaemonNotRunning, MalformedFrame, MeshError, NotConnected, TransportError

T = TypeVar("T")

HELLO_SECONDS = 10.0
"""Until a daemon that does not greet counts as stuck."""
GRACE = 30.0
"""Seconds that a call may take longer than it said it would, before the daemon counts as stuck."""
CHUNK = 65_536


class _Line:
    """One connection. A thread of its own reads; every call waits in a queue of its own."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines()
        self._socket = _connect(path)
        self._writing = threading.Lock()
        self._state = threading.Lock()
        self._next_id = 0
        self._waiting: dict[int, queue.SimpleQueue[Frame | None]] = {}
        self.gone = False
        try:
            self.hello, frames = self._greeting(path)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(None)
        threading.Thread(target=self._read, args=(frames,), name="mesh-daemon-client", daemon=True).start()

    def _greeting(self, path: Path) -> tuple[Hello, list[Frame]]:
        self._socket.settimeout(HELLO_SECONDS)
        try:
            frames: list[Frame] = []
            while not frames:
                data = self._socket.recv(CHUNK)
                if not data:
                    raise hung_up(path)
                frames = [decode(line) for line in self._lines.feed(data)]
        except (OSError, MalformedFrame) as error:
            raise no_greeting(path) from error
        hello, *rest = frames
        return checked(hello, path), rest

    def start(self, call: Call[object]) -> "tuple[int, queue.SimpleQueue[Frame | None]]":
        """Make a call. Its frames arrive in the queue; ``None``: the daemon has gone."""
        answers: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        with self._state:
            if self.gone:
                raise TransportError("the daemon has gone: start it again")
            number, self._next_id = self._next_id, self._next_id + 1
            line = encode(Called(number, call))
            self._waiting[number] = answers
        self._write(line)
        return number, answers

    def end(self, number: int, *, finished: bool) -> None:
        """Nobody waits for a call any more."""
        with self._state:
            self._waiting.pop(number, None)
            if finished or self.gone:
                return
        with suppress(TransportError):
            self._write(encode(Cancel(number)))

    def _write(self, line: bytes) -> None:
        try:
            with self._writing:
                self._socket.sendall(line)
        except OSError as error:
            self.close()
            raise TransportError("the daemon has gone: start it again") from error

    def _read(self, frames: list[Frame]) -> None:
        try:
            for frame in frames:
                self._take(frame)
            while data := self._socket.recv(CHUNK):
                for line in self._lines.feed(data):
                    self._take(decode(line))
        except (OSError, MalformedFrame):
            pass  # the same end for everybody who waits
        finally:
            self.close()
            with self._state:
                waiting, self._waiting = self._waiting, {}
            for answers in waiting.values():
                answers.put(None)
            self._socket.close()

    def _take(self, frame: Frame) -> None:
        if not isinstance(frame, Noted | Returned | Raised):
            return
        with self._state:
            answers = self._waiting.get(frame.id)
        if answers is not None:
            answers.put(frame)
        elif isinstance(frame, Returned):
            self._leave_to_others(frame.value)

    def _leave_to_others(self, value: object) -> None:
        """A message may have come in the moment in which we stopped waiting for one."""
        with suppress(MeshError):
            taken: Taken = read(Taken, value)
            number, _ = self.start(GiveBack(taken.sender, taken.id))
            self.end(number, finished=True)

    def close(self) -> None:
        with self._state:
            self.gone = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _connect(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise DaemonNotRunning("this system has no Unix sockets")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(HELLO_SECONDS)
        with short(path) as address:
            connection.connect(address)
        if not is_ours(connection):
            raise TransportError(f"what listens at {path} belongs to another user: that is nobody to talk to")
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        connection.close()
        raise not_running(path) from error
    except OSError as error:
        connection.close()
        raise TransportError(f"the daemon at {path} cannot be reached: {error.strerror or error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def not_running(path: Path) -> DaemonNotRunning:
    """What there is to say when nobody listens."""
    return DaemonNotRunning(f"no daemon listens at {path}: start one with 'mesh daemon' or 'mesh respond'")


def no_greeting(path: Path) -> TransportError:
    """What there is to say when who listens is no daemon."""
    return TransportError(f"what listens at {path} does not greet as a daemon: restart it")


def hung_up(path: Path) -> TransportError:
    """What there is to say when the daemon does not want to talk."""
    return TransportError(f"the daemon at {path} hung up: it is stopping, or not ours; try again, or restart it")


def checked(hello: object, path: Path) -> Hello:
    """The daemon's greeting, if we understand each other.

    Raises:
        TransportError: we do not.
        MeshError: the daemon takes no more connections.
    """
    if isinstance(hello, Raised):
        raise hello.error
    if not isinstance(hello, Hello):
        raise no_greeting(path)
    if hello.version != VERSION:
        raise TransportError(
            f"the daemon at {path} speaks version {hello.version} of its protocol, this program version {VERSION}: "
            "restart it with the same version of meshlib"
        )
    return hello


class BlockingDaemonClient:
    """An agent's place on the mesh, by way of the daemon that owns its identity::

        with BlockingDaemonClient(socket_path(store)) as mesh:
            mesh.send("bob", "hello")
            message = mesh.receive(timeout=60)

    Safe to share between threads. It connects when it is first used and again after the daemon was restarted; a call
    under way when the connection ends raises :class:`TransportError`, and messages that were not confirmed are handed
    over again, to whoever asks next.

    Args:
        path: the socket, see :func:`meshlib.daemon.address.socket_path`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._connecting = threading.Lock()
        self._line: _Line | None = None
        self._closed = False
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Messages that were not confirmed are handed over again."""
        with self._connecting:
            self._closed = True
            if self._line is not None:
                self._line.close()

    @property
    def did(self) -> str:
        """The DID of whom we speak for."""
        return self._open().hello.did

    # --- verbs -------------------------------------------------------------------------------------------------------

    def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> "BlockingReceipt":
        """Send a message; see :meth:`meshlib.BlockingMeshClient.send`.

        Args:
            payload: str, bytes or any JSON value.
            wait: also wait until it is ``"relayed"``, ``"stored"`` or ``"delivered"``.
            timeout: seconds for the whole call, ``None`` for no limit.
        Raises:
            TimeoutError: it took longer; a message that was taken goes out all the same.
        """
        sent = self._ask(Send(peer, payload, wait, message_id), timeout)
        return BlockingReceipt(self, sent)

    def receive(
        self, timeout: float | None = None, senders: Collection[str] | None = None
    ) -> "BlockingDaemonMessage | None":
        """The next message, of one of ``senders`` if they are given, or ``None`` when none came for ``timeout`` s.

        Confirm it with ``ack()``. Several that receive at the same time get each message once.
        """
        wanted = None if senders is None else tuple(senders)
        line = self._open()
        patience = None if timeout is None else timeout + GRACE
        try:
            taken = self._ask(Receive(wanted, timeout), patience, line=line)
        except TimeoutError as error:
            raise TransportError("the daemon does not answer: restart it") from error
        return None if taken is None else BlockingDaemonMessage(self, line, taken)

    def inbox(self, timeout: float | None = None) -> "Iterator[BlockingDaemonMessage]":
        """Messages as they come, until none came for ``timeout`` seconds. Going on confirms the last one."""
        while (message := self.receive(timeout)) is not None:
            yield message
            message.ack()

    def request(
        self,
        peer: str,
        content: str,
        *,
        timeout: float = 1500.0,
        hops: int = 0,
        on_progress: Callable[[Progressed], None] | None = None,
    ) -> Answered:
        """Have a peer do something, and wait for its answer; see :meth:`meshlib.MeshClient.request`.

        ``on_progress`` is called in this thread. An exception in it, or Ctrl-C, calls the task off.
        """

        def note(value: object) -> None:
            if on_progress is not None:
                on_progress(read(Progressed, value))

        return self._ask(Request(peer, content, timeout, hops), timeout + GRACE, note)

    def gather(
        self, contents: Mapping[str, str], *, timeout: float = 1500.0, hops: int = 0
    ) -> "Iterator[BlockingResult]":
        """Have several peers do something at once: a result per peer as they come, all within ``timeout`` seconds.

        Leaving the loop early calls the rest off.
        """
        line = self._open()
        ready: queue.SimpleQueue[BlockingResult] = queue.SimpleQueue()
        stopped = threading.Event()

        def follow(peer: str, call: Request) -> None:
            try:
                ready.put(BlockingResult(peer, self._ask(call, timeout + GRACE, line=line, stopped=stopped)))
            except (MeshError, TimeoutError) as error:
                failure = error if isinstance(error, MeshError) else TransportError("the daemon does not answer")
                ready.put(BlockingResult(peer, failure=failure))

        for peer, content in contents.items():
            call = Request(peer, content, timeout, hops)
            threading.Thread(target=follow, args=(peer, call), name="mesh-gather", daemon=True).start()
        try:
            for _ in contents:
                yield ready.get()
        finally:
            stopped.set()

    def send_file(self, peer: str, path: Path | str, *, description: str = "") -> "BlockingFileReceipt":
        """Send a file, which the daemon reads; see :meth:`meshlib.MeshClient.send_file`."""
        return BlockingFileReceipt(self, self._ask(SendFile(peer, os.path.abspath(path), description)))

    def resolve(self, peer: str) -> str:
        """The DID of a display name."""
        return self._ask(Resolve(peer))

    def discover(self, capability: str, limit: int = 50) -> list[Listed]:
        """Agents that publish a capability, the freshest first."""
        return list(self._ask(Discover(capability, limit)))

    def peers(self) -> list[Known]:
        """The 1,000 peers we have talked to last, the last first."""
        return list(self._ask(Peers()))

    def stats(self) -> ClientStats:
        """The numbers of the client behind the daemon; see :meth:`meshlib.MeshClient.stats`."""
        return self._ask(Stats())

    def trace(self, message: str) -> tuple[Sighting, ...]:
        """Where a message stands, by its id; see :meth:`meshlib.MeshClient.trace`."""
        return self._ask(Trace(message))

    def status(self) -> Standing:
        """How the daemon is."""
        return self._ask(Status())

    def stop(self) -> None:
        """End the daemon in order."""
        self._ask(Stop())

    # --- calls -------------------------------------------------------------------------------------------------------

    def _ask(
        self,
        call: Call[T],
        timeout: float | None = None,
        on_note: Callable[[object], None] | None = None,
        *,
        line: _Line | None = None,
        stopped: threading.Event | None = None,
    ) -> T:
        line = line or self._open()
        deadline = None if timeout is None else time.monotonic() + timeout
        number, answers = line.start(call)
        finished = False
        try:
            while True:
                match _next(answers, deadline, stopped):
                    case Noted() as note:
                        if on_note is not None:
                            on_note(note.value)
                    case Returned() as answer:
                        finished = True
                        return read_answer(call, answer.value)
                    case Raised() as failure:
                        finished = True
                        raise failure.error
                    case _:
                        raise TransportError(
                            "the daemon went away in the middle of a call: start it again, then ask it"
                        )
        finally:
            line.end(number, finished=finished)

    def _open(self) -> _Line:
        with self._connecting:
            if self._closed:
                raise NotConnected("this client was closed: make a new one")
            if self._pid != os.getpid():
                self._pid, self._line = os.getpid(), None  # a forked child shares no connection with its parent
            if self._line is None or self._line.gone:
                self._line = _Line(self.path)
            return self._line


def _next(
    answers: "queue.SimpleQueue[Frame | None]", deadline: float | None, stopped: threading.Event | None
) -> Frame | None:
    """What arrives next; gives up at the deadline, and within a second once ``stopped`` is set."""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return answers.get(timeout=left if stopped is None else min(1.0, left if left is not None else 1.0))
        except queue.Empty:
            if stopped is not None and stopped.is_set():
                raise NotConnected("nobody waits for the answer any more") from None
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("the daemon took longer than allowed") from None


class BlockingDaemonMessage:
    """A message of a peer; see :class:`meshlib.Message`."""

    def __init__(self, client: BlockingDaemonClient, line: _Line, taken: Taken) -> None:
        self._client = client
        self._line = line
        self.sender = taken.sender
        self.id = taken.id
        self.payload = taken.payload
        self.encrypted = taken.encrypted
        self.redelivered = taken.redelivered

    def ack(self) -> None:
        """Confirm that the message has been dealt with. Twice is as good as once.

        Raises:
            TransportError: the connection it came over has ended; it will be handed over again.
        """
        self._client._ask(Confirm(self.sender, self.id), GRACE, line=self._line)

    def give_back(self) -> None:
        """Leave the message to whoever receives next."""
        self._client._ask(GiveBack(self.sender, self.id), GRACE, line=self._line)

    def __repr__(self) -> str:
        return f"<Message {self.id} from {self.sender}>"


class BlockingReceipt:
    """What has become of a message of ours; see :class:`meshlib.Receipt`."""

    def __init__(self, client: BlockingDaemonClient, sent: Sent) -> None:
        self._client = client
        self.id = sent.id
        self.peer = sent.peer
        self.state = sent.state
        self.detail = sent.detail

    def wait(self, state: str = "delivered", timeout: float | None = None) -> str:
        """Wait until the message has come at least as far as ``state``, or can come no further.

        Raises:
            TimeoutError: it has not within ``timeout`` seconds.
            KnockRefused: the recipient or the relay refused it.
        """
        sent = self._client._ask(Follow(self.id, state), timeout)
        self.state, self.detail = sent.state, sent.detail
        return self.state

    def __repr__(self) -> str:
        return f"<Receipt {self.id} to {self.peer}: {self.state}>"


class BlockingFileReceipt:
    """What has become of a file of ours; see :class:`meshlib.FileReceipt`."""

    def __init__(self, client: BlockingDaemonClient, moved: Moved) -> None:
        self._client = client
        self._moved = moved

    @property
    def id(self) -> str:
        """Of the transfer."""
        return self._moved.id

    @property
    def peer(self) -> str:
        """The recipient's DID."""
        return self._moved.peer

    @property
    def state(self) -> str:
        """How far it had come when it was last asked for."""
        return self._moved.state

    @property
    def saved_to(self) -> str:
        """Where the recipient says it lies."""
        return self._moved.saved_to

    def wait(self, timeout: float | None = None, on_progress: Callable[[Moved], None] | None = None) -> str:
        """Wait until it is over: ``"done"``, or ``"unconfirmed"`` if the recipient does not say what became of it.

        Raises:
            TimeoutError: it is not within ``timeout`` seconds; it goes on.
            TransferFailed: it did not get there.
        """

        def note(value: object) -> None:
            self._moved = read(Moved, value)
            if on_progress is not None:
                on_progress(self._moved)

        self._moved = self._client._ask(FollowFile(self.id), timeout, note)
        return self.state

    def cancel(self) -> None:
        """Stop it, and tell the other side."""
        self._client._ask(CancelFile(self.id))

    def __repr__(self) -> str:
        return f"<FileReceipt {self.id} to {self.peer}: {self.state}>"


@dataclass(frozen=True, slots=True)
class BlockingResult:
    """What became of one of several tasks: an answer, or why there is none."""

    peer: str
    """As it was asked for: name or DID."""
    answer: Answered | None = None
    failure: MeshError | None = None
