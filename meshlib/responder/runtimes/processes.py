"""One command at a time: started clean, fed, read within bounds, and ended with everything it started."""

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from meshlib.responder.runtimes.removal import remove

STDOUT_LIMIT = 4 * 1024 * 1024
"""Bytes a command may print. Sixteen times the longest answer: transcripts in JSON are longer than what they say."""
STDERR_LIMIT = 64 * 1024
"""Bytes of its complaints that are kept, the last ones."""
END_SECONDS = 12.0
"""How long the supervisor may take to end a tree: asking takes four, and who is killed dies at once. Beyond that
the task ends without it, and it goes on killing."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended, and everything it had started with it."""

    status: int
    """Exit status; 128 + N when signal N ended it, 125 when it could not be started."""
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    """The end of it."""
    overflowed: bool = False
    """It printed more than the limit, and was ended for that."""


async def run(argv: Sequence[str], *, folder: Path, environment: Mapping[str, str], stdin: bytes) -> Finished:
    """Run a command under the supervisor. Cancelled, it returns once nothing of it is left.

    Args:
        argv: program and arguments.
        folder: where it runs.
        environment: all of its environment.
        stdin: what it reads.
    """
    theirs, ours = os.pipe()
    try:
        try:
            process = await anyio.open_process(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(theirs), *argv],
                cwd=folder,
                env=environment,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        try:
            return await _converse(process, stdin)
        finally:
            os.close(ours)
            ours = -1
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(END_SECONDS):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                await process.aclose()
    finally:
        if ours >= 0:
            os.close(ours)


async def _converse(process: Process, stdin: bytes) -> Finished:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    printed, complaints = _Head(STDOUT_LIMIT), _Tail(STDERR_LIMIT)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_feed, process, stdin)
        tasks.start_soon(complaints.read, process.stderr)
        await printed.read(process.stdout)
        if printed.overflowed:
            tasks.cancel_scope.cancel()
        else:
            await process.wait()
    return Finished(process.returncode or 0, bytes(printed.data), bytes(complaints.data), printed.overflowed)


async def _feed(process: Process, stdin: bytes) -> None:
    assert process.stdin is not None
    try:
        await process.stdin.send(stdin)
        await process.stdin.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # it has read enough


class _Head:
    """The beginning of a stream."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.overflowed = False
        self._limit = limit

    async def read(self, stream: ByteReceiveStream) -> None:
        async for chunk in stream:
            if len(self.data) + len(chunk) > self._limit:
                self.overflowed = True
                return
            self.data += chunk


class _Tail:
    """The end of a stream."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    async def read(self, stream: ByteReceiveStream) -> None:
        async for chunk in stream:
            self.data += chunk
            del self.data[: -self._limit]


# --- where it runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Workplace:
    """Folders of one task, private and empty at first. They go with it."""

    root: Path
    work: Path
    """Where the command runs."""
    home: Path
    outbox: Path
    """Files it leaves here belong to its answer."""


@asynccontextmanager
async def workplace() -> AsyncIterator[Workplace]:
    """Make the folders; remove them with everything that is in them."""
    root = Path(await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="mesh-task-")))
    try:
        place = Workplace(root, root / "work", root / "home", root / "work" / "outbox")
        for folder in (place.work, place.home, place.outbox, root / "tmp"):
            folder.mkdir(mode=0o700)
        yield place
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(remove, root)


def scrubbed(environment: Mapping[str, str], place: Workplace, let_through: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a command: what every program needs, what the operator names, and nothing else of ours."""
    kept = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", *let_through)
    return {
        **{name: environment[name] for name in kept if name in environment},
        "HOME": str(place.home),
        "TMPDIR": str(place.root / "tmp"),
        "PYTHONUNBUFFERED": "1",
    }
