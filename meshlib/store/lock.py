"""One process per identity: two that advance the same ratchet encrypt two messages under one key.

Owns the lock file in a store's folder and what it says about its holder. The operating system holds the lock for the
open file, so it ends with the process, however that ends; the file itself stays, and its text is only a hint.
"""

import contextlib
import json
import os
import socket
import sys
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path

from meshlib.errors import IdentityInUse, StoreError
from meshlib.wire.encoding import timestamp

LOCK_FILE = "lock"
MAX_HOLDER = 4096
"""Bytes of the lock file that are read; what we write has about 150."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds an identity."""

    pid: int
    host: str
    command: str
    """The program's file name, without arguments: they may hold secrets."""
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        """Us, from now on."""
        command = Path(sys.argv[0] if sys.argv else "").name or Path(sys.executable).name
        return cls(os.getpid(), socket.gethostname(), command, timestamp(time.time()))

    def __str__(self) -> str:
        return f"{self.command!r} (process {self.pid} on {self.host}, since {self.since})"


class FolderLock:
    """Holds a folder from construction to :meth:`release`, against other processes and against this one.

    A child made by ``os.fork`` does not hold it, and does not keep it from ending with its parent.

    Raises:
        IdentityInUse: somebody holds it; the message names them.
        StoreError: the file system cannot lock, or the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError as error:
            raise StoreError(f"cannot open {self.path}: {error.strerror}; let this user write to the folder") from error
        self._file: int | None = file
        try:
            if not _lock(file):
                raise IdentityInUse(_in_use(folder, _read(file)))
            _write(file, Holder.this_process())
        except OSError as error:
            os.close(file)
            raise StoreError(
                f"cannot lock {self.path}: {error.strerror}; use a folder on a local file system with free space"
            ) from error
        except BaseException:
            os.close(file)
            raise
        _close_in_children(self)

    @property
    def held(self) -> bool:
        """Whether this very process holds the folder. A forked child answers no."""
        return self._file is not None

    def release(self) -> None:
        """Let the next one in. May be called twice."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # the text is only a hint
                os.ftruncate(file, 0)
            os.close(file)

    def forget(self) -> None:
        """Close the file in a forked child; the lock stays with the parent."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def holder_of(folder: Path) -> Holder | None:
    """Who says to hold ``folder``: the last one who did, if that process was killed. For people to read."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _read(file)
    finally:
        os.close(file)


def _in_use(folder: Path, holder: Holder | None) -> str:
    who = str(holder) if holder else "another process"
    return f"the identity in {folder} is in use by {who}: stop it, or give this agent a folder of its own"


def _write(file: int, holder: Holder) -> None:
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, json.dumps(asdict(holder)).encode())
    if hasattr(os, "fchmod"):
        os.fchmod(file, 0o600)


def _read(file: int) -> Holder | None:
    """What the file says, or ``None`` for a holder that is just about to write, or for junk."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        said = json.loads(os.read(file, MAX_HOLDER))
        return Holder(int(said["pid"]), str(said["host"]), str(said["command"]), str(said["since"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    _FAR = 2**30
    """Windows locks bytes against reading too: ours lies behind the text, so that others can read who holds it."""

    def _lock(file: int) -> bool:
        os.lseek(file, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _close_in_children(lock: FolderLock) -> None:
        """Windows has no fork."""

else:
    import fcntl

    def _lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close_in_children(lock: FolderLock) -> None:
        # A forked child shares the open file, and with it the lock: without this it would outlive its holder.
        reference = weakref.ref(lock)

        def close() -> None:
            alive = reference()
            if alive is not None:
                alive.forget()

        os.register_at_fork(after_in_child=close)
