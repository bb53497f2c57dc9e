"""Agents for the tests of runtimes: a daemon whose identity a runtime uses, and a peer that answers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from meshlib import ClientConfig, MeshClient
from meshlib.client.handles import Message
from meshlib.daemon.server import serve_daemon
from meshlib.wire.envelopes import TaskRequest, TaskResponse, read_envelope, write_envelope
from tests.commands import PATIENCE, Servers


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def _serving(config: ClientConfig) -> AsyncIterator[MeshClient]:
    async with MeshClient(config) as client, serve_daemon(client):
        yield client


@dataclass
class Peer:
    """An agent in this process, for tests that are not asynchronous."""

    name: str
    client: MeshClient
    portal: BlockingPortal

    @property
    def did(self) -> str:
        return self.client.did

    def send(self, to: str, payload: object) -> None:
        self.portal.call(lambda: self.client.send(to, payload, wait="delivered"))

    def next(self) -> Message:
        """The next message; confirmed."""

        async def receive() -> Message:
            with anyio.fail_after(PATIENCE):
                message = await self.client.receive()
            await message.ack()
            return message

        return self.portal.call(receive)

    def answer_one(self, with_text: str) -> Any:
        """Answer the next task, in the background. Returns a future of the task."""

        async def answer() -> TaskRequest:
            message = await self.client.receive()
            await message.ack()
            task = read_envelope(message.payload)
            assert isinstance(task, TaskRequest)
            answer = TaskResponse(request_id=task.request_id, content=with_text)
            await self.client.send(message.sender, write_envelope(answer))
            return task

        return self.portal.start_task_soon(answer)


@contextmanager
def peer(servers: Servers, name: str, store: Path | None = None, incoming: Path | None = None) -> Iterator[Peer]:
    """An agent. With a store, a daemon offers it to other processes; with a folder for them, it takes files."""
    name = unique(name)
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    config = ClientConfig(name=name, store=store, incoming=incoming, **urls)
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal("asyncio"))
        opened = MeshClient(config) if store is None else _serving(config)
        manager: AbstractContextManager[MeshClient] = portal.wrap_async_context_manager(opened)
        yield Peer(name, stack.enter_context(manager), portal)
