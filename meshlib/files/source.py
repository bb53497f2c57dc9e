"""The file that is sent: inspected once, and read only as long as it is still the one that was inspected."""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from meshlib.errors import InvalidValue
from meshlib.files.records import Sending

BLOCK = 1024 * 1024
"""Bytes read at a time to hash a file."""

Stamp = tuple[int, int, int]
"""Device, inode and time of the last change, in nanoseconds."""


class Unreadable(Exception):
    """The file is not the one any more that was to be sent."""


class Inspected(NamedTuple):
    """A file as it was when it was to be sent."""

    path: Path
    """Absolute."""
    size: int
    sha256: str
    stamp: Stamp


def inspect(path: Path) -> Inspected:
    """Look at a file that is to be sent.

    Raises:
        InvalidValue: it is no file that can be read, or is being written to.
    """
    path = Path(os.path.abspath(path.expanduser()))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise InvalidValue(f"{path} is not a regular file: pack folders into an archive first")
            digest = hashlib.sha256()
            while block := file.read(BLOCK):
                digest.update(block)
            after = os.fstat(fd)
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read: {error.strerror}") from error
    if (before.st_size, _stamp_of(before)) != (after.st_size, _stamp_of(after)):
        raise InvalidValue(f"{path} is being written to: send it when it is finished, or send a copy")
    return Inspected(path, after.st_size, digest.hexdigest(), _stamp_of(after))


class Source:
    """An open file on its way. Positions are bytes; reading moves nothing, so threads may share it."""

    def __init__(self, record: Sending) -> None:
        """Open it.

        Raises:
            Unreadable: it is gone, or closed to us.
        """
        self._record = record
        try:
            self._fd = os.open(record.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Unreadable(f"the file cannot be read any more: {error.strerror}") from error

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file that was inspected, fewer at its end only; never of another one.

        Raises:
            Unreadable: it has changed, or cannot be read.
        """
        record = self._record
        wanted = min(size, record.size - offset)
        parts: list[bytes] = []
        try:
            found = os.fstat(self._fd)
            if (found.st_size, _stamp_of(found)) != (record.size, record.stamp):
                raise Unreadable("the file has changed since it was to be sent")
            while wanted > 0:
                part = os.pread(self._fd, wanted, offset)
                if not part:
                    raise Unreadable("the file has become shorter since it was to be sent")
                parts.append(part)
                offset += len(part)
                wanted -= len(part)
        except OSError as error:
            raise Unreadable(f"the file cannot be read any more: {error.strerror}") from error
        return b"".join(parts)


def _stamp_of(found: os.stat_result) -> Stamp:
    return (found.st_dev, found.st_ino, found.st_mtime_ns)
