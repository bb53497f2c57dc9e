"""``mesh top``: relay and registry live on a terminal, from their ``/metrics`` and ``/health``."""

import os
import signal
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, nullcontext

import anyio
import httpx

from meshlib.cli.board import REGISTRY, RELAY, Board, Line, cut
from meshlib.cli.exits import Exit
from meshlib.cli.metrics import Between, Page
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console
from meshlib.cli.servers import LARGEST_METRICS, NoAnswer, asking, fetch, health_of, http_form
from meshlib.errors import MeshError
from meshlib.wire.encoding import timestamp

_ENTER = "\x1b[?1049h\x1b[?25l"  # the other screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_NO_TERMINAL = (100, 0)
"""Columns and rows where there is no terminal; 0: as many as there are."""


def top(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Show numbers until Ctrl-C, or once."""
    settings = settings_from(arguments, environment)
    watching = _Watching(settings)
    live = console.full_screen and not arguments.once

    async def main() -> None:
        failure: list[Exception] = []
        # A signal ends the loop in order, so that the terminal is left as it was.
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:

                async def until_signal() -> None:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()

                tasks.start_soon(until_signal)
                try:
                    with _other_screen(console) if live else nullcontext():
                        async with AsyncExitStack() as stack:
                            for board in watching.boards:
                                watching.ways[board.role] = await stack.enter_async_context(asking(settings, board.url))
                            await watching.ask()  # what one look shows says nothing about a second
                            while True:
                                await anyio.sleep(arguments.interval)
                                await watching.ask()
                                _show(console, watching.boards, arguments.interval, live)
                                if arguments.once:
                                    break
                except (MeshError, OSError) as error:
                    failure.append(error)  # raised outside of the group, as itself
                tasks.cancel_scope.cancel()
        if failure:
            raise failure[0]

    anyio.run(main)
    return Exit.FAILED if arguments.once and not all(board.health.up for board in watching.boards) else Exit.OK


class _Watching:
    """Asks both servers, and remembers what they said the last time."""

    def __init__(self, settings: Settings) -> None:
        self.boards = (
            Board("relay", http_form(settings.relay_url), RELAY),
            Board("registry", settings.registry_url, REGISTRY),
        )
        self.ways: dict[str, httpx.AsyncClient] = {}
        """How each is reached, by role."""
        self._pages: dict[str, Page] = {}

    async def ask(self) -> None:
        """Ask both at the same time: one that hangs takes nothing from the other."""
        async with anyio.create_task_group() as tasks:
            for board in self.boards:
                tasks.start_soon(self._ask, self.ways[board.role], board)

    async def _ask(self, http: httpx.AsyncClient, board: Board) -> None:
        health = await health_of(http, board.url)
        page = None
        if health.up:
            try:
                raw = await fetch(http, board.url, "/metrics", LARGEST_METRICS)
                page = Page(raw.decode(errors="replace"), time.monotonic())
            except NoAnswer:
                pass  # upstream's has no such page
        before = self._pages.pop(board.role, None)
        if page is not None:
            self._pages[board.role] = page
        board.update(health, Between(before, page) if before is not None and page is not None else None)


# --- showing ---------------------------------------------------------------------------------------------------------


def _show(console: Console, boards: tuple[Board, ...], interval: float, live: bool) -> None:
    if console.json:
        console.emit(time=timestamp(time.time()), **{board.role: board.members() for board in boards})
        return
    columns, rows = _size(console)
    encoding = (getattr(console.out, "encoding", None) or "ascii").lower()
    ascii_only = not encoding.startswith("utf")
    lines: list[Line] = []
    for board in boards:
        lines += [cut(line, columns) for line in board.lines(columns, ascii_only=ascii_only)] + [()]
    painted = ["".join(console.paint(text, style) for text, style in line) for line in lines]
    if not live:
        console.say("\n".join(painted))
        return
    painted += [f"every {interval:g} s, Ctrl-C ends"]
    shown = f"{_END_OF_LINE}\n".join(painted[: rows - 1 if rows else None])
    console.out.write(f"{_HOME}{shown}{_END_OF_LINE}{_END_OF_SCREEN}")
    console.out.flush()


def _size(console: Console) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(console.out.fileno())
    except (OSError, ValueError):
        return _NO_TERMINAL
    return columns or _NO_TERMINAL[0], rows


@contextmanager
def _other_screen(console: Console) -> Iterator[None]:
    """The terminal's other screen: what stood on it before is there again afterwards, however this ends."""
    console.out.write(_ENTER)
    console.out.flush()
    try:
        yield
    finally:
        console.out.write(_LEAVE)
        console.out.flush()
