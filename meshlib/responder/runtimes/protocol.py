"""What a responder asks of a runtime, as values.

A runtime gets a :class:`Task` and returns a :class:`Done` or a :class:`Failed`; it never answers a peer itself. What
it prints, raises or logs stays on this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from meshlib.identity import Did
from meshlib.wire.envelopes import Telemetry


@dataclass(frozen=True, slots=True)
class Task:
    """Something a peer wants done."""

    id: str
    """The requester's id for it."""
    content: str = field(repr=False)
    """What is wanted, in the peer's words. Untrusted."""
    sender: Did
    sender_name: str = ""
    """What the peer calls itself. Untrusted, without control characters."""
    hops: int = 0
    """How many agents have passed work on before; what the runtime asks of others goes out with one more."""
    timeout: float = 1500.0
    """Seconds it may take."""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer. An empty one is none."""

    content: str = field(repr=False)
    """With the model's thinking, if it stands in ``<think>`` or ``<thinking>``: it is taken out before it travels."""
    telemetry: Telemetry = Telemetry()  # noqa: RUF009 - frozen
    artifacts: Sequence[Path] = ()
    """Files that belong to the answer; sent after it."""
    reasoning: str = field(default="", repr=False)
    """What the model thought, for the local log only."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer."""

    reason: str
    """One sentence for the peer. Names no path, key, host or output of the runtime."""
    detail: str = field(default="", repr=False)
    """What the operator's log shows besides."""
    error: str = "failed"
    """The word for programs: ``failed`` or ``timeout``."""


Outcome = Done | Failed


class Runtime(Protocol):
    """Does the work."""

    @property
    def name(self) -> str:
        """What the operator calls it."""

    async def run(self, task: Task) -> Outcome:
        """Work on a task. Cancelled, it leaves nothing running."""
