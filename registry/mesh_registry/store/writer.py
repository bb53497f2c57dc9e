"""One thread that writes, and commits what has gathered while it was busy.

Changes are collected on the event loop while the thread works on the previous batch; then they travel together, in
one transaction, and their callers are answered after its commit. Nothing waits on purpose: a lone change is
committed at once, and a thousand concurrent ones share a commit.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from mesh_registry.store.protocol import Heard, StoreBusy, StoreFailed
from mesh_registry.store.vitals import Vitals

log = logging.getLogger("mesh_registry.store")

MAX_WAITING = 10_000
"""Changes that wait for the next commit. At a few thousand a second that is some seconds; beyond it callers are told
to come back."""

T = TypeVar("T")
S = TypeVar("S", bound="Session")
Work = Callable[[S], T]


class Session(Protocol):
    """The thread's side of a store: where the work of a batch is done."""

    def begin(self) -> None:
        """Start a transaction."""

    def commit(self) -> bool:
        """Make it durable. Whether there was anything to."""

    def rollback(self) -> None:
        """Undo it, and everything remembered about it."""

    def take_changed(self) -> set[str]:
        """The names that have been changed, each told once. Some too many do no harm."""

    def close(self) -> None:
        """Let go of the disk."""


class Writer(Generic[S]):
    """Runs work in batches on its own thread. Owned by one event loop."""

    def __init__(self, open_session: Callable[[], S], vitals: Vitals) -> None:
        """Start the thread; raises what ``open_session``, called there, raises."""
        self._vitals = vitals
        self.heard: Heard = lambda _: None
        self._waiting: list[tuple[Work[S, Any], asyncio.Future[Any]]] = []
        self._flight = False
        self._inbox: queue.SimpleQueue[list[tuple[Work[S, Any], asyncio.Future[Any]]] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(open_session, opened), name="registry-writer")
        self._thread.start()
        failure = opened.get()
        if failure is not None:
            self._thread.join()
            raise failure

    async def run(self, work: Work[S, T]) -> T:
        """Do ``work`` in the next transaction; returns after its commit."""
        if len(self._waiting) >= MAX_WAITING:
            raise StoreBusy
        loop = asyncio.get_running_loop()
        self._loop = loop
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((work, future))
        if not self._flight:
            # The rest of this turn of the event loop may bring more.
            self._flight = True
            loop.call_soon(self._send)
        return await future

    async def close(self) -> None:
        """Commit what waits and end the thread."""
        while self._flight:
            await self.run(lambda _: None)
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- on the event loop ------------------------------------------------------------------------------------------

    def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        self._flight = bool(batch)
        if batch:
            self._inbox.put(batch)

    def _deliver(self, answers: list[tuple[asyncio.Future[Any], Any, BaseException | None]], changed: set[str]) -> None:
        if changed:
            self.heard(changed)
        for future, result, failure in answers:
            if future.done():
                continue  # its caller has gone
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        self._send()

    # --- on the thread ----------------------------------------------------------------------------------------------

    def _run(self, open_session: Callable[[], S], opened: "queue.SimpleQueue[BaseException | None]") -> None:
        try:
            session = open_session()
        except BaseException as failure:  # noqa: BLE001 - handed to whoever starts the store
            opened.put(failure)
            return
        opened.put(None)
        with contextlib.closing(session):
            while (batch := self._inbox.get()) is not None:
                answers = self._together(session, batch) or self._one_by_one(session, batch)
                assert self._loop is not None
                with contextlib.suppress(RuntimeError):  # the loop has been closed without waiting for us
                    self._loop.call_soon_threadsafe(self._deliver, answers, session.take_changed())

    def _together(
        self, session: S, batch: list[tuple[Work[S, Any], asyncio.Future[Any]]]
    ) -> list[tuple[asyncio.Future[Any], Any, BaseException | None]] | None:
        began = time.perf_counter()
        try:
            session.begin()
            answers: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = [
                (future, work(session), None) for work, future in batch
            ]
            if session.commit():
                self._vitals.commits.observe(time.perf_counter() - began)
                self._vitals.healthy = True
        except Exception:
            session.rollback()
            if len(batch) > 1:
                return None
            self._vitals.commit_failures += 1
            self._vitals.healthy = False
            log.exception("write_failed")
            return [(batch[0][1], None, StoreFailed("the change could not be stored"))]
        return answers

    def _one_by_one(
        self, session: S, batch: list[tuple[Work[S, Any], asyncio.Future[Any]]]
    ) -> list[tuple[asyncio.Future[Any], Any, BaseException | None]]:
        # One change that cannot be stored must not fail those that happen to share its transaction.
        return [answer for item in batch for answer in self._together(session, [item]) or []]
