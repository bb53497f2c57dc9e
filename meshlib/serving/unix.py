"""Listening on a path. Owns the socket's file: who may open it, what a killed server left, removing it at the end."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

MODE = 0o660
"""User and group. A reverse proxy, or the agents of this machine, get in by the group."""


@contextlib.contextmanager
def unix_listener(path: Path, mode: int = MODE, backlog: int = 4096) -> Iterator[socket.socket]:
    """A listening socket at ``path`` for the length of a ``with`` block; its file goes at the end.

    Raises:
        OSError: another server listens there, the path is something else than a socket, or it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            with _alone_in(path.parent):
                _remove_stale(path)
                _bind(listener, path, mode)
                listener.listen(backlog)
                ours = path.lstat()
        except OSError as error:
            raise OSError(f"cannot listen on {path}: {error.strerror or error}") from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                now = path.lstat()
                if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):  # else somebody has put another one there
                    path.unlink()
    finally:
        listener.close()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other server looks and binds here: of two that find a stale file, one would remove the other's new."""
    import fcntl  # not on Windows, where nobody calls this and servers run on TCP

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError("it is no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is a live server, too
        answer = probe.connect_ex(str(path))
    if answer != errno.ECONNREFUSED:
        raise OSError("another server listens there; stop it, or name another path")
    path.unlink()


def _bind(listener: socket.socket, path: Path, mode: int) -> None:
    before = os.umask(0o177)  # at no moment is it open to more than it will be
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    path.chmod(mode)
