"""``mesh identity``: make and show the key an agent is known by."""

import os
from argparse import Namespace
from collections.abc import Mapping

from meshlib.cli.exits import Exit
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console, Style
from meshlib.cli.stored import stored_identity
from meshlib.errors import StoreError
from meshlib.identity import Identity
from meshlib.store import open_store
from meshlib.store.protocol import Changes
from meshlib.wire.encoding import b64url


def create(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Make an identity in the store; one that is there already stays."""
    settings = settings_from(arguments, environment)
    store = open_store(settings.store, settings.passphrase)
    try:
        key = store.load().signing_key
        identity = Identity(key) if key else Identity.generate(os.urandom)
        if key is None:
            store.save(Changes(signing_key=identity.signing_key))
    finally:
        store.close()
    _show(console, settings, identity, created=key is None)
    return Exit.OK


def show(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Show the identity of the store."""
    settings = settings_from(arguments, environment)
    identity = stored_identity(settings)
    if identity is None:
        hint = f" --name {settings.name}" if settings.name else ""
        raise StoreError(f"there is no identity in {settings.store}: make one with: mesh identity create{hint}")
    _show(console, settings, identity)
    return Exit.OK


def _show(console: Console, settings: Settings, identity: Identity, **more: bool) -> None:
    facts = {"did": str(identity.did), "public_key": b64url(bytes(identity.public_key)), "store": str(settings.store)}
    if console.json:
        console.emit(**facts, name=settings.name, **more)
        return
    if more:
        console.say("identity made" if more["created"] else "the identity is there already")
    rows = [["did", facts["did"]], ["public key", facts["public_key"]], ["store", facts["store"]]]
    console.table(rows, (Style.DIM, Style.BOLD))
