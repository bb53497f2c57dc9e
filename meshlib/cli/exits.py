"""What the exit status of ``mesh`` means, for scripts. docs/operations.md holds the same table."""

from enum import IntEnum

from meshlib.errors import (
    IdentityInUse,
    MeshError,
    PeerError,
    QueueFull,
    ServiceError,
    StoreError,
    TaskUnfinished,
    UsageError,
)


class Exit(IntEnum):
    """Exit status of every ``mesh`` command."""

    OK = 0
    FAILED = 1
    """Something could not be reached, or a check found a fault. Trying later can help."""
    USAGE = 2
    """The call cannot work as it was made."""
    REFUSED = 3
    """Relay, registry or peer said no, or nobody has that name."""
    STORE = 4
    """The store cannot be used: in use by another process, not readable, wrong passphrase."""
    TIMEOUT = 5
    """``--timeout`` passed. A message stays in the outbox; a task was called off."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """Whoever read our output has gone."""


MEANINGS = (
    (Exit.OK, "done"),
    (Exit.FAILED, "not reachable, or a check found a fault"),
    (Exit.USAGE, "wrong call"),
    (Exit.REFUSED, "refused, or nobody has that name"),
    (Exit.STORE, "the store cannot be used"),
    (Exit.TIMEOUT, "--timeout passed"),
    (Exit.INTERRUPTED, "interrupted"),
)


def exit_for(error: MeshError) -> Exit:
    """The exit status an error ends the command with."""
    match error:
        case IdentityInUse() | StoreError():
            return Exit.STORE
        case QueueFull():
            return Exit.FAILED
        case UsageError():
            return Exit.USAGE
        case ServiceError() | PeerError():
            return Exit.REFUSED
        case TaskUnfinished():
            return Exit.TIMEOUT
        case _:
            return Exit.FAILED
