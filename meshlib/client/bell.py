"""Waking whoever waits right now."""

import anyio


class Bell:
    """Wakes everybody who waits at the moment it rings; who comes later waits for the next time.

    Ringing costs next to nothing while nobody waits, which is what happens most: a client rings several for every
    message.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait until it rings. Look at the state waited for before, and again after."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def ring(self) -> None:
        """Wake those who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None
