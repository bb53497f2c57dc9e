"""The durable inbox: one SQLite database in WAL mode, one connection, one transaction per call.

Row-by-row ``executemany`` beside a busy main thread collapses to under a thousand rows a second, because every row
takes the interpreter's lock back; one INSERT of many rows keeps above fifty thousand.

Which key is stored already is known in memory (:class:`_Keys`). An index on disk costs as much again as the frames: ids
are random, so every row dirties a page of its own, to write and once more to delete.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from mesh_relay.records import Contents, Credential, Done, Load, Page, Proof, Removed, StoredFrame, Sweep, Usage, Waiting, Work
from meshlib.errors import StoreError
from meshlib.identity import Did

_SCHEMA = ("001.sql", "002.sql")
"""Upgrades in order; the database's ``user_version`` says how many it has had."""

_ROWS = 500
"""Rows per statement: seven variables each stay far below SQLite's 32,766."""

_NEXT = """
    SELECT seq, sender, id, control, accepted_at, frame FROM frames WHERE recipient = ? AND seq > ? ORDER BY seq LIMIT ?
"""
_OLDEST = "SELECT seq, recipient, sender, id, length(frame), accepted_at FROM frames ORDER BY seq LIMIT ?"
_EVERYTHING = "SELECT seq, recipient, sender, id, length(frame) FROM frames ORDER BY seq"
_BY_SEQ = "SELECT recipient, sender, id, frame FROM frames WHERE seq = ?"


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
        self._keys = _Keys()

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
            self._database, self._keys = database, _Keys()
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
        """Learn every key; returns the last number and what each recipient keeps of each sender."""
        last_seq, counts = 0, dict[tuple[str, str], list[int]]()
        for last_seq, recipient, sender, frame_id, size in database.execute(_EVERYTHING):  # noqa: B007  # the last one
            self._keys.add({hash((recipient, sender, frame_id)): last_seq})
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
            added: dict[int, int] = {}
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
                self._keys.remove([*work.removals, *(removed.seq for removed in expired)])
                self._keys.add(added)
            pages = [_load(database, load, work.page_frames, work.page_bytes) for load in work.loads]
            return Done(duplicates, replaced, expired, pages, _oldest(database))

    def _insert(
        self, database: sqlite3.Connection, frames: Sequence[StoredFrame]
    ) -> tuple[dict[int, int], frozenset[int], list[Removed]]:
        """Returns the keys that are new, the duplicates, and what was replaced."""
        added: dict[int, int] = {}
        plain: list[StoredFrame] = []
        repeated: list[tuple[int, StoredFrame]] = []
        for stored in frames:
            key = hash((stored.recipient, stored.sender, stored.id))
            if key in added or self._keys.find(key) is not None:
                repeated.append((key, stored))
            else:
                added[key] = stored.seq
                plain.append(stored)
        for start in range(0, len(plain), _ROWS):
            part = plain[start : start + _ROWS]
            values = [value for stored in part for value in stored]
            database.execute(f"INSERT INTO frames VALUES {_marks('(?,?,?,?,?,?,?)', len(part))}", values)  # noqa: S608
        duplicates: set[int] = set()
        replaced: list[Removed] = []
        for key, stored in repeated:
            seq = added.get(key) or self._keys.find(key)
            row = database.execute(_BY_SEQ, (seq,)).fetchone()
            # No row: removed in this transaction. Another key: the hashes are equal by chance.
            if row is not None and row[:3] == (stored.recipient, stored.sender, stored.id):
                if row[3] == stored.frame:
                    duplicates.add(stored.seq)
                    continue
                database.execute("DELETE FROM frames WHERE seq = ?", (seq,))
                replaced.append(Removed(seq, stored.recipient, stored.sender, stored.id, len(row[3])))
            database.execute("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?)", stored)
            added[key] = stored.seq
        return added, frozenset(duplicates), replaced

    def close(self) -> None:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        if self._database is not None:
            self._database.close()
            self._database = None


class _Keys:
    """The numbers of stored frames, by the hash of (recipient, sender, id).

    Some 120 bytes for a frame. Hashes are Python's own, keyed at random per process: nobody can make them collide.
    """

    __slots__ = ("_gone", "_seqs")

    def __init__(self) -> None:
        self._seqs: dict[int, int] = {}
        self._gone: set[int] = set()  # numbers that may still be in `_seqs`; never more than half as many

    def find(self, key: int) -> int | None:
        seq = self._seqs.get(key)
        return None if seq in self._gone else seq

    def add(self, keys: Mapping[int, int]) -> None:
        self._seqs.update(keys)

    def remove(self, seqs: Iterable[int]) -> None:
        self._gone.update(seqs)
        if 2 * len(self._gone) > len(self._seqs):
            self._seqs = {key: seq for key, seq in self._seqs.items() if seq not in self._gone}
            self._gone = set()


def _remove(database: sqlite3.Connection, seqs: Sequence[int]) -> None:
    for start in range(0, len(seqs), _ROWS):
        part = seqs[start : start + _ROWS]
        database.execute(f"DELETE FROM frames WHERE seq IN ({_marks('?', len(part))})", part)  # noqa: S608  # marks only


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
    frames: list[Waiting] = []
    for row in database.execute(_NEXT, (load.recipient, load.after, count + 1)):
        size -= len(row[5])
        if frames and (len(frames) == count or size < 0):
            return Page(frames, True)
        frames.append(row)
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
