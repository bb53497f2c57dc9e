"""The durable inbox: one SQLite database in WAL mode, one connection, one transaction per call.

Row-by-row ``executemany`` beside a busy main thread collapses to under a thousand rows a second, because every row
takes the interpreter's lock back; one INSERT of many rows keeps above fifty thousand.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from mesh_relay.records import Contents, Credential, Done, Load, Page, Proof, Removed, StoredFrame, Sweep, Usage, Work
from meshlib.errors import StoreError
from meshlib.identity import Did

_SCHEMA = ("001.sql",)
"""Upgrades in order; the database's ``user_version`` says how many it has had."""

_ROWS = 500
"""Rows per statement: seven variables each stay far below SQLite's 32,766."""

_COLUMNS = "seq, recipient, sender, id, control, accepted_at, frame"
_NEXT = f"SELECT {_COLUMNS} FROM frames WHERE recipient = ? AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608  # constants
_OLDEST = "SELECT seq, recipient, sender, id, length(frame), accepted_at FROM frames ORDER BY seq LIMIT ?"
_SAME_KEY = "SELECT seq, frame FROM frames WHERE recipient = ? AND sender = ? AND id = ?"


class SqliteInbox:
    """Frames in a file that only its owner can read.

    Args:
        path: the database; directories above it are made with mode 0700.
        strict: sync every transaction to the disk, so that it survives a power failure; without, a transaction
            survives the end of the process, however violent.
    """

    blocking = True

    def __init__(self, path: Path | str, *, strict: bool = False) -> None:
        self._path = Path(path)
        self._strict = strict
        self._database: sqlite3.Connection | None = None

    def open(self) -> Contents:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        with _translated(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)  # SQLite gives the write-ahead log the same mode
            database = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(database)
            except BaseException:
                database.close()
                raise
            self._database = database
            return Contents(
                database.execute("SELECT coalesce(max(seq), 0) FROM frames").fetchone()[0],
                [
                    Usage(Did(recipient), Did(sender), frames, size)
                    for recipient, sender, frames, size in database.execute(
                        "SELECT recipient, sender, count(*), sum(length(frame)) FROM frames GROUP BY recipient, sender"
                    )
                ],
                [
                    Credential(Did(did), key, bool(challenged))
                    for did, key, challenged in database.execute("SELECT did, key, challenged FROM credentials")
                ],
                [
                    Proof(Did(did), timestamp, expires_at)
                    for did, timestamp, expires_at in database.execute("SELECT did, timestamp, expires_at FROM proofs")
                ],
                _oldest(database),
            )

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # a second relay on the same store is refused
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if self._strict else 'NORMAL'}")
        database.execute("PRAGMA wal_autocheckpoint = 4000")
        database.execute("PRAGMA cache_size = -65536")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute("BEGIN EXCLUSIVE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute("COMMIT")
        if version > len(_SCHEMA):
            raise StoreError(f"{self._path} is of a newer version ({version}); this relay knows up to {len(_SCHEMA)}")
        if 0 < version < len(_SCHEMA):
            self._back_up(database, version)
        for number, name in enumerate(_SCHEMA[version:], version + 1):
            script = resources.files(__package__).joinpath("schema", name).read_text("utf-8")
            database.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _back_up(self, database: sqlite3.Connection, version: int) -> None:
        copy = self._path.with_name(f"{self._path.name}.v{version}")
        copy.unlink(missing_ok=True)
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database.execute("VACUUM INTO ?", (str(copy),))

    def run(self, work: Work) -> Done:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        database = self._database
        if database is None:
            raise StoreError("the inbox is closed")
        with _translated(self._path):
            duplicates: frozenset[int] = frozenset()
            replaced: list[Removed] = []
            expired: list[Removed] = []
            if work.frames or work.removals or work.credentials or work.proofs or work.sweep is not None:
                database.execute("BEGIN IMMEDIATE")
                try:
                    _remove(database, work.removals)
                    duplicates, replaced = _insert(database, work.frames)
                    database.executemany("INSERT OR REPLACE INTO credentials VALUES (?, ?, ?)", work.credentials)
                    database.executemany("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)", work.proofs)
                    if work.sweep is not None:
                        expired = _sweep(database, work.sweep)
                    database.execute("COMMIT")
                except BaseException:
                    if database.in_transaction:  # SQLite ends it by itself upon a full disk and the like
                        database.execute("ROLLBACK")
                    raise
            pages = [_load(database, load, work.page_frames, work.page_bytes) for load in work.loads]
            return Done(duplicates, replaced, expired, pages, _oldest(database))

    def close(self) -> None:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        if self._database is not None:
            self._database.close()
            self._database = None


def _remove(database: sqlite3.Connection, seqs: Sequence[int]) -> None:
    for start in range(0, len(seqs), _ROWS):
        part = seqs[start : start + _ROWS]
        database.execute(f"DELETE FROM frames WHERE seq IN ({_marks('?', len(part))})", part)  # noqa: S608  # marks only


def _insert(database: sqlite3.Connection, frames: Sequence[StoredFrame]) -> tuple[frozenset[int], list[Removed]]:
    duplicates: set[int] = set()
    replaced: list[Removed] = []
    for start in range(0, len(frames), _ROWS):
        part = frames[start : start + _ROWS]
        values = [value for stored in part for value in stored]
        statement = f"INSERT INTO frames VALUES {_marks('(?,?,?,?,?,?,?)', len(part))} ON CONFLICT DO NOTHING"  # noqa: S608
        if database.execute(statement, values).rowcount < len(part):
            _resolve(database, part, duplicates, replaced)
    return frozenset(duplicates), replaced


def _resolve(
    database: sqlite3.Connection, frames: Sequence[StoredFrame], duplicates: set[int], replaced: list[Removed]
) -> None:
    """Some of ``frames`` met a stored one with the same key: take them one by one, in order."""
    for stored in frames:
        seq, frame = database.execute(_SAME_KEY, (stored.recipient, stored.sender, stored.id)).fetchone()
        if seq == stored.seq:
            continue
        if frame == stored.frame:
            duplicates.add(stored.seq)
            continue
        database.execute("DELETE FROM frames WHERE seq = ?", (seq,))
        database.execute("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?)", stored)
        replaced.append(Removed(seq, stored.recipient, stored.sender, stored.id, len(frame)))


def _sweep(database: sqlite3.Connection, sweep: Sweep) -> list[Removed]:
    database.execute("DELETE FROM proofs WHERE expires_at < ?", (sweep.proofs_before,))
    expired = []
    for *stored, accepted_at in database.execute(_OLDEST, (sweep.limit,)):
        if accepted_at >= sweep.frames_before:
            break
        expired.append(Removed(*stored))
    _remove(database, [removed.seq for removed in expired])
    return expired


def _load(database: sqlite3.Connection, load: Load, count: int, size: int) -> Page:
    frames: list[StoredFrame] = []
    for row in database.execute(_NEXT, (load.recipient, load.after, count + 1)):
        stored = StoredFrame(*row)
        size -= len(stored.frame)
        if frames and (len(frames) == count or size < 0):
            return Page(frames, True)
        frames.append(stored)
    return Page(frames, False)


def _oldest(database: sqlite3.Connection) -> float | None:
    row = database.execute("SELECT accepted_at FROM frames ORDER BY seq LIMIT 1").fetchone()
    return None if row is None else float(row[0])


def _marks(group: str, count: int) -> str:
    return ",".join((group,) * count)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StoreError(f"{path} is in use by another relay") from error
        raise StoreError(f"{path}: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: {error}") from error
