"""Child processes that talk in lines of JSON: started, spoken to with deadlines, and always ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 15.0
"""Seconds until something that should happen at once counts as not happening."""

_LONGEST_LINE = 16 * 1024 * 1024


class PeerFailed(AssertionError):
    """A peer answered a command with an error. `detail` is what it said."""

    def __init__(self, peer: str, command: str, detail: str) -> None:
        super().__init__(f"{peer}: {command}: {detail}")
        self.detail = detail


class Missing(AssertionError):
    """Something that was waited for did not happen before the deadline."""


def environment() -> dict[str, str]:
    """Ours without what would configure the children behind our back."""
    foreign = ("MESH_", "AGENTMESH_", "AGT_", "HOST", "PORT", "LOG_LEVEL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}


class Child:
    """One process with its output collected line by line."""

    def __init__(self, process: asyncio.subprocess.Process, label: str) -> None:
        self.label = label
        self._process = process
        self._errors: deque[str] = deque(maxlen=12)
        self._tasks: list[asyncio.Task[None]] = []
        self._outputs = 2

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, label: str, argv: Sequence[str | Path]) -> AsyncIterator[Self]:
        process = await asyncio.create_subprocess_exec(
            *map(str, argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
            limit=_LONGEST_LINE,
        )
        child = cls(process, label)
        child._start()
        try:
            yield child
        finally:
            await child.stop()

    def _start(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._tasks = [
            asyncio.create_task(self._read(self._process.stdout, self._on_output)),
            asyncio.create_task(self._read(self._process.stderr, self._on_error)),
        ]

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def errors(self) -> str:
        """The last lines on standard error."""
        return "\n".join(self._errors)

    async def ended(self) -> int:
        """The exit status, once there is one."""
        try:
            return await asyncio.wait_for(self._process.wait(), DEADLINE)
        except TimeoutError:
            raise Missing(f"{self.label} does not end") from None

    async def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """Ask by closing standard input and SIGTERM; insist after a few seconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self.alive:
            # Not Popen.terminate(): it would reap a child that has just died, and asyncio would miss its status.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        async for line in stream:
            take(line.decode(errors="replace").rstrip("\n"))
        self._outputs -= 1
        if self._outputs == 0:
            self._on_silence()

    def _on_output(self, line: str) -> None:
        self._errors.append(line)

    def _on_error(self, line: str) -> None:
        self._errors.append(line)

    def _on_silence(self) -> None:
        """Both outputs have ended, and the process with them."""


class Server(Child):
    """A server that says where it listens; `find_address` reads that out of any line it prints."""

    def __init__(self, process: asyncio.subprocess.Process, label: str) -> None:
        super().__init__(process, label)
        self.find_address: Callable[[str], tuple[str, int] | None] = announced_address
        self._address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    async def address(self, patience: float = DEADLINE) -> tuple[str, int]:
        try:
            return await asyncio.wait_for(self._address, patience)
        except TimeoutError:
            raise Missing(f"{self.label} does not listen:\n{self.errors}") from None

    def _on_silence(self) -> None:
        if not self._address.done():
            self._address.set_exception(Missing(f"{self.label} has ended:\n{self.errors}"))

    def _on_output(self, line: str) -> None:
        super()._on_output(line)
        self._look(line)

    def _on_error(self, line: str) -> None:
        super()._on_error(line)
        self._look(line)

    def _look(self, line: str) -> None:
        found = self.find_address(line)
        if found is not None and not self._address.done():
            self._address.set_result(found)


def announced_address(line: str) -> tuple[str, int] | None:
    """Our servers print `{"event":"listening","host":...,"port":...}` once they are ready."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if isinstance(said, dict) and said.get("event") == "listening":
        return said["host"], said["port"]
    return None


Event = dict[str, Any]


class Peer(Child):
    """An agent in a process of its own. The protocol is in README.md."""

    def __init__(self, process: asyncio.subprocess.Process, label: str) -> None:
        super().__init__(process, label)
        self.did = ""
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Event]] = {}
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._silent = False

    def _on_output(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            self._errors.append(line)
            return
        answer = self._answers.pop(event.get("id"), None) if event["event"] in ("done", "failed") else None
        if answer is not None:
            answer.set_result(event)
            return
        self._events.append(event)
        self._news.set()

    def _on_silence(self) -> None:
        self._silent = True
        self._news.set()
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()

    async def call(self, command: str, *, patience: float = DEADLINE, **arguments: object) -> Event:
        """Have the peer do something and wait until it says it has."""
        assert self._process.stdin is not None
        number = next(self._ids)
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        line = json.dumps({"cmd": command, "id": number, **arguments})
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
            said = await asyncio.wait_for(answer, patience)
        except (TimeoutError, ConnectionError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self._silent:
                raise
            raise Missing(f"{self.label} does not answer {command!r}:\n{self.errors}") from None
        if said["event"] == "failed":
            raise PeerFailed(self.label, command, said["error"])
        return said

    async def expect(
        self, event: str, *, sender: Peer | None = None, patience: float = DEADLINE, **fields: object
    ) -> Event:
        """The earliest event of that name, sender and fields that nobody has taken yet."""
        if sender is not None:
            fields["from"] = sender.did

        def taken() -> Event | None:
            for index, said in enumerate(self._events):
                if said["event"] == event and all(said.get(name) == value for name, value in fields.items()):
                    return self._events.pop(index)
            return None

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while (said := taken()) is None and not self._silent:
                    self._news.clear()
                    await self._news.wait()
                if said is not None:
                    return said
        raise Missing(f"{self.label}: no {event} {fields}; instead: {self._events[:5]}\n{self.errors}")

    def seen(self, event: str, **fields: object) -> list[Event]:
        """Events of that name that nobody has taken, without taking them."""
        return [e for e in self._events if e["event"] == event and all(e.get(k) == v for k, v in fields.items())]

    async def payloads(self, sender: Peer, count: int = 1, *, patience: float = DEADLINE) -> list[Any]:
        """The next `count` payloads from a peer in the order of their arrival. Bytes come as bytes."""
        return [value_of(await self.expect("message", patience=patience, sender=sender)) for _ in range(count)]


def value_of(message: Event) -> Any:
    return base64.b64decode(message["bytes"]) if "bytes" in message else message["payload"]


def as_arguments(payload: Any) -> dict[str, Any]:
    """A payload as the arguments of `send`."""
    if isinstance(payload, bytes):
        return {"bytes": base64.b64encode(payload).decode()}
    return {"payload": payload}
