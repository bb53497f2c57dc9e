"""A task as the responder keeps it, from the message that brought it to the answer that left."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from meshlib.crypto.primitives import sha256
from meshlib.identity import Did
from meshlib.wire.encoding import MessageId, message_id
from meshlib.wire.envelopes import TaskResponse

JobKey = tuple[Did, str]
"""Who gave the task, and its id there: a peer chooses its ids freely, and never another's."""


class JobState(StrEnum):
    """How far a job has come."""

    WAITING = "waiting"
    """It waits for its turn. It has had no effect yet."""
    RUNNING = "running"
    """A runtime works on it. It may have had effects."""
    ANSWERED = "answered"
    """There is an answer, and the outbox may not have it yet."""
    SENT = "sent"
    """The answer is in the outbox, which does the rest. Kept for those who ask again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A task somebody gave us."""

    sender: Did
    request_id: str
    content: str = field(repr=False)
    message: MessageId
    """The message that brought it, or brought it again: names the answer's message."""
    sender_name: str = ""
    hops: int = 0
    timeout: float = 1500.0
    """Seconds from ``received_at`` after which nobody waits for it."""
    received_at: float = 0.0
    """UTC seconds."""
    state: JobState = JobState.WAITING
    response: TaskResponse | None = field(default=None, repr=False)

    @property
    def key(self) -> JobKey:
        """Which task it is."""
        return self.sender, self.request_id

    @property
    def overdue_at(self) -> float:
        """UTC seconds after which nobody waits for it."""
        return self.received_at + self.timeout

    def answered(self, response: TaskResponse) -> "Job":
        """The job with its answer. The content is not needed any more."""
        return replace(self, state=JobState.ANSWERED, response=response, content="")

    @property
    def size(self) -> int:
        """Characters it holds."""
        return len(self.content) + (len(self.response.content) if self.response is not None else 0)


def answer_id(sender: Did, message: MessageId, kind: str) -> MessageId:
    """The id of a message of ours that answers one of a peer: the same whenever it is sent again after a crash.

    Nothing secret goes into it; the recipient drops the second copy by it.
    """
    return message_id(lambda size: sha256("\n".join(("mesh answer", kind, sender, message)).encode())[:size])
