"""Where a daemon listens, and who is at the other end. Loads nothing besides the standard library."""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meshlib.errors import StoreError

SOCKET_FILE = "daemon.sock"
MAX_ADDRESS = 107 if sys.platform == "linux" else 103
"""Bytes of a path that fit the address of a Unix socket, without the NUL at its end."""
_DESCRIPTORS = Path("/proc/self/fd")


def socket_path(store: Path) -> Path:
    """The socket of the daemon that owns the identity in the folder ``store``."""
    return store.expanduser() / SOCKET_FILE


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A path to ``path`` that fits a socket's address: folders of stores may lie deeper than 107 bytes.

    Raises:
        StoreError: the path is too long, and this system knows no way around.
        OSError: the folder cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        yield str(path)
        return
    if not _DESCRIPTORS.is_dir():
        raise StoreError(f"a socket's path has at most {MAX_ADDRESS} bytes, {path} has more: use a folder with less")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"{_DESCRIPTORS}/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_ours(connected: socket.socket, user: int | None = None) -> bool:
    """Whether the process at the other end belongs to ``user``, ours by default; ``True`` if the system does not tell.

    Permissions of the folder are the first guard, this is the second: it holds when somebody has loosened them.
    """
    option: int | None = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return bool(uid == (os.getuid() if user is None else user))


def remove(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    with suppress(FileNotFoundError):
        path.unlink()
