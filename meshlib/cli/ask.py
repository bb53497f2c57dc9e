"""``mesh ask``: have peers do something, and print their answers.

Answers are text of peers: on a terminal they pass :func:`visible`, so that none can write over the screen.
"""

import itertools
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Mapping

import anyio
from msgspec import to_builtins

from meshlib.cli.connect import open_mesh
from meshlib.cli.exits import Exit, exit_for
from meshlib.cli.options import settings_from
from meshlib.cli.output import Console, Style, indented, visible
from meshlib.client.mesh import MeshClient
from meshlib.client.requests import Answer, Progress, Result, TaskState
from meshlib.config import Limits
from meshlib.daemon.client import DaemonClient
from meshlib.errors import InvalidValue, MeshError, TaskFailed

REDRAW_EVERY = 0.2
"""Seconds between two pictures of the spinner."""
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_WORDS = {
    TaskState.QUEUED: "waiting in our outbox",
    TaskState.RELAYED: "handed to the relay",
    TaskState.STORED: "waiting at the relay until the agent comes",
    TaskState.DELIVERED: "delivered; the agent has not begun",
    TaskState.RECEIVED: "in the agent's queue",
    TaskState.RUNNING: "the agent is working on it",
    TaskState.GONE: "the agent has fallen silent",
}


def ask(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Ask one peer or several, and print what they answer."""
    settings = settings_from(arguments, environment)
    peers = [arguments.peer, *(arguments.also or [])]
    if len(set(peers)) < len(peers):
        raise InvalidValue("a peer is named twice")
    content = _content(arguments)

    async def main() -> int:
        async with open_mesh(settings) as mesh:
            if len(peers) == 1:
                return await _ask_one(mesh, peers[0], content, arguments.timeout, console)
            return await _ask_all(mesh, dict.fromkeys(peers, content), arguments.timeout, console)

    return anyio.run(main)


async def _ask_one(
    mesh: MeshClient | DaemonClient,
    peer: str,
    content: str,
    patience: float,
    console: Console,
) -> int:
    display = Display(console, peer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(display.run)
        try:
            answer = await mesh.request(peer, content, timeout=patience, on_progress=display.show)
            result = Result(peer, answer=answer)
        except MeshError as failure:
            result = Result(peer, failure=failure)
        tasks.cancel_scope.cancel()
    display.clear()
    return _tell(result, console, named=False)


async def _ask_all(
    mesh: MeshClient | DaemonClient,
    contents: Mapping[str, str],
    patience: float,
    console: Console,
) -> int:
    gathering = mesh.gather(contents, timeout=patience)
    codes = [_tell(result, console, named=True) async for result in gathering]
    return next((code for code in codes if code), Exit.OK)


def _tell(result: Result, console: Console, *, named: bool) -> int:
    """Print what became of a task; the exit status it stands for."""
    if result.answer is not None:
        text = result.answer.content.expandtabs()  # the one control character that programs in answers need
        if console.json:
            console.emit(asked=result.peer, **_facts(result.answer))
        else:
            if named:
                head = f"{console.paint(visible(result.peer), Style.NAME)}  {result.answer.seconds:.1f} s"
                console.say(f"{head}\n  {indented(text, '  ')}")
            else:
                console.say(indented(text, ""))
        return Exit.OK
    failure = result.failure
    assert failure is not None
    said = f": {failure.content}" if isinstance(failure, TaskFailed) and failure.content else ""
    code = exit_for(failure)
    console.fail(f"{f'{result.peer}: ' if named else ''}{failure}{said}", code, type(failure).__name__)
    return code


def _facts(answer: Answer) -> dict[str, object]:
    return {
        "peer": str(answer.peer),
        "request_id": answer.request_id,
        "content": answer.content,
        "artifacts": to_builtins(answer.artifacts),
        "telemetry": to_builtins(answer.telemetry),
        "seconds": round(answer.seconds, 3),
    }


def _content(arguments: Namespace) -> str:
    """What is wanted: the argument, or standard input."""
    if arguments.text is not None and arguments.text != "-":
        return str(arguments.text)
    if arguments.text is None and sys.stdin.isatty():
        raise InvalidValue("say what to ask for: a text, or - for standard input")
    raw = sys.stdin.buffer.read(Limits().payload + 1).removesuffix(b"\n")
    if len(raw) > Limits().payload:
        raise InvalidValue(f"a task has at most {Limits().payload} bytes: send the rest as a file")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue("a task is text: standard input is not UTF-8") from error
    if not text.strip():
        raise InvalidValue("standard input is empty: say what to ask for")
    return text


class Display:
    """Where a task stands: one line on a terminal that is drawn again, or JSON lines; otherwise nothing."""

    def __init__(self, console: Console, peer: str) -> None:
        self._console = console
        self._peer = peer
        self._state = TaskState.QUEUED
        self._since = time.monotonic()
        self._frames = itertools.cycle(_SPINNER)

    def show(self, progress: Progress) -> None:
        """The task has come further."""
        self._state = progress.state
        if self._console.json:
            self._console.note(
                "", event="progress", peer=self._peer, state=str(progress.state), elapsed=round(progress.elapsed, 1)
            )

    async def run(self) -> None:
        """Draw until cancelled."""
        while self._console.live:
            elapsed = time.monotonic() - self._since
            words = _WORDS.get(self._state, str(self._state))
            line = f"{next(self._frames)} {visible(self._peer)[:40]}: {words} ({elapsed:.0f} s)"
            self._console.show(line[: shutil.get_terminal_size().columns - 1])
            await anyio.sleep(REDRAW_EVERY)

    def clear(self) -> None:
        """Leave nothing on the screen."""
        self._console.show("")
