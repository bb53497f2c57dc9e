"""The file: permissions, versions, damage."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from meshlib.errors import StoreError
from meshlib.store.database import DATABASE_FILE, Database, prepare_folder, schemas

FIRST = "PRAGMA application_id = 0x6D657368; PRAGMA user_version = 1; CREATE TABLE note (text TEXT);"
SECOND = "PRAGMA user_version = 2; ALTER TABLE note ADD COLUMN stars INTEGER NOT NULL DEFAULT 3;"
BROKEN = "PRAGMA user_version = 2; CREATE TABLE half (x); CREATE TABLE half (x);"

posix = pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")


def nothing(connection: sqlite3.Connection) -> None:
    """Fill nothing in."""


def opened(folder: Path, *scripts: str, max_bytes: int | None = None) -> Database:
    return Database(folder, nothing, scripts or (FIRST,), max_bytes)


def write(database: Database, text: str) -> None:
    write_all(database, text)


def write_all(database: Database, *texts: object) -> None:
    with database.transaction() as connection:
        for text in texts:
            connection.execute("INSERT INTO note (text) VALUES (?)", (text,))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_own_schema_counts_its_versions() -> None:
    for version, script in enumerate(schemas(), start=1):
        assert f"PRAGMA user_version = {version};" in script


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_folder_and_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "store"
    before = os.umask(umask)
    try:
        prepare_folder(folder)
        database = opened(folder)
        write(database, "x")
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    files = {entry.name: mode(entry) for entry in folder.iterdir()}
    assert files == {DATABASE_FILE: 0o600, f"{DATABASE_FILE}-wal": 0o600, f"{DATABASE_FILE}-shm": 0o600}
    database.close()


@posix
def test_files_that_others_could_read_are_closed_to_them(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / DATABASE_FILE).chmod(0o644)
    tmp_path.chmod(0o755)
    prepare_folder(tmp_path)
    opened(tmp_path).close()
    assert mode(tmp_path) == 0o700
    assert mode(tmp_path / DATABASE_FILE) == 0o600


@posix
def test_open_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(StoreError, match="chmod 700"):
        prepare_folder(tmp_path)
    assert mode(tmp_path) == 0o755


def test_private_folder_with_other_files_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "letters").touch()
    prepare_folder(tmp_path)
    opened(tmp_path).close()
    assert (tmp_path / "letters").exists()


def test_file_in_place_of_the_folder_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreError, match="name another folder"):
        prepare_folder(tmp_path / "store")


def test_committed_is_there_after_reopening(tmp_path: Path) -> None:
    database = opened(tmp_path)
    write(database, "kept")
    database.close()
    again = opened(tmp_path)
    assert again.rows("SELECT text FROM note") == [("kept",)]
    again.close()


def test_every_commit_waits_for_the_disk_and_deleted_bytes_are_overwritten(tmp_path: Path) -> None:
    database = opened(tmp_path)
    assert database.rows("PRAGMA synchronous") == [(2,)]
    assert database.rows("PRAGMA journal_mode") == [("wal",)]
    write(database, "secret" * 20)
    with database.transaction() as connection:
        connection.execute("DELETE FROM note")
    database.close()
    assert b"secretsecret" not in (tmp_path / DATABASE_FILE).read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [DATABASE_FILE]


def test_transaction_that_fails_leaves_nothing_and_can_be_followed_by_another(tmp_path: Path) -> None:
    database = opened(tmp_path)
    with pytest.raises(StoreError):
        write_all(database, "half", 5, object())
    write(database, "whole")
    assert database.rows("SELECT text FROM note") == [("whole",)]
    database.close()


def test_full_disk_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    database = opened(tmp_path, max_bytes=5 * 4096)
    write(database, "before")
    with pytest.raises(StoreError, match=r"full: free some space.*SQLITE_FULL"):
        write_all(database, *("x" * 1000 for _ in range(100)))
    assert database.rows("SELECT text FROM note") == [("before",)]
    database.close()


def test_database_that_another_program_keeps_busy_is_explained(tmp_path: Path) -> None:
    database = opened(tmp_path)
    database.rows("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program"):
            write(database, "x")
        other.execute("ROLLBACK")
    write(database, "x")
    database.close()


def test_closed_database_is_a_store_error(tmp_path: Path) -> None:
    database = opened(tmp_path)
    database.close()
    database.close()
    with pytest.raises(StoreError):
        write(database, "x")
    with pytest.raises(StoreError):
        database.rows("SELECT 1")


# --- versions --------------------------------------------------------------------------------------------------------


def test_upgrade_keeps_the_rows_and_a_private_copy_of_how_it_was(tmp_path: Path) -> None:
    old = opened(tmp_path)
    write(old, "kept")
    old.close()
    database = opened(tmp_path, FIRST, SECOND)
    copy = database.upgrade()
    assert database.version == 2
    assert database.rows("SELECT text, stars FROM note") == [("kept", 3)]
    assert copy == tmp_path / f"{DATABASE_FILE}.version-1"
    if os.name == "posix":
        assert mode(copy) == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT * FROM note").fetchall() == [("kept",)]
    assert database.upgrade() is None
    database.close()


def test_upgrade_that_fails_changes_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    old = opened(tmp_path)
    write(old, "kept")
    old.close()
    database = opened(tmp_path, FIRST, BROKEN)
    with pytest.raises(StoreError, match="half"):
        database.upgrade()
    assert database.version == 1
    database.close()
    again = opened(tmp_path, FIRST, SECOND)
    again.upgrade()
    assert again.rows("SELECT text, stars FROM note") == [("kept", 3)]
    again.close()


def test_new_database_runs_through_every_version_and_needs_no_upgrade(tmp_path: Path) -> None:
    database = opened(tmp_path, FIRST, SECOND)
    assert database.version == 2
    assert database.upgrade() is None
    assert sorted(path.name for path in tmp_path.glob("*.version-*")) == []
    database.close()


def test_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    opened(tmp_path, FIRST, SECOND).close()
    before = (tmp_path / DATABASE_FILE).read_bytes()
    with pytest.raises(StoreError, match="version 2, this meshlib knows up to 1: install the newer"):
        opened(tmp_path)
    assert (tmp_path / DATABASE_FILE).read_bytes() == before


# --- damage ----------------------------------------------------------------------------------------------------------


def test_death_while_making_the_database_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / f"{DATABASE_FILE}.new").write_bytes(b"half a page")
    (tmp_path / f"{DATABASE_FILE}.new-wal").write_bytes(b"half a log")
    opened(tmp_path).close()
    assert [entry.name for entry in tmp_path.iterdir()] == [DATABASE_FILE]


def test_failure_while_filling_makes_no_database(tmp_path: Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Database(tmp_path, fail, (FIRST,))
    assert not (tmp_path / DATABASE_FILE).exists()
    opened(tmp_path).close()


def test_empty_file_is_damage_and_never_a_new_identity(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).touch()
    with pytest.raises(StoreError, match="is empty: restore"):
        opened(tmp_path)
    assert (tmp_path / DATABASE_FILE).stat().st_size == 0


def test_log_without_its_database_is_never_replayed_into_a_new_one(tmp_path: Path) -> None:
    (tmp_path / f"{DATABASE_FILE}-wal").write_bytes(b"log")
    with pytest.raises(StoreError, match="its log is still there"):
        opened(tmp_path)


def test_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as connection:
        connection.execute("CREATE TABLE cookies (x)")
    before = (tmp_path / DATABASE_FILE).read_bytes()
    with pytest.raises(StoreError, match="another program"):
        opened(tmp_path)
    assert (tmp_path / DATABASE_FILE).read_bytes() == before


def test_text_instead_of_a_database_is_damage(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_text("no database at all\n" * 500)
    with pytest.raises(StoreError, match="is damaged: move the folder away"):
        opened(tmp_path)


def test_damaged_page_is_found_on_opening(tmp_path: Path) -> None:
    database = opened(tmp_path)
    for _ in range(200):
        write(database, "x" * 100)
    database.close()
    content = bytearray((tmp_path / DATABASE_FILE).read_bytes())
    content[4096:8192] = bytes(0xA5 for _ in range(4096))
    (tmp_path / DATABASE_FILE).write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: move the folder away"):
        opened(tmp_path)


def test_truncated_file_is_found_on_opening(tmp_path: Path) -> None:
    database = opened(tmp_path)
    for _ in range(200):
        write(database, "x" * 100)
    database.close()
    content = (tmp_path / DATABASE_FILE).read_bytes()
    (tmp_path / DATABASE_FILE).write_bytes(content[: len(content) // 2 // 4096 * 4096])
    with pytest.raises(StoreError, match="is damaged: move the folder away"):
        opened(tmp_path)


def test_folder_in_place_of_the_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).mkdir()
    with pytest.raises(StoreError):
        opened(tmp_path)
