"""Receives files: decides which may come, and does what :mod:`meshlib.files.incoming` wishes.

Owns the order of steps at the end: the hash fits what lies on the disk, then the file is moved into place, then that it
is there is noted, then the application and the peer are told. A process that is killed between two of them goes on with
the next one. Leaves the disk to :mod:`meshlib.files.staging`, and telling to :mod:`meshlib.files.ledger`.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256

import anyio
from msgspec.structs import replace

from meshlib.config import FilePolicy
from meshlib.errors import MalformedFrame, MeshError, StoreError, TransferFailed
from meshlib.files.answers import AGAIN, Answers
from meshlib.files.arrivals import Arrivals, Arriving
from meshlib.files.incoming import WINDOW, Ask, Assembly, Deliver, Fail, Fetch, Save, Verify, Wish, Write
from meshlib.files.ledger import Ledger, refusal
from meshlib.files.receipts import FileReceipt, TransferState
from meshlib.files.records import Key, Receiving
from meshlib.files.staging import Staging, digest_of, not_saved
from meshlib.identity import Did
from meshlib.logs import LogEvent
from meshlib.wire.transfers import (
    MAX_PIECE,
    MAX_PIECES,
    FileOffer,
    FileTransfer,
    TransferCancel,
    TransferChunk,
    TransferChunkRequest,
    TransferManifest,
)

log = logging.getLogger("meshlib.files")

CHUNKS_ON_THE_WAY = 64
"""Chunks asked for and not come, over all files."""


class Receiver:
    """Files of peers on their way.

    Args:
        answers: tells peers.
        ledger: knows what has arrived.
        staging: where it lies meanwhile; ``None`` takes no files.
        policy: whose.
        spawn: runs a task until the client is left.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        answers: Answers,
        ledger: Ledger,
        staging: Staging | None,
        policy: FilePolicy,
        spawn: Callable[..., None],
        clock: Callable[[], float],
    ) -> None:
        self._answers = answers
        self._ledger = ledger
        self._staging = staging
        self._policy = policy
        self._spawn = spawn
        self._clock = clock
        self._arriving = Arrivals()
        self._lock = anyio.Lock()
        self._due = anyio.Event()

    def receipts(self) -> list[FileReceipt]:
        """Of everything that is on its way."""
        return [one.receipt for one in self._arriving]

    def give_up(self, reason: MeshError | None) -> None:
        """Tell everybody who waits that nothing more will happen here."""
        for one in self._arriving:
            one.receipt.give_up(reason)

    # --- after a restart ---------------------------------------------------------------------------------------------

    def restore(self, record: Receiving) -> None:
        """Know again what was noted before the process ended."""
        if self._staging is not None:
            one = self._make(self._staging, record, len(self._arriving))
            one.resting = True  # until its peer is there again
            self._arriving.add(one)

    async def resume(self) -> None:
        """Go on with what was on its way."""
        staging = self._staging
        if staging is None:
            return
        async with self._lock:
            untold = self._ledger.untold()
            await anyio.to_thread.run_sync(staging.sweep, [one.record for one in self._arriving])
            for one in self._arriving:
                if one.record.place:
                    await self._do(one, [Deliver()])
                elif one.record.style == "whole" or not staging.has(one.record):
                    await self._forget(one)  # its message comes again, or its sender asks
                else:
                    await self._do(one, one.core.start(self._clock()))
            for received in untold:
                await self._ledger.announce(received)

    # --- what peers say ----------------------------------------------------------------------------------------------

    async def handle(self, sender: Did, envelope: object) -> None:
        """Take what a peer sends of a file."""
        async with self._lock:
            try:
                match envelope:
                    case FileTransfer():
                        await self._whole(sender, envelope)
                    case FileOffer():
                        await self._offer(sender, envelope)
                    case TransferManifest():
                        await self._manifest(sender, envelope)
                    case TransferChunk():
                        await self._chunk(sender, envelope)
                    case TransferCancel():
                        await self._cancelled(sender, envelope)
            except TransferFailed as error:
                log.info(LogEvent("file_not_taken", peer=sender, detail=error, cause=error.__cause__))
                match envelope:
                    case FileTransfer() | FileOffer():
                        await self._answers.refuse(sender, refusal(envelope.transfer_id, envelope.file_name, error))
                    case TransferManifest():
                        await self._answers.refuse(sender, refusal(envelope.transfer_id, "", error))
        self._due.set()

    async def malformed(self, sender: Did, error: MalformedFrame) -> None:
        """A file in one message, or an offer, has impossible members: say so to whoever waits for an ack."""
        refused = TransferFailed("failed", f"not taken: {error}")
        await self._answers.refuse(sender, refusal(error.id or "", "", refused))

    async def _whole(self, sender: Did, envelope: FileTransfer) -> None:
        data = envelope.file_data
        if data is None:
            return  # a notice of ours has not come from a peer; whoever sends one gets nothing for it
        known = self._ledger.repeated(sender, envelope, sha256(data).hexdigest())
        if known is not None:
            await self._ledger.acknowledge(known)
            return
        staging = self._check(sender)
        await self._check_room(staging, len(data))
        record = Receiving(
            id=envelope.transfer_id,
            peer=sender,
            name=envelope.file_name,
            size=len(data),
            sha256=digest_of(envelope),
            description=envelope.description,
            style="whole",
            started=time.time(),
        )
        await self._ledger.enter(await anyio.to_thread.run_sync(staging.place_whole, record, data))

    async def _offer(self, sender: Did, offer: FileOffer) -> None:
        key = (sender, offer.transfer_id)
        known = self._ledger.get(key)
        if known is not None:
            await self._ledger.acknowledge(known)
            return
        one = self._arriving.get(key)
        if one is None:
            staging = self._check(sender)
            await self._reserve(staging, sender, offer.size_bytes)
            record = Receiving(
                id=offer.transfer_id,
                peer=sender,
                name=offer.file_name,
                size=offer.size_bytes,
                sha256=offer.sha256,
                description=offer.description,
                chunk=offer.chunk_bytes,
                style="pulled",
                started=time.time(),
            )
            one = await self._begin(staging, record)
        elif not await self._returns(one):
            raise _busy()
        await self._do(one, one.core.start(self._clock()))

    async def _manifest(self, sender: Did, manifest: TransferManifest) -> None:
        key = (sender, manifest.transfer_id)
        if self._ledger.get(key) is not None or self._arriving.get(key) is not None:
            return
        if manifest.original_type != "file_transfer":
            raise TransferFailed("refused", "only files may be sent in pieces")
        if manifest.total_bytes > MAX_PIECES * MAX_PIECE:
            raise TransferFailed("refused", f"a message in pieces has at most {MAX_PIECES * MAX_PIECE} characters")
        staging = self._check(sender)
        await self._reserve(staging, sender, 2 * manifest.total_bytes)  # the text, and the file that is in it
        record = Receiving(
            id=manifest.transfer_id,
            peer=sender,
            name="",
            size=manifest.total_bytes,
            style="pieces",
            hashes=manifest.chunk_hashes,
            manifest=manifest.manifest_hash,
            started=time.time(),
        )
        one = await self._begin(staging, record)
        await self._do(one, one.core.start(self._clock()))

    async def _chunk(self, sender: Did, chunk: TransferChunk) -> None:
        one = self._arriving.get((sender, chunk.transfer_id))
        if one is not None and await self._returns(one):
            await self._do(one, one.core.take(chunk, self._clock()))

    async def _cancelled(self, sender: Did, cancel: TransferCancel) -> None:
        one = self._arriving.get((sender, cancel.transfer_id))
        if one is not None:
            await self._forget(one)
            detail = cancel.error or "the sender cancelled the transfer"
            one.receipt.advance(TransferState.CANCELLED, None, detail, "cancelled")

    # --- who may -----------------------------------------------------------------------------------------------------

    def _check(self, sender: Did) -> Staging:
        """Whether a file may come from this peer.

        Raises:
            TransferFailed: no. The peer learns that it is unwanted, and nothing else.
        """
        if self._staging is None or not self._policy(sender):
            raise TransferFailed("refused", "the recipient takes no files of this sender")
        return self._staging

    async def _reserve(self, staging: Staging, sender: str, size: int) -> None:
        """Find a place for a file that comes in parts, and room on the disk. Who is silent makes way.

        Raises:
            TransferFailed: there is none.
        """
        if not self._arriving.has_place(sender, self._clock()):
            raise _busy()
        await self._check_room(staging, size)

    async def _check_room(self, staging: Staging, size: int) -> None:
        try:
            await anyio.to_thread.run_sync(staging.check_room, size, self._arriving.promised)
        except TransferFailed:
            self._arriving.rest_idle(self._clock())  # what they promised to fill is free again
            await anyio.to_thread.run_sync(staging.check_room, size, self._arriving.promised)

    async def _returns(self, one: Arriving) -> bool:
        """Whether a file has its place: one that rests gets a new one if its peer is there again, and there is one."""
        if one.resting and self._staging is not None:
            missing = max(0, one.record.size - one.core.received_bytes)
            try:
                await self._reserve(self._staging, one.record.peer, missing)
            except TransferFailed:
                return False
            one.resting = False
        return True

    async def _begin(self, staging: Staging, record: Receiving) -> Arriving:
        for silent in self._arriving.surplus():
            await self._forget(silent)
            silent.receipt.advance(TransferState.FAILED, None, "it was silent, and others need the room", "expired")
            await self._answers.refuse(silent.record.peer, refusal(silent.record.id, silent.record.name, _busy()))
        await anyio.to_thread.run_sync(staging.begin, record)
        one = self._make(staging, record, len(self._arriving.placed()))
        self._arriving.add(one)
        return one

    def _make(self, staging: Staging, record: Receiving, others: int) -> Arriving:
        now = self._clock()
        core: Fetch | Assembly
        if record.style == "pulled":
            core = Fetch(record, now, min(WINDOW, CHUNKS_ON_THE_WAY // (others + 1)))
        else:
            core = Assembly(record, now)
        cancel = partial(self._cancel, record.key)
        receipt = FileReceipt(
            record.id, Did(record.peer), staging.path, record.name, record.size, cancel, incoming=True
        )
        return Arriving(record, core, receipt)

    # --- what the core wishes ----------------------------------------------------------------------------------------

    async def _do(self, one: Arriving, wishes: list[Wish]) -> None:
        assert self._staging is not None
        waiting = list(wishes)
        while waiting:
            try:
                waiting += await self._do_one(self._staging, one, waiting.pop(0))
            except (TransferFailed, StoreError) as error:
                if self._arriving.get(one.key) is not one:
                    raise  # it is in place: what fails is our own store
                log.warning(LogEvent("file_not_kept", peer=one.record.peer, detail=error.__cause__ or error))
                failed = not_saved(error)
                waiting = one.core.fail(failed.reason, str(failed))

    async def _do_one(self, staging: Staging, one: Arriving, wish: Wish) -> list[Wish]:
        record, core = one.record, one.core
        match wish:
            case Ask(missing):
                there = core.received_bytes if isinstance(core, Fetch) else 0
                ask = TransferChunkRequest(transfer_id=record.id, missing=missing, received_bytes=there)
                if not await self._answers.say(record.peer, ask):
                    core.put_off(self._clock() + AGAIN)
            case Write(index, offset, data):
                await anyio.to_thread.run_sync(staging.write, record, offset, data)
                one.receipt.advance(TransferState.MOVING, core.received_bytes)
                if isinstance(core, Fetch):
                    return core.written(index, self._clock())
                return core.written(index, len(data))
            case Save():
                if isinstance(core, Fetch):
                    one.record = replace(record, have=core.have)
                else:
                    one.record = replace(record, lengths=tuple(core.lengths))
                await anyio.to_thread.run_sync(staging.save, one.record)
            case Verify():
                one.receipt.advance(TransferState.CHECKING, record.size)
                self._spawn(self._verify, staging, one)
            case Deliver():
                received = await anyio.to_thread.run_sync(staging.place, record)
                self._arriving.drop(one)
                await self._ledger.enter(received)
                one.receipt.advance(TransferState.DONE, record.size)
            case Fail(reason, detail):
                await self._forget(one)
                one.receipt.advance(TransferState.FAILED, None, detail, reason)
                await self._ledger.fail(one.key, record.name, TransferFailed(reason, detail))
        return []

    async def _verify(self, staging: Staging, one: Arriving) -> None:
        """Look at what lies on the disk; hashing a large file takes seconds, in which others go on."""
        core = one.core
        wishes: list[Wish]
        try:
            if isinstance(core, Fetch):
                size, digest = await anyio.to_thread.run_sync(staging.digest, one.record)
                wishes = core.verified(size, digest, self._clock())
            else:
                one.record = await anyio.to_thread.run_sync(staging.put_together, one.record)
                wishes = core.verified()
        except TransferFailed as error:
            wishes = core.fail(error.reason, str(error))
        async with self._lock:
            if self._arriving.get(one.key) is one:
                await self._do(one, wishes)
        self._due.set()

    async def _cancel(self, key: Key) -> None:
        async with self._lock:
            one = self._arriving.get(key)
            if one is not None:
                await self._do(one, one.core.fail("cancelled", "the recipient cancelled the transfer"))

    async def _forget(self, one: Arriving) -> None:
        self._arriving.drop(one)
        if self._staging is not None:
            await anyio.to_thread.run_sync(self._staging.forget, one.record)

    # --- time --------------------------------------------------------------------------------------------------------

    async def keep_time(self) -> None:
        """Ask again, give up, and say what could not be said before, when it is time to."""
        while True:
            self._due = anyio.Event()
            deadline = min([self._ledger.pay_at, *(one.core.next_deadline() for one in self._arriving)])
            with anyio.move_on_after(max(0.0, deadline - self._clock())):
                await self._due.wait()
                continue
            async with self._lock:
                for one in self._arriving:
                    await self._do(one, one.core.tick(self._clock()))
                if self._ledger.pay_at <= self._clock():
                    await self._ledger.pay()


def _busy() -> TransferFailed:
    return TransferFailed("busy", "the recipient has its hands full with other files: it is to be offered again")
