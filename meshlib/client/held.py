"""Messages that cannot be taken yet: they overtook their knock or one another, or a policy thinks about their knock.

Owns the bounds. Whatever is dropped is handed back, so that its sender can be told.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from meshlib.config import Limits
from meshlib.identity import Did
from meshlib.wire.frames import Message

_CHARACTER = 4
"""Bytes of a character at most."""


class Held(NamedTuple):
    """A frame, how long it is worth keeping (monotonic seconds), and whether its failure was reported already."""

    frame: Message
    until: float
    reported: bool
    connection: int
    """On which connection it came: only there may it be called unread."""


class HeldMessages:
    """A few frames per peer, for a few peers, for a few seconds; more and longer while a knock is being considered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[Did, deque[Held]] = {}
        self._sizes: dict[Did, int] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._of.values())

    @property
    def size(self) -> int:
        """Bytes of what peers chose in the frames held."""
        return sum(self._sizes.values())

    def hold(
        self,
        sender: Did,
        frame: Message,
        now: float,
        *,
        connection: int,
        considered: bool = False,
        early_until: float | None = None,
        reported: bool = False,
    ) -> list[Held]:
        """Keep a frame; the oldest make room. Returns what was dropped, which may be the frame itself.

        Args:
            now: monotonic seconds.
            connection: the number of the connection it came on.
            considered: a knock of the sender waits for the policy's answer, which then decides about the frame.
            early_until: it waits for the message that its sender wrote before it, until then (monotonic seconds).
        """
        limits = self._limits
        size = limits.asked_frames_per_peer if considered or early_until is not None else limits.held_frames_per_peer
        until = now + limits.held_seconds if early_until is None else early_until
        queue = self._of.setdefault(sender, deque())
        queue.append(Held(frame, float("inf") if considered else until, reported, connection))
        self._sizes[sender] = self._sizes.get(sender, 0) + _size_of(frame)
        dropped = [self._oldest(sender) for _ in range(len(queue) - size)]
        while len(self._of) > self._limits.held_peers:
            dropped.extend(self.release(next(iter(self._of))))
        while self.size > self._limits.held_bytes:
            dropped.append(self._oldest(max(self._sizes, key=self._sizes.__getitem__)))
        return dropped

    def prolong(self, sender: Did, seconds: float) -> None:
        """Hold what is held of a peer for longer."""
        if sender in self._of:
            self._of[sender] = deque(held._replace(until=held.until + seconds) for held in self._of[sender])

    def senders_of(self, message: str) -> list[Did]:
        """Peers of whom a message with this id is held."""
        return [sender for sender, queue in self._of.items() if any(held.frame.id == message for held in queue)]

    def take(self, sender: Did, wanted: Callable[[Message], bool]) -> Held | None:
        """Take out the first message of a peer that is ``wanted``, if one is."""
        for index, held in enumerate(self._of.get(sender, ())):
            if wanted(held.frame):
                del self._of[sender][index]
                self._sizes[sender] -= _size_of(held.frame)
                if not self._of[sender]:
                    del self._of[sender], self._sizes[sender]
                return held
        return None

    def clear(self) -> None:
        """Let go of everything."""
        self._of.clear()
        self._sizes.clear()

    def release(self, sender: Did) -> list[Held]:
        """Take out what is held of a peer, in order."""
        self._sizes.pop(sender, None)
        return list(self._of.pop(sender, ()))

    def _oldest(self, sender: Did) -> Held:
        """Take out what is held longest of a peer."""
        queue = self._of[sender]
        held = queue.popleft()
        self._sizes[sender] -= _size_of(held.frame)
        if not queue:
            del self._of[sender], self._sizes[sender]
        return held

    def expire(self, now: float) -> dict[Did, list[Held]]:
        """Take out what has waited too long, per peer."""
        lost: dict[Did, list[Held]] = {}
        for sender, queue in list(self._of.items()):
            while queue and queue[0].until <= now:
                lost.setdefault(sender, []).append(self._oldest(sender))
        return lost

    def next_deadline(self) -> float:
        """Monotonic time at which something expires; infinity if nothing does."""
        return min((queue[0].until for queue in self._of.values()), default=float("inf"))


def _size_of(frame: Message) -> int:
    return len(frame.ciphertext) + _CHARACTER * (len(frame.id) + len(frame.ts) + len(frame.after or ""))


def in_line(held: Iterable[Held]) -> list[Held]:
    """Messages of one peer, each behind the one it names, if that is among them. Circles are cut somewhere."""
    waiting = {one.frame.id: one for one in held}
    line: list[Held] = []
    for last in list(waiting):
        chain = []
        one = waiting.pop(last, None)
        while one is not None:
            chain.append(one)
            one = waiting.pop(one.frame.after, None) if one.frame.after is not None else None
        line.extend(reversed(chain))
    return line
