"""One process per identity."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshlib.errors import IdentityInUse, StoreError
from meshlib.store.lock import LOCK_FILE, FolderLock, Holder, holder_of

HOLD = """
import sys
from pathlib import Path
from meshlib.store.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""

HOLD_AND_FORK = """
import os, sys
from pathlib import Path
from meshlib.store.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    print(lock.held, flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
"""


@contextmanager
def running(script: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_second_opener_in_the_same_process_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(IdentityInUse, match=f"process {os.getpid()} on .*since 2") as refusal:
        FolderLock(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    lock.release()
    FolderLock(tmp_path).release()


def test_refused_opener_does_not_disturb_the_holder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    for _ in range(2):
        with pytest.raises(IdentityInUse):
            FolderLock(tmp_path)
    assert lock.held
    assert holder_of(tmp_path) is not None
    lock.release()


def test_two_folders_are_held_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = FolderLock(tmp_path / "a"), FolderLock(tmp_path / "b")
    assert one.held
    assert other.held
    one.release()
    other.release()


def test_another_process_is_named_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    with running(HOLD, tmp_path) as process:
        assert first_line(process) == "held"
        with pytest.raises(IdentityInUse, match=f"process {process.pid} on"):
            FolderLock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = holder_of(tmp_path)
        assert left is not None
        assert left.pid == process.pid
        FolderLock(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_child_neither_holds_the_lock_nor_keeps_it_alive(tmp_path: Path) -> None:
    with running(HOLD_AND_FORK, tmp_path) as process:
        assert first_line(process) == "False"  # the child answers
        with pytest.raises(IdentityInUse):
            FolderLock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        FolderLock(tmp_path).release()  # the child still runs: it ends when its standard input does


def test_of_many_threads_one_gets_the_lock(tmp_path: Path) -> None:
    outcomes: list[FolderLock | None] = []
    start = threading.Barrier(8)

    def grab() -> None:
        start.wait()
        try:
            outcomes.append(FolderLock(tmp_path))
        except IdentityInUse:
            outcomes.append(None)

    threads = [threading.Thread(target=grab) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [lock for lock in outcomes if lock is not None]
    assert len(winners) == 1
    winners[0].release()


def test_released_lock_names_nobody_and_can_be_released_again(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
    assert not lock.held
    assert holder_of(tmp_path) is None


def test_holder_shows_the_program_and_none_of_its_arguments(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    said = json.loads((tmp_path / LOCK_FILE).read_text())
    assert said["pid"] == os.getpid()
    assert "/" not in said["command"]
    assert holder_of(tmp_path) == Holder(**said)
    lock.release()


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"\xff\xfe", b'{"pid": "x"}', b"9" * 100_000])
def test_junk_in_the_lock_file_hides_only_the_name(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(junk)
    assert holder_of(tmp_path) is None
    lock = FolderLock(tmp_path)
    (tmp_path / LOCK_FILE).write_bytes(junk)
    with pytest.raises(IdentityInUse, match="by another process"):
        FolderLock(tmp_path)
    lock.release()


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
def test_lock_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        lock = FolderLock(tmp_path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / LOCK_FILE).stat().st_mode) == 0o600
    lock.release()


def test_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open"):
        FolderLock(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system cannot refuse symbolic links")
def test_symbolic_link_as_lock_file_is_refused_and_its_target_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(target)
    with pytest.raises(StoreError):
        FolderLock(tmp_path)
    assert target.read_text() == "precious"
