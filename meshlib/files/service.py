"""Files, as a route of the client: takes the messages they travel in before the application sees them.

Owns who gets which message. Leaves sending to :mod:`meshlib.files.sender`, receiving to :mod:`meshlib.files.receiver`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import anyio

from meshlib.client.events import FileReceived
from meshlib.client.handles import Message
from meshlib.config import FilePolicy
from meshlib.errors import MalformedFrame, MeshError, PeerError
from meshlib.files.answers import Answers, Post
from meshlib.files.folder import Folder
from meshlib.files.journal import FolderJournal, Journal, MemoryJournal
from meshlib.files.ledger import Ledger, Notify
from meshlib.files.receipts import FileReceipt, OnTransfer
from meshlib.files.receiver import Receiver
from meshlib.files.records import Received, Receiving, Sending
from meshlib.files.sender import Sender
from meshlib.files.staging import Staging
from meshlib.identity import Did, Identity
from meshlib.wire.envelopes import Pong, envelope_type
from meshlib.wire.transfers import (
    FileOffer,
    FileTransfer,
    FileTransferAck,
    TransferCancel,
    TransferChunk,
    TransferChunkRequest,
    TransferComplete,
    TransferManifest,
    is_transfer,
    read_transfer,
)

JOURNAL = "transfers"
"""The folder of the journal, in the store's."""


class Files:
    """Files of one client, in both directions.

    Args:
        name: the display name peers are told.
        did: ours.
        identity: its key seals the journal.
        store: the store's folder; ``None`` for one in memory.
        folder: where files of peers go; ``None`` takes none.
        policy: of which peers.
        post: sends a payload.
        answer: sends what a peer made us say, which leaves room to what is ours.
        notify: puts a notice into the application's inbox.
        tell: tells an event.
        spawn: runs a task until the client is left.
        stamp: the current time as text.
        payload: bytes a payload may have as JSON.
        has_receipts: whether the relay says what was delivered.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        did: Did,
        identity: Identity,
        store: Path | None,
        folder: Folder | None,
        policy: FilePolicy,
        post: Post,
        answer: Post,
        notify: Notify,
        tell: Callable[[FileReceived], None],
        spawn: Callable[..., None],
        stamp: Callable[[], str],
        payload: int,
        has_receipts: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._journal: Journal = (
            MemoryJournal() if store is None else FolderJournal(store / JOURNAL, identity.signing_key)
        )
        self._spawn = spawn
        answers = Answers(name, answer, stamp, has_receipts, clock)
        self._sender = Sender(name, post, answers, self._journal, spawn, stamp, payload, has_receipts, clock)
        self._ledger = Ledger(answers, notify, tell, self._journal, clock)
        staging = Staging(did, folder, self._journal) if folder is not None else None
        self._receiver = Receiver(answers, self._ledger, staging, policy, spawn, clock)
        self._resumed: list[Sending] = []

    async def open(self) -> None:
        """Read what was on its way when the process before this one ended. Nothing is sent yet."""
        for record in await anyio.to_thread.run_sync(self._journal.load):
            match record:
                case Sending():
                    self._resumed.append(record)
                case Receiving():
                    self._receiver.restore(record)
                case Received():
                    self._ledger.restore(record)
        self._ledger.sort()

    async def start(self) -> None:
        """Go on with it."""
        for record in self._resumed:
            self._sender.resume(record)
        self._resumed.clear()
        await self._receiver.resume()
        self._spawn(self._receiver.keep_time)

    def close(self) -> None:
        """Let go of the folder."""
        if self._folder is not None:
            self._folder.close()

    def give_up(self, reason: MeshError | None) -> None:
        """Tell everybody who waits for a file that this client can do nothing more; ``None``: it can."""
        self._sender.give_up(reason)
        self._receiver.give_up(reason)

    async def send(self, peer: Did, path: Path, description: str, on_progress: OnTransfer | None) -> FileReceipt:
        """Send a file; see :meth:`meshlib.MeshClient.send_file`."""
        return await self._sender.send(peer, path, description, on_progress)

    def receipts(self) -> list[FileReceipt]:
        """Of everything that is on its way, in both directions."""
        return self._sender.receipts() + self._receiver.receipts()

    # --- a route -----------------------------------------------------------------------------------------------------

    def claims(self, sender: Did, payload: object) -> bool:
        """Whether a message is part of a file. Acks and pongs nobody waits for, and our own notices, are not."""
        match envelope_type(payload):
            case "file_transfer_ack" | "mesh:pong":
                try:
                    envelope = read_transfer(payload, "-")
                except PeerError:
                    return False
                return envelope is not None and self._sender.claims(sender, envelope)
            case "file_transfer":
                return not self._ledger.announced(sender, payload)
            case _:
                return is_transfer(payload)

    async def handle(self, message: Message) -> None:
        """Give a message to whom it concerns."""
        try:
            envelope = read_transfer(message.payload, message.id)
        except MalformedFrame as error:
            if error.frame_type in ("file_transfer", "file offer"):
                await self._receiver.malformed(message.sender, error)
            return
        match envelope:
            case FileTransfer() | FileOffer() | TransferManifest() | TransferChunk():
                await self._receiver.handle(message.sender, envelope)
            case TransferCancel():
                await self._receiver.handle(message.sender, envelope)
                await self._sender.handle(message.sender, envelope)
            case TransferChunkRequest() | TransferComplete() | FileTransferAck() | Pong():
                await self._sender.handle(message.sender, envelope)
