"""The folder received files are put into, and nothing outside of it.

Owns names, places and room on the disk. A name is a peer's word: what is made of it is one component, that no shell,
terminal or file system takes for anything else. Files are opened relative to the folder that was opened once, never
through a symbolic link, and are moved into place under a name that was free.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from meshlib.errors import InvalidValue, StoreError, TransferFailed

PART_PREFIX = ".mesh-part-"
"""How files begin that have not arrived whole. No received name begins with a dot."""
MAX_NAME_BYTES = 200
"""Bytes of a name as UTF-8. File systems take 255; the rest is for `` (2)`` and for backups' additions."""
MAX_SUFFIX = 20
"""Characters of an extension that are kept when a name is cut."""
MAX_TWINS = 10_000
"""Tries for a free name, ``report (2).pdf`` and so on."""
MARGIN = 16 * 1024 * 1024
"""Bytes left free on the disk: databases and logs of the same machine need some."""
BLOCK = 1024 * 1024

_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"]
)
_NOT_IN_NAMES = frozenset('<>:"|?*/\\')


def safe_name(name: str) -> str:
    """One harmless path component that resembles ``name``.

    No directories, control, formatting or unassigned characters, no leading dot, dash or tilde, no device name, no more
    than :data:`MAX_NAME_BYTES`, and in composed form, so that two spellings of one name are one name.
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    composed = unicodedata.normalize("NFC", last.encode("utf-8", "replace").decode("utf-8"))
    kept = "".join("_" if one in _NOT_IN_NAMES else one for one in composed if _is_visible(one))
    kept = " ".join(kept.split()).rstrip(". ")  # Windows drops dots and spaces at the end: another name
    if kept[:1] in (".", "-", "~"):
        kept = "_" + kept[1:]
    kept = _cut(kept)
    if kept.partition(".")[0].rstrip().lower() in _DEVICES:
        kept = "_" + kept
    return kept if kept.strip("_. ") else "file"


def _is_visible(one: str) -> bool:
    return one == " " or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def _cut(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem or len(suffix) > MAX_SUFFIX:
        stem, dot, suffix = name, "", ""
    end = (dot + suffix).encode()
    return (stem.encode()[: MAX_NAME_BYTES - len(end)].decode("utf-8", "ignore") + end.decode()).rstrip(". ")


def _twin(name: str, number: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem:
        stem, dot, suffix = name, "", ""
    return f"{stem} ({number}){dot}{suffix}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies in a folder."""

    bytes: int
    files: int


class Folder:
    """A folder for received files.

    Args:
        path: made with mode 0700 if it is not there.
        max_bytes: quota over everything that lies in it.
        max_files: the same, in files.
    Raises:
        StoreError: it cannot be made or used.
    """

    def __init__(self, path: Path, max_bytes: int, max_files: int) -> None:
        if os.open not in os.supports_dir_fd:
            raise InvalidValue("receiving files needs a system that opens files relative to a folder, such as Linux")
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InvalidValue("the folder for received files needs a name that is UTF-8") from error
        self.max_bytes = max_bytes
        self.max_files = max_files
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = path.resolve(strict=True)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"cannot receive files into {path}: {error.strerror}; name another folder") from error

    def close(self) -> None:
        """Let go of the folder."""
        with suppress(OSError):
            os.close(self._fd)

    # --- room --------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """What lies in it, unfinished files included."""
        total = files = 0
        with os.scandir(self._fd) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        files += 1
                        total += found.st_size
        return Usage(total, files)

    def check_room(self, size: int, promised: Usage) -> None:
        """See whether ``size`` bytes more fit, besides what has been promised to others.

        Raises:
            TransferFailed: no; ``reason`` is ``quota``. How much there would be is nobody else's business.
        """
        usage = self.usage()
        if usage.bytes + promised.bytes + size > self.max_bytes or usage.files + promised.files + 1 > self.max_files:
            raise TransferFailed("quota", "the recipient has no room left for a file of this size")
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < promised.bytes + size + MARGIN:
            raise TransferFailed("quota", "the recipient's disk has no room left for a file of this size")

    # --- unfinished files --------------------------------------------------------------------------------------------

    def make_part(self, key: str) -> None:
        """Begin a file, for this user only. One that is there already is begun anew."""
        self.discard(key)
        with _explained():
            os.close(self._open(PART_PREFIX + key, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def has_part(self, key: str) -> bool:
        """Whether an unfinished file is there."""
        try:
            return stat.S_ISREG(os.stat(PART_PREFIX + key, dir_fd=self._fd, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def write(self, key: str, offset: int, data: bytes) -> None:
        """Put bytes into an unfinished file.

        Raises:
            TransferFailed: the disk is full or broken.
        """
        with _explained(), self._opened(key, os.O_WRONLY) as fd:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                offset += written
                view = view[written:]

    def read(self, key: str, offset: int, size: int) -> bytes:
        """Bytes of an unfinished file."""
        with _explained(), self._opened(key, os.O_RDONLY) as fd:
            return os.pread(fd, size, offset)

    def sync(self, key: str) -> None:
        """Have everything written so far on the disk."""
        with _explained(), self._opened(key, os.O_WRONLY) as fd:
            os.fdatasync(fd)

    def digest(self, key: str) -> tuple[int, str]:
        """Size and SHA-256 of an unfinished file, as it lies on the disk."""
        digest, size = hashlib.sha256(), 0
        with _explained(), self._opened(key, os.O_RDONLY) as fd:
            while block := os.pread(fd, BLOCK, size):
                digest.update(block)
                size += len(block)
        return size, digest.hexdigest()

    def discard(self, key: str) -> None:
        """Remove an unfinished file."""
        with suppress(OSError):
            os.unlink(PART_PREFIX + key, dir_fd=self._fd)

    def parts(self) -> list[str]:
        """Keys of unfinished files."""
        return [name.removeprefix(PART_PREFIX) for name in os.listdir(self._fd) if name.startswith(PART_PREFIX)]

    # --- into place --------------------------------------------------------------------------------------------------

    def free_name(self, name: str) -> str:
        """A name like ``name`` that nothing here has, by no spelling a file system may take for the same.

        Raises:
            TransferFailed: thousands of files have that name.
        """
        taken = {_folded(one) for one in os.listdir(self._fd)}
        for number in range(1, MAX_TWINS):
            free = name if number == 1 else _twin(name, number)
            if _folded(free) not in taken:
                return free
        raise TransferFailed("quota", "the recipient has too many files of that name")

    def place(self, key: str, name: str) -> bool:
        """Move an unfinished file to its name, for good. May be repeated after a crash.

        Returns:
            Whether it lies there now; ``False`` if something else does.
        Raises:
            TransferFailed: the disk is full or broken.
        """
        part = PART_PREFIX + key
        with _explained():
            if not self.has_part(key):
                return True  # an earlier try came as far as removing it
            try:
                os.link(part, name, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
            except FileExistsError:
                if not self._same(part, name):
                    return False
            except OSError:  # a file system without links
                try:
                    os.close(self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return False
                os.replace(part, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            self.discard(key)
            os.fsync(self._fd)
        return True

    def _same(self, one: str, other: str) -> bool:
        first = os.stat(one, dir_fd=self._fd, follow_symlinks=False)
        second = os.stat(other, dir_fd=self._fd, follow_symlinks=False)
        return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)

    @contextmanager
    def _opened(self, key: str, flags: int) -> Iterator[int]:
        fd = self._open(PART_PREFIX + key, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, name: str, flags: int) -> int:
        # Whoever can write to the folder could plant a link, a pipe or a device under a name we use.
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise TransferFailed("failed", "the recipient cannot save the file")
        return fd


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold())


@contextmanager
def _explained() -> Iterator[None]:
    """Say to the peer no more than it needs to know; the reason is for our log."""
    try:
        yield
    except OSError as error:
        raise TransferFailed("failed", "the recipient cannot save the file") from error
