"""Sends files: reads them, and does what :mod:`meshlib.files.outgoing` wishes.

Owns tasks and messages of what is sent. Memory is bounded by the chunks on their way, whatever a file's size.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from msgspec.structs import replace

from meshlib.client.events import DeliveryState
from meshlib.client.handles import FINAL, Receipt
from meshlib.errors import InvalidValue, MeshError, QueueFull, StoreError
from meshlib.files.answers import LATER, Answers, Post
from meshlib.files.journal import Journal
from meshlib.files.outgoing import (
    Ended,
    Handed,
    Offered,
    Outgoing,
    PutOff,
    SendCancel,
    SendManifest,
    SendOffer,
    SendWhole,
    Serving,
    Wish,
)
from meshlib.files.pieces import EnvelopeText, manifest_hash, piece_hash
from meshlib.files.receipts import FileReceipt, OnTransfer, TransferState
from meshlib.files.records import Sending
from meshlib.files.source import Source, Unreadable, inspect
from meshlib.identity import Did
from meshlib.logs import LogEvent
from meshlib.wire.encoding import b64, js_json, message_id
from meshlib.wire.envelopes import Pong
from meshlib.wire.transfers import (
    MAX_CHUNK,
    MAX_DESCRIPTION,
    MAX_FILE_NAME,
    MAX_PIECE,
    MIN_CHUNK,
    FileOffer,
    FileTransfer,
    FileTransferAck,
    Transfer,
    TransferCancel,
    TransferChunk,
    TransferChunkRequest,
    TransferComplete,
    TransferManifest,
    write_transfer,
)

log = logging.getLogger("meshlib.files")

AT_ONCE = 100
"""Files of ours that may be on their way or wait for it."""
EACH = 2
"""Of these, large ones that move to one peer at a time; the others wait for their turn."""
ABREAST = 4
"""Chunks that are read, encrypted and saved at the same time."""
ROOM = 2_048
"""Bytes of a message that are not the chunk: ids, names and hashes. A file's name and description come on top."""
ROOM_AGAIN = 1.0
"""Seconds until a message that found the outbox full is posted again."""


@dataclass(slots=True)
class _Moving:
    """A file on its way."""

    record: Sending
    core: Outgoing
    receipt: FileReceipt
    news: anyio.Event = field(default_factory=anyio.Event)
    messages: dict[int | None, Receipt] = field(default_factory=dict)
    """Messages whose delivery matters, by chunk; ``None`` for the one that began it."""
    source: Source | None = None
    """The open file, once it is its turn."""
    wishes: list[Wish] = field(default_factory=list)

    @property
    def open_source(self) -> Source:
        """The file; asked for only after it was opened."""
        assert self.source is not None
        return self.source

    def wake(self) -> None:
        self.news.set()
        self.news = anyio.Event()


class Sender:
    """Files of ours on their way.

    Args:
        name: the display name peers are told.
        post: sends a payload.
        answers: tells peers what need not be sent at any price.
        journal: where files on their way are noted.
        spawn: runs a task until the client is left.
        stamp: the current time as text.
        payload: bytes a payload may have as JSON.
        has_receipts: whether the relay says what was delivered.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        post: Post,
        answers: Answers,
        journal: Journal,
        spawn: Callable[..., None],
        stamp: Callable[[], str],
        payload: int,
        has_receipts: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._post = post
        self._answers = answers
        self._journal = journal
        self._spawn = spawn
        self._stamp = stamp
        self._payload = payload
        self._has_receipts = has_receipts
        self._clock = clock
        self._moving: dict[str, _Moving] = {}
        self._turns: dict[str, set[str]] = {}

    # --- what the application asks for -------------------------------------------------------------------------------

    async def send(self, peer: Did, path: Path, description: str, on_progress: OnTransfer | None) -> FileReceipt:
        """Note a file and have it sent; see :meth:`meshlib.MeshClient.send_file`."""
        if len(self._moving) >= AT_ONCE:
            raise QueueFull(f"{AT_ONCE} files are on their way, the limit: wait for some of them")
        if len(description) > MAX_DESCRIPTION:
            raise InvalidValue(f"a description has at most {MAX_DESCRIPTION} characters, not {len(description)}")
        found = await anyio.to_thread.run_sync(inspect, path)
        record = self._plan(
            Sending(
                id=str(message_id(os.urandom)),
                peer=peer,
                path=os.fsencode(found.path),
                name=found.path.name[:MAX_FILE_NAME].encode("utf-8", "replace").decode(),
                size=found.size,
                sha256=found.sha256,
                stamp=found.stamp,
                description=description.encode("utf-8", "replace").decode(),
                chunk=0,
                style="pulled",
                from_agent=self._name,
                timestamp=self._stamp(),
            )
        )
        await anyio.to_thread.run_sync(self._journal.put, record.id, record)
        return self._begin(record, on_progress)

    def _plan(self, record: Sending) -> Sending:
        empty = FileTransfer(
            file_name=record.name,
            file_path=record.name,
            file_data=b"",
            size_bytes=record.size,
            description=record.description,
            from_agent=record.from_agent,
            timestamp=record.timestamp,
            transfer_id=record.id,
            sha256=record.sha256,
        )
        envelope = len(js_json(write_transfer(empty)).encode())
        if envelope + 4 * -(-record.size // 3) <= self._payload:
            return replace(record, style="whole")
        names = len(js_json([record.name, record.description, record.from_agent]).encode())
        chunk = min((self._payload - ROOM - len(self._name.encode())) // 4 * 3, MAX_CHUNK)
        if chunk < MIN_CHUNK or names + ROOM > self._payload:
            raise InvalidValue(f"limits.payload is too small for a file that does not fit it: {self._payload} bytes")
        return replace(record, chunk=chunk)

    def resume(self, record: Sending) -> None:
        """Go on with a file that was on its way when the process ended."""
        self._begin(record, None)

    def _begin(self, record: Sending, on_progress: OnTransfer | None) -> FileReceipt:
        receipt = FileReceipt(
            record.id,
            Did(record.peer),
            Path(os.fsdecode(record.path)),
            record.name,
            record.size,
            partial(self.cancel, record.id),
        )
        if on_progress is not None:
            receipt.watch(on_progress)
        chunks = 0 if record.style == "whole" else -(-record.size // record.chunk)
        text = self._text(record)
        core = Outgoing(chunks, text.pieces if text.fits else 0, self._clock(), in_pieces=record.style == "pieces")
        moving = _Moving(record, core, receipt)
        self._moving[record.id] = moving
        self._spawn(self._move, moving)
        return receipt

    def receipts(self) -> list[FileReceipt]:
        """Of everything that is on its way."""
        return [moving.receipt for moving in self._moving.values()]

    def give_up(self, reason: MeshError | None) -> None:
        """Tell everybody who waits that nothing more will happen here."""
        for moving in self._moving.values():
            moving.receipt.give_up(reason)

    async def cancel(self, transfer: str) -> None:
        """Stop a file."""
        moving = self._moving.get(transfer)
        if moving is None:
            return
        moving.wishes += moving.core.cancel("cancelled", "the sender cancelled the transfer")
        moving.wake()
        with anyio.CancelScope(shield=True):
            while transfer in self._moving:
                await moving.news.wait()

    # --- what peers say ----------------------------------------------------------------------------------------------

    def claims(self, sender: Did, envelope: Transfer) -> bool:
        """Whether an envelope is about a file of ours on its way to ``sender``."""
        return self._about(sender, envelope) is not None

    async def handle(self, sender: Did, envelope: Transfer) -> None:
        """Take what a peer says about a file of ours."""
        moving = self._about(sender, envelope)
        now = self._clock()
        if moving is None:
            if isinstance(envelope, TransferChunkRequest):
                gone = "the sender does not have this file any more"
                await self._answers.refuse(sender, TransferCancel(transfer_id=envelope.transfer_id, error=gone))
            return
        core = moving.core
        match envelope:
            case TransferChunkRequest():
                moving.wishes += core.asked(envelope.missing, envelope.received_bytes, now)
            case TransferComplete():
                core.complete(now)
            case FileTransferAck():
                core.acked(envelope, now)
            case TransferCancel():
                core.cancelled(envelope.error)
            case Pong():
                moving.wishes += core.not_understood(now)
        moving.wake()

    def _about(self, sender: Did, envelope: Transfer) -> _Moving | None:
        match envelope:
            case TransferChunkRequest() | TransferComplete() | TransferCancel():
                named = envelope.transfer_id
            case FileTransferAck(transfer_id=""):
                return next((one for one in self._moving.values() if self._is_acked(one, sender, envelope)), None)
            case FileTransferAck():
                named = envelope.transfer_id
            case Pong():
                named = envelope.nonce
            case _:
                return None
        found = next((one for one in self._moving.values() if named in (one.record.id, _pieces_id(one.record))), None)
        if found is None or found.record.peer != sender:
            return None
        if isinstance(envelope, TransferChunkRequest) and (named != found.record.id) is not found.core.in_pieces:
            return None  # an answer to the offer, after the file went another way: its numbers mean other chunks
        return found

    @staticmethod
    def _is_acked(moving: _Moving, sender: Did, ack: FileTransferAck) -> bool:
        record = moving.record
        return record.peer == sender and record.name == ack.file_name and not isinstance(moving.core.state, Offered)

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _move(self, moving: _Moving) -> None:
        """Send one file, until it is over."""
        record, core = moving.record, moving.core
        turns = self._turns.setdefault(record.peer, set())
        try:
            while record.style != "whole" and not core.over and len(turns) >= EACH:
                await moving.news.wait()
            turns.add(record.id)
            await self._follow(moving)
        except StoreError as error:
            core.cancel("failed", str(error))
        finally:
            turns.discard(record.id)
            if moving.source is not None:
                moving.source.close()
        for other in self._moving.values():
            other.wake()
        await anyio.to_thread.run_sync(self._journal.drop, record.id)
        del self._moving[record.id]
        self._show(moving)
        moving.wake()
        log.debug(LogEvent("transfer_over", transfer=record.id, state=core.state))

    async def _follow(self, moving: _Moving) -> None:
        core = moving.core
        try:
            if not core.over:
                moving.source = await anyio.to_thread.run_sync(Source, moving.record)
                moving.wishes += core.start(moving.record.pieces)
            while True:
                news = moving.news
                while moving.wishes:
                    wish = moving.wishes.pop(0)
                    if not core.over or isinstance(wish, SendCancel):  # a file that ended before its turn is not open
                        await self._do(moving, wish)
                if core.over:
                    return
                batch = [index for _ in range(ABREAST) if (index := core.next_chunk()) is not None]
                if batch:
                    await self._send_chunks(moving, batch)
                    continue
                self._show(moving)
                self._look_at_messages(moving)
                if news.is_set():
                    continue
                with anyio.move_on_after(max(0.0, core.next_deadline() - self._clock())):
                    await news.wait()
                moving.wishes += core.tick(self._clock())
        except Unreadable as error:
            for wish in core.cancel("changed", str(error)):
                await self._do(moving, wish)

    def _look_at_messages(self, moving: _Moving) -> None:
        for index, message in list(moving.messages.items()):
            state = message.state
            relayed = state is not DeliveryState.QUEUED and not self._has_receipts()
            if state is DeliveryState.DELIVERED or relayed:
                del moving.messages[index]
                moving.core.delivered(index, self._clock(), certain=not relayed)
                moving.wake()
            elif state in FINAL:
                del moving.messages[index]
                moving.core.undeliverable(message.detail or f"a message of it {state}")
                moving.wake()

    async def _do(self, moving: _Moving, wish: Wish) -> None:
        record = moving.record
        match wish:
            case SendWhole():
                await self._begin_with(moving, await self._whole(moving))
            case SendOffer():
                offer = FileOffer(
                    transfer_id=record.id,
                    file_name=record.name,
                    size_bytes=record.size,
                    sha256=record.sha256,
                    chunk_bytes=record.chunk,
                    description=record.description,
                    from_agent=record.from_agent,
                    timestamp=record.timestamp,
                )
                await self._begin_with(moving, offer)
            case SendManifest():
                await self._send_manifest(moving)
            case SendCancel(detail):
                # Whoever cancels does not wait for room; if there is none, the peer hears of it when it asks for more.
                transfer = _pieces_id(record) if moving.core.in_pieces else record.id
                await self._answers.say(record.peer, TransferCancel(transfer_id=transfer, error=detail))

    async def _begin_with(self, moving: _Moving, envelope: Transfer) -> None:
        await self._send(moving, None, envelope)

    async def _whole(self, moving: _Moving) -> FileTransfer:
        record = moving.record
        data = await anyio.to_thread.run_sync(moving.open_source.read, 0, record.size)
        return FileTransfer(
            file_name=record.name,
            file_path=record.name,
            file_data=data,
            size_bytes=record.size,
            description=record.description,
            from_agent=record.from_agent,
            timestamp=record.timestamp,
            transfer_id=record.id,
            sha256=record.sha256,
        )

    async def _send_manifest(self, moving: _Moving) -> None:
        record = moving.record
        text = self._text(record)
        hashes = await anyio.to_thread.run_sync(text.hashes, moving.open_source.read)
        moving.record = record = replace(record, style="pieces")
        await anyio.to_thread.run_sync(self._journal.put, record.id, record)
        manifest = TransferManifest(
            transfer_id=_pieces_id(record),
            original_type="file_transfer",
            total_chunks=text.pieces,
            total_bytes=text.size,
            chunk_hashes=hashes,
            manifest_hash=manifest_hash(hashes),
            from_agent=record.from_agent,
            timestamp=record.timestamp,
        )
        await self._send(moving, None, manifest)

    async def _send_chunks(self, moving: _Moving, batch: list[int]) -> None:
        """Send several chunks at the same time: they share their writes to the disk."""
        failures: list[Exception] = []

        async def send(index: int) -> None:
            try:
                await self._send_chunk(moving, index)
            except (Unreadable, MeshError) as failure:
                failures.append(failure)  # raised outside of the group, as itself

        async with anyio.create_task_group() as tasks:
            for index in batch:
                tasks.start_soon(send, index)
        if moving.core.in_pieces and not failures:
            moving.record = replace(moving.record, pieces=max(moving.record.pieces, batch[-1] + 1))
            await anyio.to_thread.run_sync(self._journal.put, moving.record.id, moving.record)
        if failures:
            raise failures[0]

    async def _send_chunk(self, moving: _Moving, index: int) -> None:
        record, read = moving.record, moving.open_source.read
        if moving.core.in_pieces:
            text = self._text(record)
            piece = await anyio.to_thread.run_sync(text.piece, index, read)
            chunk = TransferChunk(
                transfer_id=_pieces_id(record),
                chunk_index=index,
                total_chunks=text.pieces,
                data=piece,
                hash=piece_hash(piece),
                from_agent=record.from_agent,
            )
            await self._send(moving, index, chunk)
            return
        data = await anyio.to_thread.run_sync(read, index * record.chunk, record.chunk)
        chunk = TransferChunk(
            transfer_id=record.id,
            chunk_index=index,
            total_chunks=moving.core.total,
            data=b64(data),
            hash=hashlib.sha256(data).hexdigest(),
            from_agent=record.from_agent,
        )
        await self._send(moving, index, chunk)

    async def _send(self, moving: _Moving, index: int | None, envelope: Transfer) -> None:
        while not moving.core.over:
            news = moving.news
            try:
                receipt = await self._post(moving.record.peer, write_transfer(envelope))
            except LATER:
                # An outbox full of other messages empties as they are delivered; nothing tells when.
                with anyio.move_on_after(ROOM_AGAIN):
                    await news.wait()
                continue
            receipt.watch(moving.wake)
            moving.messages[index] = receipt
            return

    def _text(self, record: Sending) -> EnvelopeText:
        return EnvelopeText(record, min(self._payload - ROOM, MAX_PIECE))

    def _show(self, moving: _Moving) -> None:
        core, receipt, size = moving.core, moving.receipt, moving.record.size
        match core.state:
            case Offered() if core.received_bytes == 0:
                receipt.advance(TransferState.OFFERED)
            case Offered() | PutOff():
                receipt.advance(TransferState.WAITING)
            case Serving():
                moved = size * core.handed_over // max(1, core.total) if core.in_pieces else core.received_bytes
                receipt.advance(TransferState.CHECKING if moved >= size else TransferState.MOVING, moved)
            case Handed():
                receipt.advance(TransferState.MOVING if None in moving.messages else TransferState.CHECKING)
            case Ended(reason, detail, saved_to, confirmed):
                receipt.saved_to = saved_to
                if reason:
                    state = TransferState.CANCELLED if reason == "cancelled" else TransferState.FAILED
                    receipt.advance(state, None, detail, reason)
                else:
                    receipt.advance(TransferState.DONE if confirmed else TransferState.UNCONFIRMED, size, detail)


def _pieces_id(record: Sending) -> str:
    """The transfer's id when it goes in pieces: their numbers mean something else than those of chunks."""
    return f"{record.id}-pieces"
