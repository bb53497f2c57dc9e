"""An application on the mesh that may be killed at any instant: it numbers what it sends and writes down what it takes.

Its journal is what a database would be to a real application. Before a message is sent the number and the message id
are in it; a message that was handed over is in it before it is confirmed. After a kill the journal says what to send
again, under the same id, and the mesh sees to it that this is one message.

    python -m tests.faults.peer HOME --name alice --relay ws://... --registry http://... [--to bob --messages 100]

Runs until SIGTERM, or until everything is delivered when ``--leave`` is given. Prints nothing; exits with 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from meshlib import ClientConfig, Disconnected, MeshClient, QueueFull, Receipt, ServiceError, StoreError, TransportError
from meshlib.client.events import DeliveryChanged
from meshlib.config import Backoff, Limits, Timeouts

AGAIN = 0.05
"""Seconds between two attempts at what a server that is down refuses."""


@dataclass
class Journal:
    """One line per fact, appended with one write: a kill takes the process, not what the kernel has."""

    path: Path
    ids: dict[int, str] = field(default_factory=dict)
    """Of every number that was, or was about to be, sent."""
    settled: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Ids of messages that were handed over."""

    @classmethod
    def open(cls, path: Path) -> Journal:
        journal = cls(path)
        if path.exists():
            for line in path.read_text().splitlines():
                kind, number, rest = line.split(" ", 2)
                if kind == "send":
                    journal.ids[int(number)] = rest
                elif kind == "settled":
                    journal.settled[int(number)] = rest
                elif kind == "took":
                    journal.taken.add(rest.split(" ")[0])
        journal._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return journal

    _descriptor: int = -1

    def _add(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())

    def intend(self, number: int) -> str:
        """The id of a number, the same after every restart."""
        if number not in self.ids:
            self.ids[number] = str(uuid.uuid4())
            self._add(f"send {number} {self.ids[number]}")
        return self.ids[number]

    def settle(self, number: int, state: str) -> None:
        self.settled[number] = state
        self._add(f"settled {number} {state}")

    def take(self, number: int, message: str, *, redelivered: bool) -> None:
        self.taken.add(message)
        self._add(f"took {number} {message} {'again' if redelivered else 'first'}")


def configuration(options: argparse.Namespace) -> ClientConfig:
    return ClientConfig(
        name=options.name,
        relay_url=options.relay,
        registry_url=options.registry,
        store=options.store or options.home / "store",
        heartbeat=options.heartbeat,
        backoff=Backoff(first=0.05, last=0.5),
        timeouts=Timeouts(connect=5, proof=5, registry=5, close=2, silence=options.silence),
        limits=Limits(outbox=options.outbox, inbox=options.inbox),
    )


async def send(client: MeshClient, journal: Journal, options: argparse.Namespace) -> None:
    """Send every number that is not settled, and wait until all are."""
    under_way: deque[tuple[int, Receipt]] = deque()
    for number in range(options.messages):
        if number not in journal.settled:
            under_way.append((number, await accepted(client, options.to, number, journal.intend(number))))
        while len(under_way) >= options.window:
            await settle(journal, *under_way.popleft())
    for number, receipt in under_way:
        await settle(journal, number, receipt)


async def accepted(client: MeshClient, peer: str, number: int, message: str) -> Receipt:
    """Send until the outbox has it."""
    changes = client.events()
    while True:
        try:
            return await client.send(peer, number, message_id=message)
        except QueueFull as error:
            complain(error)
            with anyio.move_on_after(1):
                async for event in changes:
                    if isinstance(event, DeliveryChanged):
                        break
        except (ServiceError, TransportError) as error:  # the name is not known yet, or the registry is away
            complain(error)
            await anyio.sleep(AGAIN)


async def settle(journal: Journal, number: int, receipt: Receipt) -> None:
    journal.settle(number, str(await receipt.wait()))


async def receive(client: MeshClient, journal: Journal) -> None:
    """Write down whatever comes, then confirm it."""
    while True:
        message = await client.receive()
        assert isinstance(message.payload, int)
        journal.take(message.payload, message.id, redelivered=message.redelivered)
        await message.ack()


async def tell(client: MeshClient) -> None:
    """Say when a connection is lost, and why."""
    async for event in client.events():
        if isinstance(event, Disconnected):
            print(f"Disconnected: {event.code} {event.reason}", file=sys.stderr, flush=True)


async def stay(journal: Journal, options: argparse.Namespace) -> None:
    """Be on the mesh until the work is done; whatever cannot be reached is tried again."""
    while True:
        try:
            async with MeshClient(configuration(options)) as client, anyio.create_task_group() as tasks:
                tasks.start_soon(receive, client, journal)
                tasks.start_soon(tell, client)
                if options.to:
                    await send(client, journal, options)
                if options.leave:
                    tasks.cancel_scope.cancel()
                    return
                await anyio.sleep_forever()
        except* (ServiceError, TransportError, StoreError) as errors:  # a disk can be full for a while, too
            complain(errors)
        await anyio.sleep(AGAIN)


def complain(error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


async def main(options: argparse.Namespace) -> None:
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal.open(options.home / "journal")
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def work() -> None:
                await stay(journal, options)
                tasks.cancel_scope.cancel()

            tasks.start_soon(work)
            async for _ in signals:
                tasks.cancel_scope.cancel()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="an application on the mesh, for tests")
    parser.add_argument("home", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--relay", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--to", help="the name of the agent to send to")
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--window", type=int, default=100, help="messages under way at a time")
    parser.add_argument("--outbox", type=int, default=80, help="less than the window: the bound is met")
    parser.add_argument("--inbox", type=int, default=100)
    parser.add_argument("--store", type=Path, help="the mesh's folder, where it is not in HOME")
    parser.add_argument("--heartbeat", type=float, default=5.0)
    parser.add_argument("--silence", type=float, default=5.0)
    parser.add_argument("--leave", action="store_true", help="end when everything sent is delivered")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    anyio.run(main, given, backend=given.backend)
