"""What whoever has a copy of the relay's disk can read. The relay keeps its database to itself, so a copy it is."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StoredFrame:
    """A message the relay keeps for an absent agent."""

    sender: str
    recipient: str
    text: str


def stored_for(database: Path, recipient: str) -> list[StoredFrame]:
    """The messages that wait for one agent; knocks and their answers are left out."""
    with tempfile.TemporaryDirectory(prefix="mesh-disk-") as folder:
        for file in database.parent.glob(f"{database.name}*"):  # the write-ahead log holds what is new
            if not file.name.endswith("-shm"):
                shutil.copy(file, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / database.name)) as copy:
            rows = copy.execute(
                "SELECT sender, recipient, frame FROM frames WHERE recipient = ? AND NOT control ORDER BY seq",
                (recipient,),
            ).fetchall()
    return [StoredFrame(sender, to, bytes(frame).decode()) for sender, to, frame in rows]


def where_found(plaintext: str, folder: Path) -> list[str]:
    """Names of files below ``folder`` that hold the text, or its beginning, which no encoding of JSON changes."""
    forms = (plaintext.encode(), plaintext[:20].encode())
    return [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(form in file.read_bytes() for form in forms)
    ]
