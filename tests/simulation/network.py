"""Sockets and time: a heap of things to do, and connections that delay, lose and bend what they carry.

Time is virtual and moves only from one due entry to the next. Every connection draws its delays from a generator of
its own, so leaving out one fault does not change what all the others meet.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshlib.clock import Instant

EPOCH = 1_767_225_600.0
"""2026-01-01T00:00:00Z, when every run starts."""


class Killed(Exception):
    """A process has reached the point at which it was to die."""


class Process:
    """Something that can be killed between any two steps. What it scheduled dies with it."""

    def __init__(self, net: "Network", name: str) -> None:
        self.net = net
        self.name = name
        self.alive = True
        self.doom: int | None = None
        """Points that may still be passed; ``None`` for no end in sight."""

    def point(self, label: str) -> None:
        """A place between two steps. Here a doomed process dies."""
        self.net.points[label] += 1
        if self.doom is not None:
            if self.doom <= 0:
                self.net.faults[f"killed {label}"] += 1
                raise Killed
            self.doom -= 1

    def after(self, delay: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something later, unless this process is dead by then."""
        self.net.after(delay, self, do, *arguments)

    def die(self) -> None:
        """All that is in memory is gone."""
        self.alive = False


@dataclass
class Network:
    """Virtual time and what is due."""

    seed: str
    now: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    bends: dict[tuple[str, str], deque[tuple[str, int]]] = field(default_factory=dict)
    """What happens to the next frames of an agent, by agent and direction."""
    wire: list[tuple[str, str, bytes]] = field(default_factory=list)
    """What has arrived, and an attacker on the path can say again: agent, direction, frame."""
    on_frame: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._due: list[tuple[float, int, Process | None, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._sockets = 0

    def random(self, name: str) -> random.Random:
        """A generator that depends on the seed and the name alone."""
        return random.Random(f"{self.seed}/{name}")

    def instant(self, skew: float = 0.0) -> Instant:
        """The time, on a machine whose clock is off by ``skew`` seconds."""
        return Instant(1_000.0 + self.now, EPOCH + self.now + skew)

    def after(self, delay: float, process: Process | None, do: Callable[..., None], *arguments: Any) -> None:
        """Put something on the heap."""
        self.at(self.now + max(0.0, delay), process, do, *arguments)

    def at(self, moment: float, process: Process | None, do: Callable[..., None], *arguments: Any) -> None:
        """The same for a moment. What is put there first happens first, which no sum of differences could promise."""
        self._order += 1
        heapq.heappush(self._due, (moment, self._order, process, do, arguments))

    def run(self, until: float) -> None:
        """Do everything that is due before ``until``."""
        while self._due and self._due[0][0] < until:
            self.now, _, process, do, arguments = heapq.heappop(self._due)
            if process is None:
                do(*arguments)
            elif process.alive:
                self.run_in(process, do, *arguments)
        self.now = until

    @staticmethod
    def run_in(process: Process, do: Callable[..., None], *arguments: Any) -> None:
        """Do something as a process, which may die of it."""
        try:
            do(*arguments)
        except Killed:
            process.die()

    def socket(self, agent: str) -> "Socket":
        """A new connection of an agent."""
        self._sockets += 1
        return Socket(self, agent, self.random(f"socket {agent} {self._sockets}"))


class Socket:
    """One connection. Each direction keeps its order; what is on its way when it is cut is gone.

    When one end's process dies, its kernel may still deliver what was written before.
    """

    def __init__(self, net: Network, agent: str, chance: random.Random) -> None:
        self.net = net
        self.agent = agent
        self.whole = True
        self._draining = ""
        self.client: Any = None
        self.relay: Any = None
        self.link: Any = None
        self._chance = chance
        self._last = {"up": 0.0, "down": 0.0}
        self._pace = chance.choice((0.002, 0.02, 0.2))

    def carry(self, direction: str, raw: bytes) -> None:
        """Send a frame ``up`` to the relay or ``down`` to the client."""
        if not self.whole:
            return
        bends = self.net.bends.get((self.agent, direction))
        delay = self._chance.expovariate(1 / self._pace)
        copies = [raw]
        if bends and (bends[0][0] != "corrupted" or b'"to":' in raw):
            kind, argument = bends.popleft()
            self.net.faults[kind] += 1
            if kind == "dropped":
                self.cut()
                return
            if kind == "delayed":
                delay += argument % 200 / 10
            elif kind == "duplicated":
                copies = [raw, raw]
            elif kind == "corrupted":
                copies = [corrupt(raw, argument)]
            elif kind == "truncated":
                copies = [raw[: argument % len(raw)]]
        for copy in copies:
            self._last[direction] = max(self._last[direction], self.net.now + delay)
            end = self.relay if direction == "up" else self.client
            self.net.at(self._last[direction], end, self._arrive, direction, copy)

    def _arrive(self, direction: str, raw: bytes) -> None:
        if not self.whole and direction != self._draining:
            return
        self.net.wire.append((self.agent, direction, raw))
        if direction == "up":
            self.relay.hear(self, raw)
        else:
            self.client.hear(self, raw)

    def cut(self, code: int = 1006, reason: str = "", *, written: str = "") -> None:
        """End the connection; each side notices in its own time, or never if it is dead.

        Args:
            written: a direction in which what was written before may still arrive.
        """
        if not self.whole:
            return
        self.whole = False
        if written and self._chance.random() < 0.5:
            self._draining = written
        late = self._chance.choice((0.01, 0.5, 8.0))
        if self.client is not None:
            rest = self._last["down"] - self.net.now if self._draining else 0.0
            delay = max(rest, self._chance.uniform(0, late))
            self.net.after(delay, self.client, self.client.disconnected, self, code, reason)
        if self.relay is not None:
            rest = self._last["up"] - self.net.now if self._draining else 0.0
            self.net.after(max(rest, self._chance.uniform(0, 3 * late)), self.relay, self.relay.disconnected, self)


def corrupt(raw: bytes, argument: int) -> bytes:
    """Flip one bit of a frame between agents, anywhere but in its id.

    The id is the one member nothing protects: whoever changes it makes two messages of one, and no recipient that reads
    what the SDK writes can tell. Frames between an agent and the relay are the relay's own word: one that lies there
    drops what it likes.
    """
    bent = bytearray(raw)
    start = raw.find(b'"id":"')
    end = raw.find(b'"', start + 6)
    places = [place for place in range(len(raw)) if start < 0 or not start <= place <= end]
    bent[places[argument % len(places)]] ^= 1 << (argument // 7 % 7)
    return bytes(bent)
