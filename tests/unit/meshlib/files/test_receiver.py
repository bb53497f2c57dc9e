"""Files of peers on their way to us."""

import os
import shutil

import pytest

from meshlib.errors import TransferFailed
from meshlib.files.answers import AGAIN
from meshlib.files.folder import Folder
from meshlib.files.service import JOURNAL
from meshlib.wire.transfers import FileTransferAck
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
