"""How a store that is older than what others have seen of it is noticed: by counting.

A store counts each time a client opens it, and now and then while it is used. The count is saved, then published at the
registry. A copy of the store, or a backup that was put in its place, has counted less: it would send with ratchet keys
that were used before, and answer knocks with one-time keys that are spent.

Owns the rule. Leaves asking and publishing to the shell.
"""

from collections.abc import Mapping

from meshlib.errors import StoreError

EPOCH_KEY = "mesh_epoch"
"""Where an agent's public metadata says how far its store has counted."""


def published_epoch(metadata: Mapping[str, object]) -> int:
    """How far the registry knows a store to have counted; 0 when it does not say."""
    published = metadata.get(EPOCH_KEY)
    return int(published) if isinstance(published, str) and published.isdecimal() and published.isascii() else 0


def next_epoch(counted: int, published: int, *, fresh: bool = False) -> int:
    """What a store that has counted to ``counted`` counts next.

    Args:
        fresh: the store is empty. It goes on where the one before it stopped, whose copies stay refused.
    Raises:
        StoreError: the registry knows more than the store, so another copy of it has been used since.
    """
    if fresh:
        return published + 1
    if published > counted:
        raise StoreError(
            f"this store has counted to {counted}, but the registry to {published}: it is a copy or an old backup, and "
            "would use keys again. Use the newest one; if there is none, keep its identity and start with a new store"
        )
    return counted + 1
