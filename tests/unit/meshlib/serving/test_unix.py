"""A path to listen on: who may connect, what is replaced, what is left."""

import os
import socket
import stat
from pathlib import Path

import pytest

from meshlib.serving.unix import unix_listener


def reaches(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
def test_the_file_has_the_mode_and_goes_at_the_end(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s.sock"
    before = os.umask(0o022)
    try:
        with unix_listener(path, mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert reaches(path)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_stale_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix_listener(path):
        assert reaches(path)


def test_a_live_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with unix_listener(path):
        with pytest.raises(OSError, match="another server listens"), unix_listener(path):
            pass
        assert reaches(path)


def test_a_server_that_is_too_busy_to_answer_lives(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with unix_listener(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another server listens"), unix_listener(path):
            pass


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "precious"
    match what:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="no socket"), unix_listener(path):
        pass
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize(("path", "reason"), [("nowhere/s.sock", "No such file"), ("x" * 120, "too long")])
def test_what_cannot_be_made_says_why(tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(OSError, match=f"cannot listen on .*{reason}"), unix_listener(tmp_path / path):
        pass


def test_the_file_of_a_successor_stays(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with unix_listener(path):
        path.unlink()
        with unix_listener(path):
            pass
        path.touch()
    assert path.exists()
