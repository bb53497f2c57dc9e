"""Token buckets: a burst at once, then a steady rate, per key."""

from collections import OrderedDict
from dataclasses import dataclass

MAX_BUCKETS = 50_000
"""Keys remembered. The one not asked about for longest is forgotten, and has a full bucket again."""


@dataclass(frozen=True)
class Rate:
    """``burst`` tokens at most, ``per_second`` new ones."""

    burst: float
    per_second: float


class Buckets:
    """One bucket per key, filled by time that is passed in."""

    def __init__(self, rate: Rate, limit: int = MAX_BUCKETS) -> None:
        self._rate = rate
        self._limit = limit
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> bool:
        """Take a token of ``key`` at monotonic time ``now``. Whether there was one."""
        level, since = self._levels.pop(key, (self._rate.burst, now))
        level = min(self._rate.burst, level + max(0.0, now - since) * self._rate.per_second)
        granted = level >= 1
        self._levels[key] = (level - 1 if granted else level, now)
        if len(self._levels) > self._limit:
            self._levels.popitem(last=False)
        return granted
