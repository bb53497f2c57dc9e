"""Receives files: writes them, and does what :mod:`meshlib.files.incoming` wishes.

Owns the order of steps at the end: the hash fits what lies on the disk, then the place is noted, then the file is moved
there, then that it is there is noted, then the application and the peer are told. A process that is killed between two
of them goes on with the next one.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol

import anyio
from msgspec.structs import replace

from meshlib.client.events import FileReceived
from meshlib.config import FilePolicy
from meshlib.errors import MalformedFrame, MeshError, StoreError, TransferFailed
from meshlib.files.answers import AGAIN, Answer, Answers
from meshlib.files.arrivals import Arrivals, Arriving, Key
from meshlib.files.folder import Folder, Usage, safe_name
from meshlib.files.incoming import SLOT, WINDOW, Ask, Assembly, Deliver, Fail, Fetch, Save, Verify, Wish, Write
from meshlib.files.journal import Journal
from meshlib.files.receipts import FileReceipt, TransferState
from meshlib.files.records import Received, Receiving
from meshlib.identity import Did
from meshlib.wire.encoding import parse_json
from meshlib.wire.transfers import (
    MAX_PIECE,
    MAX_PIECES,
    FileOffer,
    FileTransfer,
    FileTransferAck,
    TransferCancel,
    TransferChunk,
    TransferChunkRequest,
    TransferComplete,
    TransferManifest,
    read_transfer,
    write_transfer,
)

log = logging.getLogger("meshlib.files")

CHUNKS_ON_THE_WAY = 64
"""Chunks asked for and not come, over all files."""
REMEMBERED = 1_000
"""Received files remembered, to tell a repetition: as many as may wait in the inbox."""
REPEATED_WITHIN = 300.0
"""Seconds in which the same file of the same peer is a repetition: senders in the field try three times in a minute."""


class Notify(Protocol):
    """What is needed of a client to tell the application of a file, once."""

    async def __call__(self, sender: Did, key: str, payload: object) -> None: ...


class Receiver:
    """Files of peers on their way.

    Args:
        owner: our DID; keeps unfinished files of several agents with one folder apart.
        answers: tells peers.
        notify: puts a notice into the application's inbox.
        tell: tells an event.
        journal: where files on their way are noted.
        folder: where they go; ``None`` takes no files.
        policy: whose.
        spawn: runs a task until the client is left.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        owner: Did,
        answers: Answers,
        notify: Notify,
        tell: Callable[[FileReceived], None],
        journal: Journal,
        folder: Folder | None,
        policy: FilePolicy,
        spawn: Callable[..., None],
        clock: Callable[[], float],
    ) -> None:
        self._owner = hashlib.sha256(owner.encode()).hexdigest()[:8]
        self._answers = answers
        self._notify = notify
        self._tell = tell
        self._journal = journal
        self._folder = folder
        self._policy = policy
        self._spawn = spawn
        self._clock = clock
        self._arriving = Arrivals()
        self._received: OrderedDict[Key, Received] = OrderedDict()
        self._owed: OrderedDict[Key, list[Answer]] = OrderedDict()
        self._pay_at = inf
        self._lock = anyio.Lock()
        self.due = anyio.Event()
        """Set when the next deadline may have become an earlier one."""

    def receipts(self) -> list[FileReceipt]:
        """Of everything that is on its way."""
        return [one.receipt for one in self._arriving]

    def give_up(self, reason: MeshError | None) -> None:
        """Tell everybody who waits that nothing more will happen here."""
        for one in self._arriving:
            one.receipt.give_up(reason)

    def announced(self, sender: Did, payload: object) -> bool:
        """Whether a message is a notice of ours. Anybody can write one; ours tells of a file that this sender sent."""
        if not isinstance(payload, dict) or "saved_to" not in payload:
            return False
        named = payload.get("transfer_id")
        found = self._received.get((sender, named)) if isinstance(named, str) else None
        return found is not None and payload == write_transfer(_notice(found))

    # --- after a restart ---------------------------------------------------------------------------------------------

    def restore(self, record: Receiving | Received) -> None:
        """Know again what was noted before the process ended."""
        key = (record.peer, record.id)
        if isinstance(record, Received):
            self._received[key] = record
        elif self._folder is not None:
            one = self._make(record, len(self._arriving))
            one.resting = True  # until its peer is there again
            self._arriving.add(one)

    def sort(self) -> None:
        """The order in which files were received, once all of them are known."""
        for key in sorted(self._received, key=lambda key: self._received[key].at):
            self._received.move_to_end(key)

    async def resume(self) -> None:
        """Go on with what was on its way."""
        if self._folder is None:
            return
        async with self._lock:
            untold = [one for one in self._received.values() if not one.told]
            known = {self._part(one.record) for one in self._arriving}
            known |= {part + ".json" for part in known}
            for part in await anyio.to_thread.run_sync(self._folder.parts):
                if part.startswith(f"{self._owner}-") and part not in known:
                    await anyio.to_thread.run_sync(self._folder.discard, part)
            for one in self._arriving:
                if one.record.place:
                    await self._do(one, [Deliver()])
                elif one.record.style == "whole" or not self._folder.has_part(self._stage(one.record)):
                    await self._forget(one)  # its message comes again, or its sender asks
                else:
                    await self._do(one, one.core.start(self._clock()))
            for received in untold:
                await self._announce(received)

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
                log.info("a file of %s is not taken: %s (%s)", sender, error, error.__cause__)
                match envelope:
                    case FileTransfer() | FileOffer():
                        await self._answers.refuse(sender, _refusal(envelope.transfer_id, envelope.file_name, error))
                    case TransferManifest():
                        await self._answers.refuse(sender, _refusal(envelope.transfer_id, "", error))
        self._wake()

    async def malformed(self, sender: Did, error: MalformedFrame) -> None:
        """A file in one message, or an offer, has impossible members: say so to whoever waits for an ack."""
        refused = TransferFailed("failed", f"not taken: {error}")
        await self._answers.refuse(sender, _refusal(error.id or "", "", refused))

    async def _whole(self, sender: Did, envelope: FileTransfer) -> None:
        if envelope.file_data is None:
            return  # a notice of ours has not come from a peer; whoever sends one gets nothing for it
        digest = hashlib.sha256(envelope.file_data).hexdigest()
        known = self._repeated(sender, envelope, digest)
        if known is not None:
            await self._acknowledge(known)
            return
        folder = self._check(sender)
        await self._check_room(folder, len(envelope.file_data))
        if envelope.sha256 and envelope.sha256 != digest:
            raise TransferFailed("mismatch", "what arrived is not what was sent; nothing of it was kept")
        record = Receiving(
            id=envelope.transfer_id,
            peer=sender,
            name=envelope.file_name,
            size=len(envelope.file_data),
            sha256=digest,
            description=envelope.description,
            style="whole",
            started=time.time(),
        )
        await self._write_whole(folder, record, envelope.file_data)

    async def _write_whole(self, folder: Folder, record: Receiving, data: bytes) -> None:
        part = self._part(record)
        try:
            await anyio.to_thread.run_sync(folder.make_part, part)
            await anyio.to_thread.run_sync(folder.write, part, 0, data)
            received = await self._place(record)
        except (TransferFailed, StoreError) as error:
            folder.discard(part)
            await anyio.to_thread.run_sync(self._journal.drop, _key(record))
            raise _not_saved(error) from error
        await self._announce(received)

    def _repeated(self, sender: Did, envelope: FileTransfer, digest: str) -> Received | None:
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

    async def _offer(self, sender: Did, offer: FileOffer) -> None:
        key = (sender, offer.transfer_id)
        if key in self._received:
            await self._acknowledge(self._received[key])
            return
        one = self._arriving.get(key)
        if one is None:
            folder = self._check(sender)
            await self._reserve(folder, sender, offer.size_bytes)
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
            one = await self._begin(folder, record)
        elif not await self._returns(one):
            raise _busy()
        await self._do(one, one.core.start(self._clock()))

    async def _manifest(self, sender: Did, manifest: TransferManifest) -> None:
        key = (sender, manifest.transfer_id)
        if key in self._received or self._arriving.get(key) is not None:
            return
        if manifest.original_type != "file_transfer":
            raise TransferFailed("refused", "only files may be sent in pieces")
        if manifest.total_bytes > MAX_PIECES * MAX_PIECE:
            raise TransferFailed("refused", f"a message in pieces has at most {MAX_PIECES * MAX_PIECE} characters")
        folder = self._check(sender)
        await self._reserve(folder, sender, 2 * manifest.total_bytes)  # the text, and the file that is in it
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
        one = await self._begin(folder, record)
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

    def _check(self, sender: Did) -> Folder:
        """Whether a file may come from this peer.

        Raises:
            TransferFailed: no. The peer learns that it is unwanted, and nothing else.
        """
        if self._folder is None or not self._policy(sender):
            raise TransferFailed("refused", "the recipient takes no files of this sender")
        return self._folder

    async def _reserve(self, folder: Folder, sender: str, size: int) -> None:
        """Find a place for a file that comes in parts, and room on the disk. Who is silent makes way.

        Raises:
            TransferFailed: there is none.
        """
        if not self._arriving.has_place(sender, self._clock()):
            raise _busy()
        await self._check_room(folder, size)

    async def _check_room(self, folder: Folder, size: int) -> None:
        try:
            await anyio.to_thread.run_sync(folder.check_room, size, Usage(self._arriving.promised, 0))
        except TransferFailed:
            self._arriving.rest_idle(self._clock())  # what they promised to fill is free again
            await anyio.to_thread.run_sync(folder.check_room, size, Usage(self._arriving.promised, 0))

    async def _returns(self, one: Arriving) -> bool:
        """Whether a file has its place: one that rests gets a new one if its peer is there again, and there is one."""
        if one.resting and self._folder is not None:
            missing = max(0, one.record.size - one.core.received_bytes)
            try:
                await self._reserve(self._folder, one.record.peer, missing)
            except TransferFailed:
                return False
            one.resting = False
        return True

    async def _begin(self, folder: Folder, record: Receiving) -> Arriving:
        for silent in self._arriving.surplus():
            await self._forget(silent)
            silent.receipt.advance(TransferState.FAILED, None, "it was silent, and others need the room", "expired")
            await self._answers.refuse(silent.record.peer, _refusal(silent.record.id, silent.record.name, _busy()))
        await anyio.to_thread.run_sync(folder.make_part, self._stage(record))
        one = self._make(record, len(self._arriving.placed()))
        try:
            await anyio.to_thread.run_sync(self._journal.put, _key(record), record)
        except StoreError as error:
            folder.discard(self._stage(record))
            raise TransferFailed("failed", "the recipient cannot save the file") from error
        self._arriving.add(one)
        return one

    def _make(self, record: Receiving, others: int) -> Arriving:
        now = self._clock()
        core: Fetch | Assembly
        if record.style == "pulled":
            core = Fetch(record, now, min(WINDOW, CHUNKS_ON_THE_WAY // (others + 1)))
        else:
            core = Assembly(record, now)
        assert self._folder is not None
        cancel = partial(self._cancel, (record.peer, record.id))
        receipt = FileReceipt(
            record.id, Did(record.peer), self._folder.path, record.name, record.size, cancel, incoming=True
        )
        return Arriving(record, core, receipt)

    # --- what the core wishes ----------------------------------------------------------------------------------------

    async def _do(self, one: Arriving, wishes: list[Wish]) -> None:
        waiting = list(wishes)
        while waiting:
            try:
                waiting += await self._do_one(one, waiting.pop(0))
            except (TransferFailed, StoreError) as error:
                if self._arriving.get(one.key) is not one:
                    raise  # it is in place: what fails is our own store
                log.warning("a file of %s cannot be kept: %s", one.record.peer, error.__cause__ or error)
                failed = _not_saved(error)
                waiting = one.core.fail(failed.reason, str(failed))

    async def _do_one(self, one: Arriving, wish: Wish) -> list[Wish]:
        assert self._folder is not None
        folder, record, core = self._folder, one.record, one.core
        match wish:
            case Ask(missing):
                there = core.received_bytes if isinstance(core, Fetch) else 0
                ask = TransferChunkRequest(transfer_id=record.id, missing=missing, received_bytes=there)
                if not await self._answers.say(record.peer, ask):
                    core.put_off(self._clock() + AGAIN)
            case Write(index, offset, data):
                await anyio.to_thread.run_sync(folder.write, self._stage(record), offset, data)
                one.receipt.advance(TransferState.MOVING, core.received_bytes)
                if isinstance(core, Fetch):
                    return core.written(index, self._clock())
                return core.written(index, len(data))
            case Save():
                await anyio.to_thread.run_sync(folder.sync, self._stage(record))
                if isinstance(core, Fetch):
                    one.record = replace(record, have=core.have)
                else:
                    one.record = replace(record, lengths=tuple(core.lengths))
                await anyio.to_thread.run_sync(self._journal.put, _key(record), one.record)
            case Verify():
                one.receipt.advance(TransferState.CHECKING, record.size)
                self._spawn(self._verify, one)
            case Deliver():
                received = await self._place(record)
                self._arriving.drop(one)
                folder.discard(self._part(record) + ".json")
                await self._announce(received)
                one.receipt.advance(TransferState.DONE, record.size)
            case Fail(reason, detail):
                await self._forget(one)
                one.receipt.advance(TransferState.FAILED, None, detail, reason)
                await self._owe(one.key, _refusal(record.id, record.name, TransferFailed(reason, detail)))
        return []

    async def _verify(self, one: Arriving) -> None:
        """Look at what lies on the disk; hashing a large file takes seconds, in which others go on."""
        assert self._folder is not None
        core, folder = one.core, self._folder
        wishes: list[Wish]
        try:
            if isinstance(core, Fetch):
                part = self._part(one.record)
                await anyio.to_thread.run_sync(folder.sync, part)
                size, digest = await anyio.to_thread.run_sync(folder.digest, part)
                wishes = core.verified(size, digest, self._clock())
            else:
                one.record = await anyio.to_thread.run_sync(self._put_together, folder, one.record)
                wishes = core.verified()
        except TransferFailed as error:
            wishes = core.fail(error.reason, str(error))
        async with self._lock:
            if self._arriving.get(one.key) is one:
                await self._do(one, wishes)
        self._wake()

    def _put_together(self, folder: Folder, record: Receiving) -> Receiving:
        """Take the file out of an envelope that came in pieces. Its text has at most 40 Mi characters."""
        stage, part = self._stage(record), self._part(record)
        pieces = [folder.read(stage, index * SLOT, length) for index, length in enumerate(record.lengths)]
        try:
            # Not every piece is text: one that fits its hash may have been base64 of anything.
            text = b"".join(pieces).decode("utf-8", "surrogatepass")
            del pieces
            envelope = read_transfer(parse_json(text), record.id)
        except (UnicodeDecodeError, MalformedFrame) as error:
            raise TransferFailed("mismatch", "the pieces are no file_transfer") from error
        del text
        if not isinstance(envelope, FileTransfer) or envelope.file_data is None:
            raise TransferFailed("mismatch", "the pieces are no file_transfer")
        digest = hashlib.sha256(envelope.file_data).hexdigest()
        if envelope.sha256 not in ("", digest):
            raise TransferFailed("mismatch", "what arrived is not what was sent; nothing of it was kept")
        folder.make_part(part)
        folder.write(part, 0, envelope.file_data)
        return replace(
            record,
            name=envelope.file_name,
            description=envelope.description,
            size=len(envelope.file_data),
            sha256=digest,
        )

    async def _place(self, record: Receiving) -> Received:
        """Move a whole file into place.

        Raises:
            TransferFailed, StoreError: it cannot be moved there, or not noted before. It is not there then.
        """
        assert self._folder is not None
        folder, part = self._folder, self._part(record)
        if folder.has_part(part):
            await anyio.to_thread.run_sync(folder.sync, part)
        placed = bool(record.place) and await anyio.to_thread.run_sync(folder.place, part, record.place)
        while not placed:
            record = replace(record, place=await anyio.to_thread.run_sync(folder.free_name, safe_name(record.name)))
            await anyio.to_thread.run_sync(self._journal.put, _key(record), record)
            placed = await anyio.to_thread.run_sync(folder.place, part, record.place)
        received = Received(
            id=record.id,
            peer=record.peer,
            name=record.name,
            size=record.size,
            sha256=record.sha256,
            saved_to=str(folder.path / record.place),
            description=record.description,
            style=record.style,
            at=time.time(),
        )
        await self._note(received)
        return received

    async def _note(self, received: Received) -> None:
        self._received[received.peer, received.id] = received
        try:
            await anyio.to_thread.run_sync(self._journal.put, _key(received), received)
        except StoreError as error:
            # It lies in its place all the same; from the older record a restart finds it there, and tells of it again.
            log.warning("a file of %s has arrived, which cannot be noted: %s", received.peer, error)
        while len(self._received) > REMEMBERED:
            _, oldest = self._received.popitem(last=False)
            await anyio.to_thread.run_sync(self._journal.drop, _key(oldest))

    async def _announce(self, received: Received) -> None:
        """Tell the application, once, and the peer."""
        sender = Did(received.peer)
        await self._notify(sender, notice_id(received), write_transfer(_notice(received)))
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
        await self._acknowledge(received)

    async def _acknowledge(self, received: Received) -> None:
        """Tell the peer, as often as it asks."""
        ack = FileTransferAck(
            file_name=received.name,
            success=True,
            saved_to=received.saved_to.rpartition("/")[2],
            size_bytes=received.size,
            transfer_id=received.id,
        )
        key = (received.peer, received.id)
        if received.style == "pieces":  # who sends in pieces keeps them until it hears that they are complete
            await self._owe(key, TransferComplete(transfer_id=received.id), ack)
        else:
            await self._owe(key, ack)

    async def _owe(self, key: Key, *answers: Answer) -> None:
        """Tell a peer what has become of its file: now, or as soon as there is room."""
        self._owed[key] = list(answers)
        if len(self._owed) > REMEMBERED:
            self._owed.popitem(last=False)
        await self._pay(key)

    async def _pay(self, key: Key) -> None:
        peer, answers = key[0], self._owed[key]
        while answers:
            if not await self._answers.say(peer, answers[0]):
                self._pay_at = min(self._pay_at, self._clock() + AGAIN)
                return
            del answers[0]
        del self._owed[key]
        received = self._received.get(key)
        if received is not None and not received.told:
            await self._note(replace(received, told=True))

    async def _cancel(self, key: Key) -> None:
        async with self._lock:
            one = self._arriving.get(key)
            if one is not None:
                await self._do(one, one.core.fail("cancelled", "the recipient cancelled the transfer"))

    async def _forget(self, one: Arriving) -> None:
        self._arriving.drop(one)
        if self._folder is not None:
            await anyio.to_thread.run_sync(self._folder.discard, self._part(one.record))
            await anyio.to_thread.run_sync(self._folder.discard, self._part(one.record) + ".json")
        await anyio.to_thread.run_sync(self._journal.drop, _key(one.record))

    # --- time --------------------------------------------------------------------------------------------------------

    async def keep_time(self) -> None:
        """Ask again, and give up, when it is time to."""
        while True:
            self.due = anyio.Event()
            deadline = min([self._pay_at, *(one.core.next_deadline() for one in self._arriving)])
            with anyio.move_on_after(max(0.0, deadline - self._clock())):
                await self.due.wait()
                continue
            async with self._lock:
                for one in self._arriving:
                    await self._do(one, one.core.tick(self._clock()))
                if self._pay_at <= self._clock():
                    self._pay_at = inf
                    for key in list(self._owed):
                        await self._pay(key)

    def _wake(self) -> None:
        self.due.set()

    # --- names -------------------------------------------------------------------------------------------------------

    def _part(self, record: Receiving) -> str:
        digest = hashlib.sha256(_key(record).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{self._owner}-{digest}"

    def _stage(self, record: Receiving) -> str:
        """What is written to while it arrives: the file itself, or the text of an envelope it comes in."""
        return self._part(record) + (".json" if record.style == "pieces" else "")


def _notice(received: Received) -> FileTransfer:
    return FileTransfer(
        file_name=received.name,
        size_bytes=received.size,
        description=received.description,
        transfer_id=received.id,
        sha256=received.sha256,
        saved_to=received.saved_to,
    )


def _busy() -> TransferFailed:
    return TransferFailed("busy", "the recipient has its hands full with other files: it is to be offered again")


def _not_saved(error: TransferFailed | StoreError) -> TransferFailed:
    """What the peer is told; why is for our log."""
    return (
        error if isinstance(error, TransferFailed) else TransferFailed("failed", "the recipient cannot save the file")
    )


def _refusal(transfer: str, file_name: str, error: TransferFailed) -> FileTransferAck:
    return FileTransferAck(
        file_name=file_name, success=False, error=str(error), reason=error.reason, transfer_id=transfer
    )


def _key(record: Receiving | Received) -> str:
    """A record's name in the journal. An id is its sender's choice: it counts together with whose it is."""
    return f"{record.peer}\n{record.id}"


def notice_id(received: Received) -> str:
    """The id of the notice of a file: the same each time, so that it is put into the inbox once."""
    return "file-" + hashlib.sha256(_key(received).encode()).hexdigest()[:32]
