"""Where records of files on their way are kept: one small sealed file each, in the store's folder.

Owns that a record is there whole or not at all. A record names files and people, so it is sealed with a key made of
the identity's, which the store seals in turn if it has a passphrase.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec

from meshlib.crypto.keys import Ed25519Private, SecretBytes
from meshlib.crypto.primitives import hkdf_sha256, seal_record, unseal_record
from meshlib.errors import NotAuthentic, StoreError
from meshlib.files.records import Record

_NONCE = 24
_SUFFIX = ".transfer"
_READ = msgspec.msgpack.Decoder(Record)


class Journal(Protocol):
    """Records by key."""

    def load(self) -> list[Record]:
        """Everything that is there."""

    def put(self, key: str, record: Record) -> None:
        """Write a record, in place of the one there was. On the disk when it returns.

        Raises:
            StoreError: it could not be written; the old one is still there.
        """

    def drop(self, key: str) -> None:
        """Forget a record."""


class MemoryJournal:
    """For a store in memory: a restart forgets everything anyway."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def load(self) -> list[Record]:
        """Everything that is there."""
        return list(self.records.values())

    def put(self, key: str, record: Record) -> None:
        """Keep a record."""
        self.records[key] = record

    def drop(self, key: str) -> None:
        """Forget a record."""
        self.records.pop(key, None)


class FolderJournal:
    """One file per record, mode 0600, in a folder of mode 0700.

    Args:
        folder: made if it is not there.
        identity: the key whose owner may read the records.
    """

    def __init__(self, folder: Path, identity: Ed25519Private) -> None:
        self._folder = folder
        key = hkdf_sha256(salt=b"", ikm=bytes(identity), info=b"meshlib files journal v1", length=32)
        self._key = SecretBytes(key)

    def load(self) -> list[Record]:
        """Everything that is there. What cannot be read is left alone: it is of another identity or version."""
        return list(self._records())

    def _records(self) -> Iterator[Record]:
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            with suppress(NotAuthentic, msgspec.DecodeError, OSError):
                raw = path.read_bytes()
                if len(raw) <= _NONCE:
                    continue
                plain = unseal_record(self._key, raw[:_NONCE], raw[_NONCE:], path.stem.encode())
                yield _READ.decode(plain)

    def put(self, key: str, record: Record) -> None:
        """Write a record aside, then move it into place."""
        path = self._path(key)
        unfinished = path.with_suffix(".new")
        nonce = os.urandom(_NONCE)
        sealed = nonce + seal_record(self._key, nonce, msgspec.msgpack.encode(record), path.stem.encode())
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            self._sync()
        except OSError as error:
            raise StoreError(f"cannot write to {self._folder}: {error.strerror}; free some space") from error

    def drop(self, key: str) -> None:
        """Remove a record's file. One that stays leads a restart to what is over, which does no harm."""
        with suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self._folder / (sha256(key.encode()).hexdigest()[:32] + _SUFFIX)

    def _sync(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
