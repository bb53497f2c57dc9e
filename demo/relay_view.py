"""What whoever has the relay's disk can read: its SQLite file, opened like anybody could."""

from __future__ import annotations

import contextlib
import sqlite3
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
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT sender, recipient, frame FROM frames WHERE recipient = ? AND NOT control ORDER BY seq", (recipient,)
        ).fetchall()
    return [StoredFrame(sender, to, bytes(frame).decode()) for sender, to, frame in rows]


def where_found(plaintext: str, folder: Path) -> list[str]:
    """Names of files below ``folder`` that hold the text, as UTF-8 or as JSON escapes it."""
    forms = {plaintext.encode(), plaintext.encode("unicode_escape"), plaintext[:20].encode()}
    return [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(form in file.read_bytes() for form in forms)
    ]
