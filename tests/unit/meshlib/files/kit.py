"""Files of an agent whose client, peers and clock are in the test's hands."""

import os
from contextlib import asynccontextmanager
from hashlib import sha256

import anyio

from meshlib.client.events import DeliveryState, Received
from meshlib.client.handles import Message, Receipt
from meshlib.errors import QueueFull
from meshlib.files.folder import Folder
from meshlib.files.pieces import manifest_hash, piece_hash
from meshlib.files.service import Files
from meshlib.identity import Did, Identity
from meshlib.wire.encoding import MessageId, b64, js_json
from meshlib.wire.transfers import (
    FileOffer,
    FileTransfer,
    TransferCancel,
    TransferChunk,
    TransferManifest,
    read_transfer,
    write_transfer,
)

US, PEER, EVE = (Did("did:mesh:" + letter * 32) for letter in "abe")
CHUNK = 1_024
PATIENCE = 5


class Desk:
    """An agent's files, and everything they ask a client for."""

    def __init__(
        self,
        tmp_path,
        tasks,
        *,
        identity=None,
        durable=False,
        folder=Folder,
        has_room=True,
        policy=lambda peer: True,
        quota=2**30,
        payload=64 * 1024,
    ):
        self.identity = identity or Identity.generate(os.urandom)
        self.now = 1_000.0
        self.has_room = has_room
        self.turned_away = 0
        self.fault = QueueFull("full")
        self.receipts = []
        self.sent = []
        self.notices = []
        self.events = []
        self._news = anyio.Event()
        self.folder = folder(tmp_path / "in", quota, 10_000)
        (tmp_path / "store").mkdir(exist_ok=True)
        self.files = Files(
            name="us",
            did=US,
            identity=self.identity,
            store=tmp_path / "store" if durable else None,
            folder=self.folder,
            policy=policy,
            post=self._post,
            answer=self._post,
            notify=self._notify,
            tell=self.events.append,
            spawn=tasks.start_soon,
            stamp=lambda: "2026-01-01T00:00:00.000Z",
            payload=payload,
            has_receipts=lambda: True,
            clock=lambda: self.now,
        )

    async def _post(self, peer, payload):
        if not self.has_room:
            self.turned_away += 1
            self._ring()
            raise self.fault
        receipt = Receipt(MessageId(f"m{len(self.receipts)}"), peer)
        self.receipts.append(receipt)
        self.sent.append((peer, read_transfer(payload)))
        self._ring()
        return receipt

    async def _notify(self, sender, key, payload):
        self.notices.append((sender, key, payload))
        self._ring()

    def _ring(self):
        self._news.set()
        self._news = anyio.Event()

    def take_everything(self):
        """The peers take what was sent to them."""
        for receipt in self.receipts:
            receipt.advance(DeliveryState.DELIVERED)

    def said(self, kind, peer=PEER):
        """Envelopes of a kind that a peer was sent."""
        return [envelope for to, envelope in self.sent if to == peer and isinstance(envelope, kind)]

    async def hear(self, envelope, sender=PEER):
        """A message of a peer has come; bytes that are no envelope, too."""
        payload = envelope if isinstance(envelope, dict) else write_transfer(envelope)
        received = Received(sender, MessageId("m"), payload, encrypted=True, redelivered=False)

        async def confirm(message):
            pass

        await self.files.handle(Message(received, confirm))

    async def pass_time(self, seconds):
        """It is later."""
        self.now += seconds
        await self.hear(TransferCancel(transfer_id="nothing"))

    async def until(self, holds):
        """Wait for something that a task of the client does."""
        with anyio.fail_after(PATIENCE):
            while not holds():
                await self._news.wait()

    def names(self):
        """What lies in the folder, files that have not arrived whole left out."""
        return sorted(path.name for path in self.folder.path.iterdir() if not path.name.startswith("."))


@asynccontextmanager
async def desk(tmp_path, **options):
    """A desk that was opened."""
    async with anyio.create_task_group() as tasks:
        made = Desk(tmp_path, tasks, **options)
        await made.files.open()
        await made.files.start()
        yield made
        made.files.close()
        tasks.cancel_scope.cancel()


def whole(data=b"hello", transfer_id="w1", name="hello.txt"):
    """A file in one message."""
    return FileTransfer(file_name=name, file_data=data, size_bytes=len(data), transfer_id=transfer_id)


def offer(data, transfer_id="t1", name="data.bin"):
    """A file that is there to be fetched."""
    return FileOffer(
        transfer_id=transfer_id,
        file_name=name,
        size_bytes=len(data),
        sha256=sha256(data).hexdigest(),
        chunk_bytes=CHUNK,
    )


def chunk(data, index, transfer_id="t1"):
    """A part of it."""
    part = data[index * CHUNK : (index + 1) * CHUNK]
    return TransferChunk(
        transfer_id=transfer_id,
        chunk_index=index,
        total_chunks=-(-len(data) // CHUNK),
        data=b64(part),
        hash=sha256(part).hexdigest(),
    )


def in_pieces(envelope, transfer_id="p1", size=40):
    """A file as peers in the field send larger ones: a manifest, and its envelope cut up."""
    text = js_json(write_transfer(envelope))
    texts = [text[start : start + size] for start in range(0, len(text), size)]
    hashes = tuple(piece_hash(one) for one in texts)
    manifest = TransferManifest(
        transfer_id=transfer_id,
        original_type="file_transfer",
        total_chunks=len(texts),
        total_bytes=len(text),
        chunk_hashes=hashes,
        manifest_hash=manifest_hash(hashes),
    )
    pieces = [
        TransferChunk(transfer_id=transfer_id, chunk_index=index, total_chunks=len(texts), data=one, hash=hashes[index])
        for index, one in enumerate(texts)
    ]
    return manifest, pieces
