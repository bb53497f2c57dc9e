"""What whoever sends a file holds in its hands: how far it has come, and what became of it."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

import anyio

from meshlib.errors import MeshError, TransferFailed
from meshlib.identity import Did


class TransferState(StrEnum):
    """How far a file has come. The last four are final."""

    WAITING = "waiting"
    """For other files to the same peer, or for the peer to have its hands free."""
    OFFERED = "offered"
    """The peer has not answered yet; it may be absent."""
    MOVING = "moving"
    """Parts of it are on their way."""
    CHECKING = "checking"
    """Everything has arrived; the recipient compares the hash, or has not said a word yet."""
    DONE = "done"
    """It lies in the recipient's folder, and is what was sent."""
    UNCONFIRMED = "unconfirmed"
    """The recipient has it and said nothing for two minutes, as some in the field do."""
    CANCELLED = "cancelled"
    FAILED = "failed"


FINAL = (TransferState.DONE, TransferState.UNCONFIRMED, TransferState.CANCELLED, TransferState.FAILED)
"""States that a file does not leave any more."""


class FileReceipt:
    """What has become of a file of ours, or of one that a peer sends us.

    Attributes:
        id: of the transfer, the same over restarts of either side.
        peer: the other side's DID.
        path: the file that is sent, or the folder it is received into.
        name: as the sender calls it.
        size: bytes.
        incoming: whether it comes to us.
        state: how far it has come.
        moved: bytes the recipient has.
        detail: why, where there is more to say.
        reason: why it failed, for programs; see :class:`meshlib.TransferFailed`.
        saved_to: where the recipient says it lies.
    """

    def __init__(
        self,
        transfer: str,
        peer: Did,
        path: Path,
        name: str,
        size: int,
        cancel: Callable[[], Awaitable[None]],
        *,
        incoming: bool = False,
    ) -> None:
        self.id = transfer
        self.peer = peer
        self.path = path
        self.name = name
        self.size = size
        self.incoming = incoming
        self.state = TransferState.WAITING
        self.moved = 0
        self.detail = ""
        self.reason = ""
        self.saved_to = ""
        self._cancel = cancel
        self._changed = anyio.Event()
        self._hopeless: MeshError | None = None
        self._watchers: list[OnTransfer] = []

    def watch(self, told: "OnTransfer") -> None:
        """Have ``told`` called with this receipt whenever something changes."""
        self._watchers.append(told)

    def advance(self, state: TransferState, moved: int | None = None, detail: str = "", reason: str = "") -> None:
        """It has come further."""
        before = (self.state, self.moved)
        self.state = state
        self.moved = self.moved if moved is None else min(moved, self.size)
        self.detail = detail
        self.reason = reason
        if (self.state, self.moved) == before:
            return
        self._wake()
        for told in self._watchers:
            told(self)

    def give_up(self, reason: MeshError | None) -> None:
        """Nothing more will be heard from this client about it; ``None``: there is hope again."""
        self._hopeless = reason
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self) -> TransferState:
        """Wait until it is over. Bound the wait with ``anyio.fail_after``: an absent peer may stay away for days.

        Returns:
            ``DONE``, or ``UNCONFIRMED`` if the recipient has it and does not say what became of it.
        Raises:
            TransferFailed: it did not get there; nothing of it was delivered.
            MeshError: this client can do nothing more for it; it goes on when its store is opened again.
        """
        while self.state not in FINAL:
            if self._hopeless is not None:
                raise self._hopeless
            await self._changed.wait()
        if self.state in (TransferState.CANCELLED, TransferState.FAILED):
            raise TransferFailed(self.reason or "failed", self.detail or f"the transfer of {self.name!r} failed")
        return self.state

    async def cancel(self) -> None:
        """Stop it, and tell the other side. What the recipient has of it is removed."""
        await self._cancel()

    def __repr__(self) -> str:
        return f"<FileReceipt {self.id} {'from' if self.incoming else 'to'} {self.peer}: {self.state}>"


OnTransfer = Callable[[FileReceipt], None]
"""Called in the client's task with the receipt of a file that has come further."""
