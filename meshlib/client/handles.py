"""What an application holds in its hands: messages, receipts, and the iterators that yield them and events.

Owns waiting for things to happen to them. Leaves making them happen to :mod:`meshlib.client.mesh`.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from meshlib.client.bell import Bell
from meshlib.client.events import DeliveryState, Event, Received
from meshlib.errors import InvalidValue, KnockRefused, MeshError
from meshlib.identity import Did
from meshlib.wire.encoding import MessageId

FINAL = (DeliveryState.DELIVERED, DeliveryState.EXPIRED, DeliveryState.REFUSED)
"""States that a message does not leave any more."""
PROGRESS = (DeliveryState.QUEUED, DeliveryState.RELAYED, DeliveryState.STORED, DeliveryState.DELIVERED)
"""States a message goes through on its way."""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as the registry lists it. Everything but the DID is the registry's word."""

    did: Did
    capabilities: tuple[str, ...]
    online: bool | None
    last_seen: float | None
    """UTC seconds."""


class Message:
    """A message as the application sees it."""

    def __init__(self, received: Received, confirm: "Callable[[Message], Awaitable[None]]") -> None:
        self._confirm = confirm
        self.sender = received.sender
        self.id = received.id
        self.payload = received.payload
        self.encrypted = received.encrypted
        """``False`` only for a peer on the plaintext list."""
        self.redelivered = received.redelivered
        """Handed over before and not confirmed, for example because the process died."""

    async def ack(self) -> None:
        """Confirm that the message has been dealt with. Twice is as good as once."""
        await self._confirm(self)

    def __repr__(self) -> str:
        return f"<Message {self.id} from {self.sender}>"


class Inbox:
    """An async iterator over messages; made by :meth:`meshlib.MeshClient.inbox`."""

    def __init__(
        self, receive: Callable[[], Awaitable[Message]], confirm: Callable[[Message], Awaitable[None]]
    ) -> None:
        self._receive = receive
        self._confirm = confirm
        self._last: Message | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._last is not None:
            last, self._last = self._last, None
            await self._confirm(last)
        self._last = await self._receive()
        return self._last


class Events:
    """An async iterator over facts; made by :meth:`meshlib.MeshClient.events`. It ends when the client is left."""

    def __init__(self, limit: int) -> None:
        self._told: deque[Event] = deque(maxlen=limit)
        self._news = Bell()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._told:
            if self._ended:
                raise StopAsyncIteration
            await self._news.wait()
        return self._told.popleft()

    def tell(self, event: Event) -> None:
        """Add a fact; beyond the bound the oldest is dropped."""
        self._told.append(event)
        self._wake()

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._news.ring()


class Receipt:
    """What has become of a message of ours.

    Attributes:
        id: the message's id, the same over every retry.
        peer: the recipient's DID.
        state: how far it has come. A relay without receipts never gets beyond ``relayed``.
        detail: why, where there is more to say.
    """

    def __init__(self, message: MessageId, peer: Did, state: DeliveryState = DeliveryState.QUEUED) -> None:
        self.id = message
        self.peer = peer
        self.state = state
        self.detail = ""
        self._changed = Bell()
        self.hopeless: MeshError | None = None
        """Why the client can do nothing more for the message, if so; it waits in the store."""
        self._watchers: list[Callable[[], None]] = []

    def watch(self, told: Callable[[], None]) -> None:
        """Have ``told`` called whenever something changes."""
        self._watchers.append(told)

    def advance(self, state: DeliveryState, detail: str = "") -> None:
        """The message has come further."""
        self.state = state
        self.detail = detail
        self._wake()

    def give_up(self, reason: MeshError | None) -> None:
        """Nothing more will be heard from this client about the message; ``None``: there is hope again."""
        self.hopeless = reason
        self._wake()

    def _wake(self) -> None:
        self._changed.ring()
        for told in self._watchers:
            told()

    async def wait(self, state: DeliveryState | str = DeliveryState.DELIVERED) -> DeliveryState:
        """Wait until the message has come at least as far as ``state``, or can come no further.

        Bound the wait with ``anyio.fail_after``: an absent recipient may stay away for days.

        Raises:
            KnockRefused: the recipient or the relay refused it.
            MeshError: the client can do nothing more for it; the message waits in its store.
        """
        wanted = PROGRESS.index(progress_of(state))
        while self.state not in FINAL and PROGRESS.index(self.state) < wanted:
            if self.hopeless is not None:
                raise self.hopeless
            await self._changed.wait()
        if self.state is DeliveryState.REFUSED:
            raise KnockRefused(self.peer, self.detail or "no reason given")
        return self.state

    def __repr__(self) -> str:
        return f"<Receipt {self.id} to {self.peer}: {self.state}>"


def progress_of(state: DeliveryState | str) -> DeliveryState:
    """A state one can wait for.

    Raises:
        InvalidValue: there is none of that name.
    """
    if state not in PROGRESS:
        raise InvalidValue(f"one can wait for {', '.join(PROGRESS)}, not for {state!r}")
    return DeliveryState(state)
