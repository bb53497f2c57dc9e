"""How much is measured: everything for minutes, or a little to see that it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bench.measures import Case, Contender, Measure


class Turns(Protocol):
    """Measures a case in turns, shows and keeps the result."""

    def __call__(self, case: Case, contenders: Mapping[str, Contender], most_rounds: int = 99) -> Measure:
        """``most_rounds`` bounds the rounds of a case that takes long."""


@dataclass(frozen=True)
class Plan:
    """Sizes of one whole run. Counts of messages and connections are upper bounds of what is sent."""

    rounds: int = 3
    seconds: float = 2.0
    """Of steady state per run."""
    payloads: tuple[int, ...] = (256, 4096, 65536)
    many_pairs: int = 256
    fan: int = 32
    """Senders of a fan-in, recipients of a fan-out."""
    rates: tuple[int, ...] = (1000, 4000, 6000, 8000, 16_000, 32_000, 64_000)
    """Messages per second at which latency is taken."""
    idle: tuple[int, ...] = (1000, 10_000)
    connects: int = 4000
    recipients: int = 1000
    """Absent recipients whose mail is drained."""
    mail_each: int = 100
    depths: tuple[int, ...] = (1000, 10_000, 100_000)
    """Messages waiting for one recipient."""
    storm: tuple[int, int] = (10_000, 10)
    """Agents that come back at once, and messages waiting for each."""
    registrations: int = 5000
    fetches: int = 10_000
    agents: tuple[int, ...] = (1000, 10_000, 100_000)
    """Registered agents at which discovery is measured."""
    messages: int = 10_000
    """Between two clients."""
    peers: int = 10_000
    """Of one client."""


FULL = Plan()
QUICK = Plan(
    rounds=1,
    seconds=0.1,
    many_pairs=16,
    fan=4,
    rates=(500,),
    idle=(50,),
    connects=100,
    recipients=20,
    mail_each=10,
    depths=(500,),
    storm=(50, 5),
    registrations=100,
    fetches=200,
    agents=(50, 200),
    messages=100,
    peers=30,
)
