"""The files a program leaves with its answer: found and copied without following anything it has put in the way.

The program owns its folders and may replace each of them by a link to any other place; it may have ended with a race
in mind. So every step goes from an open folder to an entry of it, and takes what that entry is at that moment.
"""

import os
import shutil
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path

from meshlib.responder.runtimes.processes import Workplace

ARTIFACTS = 20
"""Files an answer may bring."""
ARTIFACT_BYTES = 64 * 1024 * 1024
"""Bytes of all of them."""
ENTRIES = 10_000
"""Entries of the folder that are looked at."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait for a writer


def collect(place: Workplace, spool: Path) -> tuple[Path, ...]:
    """Copy the files that belong to an answer out of the folder that is about to go. A missing folder holds none.

    Only regular files with one link count: a second link may lead to a file outside that happens to be on this disk.

    Args:
        place: where the program ran.
        spool: folder for the copies; each lies in a folder of its own, under its own name.
    Raises:
        OSError: the copies cannot be written. None is left.
    """
    kept: list[Path] = []
    with ExitStack() as opened:
        try:
            folder = os.open(place.root, _FOLDER)
            opened.callback(os.close, folder)
            for name in place.outbox.relative_to(place.root).parts:
                folder = os.open(name, _FOLDER, dir_fd=folder)
                opened.callback(os.close, folder)
            names = _names(folder)
        except OSError:
            return ()
        room = ARTIFACT_BYTES
        try:
            for name in names:
                if len(kept) == ARTIFACTS:
                    break
                copy = _copy(folder, name, spool, room)
                if copy is not None:
                    room -= copy.stat().st_size
                    kept.append(copy)
        except BaseException:
            discard(kept)
            raise
    return tuple(kept)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry, _ in zip(entries, range(ENTRIES), strict=False))


def _copy(folder: int, name: str, spool: Path, room: int) -> Path | None:
    """Copy one file, if it is one and there is room for it."""
    try:
        source = open(name, "rb", opener=lambda name, _: os.open(name, _FILE, dir_fd=folder))  # noqa: SIM115 - below
    except OSError:
        return None
    with source:
        found = os.fstat(source.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > room:
            return None
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(dir=spool)) / readable_name(name)
        try:
            with copy.open("xb") as target:
                shutil.copyfileobj(source, target)
        except BaseException:
            discard([copy])
            raise
    return copy


def readable_name(name: str) -> str:
    """A file's name as text: names are bytes, and those that are no UTF-8 cannot travel as they are. Never longer."""
    return os.fsencode(name).decode("utf-8", "replace").replace("\ufffd", "_")


def discard(copies: list[Path]) -> None:
    """Remove copies that are not needed after all."""
    for copy in copies:
        shutil.rmtree(copy.parent, ignore_errors=True)
