"""Asking peers to do something, and what is known of the task until the answer comes.

Owns the match between a request and what comes back, and where a task stands. A route of the client: what answers one
of our requests never reaches the inbox; answers to requests that nobody waits for any more do.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

import anyio

from meshlib.client.events import DeliveryState
from meshlib.client.handles import Message, Receipt
from meshlib.errors import InvalidValue, KnockRefused, MeshError, PeerError, TaskFailed, TaskUnfinished
from meshlib.identity import Did
from meshlib.wire.encoding import MessageId
from meshlib.wire.envelopes import (
    Artifact,
    TaskCancel,
    TaskProgress,
    TaskReceived,
    TaskRequest,
    TaskResponse,
    Telemetry,
    read_envelope,
    write_envelope,
)

SILENT_AFTER = 180.0
"""Seconds without a word about a running task after which its agent counts as gone, as controllers in the field do;
a responder speaks every 20."""
REQUESTS = 1_000
"""Requests that may wait for answers at the same time."""


class TaskState(StrEnum):
    """How far a task of ours has come. The first four are about the message that carries it."""

    QUEUED = "queued"
    """In our outbox: no relay, or no session yet."""
    RELAYED = "relayed"
    """Written to the relay."""
    STORED = "stored"
    """On the relay's disk; the agent is not there."""
    DELIVERED = "delivered"
    """The agent has the message; it has not said that it takes tasks."""
    RECEIVED = "received"
    """The agent has the task on its disk, and has not begun."""
    RUNNING = "running"
    """The agent is at it."""
    ANSWERED = "answered"
    """The answer is here."""
    FAILED = "failed"
    """The agent said that there will be no answer."""
    GONE = "gone"
    """The agent was at it and has not been heard of for three minutes, or the relay gave up on it."""


_CARRIED = {
    DeliveryState.QUEUED: TaskState.QUEUED,
    DeliveryState.RELAYED: TaskState.RELAYED,
    DeliveryState.STORED: TaskState.STORED,
    DeliveryState.DELIVERED: TaskState.DELIVERED,
    DeliveryState.EXPIRED: TaskState.GONE,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer answered."""

    peer: Did
    request_id: str
    content: str = field(repr=False)
    artifacts: tuple[Artifact, ...] = ()
    """Files the answer speaks of; they arrive by themselves."""
    telemetry: Telemetry = Telemetry()  # noqa: RUF009 - frozen
    """What it cost, by the peer's word."""
    seconds: float = 0.0
    """From our request to the answer."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a task stands."""

    peer: Did
    request_id: str
    state: TaskState
    elapsed: float
    """Seconds since we asked."""
    tick: int = 0
    """How often the agent has said that it is at it."""


OnProgress = Callable[[Progress], None]


_ADVICE = {
    TaskState.QUEUED: "nothing has left this machine: check the relay, and that the agent is registered",
    TaskState.RELAYED: "the relay has it and has not said more: it may send no receipts",
    TaskState.STORED: "the relay keeps it until the agent connects",
    TaskState.DELIVERED: "the agent has the message and has not said that it takes tasks: does it run a responder?",
    TaskState.RECEIVED: "the agent has it in its queue: give it more time",
    TaskState.RUNNING: "the agent is working on it: give it more time",
    TaskState.ANSWERED: "the answer is on its way to the caller",
    TaskState.FAILED: "the agent gave up",
    TaskState.GONE: "the agent has not been heard of for too long: ask again, or another one",
}


class Sender(Protocol):
    """What is needed of a client."""

    async def __call__(self, peer: str, payload: object, *, message_id: str | None = None) -> Receipt: ...


@dataclass(slots=True)
class _Open:
    """A request that waits for its answer."""

    request: TaskRequest
    peer: Did
    asked_at: float
    on_progress: OnProgress | None
    receipt: Receipt | None = None
    told: TaskState | None = None
    """What the agent itself said."""
    heard_at: float = 0.0
    ticks: int = 0
    response: TaskResponse | None = None
    changed: anyio.Event = field(default_factory=anyio.Event)

    def state(self, now: float) -> TaskState:
        """Where the task stands at ``now`` (monotonic seconds)."""
        if self.response is not None:
            return TaskState.ANSWERED if self.response.ok else TaskState.FAILED
        if self.told is TaskState.RUNNING and now - self.heard_at > SILENT_AFTER:
            return TaskState.GONE
        if self.told is not None:
            return self.told
        return _CARRIED.get(self.receipt.state, TaskState.QUEUED) if self.receipt is not None else TaskState.QUEUED

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class Requests:
    """Our requests that wait for answers.

    Args:
        name: the display name peers are told.
        send: sends a payload.
        take_back: drops a message that has not left yet; see :meth:`meshlib.MeshClient.take_back`.
        stamp: the current time as text.
    """

    def __init__(
        self, name: str, send: Sender, take_back: Callable[[str], Awaitable[bool]], stamp: Callable[[], str]
    ) -> None:
        self._name = name
        self._send = send
        self._take_back = take_back
        self._stamp = stamp
        self._open: dict[tuple[Did, str], _Open] = {}

    # --- a route -----------------------------------------------------------------------------------------------------

    def claims(self, sender: Did, payload: object) -> bool:
        """Whether a message is about one of our requests, and from the agent that was asked."""
        if not self._open:
            return False
        envelope = _readable(payload)
        if not isinstance(envelope, TaskReceived | TaskProgress | TaskResponse):
            return False
        return (sender, envelope.request_id) in self._open

    async def handle(self, message: Message) -> None:
        """Note what the agent says."""
        envelope = _readable(message.payload)
        if not isinstance(envelope, TaskReceived | TaskProgress | TaskResponse):
            return
        task = self._open.get((message.sender, envelope.request_id))
        if task is None or task.response is not None:
            return  # answered twice, or nobody has waited since it was claimed
        task.heard_at = time.monotonic()
        match envelope:
            case TaskReceived():
                task.told = task.told or TaskState.RECEIVED
            case TaskProgress():
                task.told = TaskState.RUNNING
                task.ticks += 1
            case TaskResponse():
                task.response = envelope
        task.wake()

    # --- asking ------------------------------------------------------------------------------------------------------

    async def ask(
        self,
        peer: Did,
        content: str,
        request_id: MessageId,
        patience: float,
        hops: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Send a task and wait for its answer, ``patience`` seconds. Whoever stops waiting, stops the task.

        Raises:
            TaskFailed: the agent said that there will be no answer.
            TaskUnfinished: none came in time.
            KnockRefused: the agent does not talk to us.
        """
        if not patience > 0:
            raise InvalidValue(f"timeout must be a positive number of seconds, not {patience!r}")
        if len(self._open) >= REQUESTS:
            raise InvalidValue(f"{REQUESTS} requests wait for answers already, the limit: wait for some of them")
        started = time.monotonic()
        request = TaskRequest(
            request_id=request_id,
            content=content,
            from_agent=self._name,
            timestamp=self._stamp(),
            hops=hops,
            timeout_seconds=patience,
        )
        task = _Open(request, peer, started, on_progress, heard_at=started)
        self._open[peer, request_id] = task
        try:
            with anyio.move_on_after(patience):
                task.receipt = await self._send(peer, write_envelope(request), message_id=request_id)
                response = await self._until_answered(task, task.receipt)
                return _answer_of(response, peer, time.monotonic() - started)
            state = task.state(time.monotonic())
            await self._call_off(task)
            raise TaskUnfinished(peer, request_id, state, f"no answer within {patience:g} s: {_ADVICE[state]}")
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._call_off(task)
            raise
        finally:
            del self._open[peer, request_id]

    async def _until_answered(self, task: _Open, receipt: Receipt) -> TaskResponse:
        """The answer. Tells how far the task has come whenever that changes."""
        receipt.watch(task.wake)
        shown: tuple[TaskState, int] | None = None
        while task.response is None:
            now = time.monotonic()
            state = task.state(now)
            if task.on_progress is not None and shown != (state, task.ticks):
                shown = state, task.ticks
                task.on_progress(Progress(task.peer, task.request.request_id, state, now - task.asked_at, task.ticks))
            if receipt.state is DeliveryState.REFUSED:
                raise KnockRefused(task.peer, receipt.detail or "no reason given")
            if receipt.hopeless is not None:
                raise receipt.hopeless
            silent_in = task.heard_at + SILENT_AFTER - now if state is TaskState.RUNNING else math.inf
            with anyio.move_on_after(max(0.0, silent_in)):
                await task.changed.wait()
        return task.response

    async def _call_off(self, task: _Open) -> None:
        """Take the task back if it has not left; else tell the agent that nobody waits any more."""
        request = task.request.request_id
        if task.response is not None or await self._take_back(request):
            return
        cancel = TaskCancel(request_id=request, from_agent=self._name, timestamp=self._stamp())
        with suppress(MeshError):  # then it runs on until its own time is over
            await self._send(task.peer, write_envelope(cancel))


def _answer_of(response: TaskResponse, peer: Did, seconds: float) -> Answer:
    if not response.ok:
        raise TaskFailed(peer, response.request_id, response.error or "failed", response.content)
    return Answer(peer, response.request_id, response.content, response.artifacts, response.telemetry, seconds)


def _readable(payload: object) -> object:
    try:
        return read_envelope(payload)
    except PeerError:
        return None


# --- several at once -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one of several tasks: an answer, or why there is none."""

    peer: str
    """As it was asked for: name or DID."""
    answer: Answer | None = None
    failure: MeshError | None = None


class Gathering:
    """Answers of several peers, as they come; made by :meth:`meshlib.MeshClient.gather`.

    ``async for`` yields one :class:`Result` for each peer. Those who have not answered at the deadline are yielded
    then, with a :class:`TaskUnfinished` that says how far they had come. Whoever leaves the loop early and wants no
    more of it calls :meth:`cancel`.
    """

    def __init__(self, peers: Collection[str]) -> None:
        self._left = len(peers)
        self._ready: deque[Result] = deque()
        self._news = anyio.Event()
        self._scopes: list[anyio.CancelScope] = []

    async def follow(self, peer: str, ask: Callable[[], Awaitable[Answer]]) -> None:
        """Wait for the answer of one peer. Runs in a task of the client."""
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                result = Result(peer, answer=await ask())
            except MeshError as failure:
                result = Result(peer, failure=failure)
            self._ready.append(result)
        if scope.cancelled_caught:
            self._left -= 1
        self._news.set()
        self._news = anyio.Event()

    def cancel(self) -> None:
        """Wait for nobody any more, and tell those who are at it."""
        for scope in self._scopes:
            scope.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        while not self._ready:
            if self._left <= 0:
                raise StopAsyncIteration
            await self._news.wait()
        self._left -= 1
        return self._ready.popleft()

    async def results(self) -> dict[str, Result]:
        """All of them, by peer, once the last has answered or the time is over."""
        return {result.peer: result async for result in self}
