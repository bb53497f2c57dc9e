"""Messages that nothing can read yet: they overtook their knock, or their knock waits for the policy's answer.

Owns the bounds. What is dropped here is not acknowledged, so a relay that keeps frames offers it again.
"""

from collections import deque
from typing import NamedTuple

from meshlib.config import Limits
from meshlib.identity import Did
from meshlib.wire.frames import Message


class _Held(NamedTuple):
    frame: Message
    until: float


class HeldMessages:
    """A few frames per peer, for a few peers, for a few seconds; more and longer while a knock is being considered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[Did, deque[_Held]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._of.values())

    def hold(self, sender: Did, frame: Message, now: float, *, considered: bool) -> bool:
        """Keep a frame; the oldest make room. Returns whether frames are kept at all.

        Args:
            now: monotonic seconds.
            considered: a knock of the sender waits for the policy's answer, which then decides about the frame.
        """
        size = self._limits.asked_frames_per_peer if considered else self._limits.held_frames_per_peer
        if size == 0:
            return False
        queue = self._of.setdefault(sender, deque())
        queue.append(_Held(frame, float("inf") if considered else now + self._limits.held_seconds))
        while len(queue) > size:
            queue.popleft()
        while len(self._of) > self._limits.held_peers:
            self._of.pop(next(iter(self._of)))
        return True

    def release(self, sender: Did) -> list[Message]:
        """Take out what is held of a peer, in order."""
        return [held.frame for held in self._of.pop(sender, ())]

    def expire(self, now: float) -> dict[Did, int]:
        """Drop what has waited too long. Returns how many per peer."""
        lost: dict[Did, int] = {}
        for sender, queue in list(self._of.items()):
            while queue and queue[0].until <= now:
                queue.popleft()
                lost[sender] = lost.get(sender, 0) + 1
            if not queue:
                del self._of[sender]
        return lost

    def next_deadline(self) -> float:
        """Monotonic time at which something expires; infinity if nothing does."""
        return min((queue[0].until for queue in self._of.values()), default=float("inf"))
