"""Files of ours on their way."""

import os
from pathlib import Path

import anyio
import pytest

from meshlib.errors import QueueFull, RelayRefused, TransferFailed
from meshlib.files.receipts import TransferState
from meshlib.files.sender import EACH
from meshlib.wire.transfers import (
    FileOffer,
    FileTransfer,
    TransferCancel,
    TransferChunk,
    TransferChunkRequest,
    TransferManifest,
)
from tests.unit.meshlib.files.kit import PATIENCE, PEER, desk

pytestmark = pytest.mark.anyio


def make(tmp_path, size, name="report.pdf"):
    path = tmp_path / name
    path.write_bytes(bytes(size))
    return path


async def test_a_file_that_finds_the_outbox_full_goes_when_there_is_room(tmp_path):
    async with desk(tmp_path, has_room=False) as us:
        await us.files.send(PEER, make(tmp_path, 100), "", None)
        await us.until(lambda: us.turned_away)
        us.has_room = True
        await us.until(lambda: us.said(FileTransfer))


async def test_a_file_that_waits_for_room_can_be_cancelled(tmp_path):
    async with desk(tmp_path, has_room=False) as us:
        receipt = await us.files.send(PEER, make(tmp_path, 200_000), "", None)
        await us.until(lambda: us.turned_away)
        with anyio.fail_after(PATIENCE):
            await receipt.cancel()
            with pytest.raises(TransferFailed):
                await receipt.wait()
        assert receipt.state is TransferState.CANCELLED
        us.has_room = True
        await us.hear(TransferChunkRequest(transfer_id=receipt.id, missing=(0,)))
        assert [cancel.transfer_id for cancel in us.said(TransferCancel)] == [receipt.id]


@pytest.mark.parametrize("fault", [QueueFull("full"), RelayRefused(4006, "somebody else has this identity")])
async def test_parts_of_a_file_wait_while_nothing_can_be_posted(tmp_path, fault):
    async with desk(tmp_path) as us:
        us.fault = fault
        receipt = await us.files.send(PEER, make(tmp_path, 200_000), "", None)
        await us.until(lambda: us.said(FileOffer))
        us.has_room = False
        await us.hear(TransferChunkRequest(transfer_id=receipt.id, missing=(0, 1)))
        await us.until(lambda: us.turned_away == 2)
        us.has_room = True
        await us.hear(TransferChunkRequest(transfer_id=receipt.id, missing=(0, 1)))
        await us.until(lambda: len(us.said(TransferChunk)) == 2)


async def test_a_file_whose_name_is_not_utf8_is_sent_over_restarts_under_a_name_that_is(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_bytes(b"coffee")
    async with desk(tmp_path, durable=True) as us:
        receipt = await us.files.send(PEER, path, "", None)
        await us.until(lambda: us.said(FileTransfer))
    async with desk(tmp_path, durable=True, identity=us.identity) as us:
        await us.until(lambda: us.said(FileTransfer))
        (again,) = us.said(FileTransfer)
        assert (again.transfer_id, again.file_name, again.file_data) == (receipt.id, "caf?.txt", b"coffee")


async def test_a_file_that_ends_before_its_turn_is_not_read_any_more(tmp_path):
    async with desk(tmp_path) as us:
        path = make(tmp_path, 200_000)
        receipts = [await us.files.send(PEER, path, "", None) for _ in range(EACH + 1)]
        await us.until(lambda: len(us.said(FileOffer)) == EACH)
        await us.hear({"type": "mesh:pong", "nonce": receipts[-1].id})
        await us.hear(TransferCancel(transfer_id=receipts[-1].id))
        with pytest.raises(TransferFailed):
            await receipts[-1].wait()
        assert us.said(TransferManifest) == []
