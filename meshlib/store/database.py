"""One SQLite file in a private folder: how it comes to be, how it is upgraded, and what its errors mean.

Owns permissions, durability, schema versions and the translation of ``sqlite3.Error``. Knows no record.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from meshlib.errors import StoreError
from meshlib.store.lock import LOCK_FILE

DATABASE_FILE = "mesh.db"
APPLICATION_ID = 0x6D657368
BUSY_SECONDS = 5.0
"""How long another program, such as a backup, may keep the file busy."""
LOG_BYTES = 4 * 1024 * 1024
"""What the write-ahead log is cut back to; it grows beyond only while a reader pins it."""

_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MADE_FILES = (DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm", f"{DATABASE_FILE}.new")
"""What a folder may hold that is closed to others without asking."""

_DAMAGED = "is damaged: move the folder away, then restore a copy of it or start with a new identity"
_ADVICE = {
    sqlite3.SQLITE_FULL: "cannot grow, the disk or its quota is full: free some space; nothing of this step was saved",
    sqlite3.SQLITE_READONLY: "is read-only: let this user write to the file and to its folder",
    sqlite3.SQLITE_PERM: "may not be opened by this user: check the owner of the folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that the folder is there and belongs to this user",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_BUSY: "is kept busy by another program: close it",
    sqlite3.SQLITE_LOCKED: "is kept busy by another program: close it",
    sqlite3.SQLITE_IOERR: "cannot be read or written, the disk reports an error: check the disk and its free space",
    sqlite3.SQLITE_TOOBIG: "cannot take a record of that size",
}


def schemas(package: str = "meshlib.store") -> tuple[str, ...]:
    """The SQL scripts in order: the first makes a new database, each next one upgrades from the version before it."""
    scripts = {
        int(script.name.removesuffix(".sql")): script.read_text(encoding="utf-8")
        for script in (files(package) / "schema").iterdir()
        if script.name.endswith(".sql")
    }
    return tuple(scripts[version] for version in sorted(scripts))


def prepare_folder(folder: Path) -> None:
    """Make ``folder`` with mode 0700, or see to it that an existing one is nobody else's business.

    Raises:
        StoreError: it cannot be made, or others can look into it and it holds files that are not ours.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
            folder.chmod(0o700)
        elif os.name == "posix" and stat.S_IMODE(folder.stat().st_mode) & _OPEN_TO_OTHERS:
            ours = {LOCK_FILE, *_MADE_FILES}
            if (folder / DATABASE_FILE).exists() or all(entry.name in ours for entry in folder.iterdir()):
                folder.chmod(0o700)
            else:
                # Closing a folder that serves other purposes would surprise; keeping keys in an open one is worse.
                raise StoreError(
                    f"{folder} is open to other users and holds other files: name a folder of its own for the store, "
                    f"or run: chmod 700 {folder}"
                )
    except OSError as error:
        raise StoreError(f"cannot use {folder} as a store: {error.strerror}; name another folder") from error


class Database:
    """One connection to the folder's database, for one thread at a time.

    Every commit is on the disk when it returns (WAL with ``synchronous=FULL``): a ratchet that falls back after a
    power cut would encrypt a second message under a key that has been used. What is deleted is overwritten
    (``secure_delete``), because spent keys must not be found later.

    Args:
        folder: prepared by :func:`prepare_folder` and locked.
        fill: called once, in the transaction that makes a new database.
        scripts: schema versions, as :func:`schemas` gives them.
        max_bytes: bound of the file's size.
        name: of the file.
    Raises:
        StoreError: damaged, foreign, of a newer version, or not to be opened.
    """

    def __init__(
        self,
        folder: Path,
        fill: Callable[[sqlite3.Connection], None],
        scripts: Sequence[str],
        max_bytes: int | None = None,
        name: str = DATABASE_FILE,
    ) -> None:
        self.path = folder / name
        self._scripts = scripts
        try:
            with self._explained():
                self._discard_unfinished()
                if not self.path.exists():
                    self._create(fill)
                self._tighten()
                if self.path.stat().st_size == 0:
                    raise StoreError(f"{self.path} is empty: restore a copy, or empty the folder for a new identity")
                self._connection = _connect(self.path)
        except OSError as error:
            raise StoreError(f"cannot use {self.path}: {error.strerror}; let this user write to the folder") from error
        try:
            with self._explained():
                self._check()
                _configure(self._connection)
                if max_bytes is not None:
                    (page_size,) = self._connection.execute("PRAGMA page_size").fetchone()
                    self._connection.execute(f"PRAGMA max_page_count = {max_bytes // page_size}")
        except BaseException:
            self._connection.close()
            raise

    # --- opening -----------------------------------------------------------------------------------------------------

    def _discard_unfinished(self) -> None:
        """Remove what a process left that died while it made the database."""
        for leftover in self.path.parent.glob(f"{self.path.name}.new*"):
            leftover.unlink()

    def _create(self, fill: Callable[[sqlite3.Connection], None]) -> None:
        """Make the database aside and move it into place whole, so that an empty file is always damage, never new."""
        if self.path.with_name(f"{self.path.name}-wal").exists():
            # SQLite would replay the old log into the new file.
            raise StoreError(f"{self.path} is gone, but its log is still there: restore the file, or empty the folder")
        unfinished = self.path.with_name(f"{self.path.name}.new")
        _touch_private(unfinished)
        with contextlib.closing(_connect(unfinished)) as connection:
            _configure(connection)
            for script in self._scripts:
                _run(connection, script)
            connection.execute("BEGIN IMMEDIATE")
            fill(connection)
            connection.execute("COMMIT")
        unfinished.replace(self.path)
        _sync_folder(self.path.parent)

    def _tighten(self) -> None:
        if os.name == "posix":
            for ending in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + ending).chmod(0o600)

    def _check(self) -> None:
        connection = self._connection
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program: name another folder")
        if self.version > len(self._scripts):
            raise StoreError(
                f"{self.path} has version {self.version}, this meshlib knows up to {len(self._scripts)}: "
                "install the newer meshlib that wrote it"
            )
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"{self.path} {_DAMAGED} ({verdict})")

    # --- versions ----------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The schema version of the file."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def upgrade(self) -> Path | None:
        """Bring the file to the newest version, each step in one transaction, after copying it aside.

        Returns:
            The copy, or ``None`` when there was nothing to do. It holds keys as they were: restoring it after
            messages have been exchanged makes peers' messages unreadable and reuses keys of ours.
        """
        version = self.version
        if version >= len(self._scripts):
            return None
        copy = self.path.with_name(f"{self.path.name}.version-{version}")
        with self._explained():
            try:
                copy.unlink(missing_ok=True)
                _touch_private(copy)
            except OSError as error:
                raise StoreError(f"cannot copy {self.path} before its upgrade: {error.strerror}") from error
            with contextlib.closing(sqlite3.connect(copy)) as target:
                self._connection.backup(target)
            for script in self._scripts[version:]:
                _run(self._connection, script)
        return copy

    # --- using -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it, on the disk, or nothing.

        Raises:
            StoreError: nothing of it was written.
        """
        connection = self._connection
        with self._explained():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite has already rolled back after some errors
                    connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, parameters: Iterable[object] = ()) -> list[tuple[object, ...]]:
        """Every row of a query."""
        with self._explained():
            return self._connection.execute(query, tuple(parameters)).fetchall()

    def close(self) -> None:
        """Move the log into the file and close it. May be called twice."""
        with self._explained():
            self._connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            advice = _ADVICE.get(primary, f"cannot be used: {error}")
            raise StoreError(f"{self.path} {advice} ({name})") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _configure(connection: sqlite3.Connection) -> None:
    for setting in (
        "trusted_schema = OFF",
        "journal_mode = WAL",
        "synchronous = FULL",
        "fullfsync = ON",  # only macOS distinguishes; there fsync alone does not reach the platter
        "checkpoint_fullfsync = ON",
        "secure_delete = ON",
        f"journal_size_limit = {LOG_BYTES}",
    ):
        connection.execute(f"PRAGMA {setting}")


def _run(connection: sqlite3.Connection, script: str) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _touch_private(path: Path) -> None:
    """Make an empty file that is private from its first moment; SQLite gives -wal and -shm the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    path.chmod(0o600)  # a umask can take away more than it should


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
