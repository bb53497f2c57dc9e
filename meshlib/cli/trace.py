"""``mesh trace``: follow one message by its id, in the store or the daemon, and through logs."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import anyio

from meshlib.cli.exits import Exit
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console, Style, visible
from meshlib.cli.stored import stored_core
from meshlib.client.sightings import look_up
from meshlib.client.stats import Sighting
from meshlib.daemon.address import socket_path
from meshlib.daemon.client import DaemonClient
from meshlib.errors import DaemonNotRunning, IdentityInUse, InvalidValue
from meshlib.wire.encoding import MessageId, timestamp

LONGEST_LINE = 64 * 1024
"""Bytes of a log line; ours have some 300. Longer ones are passed over."""
STEPS = 1_000
"""Lines of logs that are shown of one message, the first ones: it has about ten, and one more per lost connection."""
_DID_SHOWN = len("did:mesh:") + 8
_HEAD = ("time", "level", "event")


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a log that names the message."""

    time: str
    """As logged: UTC, by the clock of whoever logged it."""
    source: str
    """The log it stands in."""
    event: str
    fields: Mapping[str, object]


def trace(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Show where a message stands, and how it came there."""
    settings = settings_from(arguments, environment)
    message = MessageId(arguments.id)
    steps = steps_in(arguments.log or (), message, console)
    where = "the store"
    try:
        where, found = anyio.run(_look_up, settings, message)
    except IdentityInUse as error:
        if not steps:
            raise
        console.note(f"the store was not asked: {error}", event="store_in_use", detail=str(error))
        found = ()
    if not (found or steps):
        logs = f" and no line of {', '.join(arguments.log)}" if arguments.log else "; --log FILE looks into logs, too"
        asked = f"{where} ({settings.store}) does not know it"
        console.fail(f"no trace of a message {arguments.id!r}: {asked}{logs}", Exit.REFUSED, "MessageNotFound")
        return Exit.REFUSED
    if console.json:
        console.emit(
            id=arguments.id,
            sightings=[asdict(one) for one in found],
            steps=[{"time": one.time, "source": one.source, "event": one.event, **one.fields} for one in steps],
        )
    else:
        _show(console, where, message, found, steps)
    return Exit.OK


async def _look_up(settings: Settings, message: MessageId) -> tuple[str, tuple[Sighting, ...]]:
    try:
        async with DaemonClient(socket_path(settings.store)) as mesh:
            return "the daemon", await mesh.trace(message)
    except DaemonNotRunning:
        core = await anyio.to_thread.run_sync(stored_core, settings)
        return "the store", () if core is None else look_up(core, message)


# --- logs ------------------------------------------------------------------------------------------------------------


def steps_in(paths: Sequence[str], message: str, console: Console) -> list[Step]:
    """The lines of some logs that name a message, by time. Lines that are no JSON are passed over.

    Args:
        paths: files; ``-`` is standard input.
    Raises:
        InvalidValue: a file cannot be read.
    """
    steps: list[Step] = []
    for path in paths:
        with ExitStack() as stack:
            try:
                file = sys.stdin.buffer if path == "-" else stack.enter_context(Path(path).open("rb"))
                found, is_log = _steps_of(
                    file, Path(path).stem if path != "-" else "stdin", message, STEPS - len(steps)
                )
            except OSError as error:
                raise InvalidValue(f"--log {path} cannot be read: {error.strerror}") from error
        steps += found
        if not is_log:
            console.note(f"{path} holds no JSON: log with --log-format json", event="no_log", file=path)
    return sorted(steps, key=lambda one: one.time)


def _steps_of(file: BinaryIO, source: str, message: str, room: int) -> tuple[list[Step], bool]:
    """Steps, and whether any line may be JSON. Files may be large: most lines are only searched for the id."""
    needle = json.dumps(message).encode()
    steps: list[Step] = []
    is_log = False
    for line in _lines(file):
        is_log = is_log or line.startswith(b"{")
        if needle in line and len(steps) < room:
            step = _step(line, source, message)
            if step is not None:
                steps.append(step)
    return steps, is_log


def _lines(file: BinaryIO) -> Iterator[bytes]:
    whole = True
    while line := file.readline(LONGEST_LINE):
        ends = line.endswith(b"\n")
        if whole and (ends or len(line) < LONGEST_LINE):
            yield line
        whole = ends


def _step(line: bytes, source: str, message: str) -> Step | None:
    try:
        members = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, dict) or message not in [one for one in members.values() if isinstance(one, str)]:
        return None
    time, event = members.get("time"), members.get("event")
    if not isinstance(time, str) or not isinstance(event, str):
        return None
    fields = {name: value for name, value in members.items() if name not in _HEAD and value != message}
    return Step(time, source, event, fields)


# --- for people ------------------------------------------------------------------------------------------------------


def _show(console: Console, where: str, message: str, found: Sequence[Sighting], steps: Sequence[Step]) -> None:
    console.say(f"message {console.paint(visible(message), Style.BOLD)}")
    for one in found:
        way = f"to {one.peer}" if one.direction == "sent" else f"from {one.peer}"
        style = Style.GOOD if one.state in ("delivered", "acked") else Style.WARN
        style = Style.BAD if one.state in ("refused", "expired") else style
        console.say(f"  {visible(way)}   {console.paint(one.state, style)}   ({', '.join(_facts(one, where))})")
    if steps:
        console.say()
        started = _moment(steps[0].time)
        sources = {one.source for one in steps}
        rows = [
            [one.time, _after(started, one.time), *([one.source] if len(sources) > 1 else []), one.event, _text(one)]
            for one in steps
        ]
        styles = (Style.DIM, Style.DIM, *([Style.NAME] if len(sources) > 1 else []), Style.BOLD)
        console.table(rows, styles)
    if len(steps) >= STEPS:
        console.note(f"only the first {STEPS} lines are shown", event="cut_off")


def _facts(one: Sighting, where: str) -> Iterator[str]:
    yield f"says {where}"
    if one.queued is not None:
        yield f"queued {timestamp(one.queued)}"
    if one.size is not None:
        yield f"{one.size} bytes"
    if one.encrypted is False:
        yield "not encrypted yet" if one.direction == "sent" else "not encrypted"


def _text(step: Step) -> str:
    return "  ".join(f"{name}={_short(value)}" for name, value in step.fields.items() if value not in (None, ""))


def _short(value: object) -> str:
    """A DID by its first digits, which tell a handful of agents apart; anything else as it is."""
    text = str(value)
    return f"{text[:_DID_SHOWN]}…" if text.startswith("did:mesh:") else text


def _after(started: float | None, time: str) -> str:
    moment = _moment(time)
    return "" if started is None or moment is None else f"+{moment - started:.3f} s"


def _moment(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None
