"""Deliberate bugs."""

from dataclasses import dataclass

from tests.simulation.world import Parts


@dataclass(frozen=True)
class Bug:
    """A mistake, built into the cores by subclassing."""

    about: str
    parts: Parts
    within: int


BUGS: dict[str, Bug] = {}
