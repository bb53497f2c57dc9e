"""What the relay asks of a store: whole transactions, called by one thread at a time."""

from typing import Protocol

from mesh_relay.records import Contents, Done, Work


class Inbox(Protocol):
    """A store of frames, credentials and used proofs."""

    blocking: bool
    """Whether its methods wait for a disk and belong into a thread."""

    def open(self) -> Contents:
        """Take possession, upgrade the schema if needed, and report what is there.

        Raises:
            StoreError: unreadable, of a newer version, or in use by another process.
        """

    def run(self, work: Work) -> Done:
        """Removals, then frames, then the rest in one transaction, durable on return; then the loads.

        A frame whose (recipient, sender, id) is stored already replaces the stored one, unless the bytes are the
        same: then the stored one keeps its place.

        Raises:
            StoreError: nothing has changed; the same work may be tried again.
        """

    def close(self) -> None:
        """Give it back. Idempotent."""
