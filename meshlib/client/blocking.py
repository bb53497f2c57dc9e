"""The same client for programs without an event loop: an anyio portal runs it in a thread."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from meshlib.client.events import DeliveryState
from meshlib.client.mesh import Agent, MeshClient, Message, Receipt
from meshlib.client.requests import Answer, OnProgress, Result
from meshlib.client.stats import ClientStats, Sighting
from meshlib.config import ClientConfig
from meshlib.errors import NotConnected
from meshlib.files.receipts import FileReceipt, OnTransfer
from meshlib.identity import Did


class BlockingMessage:
    """A message as the application sees it; see :class:`meshlib.Message`."""

    def __init__(self, portal: BlockingPortal, message: Message) -> None:
        self._portal = portal
        self._message = message
        self.sender = message.sender
        self.id = message.id
        self.payload = message.payload
        self.encrypted = message.encrypted
        self.redelivered = message.redelivered

    def ack(self) -> None:
        """Confirm that the message has been dealt with."""
        self._portal.call(self._message.ack)

    def __repr__(self) -> str:
        return repr(self._message)


class BlockingMeshClient:
    """:class:`meshlib.MeshClient` for synchronous programs, with the same verbs::

        with BlockingMeshClient(ClientConfig(name="alice")) as client:
            client.send("bob", "hello")
            for message in client.inbox(timeout=60):
                print(message.sender, message.payload)

    The client lives in a thread of its own while the ``with`` block lasts. Safe to share between threads.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._client: MeshClient | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            manager: AbstractContextManager[MeshClient] = portal.wrap_async_context_manager(MeshClient(self.config))
            self._client = stack.enter_context(manager)
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def did(self) -> Did:
        """Our DID."""
        return self._open()[1].did

    def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: DeliveryState | str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Send a message; see :meth:`meshlib.MeshClient.send`.

        Args:
            timeout: seconds for the whole call, ``None`` for no limit.
        Raises:
            TimeoutError: it took longer; the message stays in the outbox and goes out all the same.
        """
        portal, client = self._open()

        async def run() -> Receipt:
            with anyio.fail_after(timeout):
                return await client.send(peer, payload, wait=wait, message_id=message_id)

        return portal.call(run)

    def receive(self, timeout: float | None = None) -> BlockingMessage | None:
        """The next message, or ``None`` when none came within ``timeout`` seconds."""
        portal, client = self._open()

        async def run() -> Message | None:
            with anyio.move_on_after(timeout):
                return await client.receive()
            return None

        message = portal.call(run)
        return None if message is None else BlockingMessage(portal, message)

    def inbox(self, timeout: float | None = None) -> Iterator[BlockingMessage]:
        """Messages as they come, until none came for ``timeout`` seconds. Going on confirms the last one."""
        while (message := self.receive(timeout)) is not None:
            yield message
            message.ack()

    def request(
        self, peer: str, content: str, *, timeout: float = 1500.0, hops: int = 0, on_progress: OnProgress | None = None
    ) -> Answer:
        """Have a peer do something, and wait for its answer; see :meth:`meshlib.MeshClient.request`.

        ``on_progress`` is called in the client's thread.
        """
        portal, client = self._open()
        return portal.call(partial(client.request, peer, content, timeout=timeout, hops=hops, on_progress=on_progress))

    def gather(self, contents: Mapping[str, str], *, timeout: float = 1500.0, hops: int = 0) -> Iterator[Result]:
        """Have several peers do something at once: results as they come; see :meth:`meshlib.MeshClient.gather`.

        Leaving the loop early calls the rest off.
        """
        portal, client = self._open()
        gathering = portal.call(partial(client.gather, contents, timeout=timeout, hops=hops))

        async def following() -> Result | None:
            return await anext(gathering, None)

        try:
            while (result := portal.call(following)) is not None:
                yield result
        finally:
            portal.call(gathering.cancel)

    def send_file(
        self,
        peer: str,
        path: Path | str,
        *,
        description: str = "",
        on_progress: OnTransfer | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> FileReceipt:
        """Send a file; see :meth:`meshlib.MeshClient.send_file`. ``on_progress`` is called in the client's thread.

        Args:
            wait: until the recipient has it.
            timeout: seconds for the whole call, ``None`` for no limit.
        Raises:
            TimeoutError: it took longer; the file is sent all the same.
            TransferFailed: with ``wait``, it did not get there.
        """
        portal, client = self._open()

        async def run() -> FileReceipt:
            with anyio.fail_after(timeout):
                receipt = await client.send_file(peer, path, description=description, on_progress=on_progress)
                if wait:
                    await receipt.wait()
                return receipt

        return portal.call(run)

    def discover(self, capability: str, limit: int = 50) -> list[Agent]:
        """Agents that publish a capability; see :meth:`meshlib.MeshClient.discover`."""
        portal, client = self._open()
        return portal.call(client.discover, capability, limit)

    def stats(self) -> ClientStats:
        """This client's numbers; see :meth:`meshlib.MeshClient.stats`."""
        portal, client = self._open()
        return portal.call(client.stats)

    def trace(self, message: str) -> tuple[Sighting, ...]:
        """Where a message stands, by its id; see :meth:`meshlib.MeshClient.trace`."""
        portal, client = self._open()
        return portal.call(client.trace, message)

    def connect(self) -> None:
        """Connect again after :meth:`disconnect`."""
        portal, client = self._open()
        portal.call(client.connect)

    def disconnect(self) -> None:
        """Leave the relay for a while; messages wait in the outbox."""
        portal, client = self._open()
        portal.call(client.disconnect)

    def _open(self) -> tuple[BlockingPortal, MeshClient]:
        if self._portal is None or self._client is None:
            raise NotConnected("the client is not open: use it inside 'with BlockingMeshClient(...)'")
        return self._portal, self._client
