"""Private bytes in the rows of a database: as they are, or sealed with a passphrase and bound to their row."""

import os
from collections.abc import Callable

from meshlib.crypto.keys import Entropy
from meshlib.errors import StoreError
from meshlib.snapshot import SealingKey


class Seal:
    """Turns private bytes into what lies in a row and back, bound to that row so that rows cannot be exchanged."""

    def __init__(self, key: SealingKey | None) -> None:
        self._key = key

    @classmethod
    def make(cls, passphrase: str | None, make_key: Callable[[str, Entropy], SealingKey] = SealingKey.create) -> "Seal":
        """The seal of a new store; without a passphrase it seals nothing. Keep its :attr:`header`."""
        return cls(None if passphrase is None else make_key(passphrase, os.urandom))

    @property
    def header(self) -> bytes | None:
        """What :meth:`find` needs beside the passphrase."""
        return None if self._key is None else self._key.header

    @classmethod
    def find(cls, passphrase: str | None, header: object) -> "Seal":
        """The seal of an existing store.

        Raises:
            StoreError: the passphrase is wrong, missing, or one too many.
        """
        if header is None:
            if passphrase is not None:
                raise StoreError("the store was made without a passphrase: open it without one")
            return cls(None)
        if passphrase is None:
            raise StoreError("the store is sealed: open it with its passphrase")
        return cls(SealingKey.open(passphrase, _bytes(header)))

    def lock(self, plain: bytes, *row: str | int) -> bytes:
        """What to write into ``row``."""
        return plain if self._key is None else self._key.seal(plain, "\n".join(map(str, row)), os.urandom)

    def unlock(self, written: object, *row: str | int) -> bytes:
        """What was written into ``row``.

        Raises:
            StoreError: damaged, moved from another row, or sealed with another key.
        """
        sealed = _bytes(written)
        return sealed if self._key is None else self._key.unseal(sealed, "\n".join(map(str, row)))


def _bytes(written: object) -> bytes:
    if not isinstance(written, bytes):
        raise StoreError("a record of the store is damaged: restore a copy of the folder")
    return written
