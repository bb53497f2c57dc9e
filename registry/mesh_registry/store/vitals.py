"""How a store is doing: numbers its writer leaves for whoever shows them. Read from another thread, changed by one."""

from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.prometheus import Histogram


class Supply(NamedTuple):
    """One-time keys of all agents that have published a bundle."""

    left: int
    agents_without: int
    """Agents whose keys are used up: new peers get a bundle without one."""

    def changed(self, before: int | None, after: int | None) -> "Supply":
        """One agent had ``before`` keys and now has ``after``; None is an agent without a bundle."""
        return Supply(self.left + (after or 0) - (before or 0), self.agents_without + (after == 0) - (before == 0))


@dataclass(slots=True)
class Vitals:
    """What has happened since the store was opened, up to the last commit."""

    commits: Histogram = field(default_factory=Histogram)
    """Seconds of each transaction that changed something."""
    commit_failures: int = 0
    healthy: bool = True
    """The last transaction that had something to change succeeded."""
    agents: int = 0
    supply: Supply = field(default_factory=lambda: Supply(0, 0))
    """Difference to what there was when the store was opened."""
