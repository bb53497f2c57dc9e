"""The file that is sent: only ever the one that was inspected."""

import hashlib
import os
from pathlib import Path

import pytest

from meshlib.errors import InvalidValue
from meshlib.files.records import Sending
from meshlib.files.source import Source, Unreadable, inspect

CONTENT = bytes(range(256)) * 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "report.bin"
    path.write_bytes(CONTENT)
    return path


def record_of(path: Path) -> Sending:
    found = inspect(path)
    return Sending(
        id="t",
        peer="did:mesh:" + "0" * 32,
        path=os.fsencode(found.path),
        name=found.path.name,
        size=found.size,
        sha256=found.sha256,
        stamp=found.stamp,
        description="",
        chunk=0,
        style="pulled",
        from_agent="",
        timestamp="",
    )


def test_a_file_is_known_by_size_hash_and_where_it_lies(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    found = inspect(Path(path.name))
    assert (found.path, found.size, found.sha256) == (path, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_parts_are_read_in_any_order_and_the_last_is_shorter(path: Path) -> None:
    source = Source(record_of(path))
    assert source.read(2000, 1000) == CONTENT[2000:]
    assert source.read(0, 3) == CONTENT[:3]
    source.close()


@pytest.mark.parametrize("change", ["longer", "shorter", "same size"])
def test_a_file_that_changes_is_not_read_on(path: Path, change: str) -> None:
    source = Source(record_of(path))
    later = os.stat(path).st_mtime_ns + 1
    path.write_bytes({"longer": CONTENT + b"x", "shorter": CONTENT[:-1], "same size": CONTENT[::-1]}[change])
    os.utime(path, ns=(later, later))
    with pytest.raises(Unreadable, match="has changed"):
        source.read(0, 1)
    source.close()


def test_another_file_of_that_name_is_not_taken_for_it(path: Path) -> None:
    record = record_of(path)
    path.unlink()
    path.write_bytes(CONTENT)
    later = record.stamp[2] + 1
    os.utime(path, ns=(later, later))
    source = Source(record)
    with pytest.raises(Unreadable):
        source.read(0, 1)
    source.close()


def test_a_file_that_is_gone_is_not_opened(path: Path) -> None:
    record = record_of(path)
    path.unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        Source(record)


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidValue, match="regular file"):
        inspect(tmp_path / "pipe")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="missing"):
        inspect(tmp_path / "missing")
