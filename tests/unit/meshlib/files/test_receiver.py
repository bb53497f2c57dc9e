"""Files of peers on their way to us."""

import os
import shutil
from hashlib import sha256

import pytest

from meshlib.errors import TransferFailed
from meshlib.files.answers import AGAIN
from meshlib.files.folder import Folder
from meshlib.files.pieces import manifest_hash
from meshlib.files.service import JOURNAL
from meshlib.wire.encoding import b64
from meshlib.wire.transfers import FileTransferAck, TransferChunk, TransferManifest
from tests.unit.meshlib.files.kit import CHUNK, chunk, desk, in_pieces, offer, whole

pytestmark = pytest.mark.anyio

DATA = os.urandom(2 * CHUNK)


class BrokenFolder(Folder):
    """A folder into which nothing can be moved."""

    def place(self, key, name):
        raise TransferFailed("failed", "no space left")


class BreaksTheJournal(Folder):
    """A folder whose disk fills in the moment a file has got its name."""

    def place(self, key, name):
        placed = super().place(key, name)
        journal = self.path.parent / "store" / JOURNAL
        shutil.rmtree(journal)
        journal.touch()
        return placed


async def fetched(us):
    await us.hear(offer(DATA))
    for index in range(2):
        await us.hear(chunk(DATA, index))


async def at_once(us):
    await us.hear(whole(DATA))


async def pieced_together(us):
    manifest, pieces = in_pieces(whole(DATA), size=1_000)
    for one in (manifest, *pieces):
        await us.hear(one)


@pytest.mark.parametrize("send", [fetched, at_once, pieced_together])
async def test_a_file_that_cannot_be_put_in_place_fails_on_both_sides(tmp_path, send):
    async with desk(tmp_path, folder=BrokenFolder) as us:
        await send(us)
        await us.until(lambda: us.said(FileTransferAck))
        (ack,) = us.said(FileTransferAck)
        assert (ack.success, ack.reason) == (False, "failed")
        assert us.files.receipts() == us.notices == list(us.folder.path.iterdir()) == []


@pytest.mark.parametrize("send", [fetched, at_once, pieced_together])
async def test_what_is_in_place_is_told_of_even_if_that_cannot_be_noted(tmp_path, send):
    async with desk(tmp_path, durable=True, folder=BreaksTheJournal) as us:
        await send(us)
        await us.until(lambda: us.said(FileTransferAck))
        assert us.said(FileTransferAck)[0].success
        assert len(us.notices) == len(us.names()) == 1
        await us.pass_time(AGAIN)
        assert us.files.receipts() == []


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"[" * 100_000, b"{}", b'{"type":"file_transfer"}'], ids=["binary", "deep", "empty", "short"]
)
async def test_pieces_that_are_no_file_fail_and_nothing_else_does(tmp_path, text):
    digest = sha256(text).hexdigest()
    manifest = TransferManifest(
        transfer_id="p1",
        original_type="file_transfer",
        total_chunks=1,
        total_bytes=len(text),
        chunk_hashes=(digest,),
        manifest_hash=manifest_hash((digest,)),
    )
    piece = TransferChunk(transfer_id="p1", chunk_index=0, total_chunks=1, data=b64(text), hash=digest)
    async with desk(tmp_path) as us:
        await us.hear(manifest)
        await us.hear(piece)
        await us.until(lambda: us.said(FileTransferAck))
        assert us.said(FileTransferAck)[0].reason == "mismatch"
        assert us.files.receipts() == us.notices == list(us.folder.path.iterdir()) == []
