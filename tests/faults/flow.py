"""One stream of messages through real processes, for tests that break one thing in the middle of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.chaos import Progress, judge, leave, look_again
from tests.faults.fleet import Fleet, Kept, fleet

QUICK = ("--heartbeat", "0.5", "--silence", "0.5")
"""Applications that notice a dead relay after a second instead of 45."""
QUICK_RELAY = {"MESH_RELAY_IDLE_SECONDS": "2", "MESH_RELAY_PING_SECONDS": "0.7"}
"""A relay that notices a dead application after two seconds instead of 90. The proportions are the defaults'."""
SECONDS = 60.0


@dataclass
class Flow:
    """Alice sends numbers, bob takes them."""

    made: Fleet
    alice: Kept
    bob: Kept
    messages: int

    def __post_init__(self) -> None:
        self._journals = {kept.name: Progress(kept) for kept in (self.alice, self.bob)}

    def program(self, name: str) -> Kept:
        """One of the four."""
        return next(kept for kept in self.made.all if kept.name == name)

    @property
    def taken(self) -> int:
        self._journals["bob"].read()
        return len({message for _, message, _ in self._journals["bob"].took})

    @property
    def settled(self) -> int:
        self._journals["alice"].read()
        return len({number for number, _ in self._journals["alice"].settled})

    def until(self, happened: Callable[[], object], what: str) -> None:
        self.made.wait(happened, what, SECONDS)

    def more(self, count: int = 50) -> None:
        """Let some more messages through. Fails if the stream ends before: then nothing is broken in its middle."""
        goal = self.taken + count
        assert goal < self.messages, "too few messages for this test"
        self.until(lambda: self.taken >= goal, f"{count} more messages arrive")
        assert self.taken < self.messages, "the stream was over too soon for this test"

    def finish(self) -> None:
        """Let everything arrive, and look whether it arrived once and in order."""
        faults: list[str] = []
        try:
            self.until(
                lambda: min(self.settled, self.taken) >= self.messages,
                "every message is delivered and its sender knows",
            )
            look_again(self.made)
            leave(self.made, faults)
        except AssertionError as failure:
            faults.append(str(failure))
        judge(self.made, self._journals, {"bob": self.messages}, {"alice": self.messages}, faults)
        assert not faults, "\n".join([*faults, self.made.describe()])


@contextmanager
def flow(
    folder: Path,
    messages: int,
    *options: object,
    relay_env: Mapping[str, str] | None = None,
    stores: Mapping[str, Path] | None = None,
    between: Callable[[Fleet], str] | None = None,
) -> Iterator[Flow]:
    """Servers and applications, running.

    Args:
        options: of both applications.
        stores: where a program keeps its data, if not in ``folder``.
        between: makes the address applications reach the relay at.
    """
    kept_at = stores or {}
    with fleet(
        folder,
        random.Random(),
        relay_env=relay_env,
        relay_store=kept_at.get("relay"),
        registry_store=kept_at.get("registry"),
    ) as made:
        relay = between(made) if between is not None else ""

        def store(name: str) -> tuple[object, ...]:
            return ("--store", kept_at[name]) if name in kept_at else ()

        alice = made.application("alice", "--to", "bob", "--messages", messages, *store("alice"), *options, relay=relay)
        bob = made.application("bob", *store("bob"), *options, relay=relay)
        made.start_servers()
        alice.start()
        bob.start()
        yield Flow(made, alice, bob, messages)
