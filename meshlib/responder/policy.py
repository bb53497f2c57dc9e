"""Who may give an agent tasks, how many, and how long they may take."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from meshlib.errors import InvalidValue


class AfterCrash(StrEnum):
    """What becomes of a task that was running when the process died. Either way it is answered once."""

    FAIL = "fail"
    """It is answered as lost. A task may have had effects, and running it again would repeat them."""
    RERUN = "rerun"
    """It is run again."""


@dataclass(frozen=True)
class Policy:
    """What a responder takes on. The default takes tasks from nobody."""

    tasks_from: Collection[str] = ()
    """Names or DIDs of the peers that may give tasks."""
    everyone: bool = False
    """Let everybody give tasks who is let in at all."""
    concurrency: int = 2
    """Tasks worked on at the same time. Agents take hundreds of MiB each."""
    queue: int = 100
    """Tasks that may wait. At a minute each it is an hour and a half until the last one's turn."""
    per_peer: int = 20
    """Tasks of one peer, waiting and running, so that none fills the queue for all."""
    timeout: float = 1500.0
    """Seconds a task may take, unless its requester waits less long."""
    max_hops: int = 8
    """How often work may have been passed on. A chain of agents longer than that has most likely become a circle."""
    burst: int = 30
    """Tasks one peer may give at once ..."""
    every: float = 20.0
    """... and seconds until it may give one more: what two agents that answer each other for ever get at the most."""
    burst_in_all: int = 100
    every_in_all: float = 5.0
    """The same over all peers."""
    answers_kept: int = 1_000
    """Answers remembered, so that a repeated request gets the same one."""
    answers_kept_bytes: int = 32 * 1024 * 1024
    answers_kept_seconds: float = 7 * 86_400.0
    progress_every: float = 20.0
    """Seconds between two words about a running task. Controllers in the field give up after 180 without one."""
    waiting_every: float = 60.0
    """Seconds between two words about a task that waits for its turn."""
    grace: float = 10.0
    """Seconds running tasks have left when the responder is told to end."""
    after_crash: AfterCrash = AfterCrash.FAIL

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if isinstance(self.tasks_from, str) or not all(isinstance(peer, str) for peer in self.tasks_from):
            raise InvalidValue("tasks_from must be several names or DIDs, as in tasks_from=('parent',)")
        if self.everyone and self.tasks_from:
            raise InvalidValue("either everyone may give tasks or the named peers: leave one of them out")
        for option in ("concurrency", "queue", "per_peer", "burst", "burst_in_all", "answers_kept"):
            if getattr(self, option) < 1:
                raise InvalidValue(f"{option} must be at least 1, not {getattr(self, option)}")
        for option in ("timeout", "every", "every_in_all", "progress_every", "waiting_every"):
            if not getattr(self, option) > 0:
                raise InvalidValue(f"{option} must be a positive number of seconds, not {getattr(self, option)}")
