"""Time as a value: cores are told what time it is, shells ask the clock."""

from msgspec import Struct


class Instant(Struct, frozen=True):
    """One moment on both clocks, taken once per wake-up.

    ``monotonic`` (seconds, arbitrary origin) serves deadlines; ``utc`` (seconds since the Unix epoch) is what gets
    signed and shown, and may jump.
    """

    monotonic: float
    utc: float
