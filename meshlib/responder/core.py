"""What a responder decides: what is a task, who may give one, which runs next, what is answered, and when to speak.

No I/O. Messages, outcomes and time go in; jobs to save, envelopes to send, jobs to start and to stop come out. The
shell saves before it sends or starts anything, so that a task which somebody was told of is never forgotten.

Owns the rule that a task is answered once, whatever is repeated, cancelled or killed. Leaves running to
:mod:`meshlib.responder.service` and :mod:`meshlib.responder.runtimes`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from meshlib.buckets import Buckets, Rate
from meshlib.clock import Instant
from meshlib.config import Limits
from meshlib.errors import MalformedFrame, MeshError
from meshlib.identity import Did
from meshlib.responder.answers import Answers
from meshlib.responder.jobs import Job, JobKey, JobState, answer_id
from meshlib.responder.policy import AfterCrash, Policy
from meshlib.responder.runtimes.protocol import Done, Failed, Outcome
from meshlib.wire.encoding import MessageId, timestamp
from meshlib.wire.envelopes import (
    Envelope,
    Ping,
    Pong,
    TaskCancel,
    TaskProgress,
    TaskReceived,
    TaskRequest,
    TaskResponse,
    envelope_type,
    read_envelope,
    unwrapped,
)

PINGS = Rate(burst=10, per_second=0.2)
"""Pings of one peer that are answered."""
REPEATS = Rate(burst=20, per_second=1 / 60)
"""Repeated tasks of one peer that get a word or the stored answer again; beyond them they are dropped in silence, since
an answer may be a thousand times as long as the question. Who asks again because of a crash does so a few times."""
REFUSALS = Rate(burst=20, per_second=0.2)
"""Refusals one peer gets; beyond them its tasks are dropped in silence, so that refusing costs less than asking."""
KEYS = 10_000
"""Peers whose rates are remembered; one that is forgotten has a full burst again."""
RESEND_AFTER = 20.0
"""Seconds until an answer the outbox had no room for is offered to it again."""

_TAKEN = ("task_request", "task_cancel", "mesh:ping")


@dataclass(frozen=True, slots=True)
class Letter:
    """An envelope to send."""

    peer: Did
    envelope: Envelope
    id: MessageId | None = None
    """Chosen where a second copy must count as the first."""
    answers: JobKey | None = None
    """The job whose answer it is; report it with :meth:`ResponderCore.sent`."""


@dataclass
class JobChanges:
    """What must be saved before anything else happens: jobs by key; ``None`` for one that is forgotten."""

    jobs: dict[JobKey, Job | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.jobs)


class Draining(MeshError):
    """The responder is about to end: the task waits for the next start."""


@dataclass(slots=True)
class _Clock:
    """When to say the next word about a job."""

    started: float
    """Monotonic seconds: when it began to run, or came."""
    speak_at: float
    tick: int = 0


class ResponderCore:
    """One responder's decisions. Owned by one task; needs no locks.

    Args:
        name: the display name peers are told.
        policy: what is taken on.
        givers: the DIDs that may give tasks; ``None`` for everyone.
        saved: what the journal held.
        now: when we start.
        room: bytes of a message as JSON.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        givers: Collection[Did] | None,
        saved: Iterable[Job],
        now: Instant,
        room: int = Limits.payload,
    ) -> None:
        self._name = name
        self._answers = Answers(name, room)
        self._policy = policy
        self._givers = None if givers is None else frozenset(givers)
        self._jobs: dict[JobKey, Job] = {}
        self._clocks: dict[JobKey, _Clock] = {}  # of those that wait or run
        self._occupied: set[JobKey] = set()  # runs, or was told to stop and has not yet
        self._kept_bytes = 0
        self._per_peer = Buckets(Rate(policy.burst, 1 / policy.every), KEYS)
        self._in_all = Buckets(Rate(policy.burst_in_all, 1 / policy.every_in_all), 1)
        self._pings = Buckets(PINGS, KEYS)
        self._refusals = Buckets(REFUSALS, KEYS)
        self._repeats = Buckets(REPEATS, KEYS)
        self._changes = JobChanges()
        self._letters: list[Letter] = []
        self._starts: list[Job] = []
        self._stops: list[JobKey] = []
        self._draining = False
        self._resend_at: float | None = None
        for job in saved:
            self._restore(job, now)
        self._start_next(now)

    def _restore(self, job: Job, now: Instant) -> None:
        self._jobs[job.key] = job
        match job.state:
            case JobState.RUNNING if self._policy.after_crash is AfterCrash.RERUN:
                self._keep(replace(job, state=JobState.WAITING))
                self._listen(job, now)
            case JobState.RUNNING:
                self._answer(
                    job, self._answers.no(job.request_id, "lost", "the agent was restarted while it worked on it", now)
                )
            case JobState.WAITING:
                self._listen(job, now)
            case JobState.ANSWERED:
                self._offer(job)
                self._kept_bytes += job.size
            case JobState.SENT:
                self._kept_bytes += job.size

    # --- what comes out ----------------------------------------------------------------------------------------------

    def changes(self) -> JobChanges:
        """What must be saved first. Each change is returned once."""
        taken, self._changes = self._changes, JobChanges()
        return taken

    def letters(self) -> list[Letter]:
        """What to send once the changes are saved, in order."""
        taken, self._letters = self._letters, []
        return taken

    def starts(self) -> list[Job]:
        """Jobs to start once the changes are saved; each ends with :meth:`finished`."""
        taken, self._starts = self._starts, []
        return taken

    def stops(self) -> list[JobKey]:
        """Jobs to stop. The answer is given already; :meth:`finished` follows all the same."""
        taken, self._stops = self._stops, []
        return taken

    def next_deadline(self) -> float:
        """Monotonic time at which :meth:`tick` has something to do; infinity if never."""
        times = [clock.speak_at for clock in self._clocks.values()]
        if self._resend_at is not None:
            times.append(self._resend_at)
        return min(times, default=float("inf"))

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return sum(job.state is JobState.WAITING for job in self._open())

    @property
    def running(self) -> int:
        """Places taken by jobs that run, or have been told to stop and have not yet."""
        return len(self._occupied)

    def is_running(self, key: JobKey) -> bool:
        """Whether an outcome of a job still counts: it was not called off."""
        job = self._jobs.get(key)
        return job is not None and job.state is JobState.RUNNING

    # --- messages ----------------------------------------------------------------------------------------------------

    def claims(self, sender: Did, payload: object) -> bool:
        """Whether a message is for the responder. All others are for the agent's own inbox.

        Never an answer, nor a word about one: who answers answers talks for ever.
        """
        kind = envelope_type(payload)
        if kind is not None:
            return kind in _TAKEN
        return isinstance(unwrapped(payload), str) and bool(str(payload).strip()) and self._may_give(sender)

    def take(self, sender: Did, message: MessageId, payload: object, now: Instant) -> None:
        """Take a message that was claimed.

        Raises:
            Draining: not now; leave it in the inbox.
        """
        try:
            envelope = read_envelope(payload, message)
        except MalformedFrame as error:
            if error.id is not None and error.frame_type == "task_request":
                self._refuse(sender, message, error.id, "refused", f"the task cannot be read: {error}", now)
            return
        match envelope:
            case Ping():
                if self._pings.take(sender, now.monotonic):
                    pong = Pong(nonce=envelope.nonce, from_agent=self._name, timestamp=timestamp(now.utc))
                    self._letters.append(Letter(sender, pong, answer_id(sender, message, "pong")))
            case TaskCancel():
                self._cancel((sender, envelope.request_id), now)
            case TaskRequest():
                self._request(sender, message, envelope, now)
            case None if isinstance(payload, str):
                self._request(sender, message, TaskRequest(request_id=message, content=payload), now)

    def _may_give(self, sender: Did) -> bool:
        return self._givers is None or sender in self._givers

    def _request(self, sender: Did, message: MessageId, request: TaskRequest, now: Instant) -> None:
        known = self._jobs.get((sender, request.request_id))
        if known is not None:
            self._repeated(known, message, now)
            return
        if self._draining:
            raise Draining("the responder is about to end")
        refusal = self._refusal(sender, request, now)
        if refusal is not None:
            self._refuse(sender, message, request.request_id, *refusal, now)
            return
        patience = self._policy.timeout
        if request.timeout_seconds is not None:
            patience = min(patience, request.timeout_seconds)
        job = Job(
            sender,
            request.request_id,
            request.content,
            message,
            request.from_agent,
            request.hops,
            patience,
            now.utc,
        )
        self._keep(job)
        self._listen(job, now)
        self._say_received(job, now)
        self._start_next(now)

    def _refusal(self, sender: Did, request: TaskRequest, now: Instant) -> tuple[str, str] | None:
        """Why a task is not taken: the word for programs, and a sentence."""
        policy = self._policy
        if not self._may_give(sender):
            return "refused", "this agent takes no tasks from you: its operator names the peers that may give it some"
        if not request.content.strip():
            return "refused", "the task is empty: say what is wanted"
        if request.hops >= policy.max_hops:
            return "refused", f"the work has been passed on {request.hops} times, the limit: do it, or give it up"
        mine = [job for job in self._open() if job.sender == sender]
        if len(mine) >= policy.per_peer:
            return "busy", f"{len(mine)} tasks of yours are open here, the limit: wait for their answers"
        if self.waiting >= policy.queue:
            return "busy", f"{policy.queue} tasks wait already, the limit: try again later"
        if self._may_have_come_back(request):
            return "busy", "every place is taken, perhaps by the work this one comes from: try again later"
        if not self._per_peer.take(sender, now.monotonic):
            return "busy", f"too many tasks in a short time: one every {policy.every:g} s is taken"
        if not self._in_all.take("", now.monotonic):
            return "busy", "too many tasks in a short time: try again later"
        return None

    def _may_have_come_back(self, request: TaskRequest) -> bool:
        """Whether work that waits for this very task may hold every place, so that to queue it would block for ever.

        Work that comes back has been passed on more often than what it left here.
        """
        running = [job.hops for job in self._open() if job.state is JobState.RUNNING]
        full = len(self._occupied) >= self._policy.concurrency
        return full and request.hops > max(running, default=request.hops)

    def _repeated(self, job: Job, message: MessageId, now: Instant) -> None:
        """A task that is known: its answer again, or that it is being worked on."""
        if message == job.message and job.response is not None:
            return  # it is the very same message, and the outbox has its answer
        if not self._repeats.take(job.sender, now.monotonic):
            return
        if job.response is None:
            self._say_received(job, now)
        else:
            job = replace(job, message=message, state=JobState.ANSWERED)
            self._keep(job)
            self._offer(job)

    def _cancel(self, key: JobKey, now: Instant) -> None:
        job = self._jobs.get(key)
        if job is None or job.response is not None:
            return
        if job.state is JobState.RUNNING:
            self._stops.append(key)
        self._answer(job, self._answers.no(job.request_id, "cancelled", "the task was called off", now))
        self._start_next(now)

    # --- work --------------------------------------------------------------------------------------------------------

    def finished(self, key: JobKey, outcome: Outcome | None, now: Instant) -> None:
        """A job that was started has ended; ``None``: it was stopped before there was an outcome."""
        self._occupied.discard(key)
        job = self._jobs.get(key)
        if job is not None and job.state is JobState.RUNNING:
            match outcome:
                case Done():
                    self._answer(job, self._answers.yes(job.request_id, outcome, now))
                case Failed():
                    self._answer(job, self._answers.no(job.request_id, outcome.error, outcome.reason, now))
                case None if self._policy.after_crash is AfterCrash.FAIL:
                    self._answer(job, self._answers.no(job.request_id, "lost", "the agent was shut down", now))
                case None:
                    pass  # it stays as it is, and the next start runs it again
        self._start_next(now)

    def sent(self, key: JobKey, now: Instant, *, accepted: bool) -> None:
        """An answer is in the outbox; or there was no room for it, and it is offered again."""
        job = self._jobs.get(key)
        if job is None or job.state is not JobState.ANSWERED:
            return
        if accepted:
            self._keep(replace(job, state=JobState.SENT))
            self._forget_old(now)
        else:
            self._resend_at = now.monotonic + RESEND_AFTER

    def unsendable(self, key: JobKey, now: Instant) -> None:
        """The client will never take an answer. Whoever waits for it is told, unless that is refused as well."""
        job = self._jobs.get(key)
        if job is None or job.response is None or job.state is not JobState.ANSWERED:
            return
        if not job.response.ok:
            self._keep(replace(job, state=JobState.SENT))
            return
        self._kept_bytes -= job.size
        self._answer(job, self._answers.no(job.request_id, "failed", "the agent's answer cannot be sent", now))

    def drain(self) -> None:
        """Take no more tasks and start none."""
        self._draining = True

    def tick(self, now: Instant) -> None:
        """Do what is due."""
        for key, clock in list(self._clocks.items()):
            if clock.speak_at <= now.monotonic:
                self._speak(self._jobs[key], clock, now)
        if self._resend_at is not None and self._resend_at <= now.monotonic:
            self._resend_at = None
            for job in self._jobs.values():
                if job.state is JobState.ANSWERED:
                    self._offer(job)

    def _speak(self, job: Job, clock: _Clock, now: Instant) -> None:
        if job.state is JobState.WAITING:
            if job.overdue_at <= now.utc:
                self._answer(
                    job, self._answers.no(job.request_id, "timeout", "its time was over before its turn came", now)
                )
                return
            clock.speak_at = self._next_word(job, now)
            self._say_received(job, now)
            return
        clock.tick += 1
        clock.speak_at = now.monotonic + self._policy.progress_every
        self._say_progress(job, "executing", clock, now)

    def _start_next(self, now: Instant) -> None:
        if self._draining:
            return
        for job in list(self._open()):
            if len(self._occupied) >= self._policy.concurrency:
                return
            if job.state is not JobState.WAITING or job.key in self._occupied:
                continue
            if job.overdue_at <= now.utc:
                self._answer(
                    job, self._answers.no(job.request_id, "timeout", "its time was over before its turn came", now)
                )
                continue
            job = replace(job, state=JobState.RUNNING)
            self._keep(job)
            self._occupied.add(job.key)
            self._starts.append(job)
            clock = self._clocks[job.key] = _Clock(now.monotonic, now.monotonic + self._policy.progress_every)
            self._say_progress(job, "started", clock, now)

    def _listen(self, job: Job, now: Instant) -> None:
        self._clocks[job.key] = _Clock(now.monotonic, self._next_word(job, now))

    def _next_word(self, job: Job, now: Instant) -> float:
        return now.monotonic + min(self._policy.waiting_every, max(0.0, job.overdue_at - now.utc))

    # --- answers -----------------------------------------------------------------------------------------------------

    def _answer(self, job: Job, response: TaskResponse) -> None:
        """Give a job its only answer."""
        self._clocks.pop(job.key, None)
        answered = job.answered(response)
        self._keep(answered)
        self._kept_bytes += answered.size
        self._offer(answered)

    def _offer(self, job: Job) -> None:
        assert job.response is not None
        message = answer_id(job.sender, job.message, "answer")
        self._letters.append(Letter(job.sender, job.response, message, job.key))

    def _refuse(self, sender: Did, message: MessageId, request_id: str, error: str, why: str, now: Instant) -> None:
        if self._refusals.take(sender, now.monotonic):
            letter = self._answers.no(request_id, error, why, now)
            self._letters.append(Letter(sender, letter, answer_id(sender, message, "refusal")))

    def _say_received(self, job: Job, now: Instant) -> None:
        word = TaskReceived(request_id=job.request_id, from_agent=self._name, accepted_at=timestamp(job.received_at))
        self._letters.append(Letter(job.sender, word))

    def _say_progress(self, job: Job, stage: str, clock: _Clock, now: Instant) -> None:
        word = TaskProgress(
            request_id=job.request_id,
            stage=stage,
            tick=clock.tick,
            elapsed_seconds=now.monotonic - clock.started,
            from_agent=self._name,
            timestamp=timestamp(now.utc),
        )
        self._letters.append(Letter(job.sender, word))

    # --- memory ------------------------------------------------------------------------------------------------------

    def _open(self) -> Iterable[Job]:
        return (self._jobs[key] for key in self._clocks)

    def _keep(self, job: Job) -> None:
        self._jobs[job.key] = self._changes.jobs[job.key] = job

    def _forget_old(self, now: Instant) -> None:
        """Forget the oldest answers beyond the bounds. One that the outbox does not have yet is never forgotten."""
        policy = self._policy
        surplus = len(self._jobs) - len(self._clocks) - policy.answers_kept
        for job in list(self._jobs.values()):
            old = job.received_at < now.utc - policy.answers_kept_seconds
            if surplus <= 0 and self._kept_bytes <= policy.answers_kept_bytes and not old:
                return
            if job.state is JobState.SENT:
                del self._jobs[job.key]
                self._changes.jobs[job.key] = None
                self._kept_bytes -= job.size
                surplus -= 1
