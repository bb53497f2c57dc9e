"""The responder's shell: messages in, runtimes at work, answers out, on asyncio and on trio.

Every step follows one order: the core decides, the journal saves, then envelopes leave and runtimes start. Leaves every
decision to :mod:`meshlib.responder.core`.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from meshlib.client.handles import Message
from meshlib.client.mesh import MeshClient
from meshlib.clock import Instant
from meshlib.errors import InvalidValue, MeshError, QueueFull, StoreError
from meshlib.files.receipts import FINAL, FileReceipt
from meshlib.identity import Did
from meshlib.logs import LogEvent
from meshlib.responder.core import Draining, JobChanges, Letter, ResponderCore
from meshlib.responder.jobs import Job, JobKey, JobState
from meshlib.responder.journal import Journal, open_journal
from meshlib.responder.outcomes import checked
from meshlib.responder.policy import Policy
from meshlib.responder.runtimes.function import Function, as_runtime
from meshlib.responder.runtimes.protocol import Done, Failed, Outcome, Runtime, Task
from meshlib.wire.envelopes import TaskResponse, write_envelope

log = logging.getLogger("meshlib.responder")

STOP_SECONDS = 30.0
"""How long tasks that were told to stop may take: a tree of processes twelve, and its folders are removed then. What
takes longer is left to itself."""


@dataclass(frozen=True, slots=True)
class Note:
    """What has become of a task, for whoever watches. Holds nothing of what was asked or answered."""

    peer: Did
    request_id: str
    what: str
    """``waiting``, ``started``, ``answered``, ``failed`` or ``refused``."""
    seconds: float = 0.0
    """How long it ran."""
    detail: str = ""
    """More about a failure, for the operator only."""


Watch = Callable[[Note], None]


class Responder:
    """Answers tasks with a runtime. A route of the client: messages that are no tasks stay in its inbox.

    Use it as an async context manager, inside the client's::

        async with MeshClient(config) as client, Responder(client, runtime, policy) as responder:
            await responder.wait()

    Args:
        client: an open client.
        runtime: does the work.
        policy: what is taken on; the default takes nothing from anybody.
        journal: where tasks are remembered. ``None``: beside the client's store, in memory if it has none.
        watch: told what becomes of each task.
        spool: folder of files that belong to answers, removed once they are sent. Files elsewhere are left alone.
        keep_reasoning: told what the model thought, by task id; called in a worker thread.
    """

    def __init__(
        self,
        client: MeshClient,
        runtime: Runtime,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        *,
        journal: Journal | None = None,
        watch: Watch | None = None,
        spool: Path | None = None,
        keep_reasoning: Callable[[str, str], None] | None = None,
    ) -> None:
        self._client = client
        self._runtime = runtime
        self._policy = policy
        self._journal = journal
        self._watch = watch or (lambda note: None)
        self._spool = None if spool is None else Path(os.path.abspath(spool))  # as transfers name their files
        self._keep_reasoning = keep_reasoning
        self._core: ResponderCore | None = None
        self._tasks: TaskGroup | None = None
        self._turn = anyio.Lock()
        self._due = anyio.Event()
        self._idle = anyio.Event()
        self._stopped = anyio.Event()
        self._running: dict[JobKey, anyio.CancelScope] = {}
        self._broken: MeshError | None = None
        self._ended = False

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin to answer.

        Raises:
            AgentNotFound, AmbiguousName: somebody who may give tasks cannot be found.
            StoreError: the journal cannot be read.
        """
        config = self._client.config
        givers: set[Did] | None = None
        if not self._policy.everyone:
            givers = {await self._client.resolve(peer) for peer in self._policy.tasks_from}
        if self._journal is None:
            opening = partial(open_journal, config.store, config.passphrase)
            self._journal = await anyio.to_thread.run_sync(opening)
        try:
            saved = await anyio.to_thread.run_sync(self._journal.load)
            room = config.limits.payload
            self._core = ResponderCore(config.name or "", self._policy, givers, saved, self._now(), room)
            self._tasks = await anyio.create_task_group().__aenter__()
            await self._step()
            self._tasks.start_soon(self._keep_time)
            self._clean_spool()
            self._client.add_route(self)
        except BaseException:
            self._journal.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """End in order: take nothing more, give what runs its time of grace, stop what is left, and say so."""
        assert self._core is not None
        assert self._tasks is not None
        assert self._journal is not None
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        try:
            with anyio.CancelScope(shield=True):
                async with self._turn:  # a step that is on its way may start more
                    self._core.drain()
                with anyio.move_on_after(self._policy.grace):
                    await self._until_idle()
                for scope in self._running.values():
                    scope.cancel()
                with anyio.move_on_after(STOP_SECONDS):
                    await self._until_idle()
                async with self._turn:
                    self._ended = True
            self._tasks.cancel_scope.cancel()
            swallowed = await self._tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
        finally:
            self._journal.close()
        return swallowed if cancelled else None

    async def _until_idle(self) -> None:
        while self._running:
            await self._idle.wait()

    def stop(self) -> None:
        """Have :meth:`wait` return."""
        self._stopped.set()

    async def wait(self) -> None:
        """Answer until :meth:`stop`, or until the task is cancelled.

        Raises:
            StoreError: the journal cannot be written any more.
        """
        await self._stopped.wait()
        if self._broken is not None:
            raise self._broken

    # --- a route -----------------------------------------------------------------------------------------------------

    def claims(self, sender: Did, payload: object) -> bool:
        """Whether a message is a task, or about one."""
        assert self._core is not None
        return not self._ended and self._core.claims(sender, payload)

    async def handle(self, message: Message) -> None:
        """Take a task. It is in the journal when this returns, and only then is its message acknowledged.

        Raises:
            Draining: the responder is about to end; the message waits for the next start.
        """
        core = self._open()
        async with self._turn:
            if self._ended:
                raise Draining("the responder has ended")
            core.take(message.sender, message.id, message.payload, self._now())
            await self._save_and_send(core)

    # --- the step ----------------------------------------------------------------------------------------------------

    async def _step(self, decide: Callable[[], None] | None = None) -> None:
        async with self._turn:
            if decide is not None:
                decide()
            await self._save_and_send(self._open())

    async def _save_and_send(self, core: ResponderCore) -> None:
        """Save what the core changed, then start, stop and send what it wants, until it wants nothing more."""
        assert self._tasks is not None
        with anyio.CancelScope(shield=True):
            while True:
                changes, letters = core.changes(), core.letters()
                if not changes and not letters:
                    break
                await self._save(changes)
                for key in core.stops():
                    if key in self._running:
                        self._running[key].cancel()
                for job in core.starts():
                    self._running[job.key] = anyio.CancelScope()
                    self._tasks.start_soon(self._run, job)
                for letter in letters:
                    await self._post(core, letter)
        self._due.set()

    async def _save(self, changes: JobChanges) -> None:
        assert self._journal is not None
        if self._broken is not None:
            raise self._broken
        if not changes:
            return
        try:
            await anyio.to_thread.run_sync(self._journal.save, changes)
        except Exception as error:
            # The core is ahead of the journal now: to go on would answer what nobody remembers having been asked.
            self._broken = error if isinstance(error, MeshError) else StoreError("the journal of tasks has failed")
            self.stop()
            raise self._broken from error
        for job in changes.jobs.values():
            if job is not None and job.state is JobState.WAITING:
                self._watch(Note(job.sender, job.request_id, "waiting"))

    async def _post(self, core: ResponderCore, letter: Letter) -> None:
        accepted = True
        envelope = letter.envelope
        if isinstance(envelope, TaskResponse) and letter.answers is None:
            self._watch(Note(letter.peer, envelope.request_id, "refused", detail=envelope.error or ""))
        try:
            await self._client.send(letter.peer, write_envelope(envelope), message_id=letter.id)
        except QueueFull:
            accepted = False
        except InvalidValue as error:
            log.warning(LogEvent("answer_cannot_be_sent", peer=letter.peer, detail=error))
            if letter.answers is not None:
                core.unsendable(letter.answers, self._now())
            return
        except MeshError as error:
            # The client has stopped, or is being left. What is not in the outbox is sent by the next start.
            log.warning(LogEvent("answer_not_sent", peer=letter.peer, detail=error))
            return
        if letter.answers is not None:
            core.sent(letter.answers, self._now(), accepted=accepted)

    async def _keep_time(self) -> None:
        core = self._open()
        while True:
            self._due = anyio.Event()
            with anyio.move_on_after(max(0.0, core.next_deadline() - time.monotonic())):
                await self._due.wait()
                continue
            try:
                await self._step(lambda: core.tick(self._now()))
            except MeshError as error:
                log.error(LogEvent("responder_stopped", detail=error))
                return

    # --- work --------------------------------------------------------------------------------------------------------

    async def _run(self, job: Job) -> None:
        core = self._open()
        started = time.monotonic()
        outcome: Outcome | None = None
        try:
            self._watch(Note(job.sender, job.request_id, "started"))
            with self._running[job.key]:
                outcome = await self._outcome(job)
            seconds = time.monotonic() - started
            match outcome:
                case Done():
                    self._watch(Note(job.sender, job.request_id, "answered", seconds))
                case Failed():
                    detail = f"{outcome.reason} {outcome.detail}".strip()
                    self._watch(Note(job.sender, job.request_id, "failed", seconds, detail))
                case None:
                    self._watch(Note(job.sender, job.request_id, "failed", seconds, "stopped"))
            await self._step(lambda: core.finished(job.key, outcome, self._now()))
        except MeshError as error:
            log.error(LogEvent("responder_stopped", detail=error))
        finally:
            del self._running[job.key]
            self._idle.set()
            self._idle = anyio.Event()

    async def _outcome(self, job: Job) -> Outcome:
        seconds_left = max(0.1, job.overdue_at - self._now().utc)
        task = Task(job.request_id, job.content, job.sender, job.sender_name, job.hops, seconds_left)
        outcome: Outcome = Failed(f"there was no answer within {job.timeout:g} s", error="timeout")
        try:
            with anyio.move_on_after(seconds_left):
                returned = await self._runtime.run(task)
                outcome = await anyio.to_thread.run_sync(self._checked, task, returned, abandon_on_cancel=True)
            if isinstance(outcome, Done):
                await self._send_files(job, outcome)
        except Exception:  # the runtime is foreign code: whatever it raises is no answer, and no end of the responder
            log.exception(LogEvent("runtime_failed", runtime=self._runtime.name))
            return Failed("the agent failed while it worked on the task", "its log says where")
        return outcome

    def _checked(self, task: Task, returned: Outcome) -> Outcome:
        outcome, reasoning = checked(returned)
        if isinstance(returned, Done) and isinstance(outcome, Failed):
            self._drop(returned.artifacts)
        if reasoning and self._keep_reasoning is not None:
            try:
                self._keep_reasoning(task.id, reasoning)
            except OSError as error:
                log.warning(LogEvent("reasoning_not_kept", task=task.id, detail=error.strerror))
        return outcome

    # --- files -------------------------------------------------------------------------------------------------------

    async def _send_files(self, job: Job, done: Done) -> None:
        """Have the files of an answer sent. They are noted before the answer is: it does not speak of lost ones."""
        if not self._open().is_running(job.key):  # called off meanwhile
            self._drop(done.artifacts)
            return
        for path in done.artifacts:
            try:
                receipt = await self._client.send_file(
                    job.sender, path, description=f"belongs to the answer to {job.request_id}"
                )
            except MeshError as error:
                log.warning(LogEvent("file_of_answer_not_sent", peer=job.sender, detail=error))
                self._drop([path])
            else:
                self._remove_when_sent(receipt)

    def _clean_spool(self) -> None:
        """Files of the process before this one: those on their way go when they are sent, the others now."""
        if self._spool is None or not self._spool.is_dir():
            return
        sending = {receipt.path: receipt for receipt in self._client.transfers()}
        for path in [path for path in self._spool.rglob("*") if path.is_file()]:
            if path in sending:
                self._remove_when_sent(sending[path])
            else:
                _remove(path)

    def _remove_when_sent(self, receipt: FileReceipt) -> None:
        def look(receipt: FileReceipt) -> None:
            if receipt.state in FINAL:
                self._drop([receipt.path])

        receipt.watch(look)
        look(receipt)

    def _drop(self, files: Iterable[Path]) -> None:
        """Remove files of the spool that are not needed any more; others are not ours."""
        for path in map(os.path.abspath, files):
            if self._spool is not None and Path(path).is_relative_to(self._spool):
                _remove(Path(path))

    # --- small verbs -------------------------------------------------------------------------------------------------

    def _now(self) -> Instant:
        return Instant(time.monotonic(), time.time())

    def _open(self) -> ResponderCore:
        assert self._core is not None, "the responder is entered before anything reaches it"
        return self._core


def _remove(path: Path) -> None:
    """Remove a file of the spool, and the folder it was alone in."""
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()


async def respond(
    client: MeshClient,
    runtime: Runtime | Function,
    *,
    tasks_from: Collection[str] = (),
    policy: Policy | None = None,
    watch: Watch | None = None,
) -> None:
    """Answer tasks until cancelled.

    Args:
        client: an open client.
        runtime: a runtime, or a function, plain or async, that takes a :class:`Task` and returns a text.
        tasks_from: names or DIDs of those who may give tasks.
        policy: more about what is taken on, instead of ``tasks_from``.
        watch: told what becomes of each task.
    """
    if policy is None:
        policy = Policy(tasks_from=tasks_from)
    elif tasks_from:
        raise InvalidValue("either tasks_from or a policy that names them: leave one out")
    async with Responder(client, as_runtime(runtime), policy, watch=watch) as responder:
        await responder.wait()
