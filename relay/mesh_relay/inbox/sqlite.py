"""The durable inbox: one SQLite database in WAL mode, one connection, one transaction per call.

Row-by-row ``executemany`` beside a busy main thread collapses to under a thousand rows a second, because every row
takes the interpreter's lock back; one INSERT of many rows keeps above fifty thousand.

The database has no index: which frame is where is known in memory, see :mod:`mesh_relay.inbox.index`.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from mesh_relay.inbox.index import Index, key_of
from mesh_relay.records import (
    Contents,
    Credential,
    Done,
    Load,
    Page,
    Proof,
    Removed,
    StoredFrame,
    Sweep,
    Usage,
    Waiting,
    Work,
)
from meshlib.errors import StoreError
from meshlib.identity import Did

_SCHEMA = ("001.sql", "002.sql")
"""Upgrades in order; the database's ``user_version`` says how many it has had."""

_ROWS = 500
"""Rows per statement: seven variables each stay far below SQLite's 32,766."""

_COLUMNS = "seq, sender, id, control, accepted_at, frame"
_OLDEST = "SELECT seq, recipient, sender, id, length(frame), accepted_at FROM frames ORDER BY seq LIMIT ?"
_EVERYTHING = "SELECT seq, recipient, sender, id, length(frame) FROM frames ORDER BY seq"
_BY_SEQ = "SELECT seq, recipient, sender, id, frame FROM frames WHERE seq = ?"


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
        self._index = Index()

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
            self._database, self._index = database, Index()
            last_seq, usage = self._look_through(database)
            return Contents(
                last_seq,
                usage,
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

    def _look_through(self, database: sqlite3.Connection) -> tuple[int, list[Usage]]:
        """Learn where every frame is; returns the last number and what each recipient keeps of each sender."""
        last_seq, counts = 0, dict[tuple[str, str], list[int]]()
        for last_seq, recipient, sender, frame_id, size in database.execute(_EVERYTHING):
            self._index.add(last_seq, Did(recipient), key_of(recipient, sender, frame_id))
            count = counts.setdefault((recipient, sender), [0, 0])
            count[0] += 1
            count[1] += size
        return last_seq, [Usage(Did(recipient), Did(sender), *count) for (recipient, sender), count in counts.items()]

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
            added: dict[int, tuple[Did, int]] = {}
            duplicates: frozenset[int] = frozenset()
            replaced: list[Removed] = []
            expired: list[Removed] = []
            if work.frames or work.removals or work.credentials or work.proofs or work.sweep is not None:
                database.execute("BEGIN IMMEDIATE")
                try:
                    _remove(database, work.removals)
                    added, duplicates, replaced = self._insert(database, work.frames)
                    database.executemany("INSERT OR REPLACE INTO credentials VALUES (?, ?, ?)", work.credentials)
                    database.executemany("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)", work.proofs)
                    if work.sweep is not None:
                        expired = _sweep(database, work.sweep)
                    database.execute("COMMIT")
                except BaseException:
                    if database.in_transaction:  # SQLite ends it by itself upon a full disk and the like
                        database.execute("ROLLBACK")
                    raise
                self._index.remove([*work.removals, *(removed.seq for removed in replaced)])
                for seq, (recipient, key) in sorted(added.items()):
                    self._index.add(seq, recipient, key)
                self._index.remove([removed.seq for removed in expired])
            pages = [self._load(database, load, work.page_frames, work.page_bytes) for load in work.loads]
            return Done(duplicates, replaced, expired, pages, _oldest(database))

    def _insert(
        self, database: sqlite3.Connection, frames: Sequence[StoredFrame]
    ) -> tuple[dict[int, tuple[Did, int]], frozenset[int], list[Removed]]:
        """Returns what the index has to learn, the duplicates, and what was replaced."""
        numbers: dict[int, int] = {}  # by key, of this transaction
        plain: list[StoredFrame] = []
        repeated: list[tuple[StoredFrame, int]] = []
        added: dict[int, tuple[Did, int]] = {}
        for stored in frames:
            key = key_of(stored.recipient, stored.sender, stored.id)
            if key in numbers or self._index.find(key) is not None:
                repeated.append((stored, key))
            else:
                numbers[key] = stored.seq
                plain.append(stored)
                added[stored.seq] = stored.recipient, key
        for start in range(0, len(plain), _ROWS):
            part = plain[start : start + _ROWS]
            values = [value for stored in part for value in stored]
            database.execute(f"INSERT INTO frames VALUES {_marks('(?,?,?,?,?,?,?)', len(part))}", values)  # noqa: S608
        duplicates: set[int] = set()
        replaced: list[Removed] = []
        for stored, key in repeated:
            row = database.execute(_BY_SEQ, (numbers.get(key) or self._index.find(key),)).fetchone()
            # No row: removed in this transaction. Another key: the hashes are equal by chance.
            if row is not None and row[1:4] == (stored.recipient, stored.sender, stored.id):
                seq, *_, frame = row
                if frame == stored.frame:
                    if seq != stored.seq:  # else this very transaction was there before, and its pages failed
                        duplicates.add(stored.seq)
                    continue
                database.execute("DELETE FROM frames WHERE seq = ?", (seq,))
                replaced.append(Removed(seq, stored.recipient, stored.sender, stored.id, len(frame)))
                added.pop(seq, None)
            database.execute("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?)", stored)
            numbers[key] = stored.seq
            added[stored.seq] = stored.recipient, key
        return added, frozenset(duplicates), replaced

    def _load(self, database: sqlite3.Connection, load: Load, count: int, size: int) -> Page:
        frames: list[Waiting] = []
        after = load.after
        while seqs := self._index.after(load.recipient, after, _ROWS):
            condition, values = _these(seqs)
            for row in database.execute(f"SELECT {_COLUMNS} FROM frames WHERE {condition} ORDER BY seq", values):  # noqa: S608
                size -= len(row[5])
                if frames and (len(frames) == count or size < 0):
                    return Page(frames, True)
                frames.append(row)
            after = seqs[-1]
        return Page(frames, False)

    def close(self) -> None:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        if self._database is not None:
            self._database.close()
            self._database = None


def _remove(database: sqlite3.Connection, seqs: Sequence[int]) -> None:
    ordered = sorted(set(seqs))
    for start in range(0, len(ordered), _ROWS):
        condition, values = _these(ordered[start : start + _ROWS])
        database.execute(f"DELETE FROM frames WHERE {condition}", values)  # noqa: S608  # marks only


def _these(seqs: Sequence[int]) -> tuple[str, Sequence[int]]:
    """What is true for these rows only; ``seqs`` ascends. A range, when no other number is in it."""
    if seqs[-1] - seqs[0] < len(seqs):
        return "seq BETWEEN ? AND ?", (seqs[0], seqs[-1])
    return f"seq IN ({_marks('?', len(seqs))})", seqs


def _sweep(database: sqlite3.Connection, sweep: Sweep) -> list[Removed]:
    database.execute("DELETE FROM proofs WHERE expires_at < ?", (sweep.proofs_before,))
    expired = []
    for *stored, accepted_at in database.execute(_OLDEST, (sweep.limit,)):
        if accepted_at >= sweep.frames_before:
            break
        expired.append(Removed(*stored))
    _remove(database, [removed.seq for removed in expired])
    return expired


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
