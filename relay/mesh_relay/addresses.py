"""What one remote address may still do, and token buckets, by which it is bounded."""

from mesh_relay.config import Limits
from meshlib.clock import Instant

LOOPBACK = "loopback"
"""The address of local clients that are exempt from limits per address, because a reverse proxy would share one."""


class Bucket:
    """A token bucket."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, now: Instant) -> None:
        self._rate, self._burst, self._tokens, self._updated = rate, burst, burst, now.monotonic

    def take(self, count: float, now: Instant) -> float:
        """Take tokens, into debt if need be; returns the seconds until the debt is paid."""
        self._tokens = min(self._burst, self._tokens + (now.monotonic - self._updated) * self._rate) - count
        self._updated = now.monotonic
        return max(0.0, -self._tokens / self._rate)

    def full(self, now: Instant) -> bool:
        return self._tokens + (now.monotonic - self._updated) * self._rate >= self._burst


class Address:
    """What one remote address may still do."""

    __slots__ = ("connects", "failures", "frames", "knocks")

    def __init__(self, limits: Limits, now: Instant) -> None:
        self.connects = Bucket(limits.address_rate, limits.address_burst, now)
        self.failures = Bucket(limits.bad_proof_rate, limits.bad_proof_burst, now)
        self.frames = Bucket(limits.address_frame_rate, limits.address_frame_burst, now)
        self.knocks = Bucket(limits.address_knock_rate, limits.address_knock_burst, now)

    def unused(self, now: Instant) -> bool:
        return all(bucket.full(now) for bucket in (self.connects, self.failures, self.frames, self.knocks))


class Addresses:
    """All that have been seen lately; the oldest makes room."""

    __slots__ = ("_limits", "_of")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[str, Address] = {}

    def of(self, address: str, now: Instant) -> Address | None:
        """What an address may do; ``None`` for one that may do anything."""
        if address == LOOPBACK:
            return None
        origin = self._of.get(address)
        if origin is None:
            # Whoever has many addresses has no use of them to make the relay's memory grow.
            if len(self._of) >= self._limits.addresses:
                del self._of[next(iter(self._of))]
            origin = self._of[address] = Address(self._limits, now)
        return origin

    def forget_unused(self, now: Instant) -> None:
        """Let go of those that have used up nothing."""
        self._of = {address: origin for address, origin in self._of.items() if not origin.unused(now)}
