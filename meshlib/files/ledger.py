"""Files of peers that have arrived, and who knows of them: the application once, the peer as soon as it can be told.

Owns the acks. What cannot be said now is said later; what a restart loses of that, for files in place, the journal
knows. Leaves files themselves to :mod:`meshlib.files.receiver`, and bounds of what a peer is told to
:mod:`meshlib.files.answers`.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from math import inf
from typing import Protocol

import anyio
from msgspec.structs import replace

from meshlib.client.events import FileReceived
from meshlib.errors import StoreError, TransferFailed
from meshlib.files.answers import AGAIN, Answer, Answers
from meshlib.files.journal import Journal
from meshlib.files.records import Key, Received, journal_key
from meshlib.identity import Did
from meshlib.logs import LogEvent
from meshlib.wire.transfers import FileTransfer, FileTransferAck, TransferComplete, write_transfer

log = logging.getLogger("meshlib.files")

REMEMBERED = 1_000
"""Received files remembered, to tell a repetition, and acks that wait: as many as may wait in the inbox."""
REPEATED_WITHIN = 300.0
"""Seconds in which the same file of the same peer is a repetition: senders in the field try three times in a minute."""


class Notify(Protocol):
    """What is needed of a client to tell the application of a file, once."""

    async def __call__(self, sender: Did, key: str, payload: object) -> None: ...


class Ledger:
    """What has arrived.

    Args:
        answers: tells peers.
        notify: puts a notice into the application's inbox.
        tell: tells an event.
        journal: where received files are noted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        answers: Answers,
        notify: Notify,
        tell: Callable[[FileReceived], None],
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._answers = answers
        self._notify = notify
        self._tell = tell
        self._journal = journal
        self._clock = clock
        self._received: OrderedDict[Key, Received] = OrderedDict()
        self._owed: OrderedDict[Key, list[Answer]] = OrderedDict()
        self.pay_at = inf
        """When :meth:`pay` has something to do."""

    # --- what is known -----------------------------------------------------------------------------------------------

    def restore(self, received: Received) -> None:
        """Know again what was noted before the process ended."""
        self._received[received.key] = received

    def sort(self) -> None:
        """The order in which files were received, once all of them are known."""
        for key in sorted(self._received, key=lambda key: self._received[key].at):
            self._received.move_to_end(key)

    def untold(self) -> list[Received]:
        """Files that application or peer may not know of."""
        return [one for one in self._received.values() if not one.told]

    def get(self, key: Key) -> Received | None:
        """A file, if it has arrived."""
        return self._received.get(key)

    def repeated(self, sender: Did, envelope: FileTransfer, digest: str) -> Received | None:
        """The file a peer sends another time."""
        known = self._received.get((sender, envelope.transfer_id))
        if known is not None:
            return known
        earliest = time.time() - REPEATED_WITHIN
        for one in reversed(self._received.values()):
            if one.at < earliest:
                break
            if (one.peer, one.name, one.sha256) == (sender, envelope.file_name, digest):
                return one
        return None

    def announced(self, sender: Did, payload: object) -> bool:
        """Whether a message is a notice of ours. Anybody can write one; ours tells of a file that this sender sent."""
        if not isinstance(payload, dict) or "saved_to" not in payload:
            return False
        named = payload.get("transfer_id")
        found = self._received.get((sender, named)) if isinstance(named, str) else None
        return found is not None and payload == write_transfer(_notice(found))

    # --- telling -----------------------------------------------------------------------------------------------------

    async def enter(self, received: Received) -> None:
        """A file is in its place: note that, then tell of it."""
        await self._note(received)
        await self.announce(received)

    async def announce(self, received: Received) -> None:
        """Tell the application, once, and the peer."""
        sender = Did(received.peer)
        await self._notify(sender, _notice_id(received), write_transfer(_notice(received)))
        self._tell(
            FileReceived(
                sender,
                received.id,
                received.saved_to,
                received.name,
                received.size,
                received.sha256,
                received.description,
            )
        )
        await self.acknowledge(received)

    async def acknowledge(self, received: Received) -> None:
        """Tell the peer, as often as it asks."""
        ack = FileTransferAck(
            file_name=received.name,
            success=True,
            saved_to=received.saved_to.rpartition("/")[2],
            size_bytes=received.size,
            transfer_id=received.id,
        )
        if received.style == "pieces":  # who sends in pieces keeps them until it hears that they are complete
            await self._owe(received.key, TransferComplete(transfer_id=received.id), ack)
        else:
            await self._owe(received.key, ack)

    async def fail(self, key: Key, file_name: str, error: TransferFailed) -> None:
        """Tell a peer that a file did not arrive which was to."""
        await self._owe(key, refusal(key[1], file_name, error))

    async def pay(self) -> None:
        """Say what could not be said before."""
        self.pay_at = inf
        for key in list(self._owed):
            await self._pay(key)

    async def _owe(self, key: Key, *answers: Answer) -> None:
        self._owed[key] = list(answers)
        if len(self._owed) > REMEMBERED:
            self._owed.popitem(last=False)
        await self._pay(key)

    async def _pay(self, key: Key) -> None:
        peer, answers = key[0], self._owed[key]
        while answers:
            if not await self._answers.say(peer, answers[0]):
                self.pay_at = min(self.pay_at, self._clock() + AGAIN)
                return
            del answers[0]
        del self._owed[key]
        received = self._received.get(key)
        if received is not None and not received.told:
            await self._note(replace(received, told=True))

    async def _note(self, received: Received) -> None:
        self._received[received.key] = received
        try:
            await anyio.to_thread.run_sync(self._journal.put, journal_key(received), received)
        except StoreError as error:
            # It lies in its place all the same; from the older record a restart finds it there, and tells of it again.
            log.warning(LogEvent("arrival_not_noted", peer=received.peer, detail=error))
        while len(self._received) > REMEMBERED:
            _, oldest = self._received.popitem(last=False)
            await anyio.to_thread.run_sync(self._journal.drop, journal_key(oldest))


def refusal(transfer: str, file_name: str, error: TransferFailed) -> FileTransferAck:
    """Why a file was not taken."""
    return FileTransferAck(
        file_name=file_name, success=False, error=str(error), reason=error.reason, transfer_id=transfer
    )


def _notice(received: Received) -> FileTransfer:
    return FileTransfer(
        file_name=received.name,
        size_bytes=received.size,
        description=received.description,
        transfer_id=received.id,
        sha256=received.sha256,
        saved_to=received.saved_to,
    )


def _notice_id(received: Received) -> str:
    """The id of the notice of a file: the same each time, so that it is put into the inbox once."""
    return "file-" + sha256(journal_key(received).encode()).hexdigest()[:32]
