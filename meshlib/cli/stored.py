"""What a store knows while no process uses it: whose it is, and the core a client would have, without a connection."""

import os
import time

from meshlib.cli.options import Settings
from meshlib.client.core import ClientCore, Profile
from meshlib.client.counters import Counters
from meshlib.client.stats import ClientStats
from meshlib.clock import Instant
from meshlib.identity import Identity
from meshlib.store import open_store
from meshlib.store.database import DATABASE_FILE
from meshlib.store.protocol import SavedState


def stored_identity(settings: Settings) -> Identity | None:
    """The identity in the store; ``None`` when there is none. Makes nothing.

    Raises:
        IdentityInUse: an agent runs on the store.
        StoreError: the store cannot be read.
    """
    saved = _saved(settings)
    return None if saved.signing_key is None else Identity(saved.signing_key)


def stored_core(settings: Settings) -> ClientCore | None:
    """The core of the identity in the store; ``None`` when there is none. Makes nothing, saves nothing.

    Raises:
        IdentityInUse, StoreError: as with :func:`stored_identity`.
    """
    saved = _saved(settings)
    if saved.signing_key is None:
        return None
    identity = Identity(saved.signing_key)
    return ClientCore(Profile(identity, identity.did), saved, os.urandom)


def _saved(settings: Settings) -> SavedState:
    if not (settings.store / DATABASE_FILE).exists():
        return SavedState()
    store = open_store(settings.store, settings.passphrase)
    try:
        return store.load()
    finally:
        store.close()


def stored_stats(core: ClientCore) -> ClientStats:
    """The numbers of a client that does not run: what waits, and nothing counted."""
    now = Instant(time.monotonic(), time.time())
    return Counters(lambda: now).stats(core)
