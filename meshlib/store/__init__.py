"""Where a client keeps its state."""

from pathlib import Path

from meshlib.errors import InvalidValue
from meshlib.store.memory import MemoryStore
from meshlib.store.protocol import Store
from meshlib.store.sqlite import SqliteStore

__all__ = ["MemoryStore", "SqliteStore", "Store", "open_store"]


def open_store(path: Path | str | None, passphrase: str | None = None) -> Store:
    """The store in the folder ``path``, or one in memory for ``None``.

    Args:
        passphrase: seals private state on the disk.
    Raises:
        InvalidValue: a passphrase without a folder.
        IdentityInUse: another process, or this one, has the store open.
        StoreError: the store cannot be opened; the message says what to do.
    """
    if path is None:
        if passphrase is not None:
            raise InvalidValue("a passphrase seals a folder: name one, or leave the passphrase out")
        return MemoryStore()
    return SqliteStore(Path(path).expanduser(), passphrase)
