"""Frames over an anyio byte stream, for both ends of a daemon's socket."""

from collections import deque
from contextlib import suppress

import anyio
from anyio.abc import ByteStream

from meshlib.daemon.protocol import Frame, Lines, decode, encode
from meshlib.errors import MalformedFrame, TransportError

WAITING_LINES = 8
"""Lines that may wait for a reader that is slow; notes beyond them are dropped, everything else waits."""
READER_SECONDS = 30.0
"""Until a reader that takes nothing counts as stuck: on one machine a line takes milliseconds."""
CHUNK = 65_536


class FrameStream:
    """One connection. Lines leave through a task of their own, so that whoever is cancelled tears none."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._lines = Lines()
        self._arrived: deque[bytes] = deque()
        self._feed, self._fed = anyio.create_memory_object_stream[bytes](WAITING_LINES)

    async def send(self, frame: Frame) -> None:
        """Send a frame once there is room for it.

        Raises:
            InvalidValue: it has no form on the wire.
            TransportError: the connection has ended.
        """
        try:
            await self._feed.send(encode(frame))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise TransportError("the other end of the daemon's socket has gone") from error

    def send_soon(self, frame: Frame) -> None:
        """Send a frame if there is room; nobody depends on it."""
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._feed.send_nowait(encode(frame))

    async def write(self) -> None:
        """Write what is sent until the connection ends, or :meth:`finish` and everything is written."""
        with self._fed:
            async for line in self._fed:
                try:
                    with anyio.fail_after(READER_SECONDS):
                        await self.stream.send(line)
                except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    break
        await self.stream.aclose()

    def finish(self) -> None:
        """Nothing more will be sent; what is on its way still is."""
        self._feed.close()

    async def abort(self) -> None:
        """Hang up at once."""
        self._feed.close()
        self._fed.close()
        await anyio.aclose_forcefully(self.stream)

    async def receive(self) -> Frame | MalformedFrame | None:
        """The next frame; a call that cannot be read comes as its fault. ``None``: the other end has hung up.

        Raises:
            MalformedFrame: what arrives is not this protocol.
        """
        while not self._arrived:
            try:
                self._arrived.extend(self._lines.feed(await self.stream.receive(CHUNK)))
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return None
        try:
            return decode(self._arrived.popleft())
        except MalformedFrame as fault:
            if fault.id is None:
                raise
            return fault
