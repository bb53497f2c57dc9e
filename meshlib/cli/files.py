"""``mesh send-file``, and what ``mesh listen`` says about files."""

import shutil
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import anyio

from meshlib.cli.connect import open_mesh
from meshlib.cli.exits import Exit
from meshlib.cli.options import settings_from
from meshlib.cli.output import Console, Style, visible
from meshlib.client.verbs import AnyFileReceipt, Mesh
from meshlib.errors import MalformedFrame
from meshlib.files.receipts import TransferState
from meshlib.wire.transfers import FileTransfer, read_transfer

_EVERY = 5.0
"""Seconds between two lines of progress where no bar can be drawn."""
_REDRAW = 0.1
"""Seconds between two states of the bar: faster ones only cost."""


def send_file(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Send one file."""
    settings = settings_from(arguments, environment)

    async def main() -> int:
        async with open_mesh(settings) as mesh:
            return await deliver(mesh, arguments, console)

    return anyio.run(main)


async def deliver(mesh: Mesh, arguments: Namespace, console: Console) -> int:
    """Send a file, and show how far it has come until the peer has it."""
    progress = _Progress(console, arguments.timeout)
    receipt = await mesh.send_file(
        arguments.peer, Path(arguments.path), description=arguments.description, on_progress=progress.show
    )
    if not arguments.wait:
        _say(receipt, console)
        return Exit.OK
    try:
        with anyio.CancelScope() as patience:
            progress.patience = patience
            patience.deadline = anyio.current_time() + arguments.timeout
            await receipt.wait()
    finally:
        progress.end()
    if patience.cancelled_caught:
        console.fail(
            f"no progress within {arguments.timeout:g} s ({receipt.state}): the file is noted, and goes on when this "
            "agent is online again",
            Exit.TIMEOUT,
            "Timeout",
        )
        return Exit.TIMEOUT
    _say(receipt, console)
    return Exit.OK


def _say(receipt: AnyFileReceipt, console: Console) -> None:
    if console.json:
        console.emit(
            id=receipt.id,
            peer=str(receipt.peer),
            state=str(receipt.state),
            name=receipt.name,
            size=receipt.size,
            saved_to=receipt.saved_to,
        )
        return
    style = Style.GOOD if receipt.state is TransferState.DONE else Style.WARN
    place = f"   as {visible(receipt.saved_to)}" if receipt.saved_to else ""
    what = f"{visible(receipt.name)} ({in_bytes(receipt.size)}) to {receipt.peer}"
    console.say(f"{console.paint(receipt.state, style)}   {what}{place}")


class _Progress:
    """How far a file has come: a bar where somebody watches, a line now and then elsewhere."""

    def __init__(self, console: Console, timeout: float) -> None:
        self._console = console
        self._timeout = timeout
        self._started: tuple[float, int] | None = None
        self._shown_at = 0.0
        self._state: TransferState | None = None
        self.patience: anyio.CancelScope | None = None
        """Ends the wait; each step puts that off."""

    def show(self, receipt: AnyFileReceipt) -> None:
        """It has come further."""
        if self.patience is not None:
            self.patience.deadline = anyio.current_time() + self._timeout
        now = time.monotonic()
        if self._started is None and receipt.moved:
            self._started = now, receipt.moved
        if receipt.state is self._state and now - self._shown_at < (_REDRAW if self._console.live else _EVERY):
            return
        self._shown_at, self._state = now, receipt.state
        if self._console.live:
            self._console.show(self._bar(receipt, now))
        else:
            self._console.note(
                f"{receipt.state}: {in_bytes(receipt.moved)} of {in_bytes(receipt.size)}",
                event="progress",
                state=str(receipt.state),
                moved=receipt.moved,
                size=receipt.size,
            )

    def end(self) -> None:
        """Remove the bar."""
        self._console.show("")

    def _bar(self, receipt: AnyFileReceipt, now: float) -> str:
        share = receipt.moved / receipt.size if receipt.size else 1.0
        tail = f" {share:4.0%}  {receipt.state}"
        if self._started is not None and receipt.state is TransferState.MOVING:
            since, moved = self._started
            rate = (receipt.moved - moved) / max(now - since, 0.001)
            if rate > 0:
                tail += f"  {in_bytes(int(rate))}/s  {_clock((receipt.size - receipt.moved) / rate)} left"
        columns = shutil.get_terminal_size().columns - 1
        name = visible(receipt.name)[:30]
        width = max(0, min(40, columns - len(name) - len(tail) - 3))
        full = round(width * share)
        return f"{name} [{'#' * full}{'.' * (width - full)}]{tail}"[:columns]


def received_file(payload: object) -> str | None:
    """What a notice of a received file says, or ``None`` for any other message."""
    try:
        notice = read_transfer(payload)
    except MalformedFrame:
        return None
    if not isinstance(notice, FileTransfer) or not notice.saved_to:
        return None
    description = f"\n{notice.description}" if notice.description else ""
    return f"file {notice.file_name!r} ({in_bytes(notice.size_bytes)}), saved to {notice.saved_to}{description}"


def in_bytes(size: int) -> str:
    """A number of bytes in the unit that fits."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
