"""The daemon of this machine, connected to when a tool is first called.

A model's program starts its tool servers before anybody has thought of the mesh, and may call a run failed whose server
does not start. So the server starts without a daemon, and a tool that needs it says what is missing.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from meshlib.client.events import DeliveryState
from meshlib.client.handles import Agent
from meshlib.client.requests import Answer, OnProgress
from meshlib.client.stats import ClientStats, Sighting
from meshlib.client.verbs import AnyFileReceipt, AnyMessage, AnyReceipt, Mesh, PeerSummary
from meshlib.daemon.client import DaemonClient
from meshlib.files.receipts import OnTransfer
from meshlib.identity import Did


class DaemonAtFirstUse:
    """A :class:`meshlib.Mesh` by way of a daemon that may not run yet. Made by :func:`daemon_at_first_use`."""

    def __init__(self, path: Path, tasks: TaskGroup) -> None:
        self._path = path
        self._tasks = tasks
        self._connecting = anyio.Lock()
        self._client: DaemonClient | None = None

    async def _mesh(self) -> Mesh:
        async with self._connecting:
            if self._client is None:
                self._client = await self._tasks.start(self._keep)
            return self._client

    async def _keep(self, *, task_status: TaskStatus[DaemonClient]) -> None:
        async with DaemonClient(self._path) as client:
            task_status.started(client)
            await anyio.sleep_forever()

    @property
    def did(self) -> Did:
        """The DID of whom we speak for, once another verb has succeeded."""
        return DaemonClient(self._path).did if self._client is None else self._client.did

    async def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: DeliveryState | str | None = None,
        message_id: str | None = None,
    ) -> AnyReceipt:
        """Send a message."""
        return await (await self._mesh()).send(peer, payload, wait=wait, message_id=message_id)

    async def receive(self, senders: Collection[str] | None = None) -> AnyMessage:
        """The next message."""
        return await (await self._mesh()).receive(senders)

    async def resolve(self, peer: str) -> Did:
        """The DID of a display name."""
        return await (await self._mesh()).resolve(peer)

    async def discover(self, capability: str, limit: int = 50) -> list[Agent]:
        """Agents that publish a capability."""
        return await (await self._mesh()).discover(capability, limit)

    async def request(
        self,
        peer: str,
        content: str,
        *,
        timeout: float = 1500.0,  # noqa: ASYNC109 - the agent is told how long we wait
        hops: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Have a peer do something, and wait for its answer."""
        mesh = await self._mesh()
        return await mesh.request(peer, content, timeout=timeout, hops=hops, on_progress=on_progress)

    async def send_file(
        self, peer: str, path: Path, *, description: str = "", on_progress: OnTransfer | None = None
    ) -> AnyFileReceipt:
        """Send a file."""
        return await (await self._mesh()).send_file(peer, path, description=description, on_progress=on_progress)

    async def peers(self) -> list[PeerSummary]:
        """Everybody we have talked to."""
        return await (await self._mesh()).peers()

    async def stats(self) -> ClientStats:
        """The numbers of the client that owns the identity."""
        return await (await self._mesh()).stats()

    async def trace(self, message: str) -> tuple[Sighting, ...]:
        """Where a message stands, by its id."""
        return await (await self._mesh()).trace(message)


@asynccontextmanager
async def daemon_at_first_use(path: Path) -> AsyncIterator[Mesh]:
    """The daemon at a socket, for as long as the block lasts."""
    async with anyio.create_task_group() as tasks:
        yield DaemonAtFirstUse(path, tasks)
        tasks.cancel_scope.cancel()
