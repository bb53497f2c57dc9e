"""The tools in a program without an event loop, by way of the daemon. Loads nothing besides the standard library.

The tools are coroutines. Over a blocking client none of them ever waits for an event loop, so they run from beginning
to end in one go. One thread at a time works at the desk; whoever waits for the daemon steps aside.
"""

import threading
from collections.abc import Awaitable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from meshlib.errors import TransportError
from meshlib.tools.desk import Permissions
from meshlib.tools.results import Entropy
from meshlib.tools.toolbox import Call, Toolbox

if TYPE_CHECKING:
    from meshlib.client.verbs import Mesh
    from meshlib.daemon.blocking import BlockingDaemonClient

T = TypeVar("T")


class _TimeIsUp(Exception):
    """What was waited for has not come within the time."""


class _Turns:
    """Who works at the desk, and how long each thread may wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that never suspends."""
        with self._lock:
            try:
                coroutine.send(None)
            except StopIteration as end:
                return cast("T", end.value)
            finally:
                coroutine.close()
        raise RuntimeError("a tool waited for an event loop that is not there")

    @contextmanager
    def aside(self) -> Iterator[float | None]:
        """Let others work while this thread waits for the daemon. Yields the seconds it may."""
        patience: float | None = getattr(self._mine, "patience", None)
        self._lock.release()
        try:
            yield patience
        except TimeoutError:
            if patience is None:
                raise TransportError("the daemon does not answer: restart it") from None
            raise _TimeIsUp from None
        finally:
            self._lock.acquire()

    async def within(self, seconds: float, awaitable: Awaitable[T], /) -> T | None:
        """Bound what ``awaitable`` asks of the daemon."""
        self._mine.patience = seconds
        try:
            return await awaitable
        except _TimeIsUp:
            return None
        finally:
            self._mine.patience = None


class _Handle:
    """A message or a receipt of the blocking client, with waits and confirmations as coroutines."""

    def __init__(self, turns: _Turns, handle: Any) -> None:
        self._turns = turns
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    async def ack(self) -> None:
        with self._turns.aside():
            self._handle.ack()

    async def wait(self, *state: str) -> str:
        with self._turns.aside() as patience:
            reached: str = self._handle.wait(*state, timeout=patience)
            return reached


class _Mesh:
    """The verbs of a :class:`meshlib.Mesh` that tools use."""

    def __init__(self, turns: _Turns, client: Any) -> None:
        self._turns = turns
        self._client = client

    @property
    def did(self) -> str:
        did: str = self._client.did
        return did

    async def send(self, peer: str, payload: object) -> _Handle:
        with self._turns.aside():
            return _Handle(self._turns, self._client.send(peer, payload))

    async def receive(self, senders: Collection[str] | None = None) -> _Handle:
        with self._turns.aside() as patience:
            message = self._client.receive(timeout=patience, senders=senders)
            if message is None:
                raise TimeoutError
            return _Handle(self._turns, message)

    async def resolve(self, peer: str) -> Any:
        with self._turns.aside():
            return self._client.resolve(peer)

    async def discover(self, capability: str, limit: int) -> Any:
        with self._turns.aside():
            return self._client.discover(capability, limit)

    async def request(self, peer: str, content: str, *, timeout: float, hops: int) -> Any:  # noqa: ASYNC109
        with self._turns.aside():
            return self._client.request(peer, content, timeout=timeout, hops=hops)

    async def send_file(self, peer: str, path: Path, *, description: str) -> _Handle:
        with self._turns.aside():
            return _Handle(self._turns, self._client.send_file(peer, path, description=description))

    async def peers(self) -> Any:
        with self._turns.aside():
            return self._client.peers()


class BlockingToolbox:
    """The tools of one model, for threads. See :class:`meshlib.tools.toolbox.Toolbox`.

    Args:
        client: of the daemon; it connects when it is first used.
    """

    def __init__(self, client: "BlockingDaemonClient", permissions: Permissions, entropy: Entropy) -> None:
        self._turns = _Turns()
        mesh = cast("Mesh", _Mesh(self._turns, client))
        self._toolbox = Toolbox(mesh, self._turns.within, permissions, entropy)

    def call(self, name: str, arguments: Mapping[str, Any] | str | None) -> Call:
        """Call a tool; see :meth:`meshlib.tools.toolbox.Toolbox.call`."""
        return self._turns.run(self._toolbox.call(name, arguments))

    def confirm(self, call: Call) -> None:
        """The model has the result of a call."""
        self._turns.run(call.confirm())
