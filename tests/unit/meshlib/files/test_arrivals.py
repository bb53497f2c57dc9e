"""Who has a place among the files that arrive, and who makes way."""

import os
from pathlib import Path

import pytest

from meshlib.files.arrivals import AT_ONCE, EACH, IDLE_AFTER, RESTING, Arrivals, Arriving
from meshlib.files.incoming import ASK_AGAIN_AFTER, Fetch
from meshlib.files.receipts import FileReceipt, TransferState
from meshlib.files.records import Receiving
from meshlib.identity import Did
from meshlib.wire.transfers import FileTransferAck, TransferChunkRequest
from tests.unit.meshlib.files.kit import CHUNK, EVE, PEER, chunk, desk, offer, whole

pytestmark = pytest.mark.anyio

DATA = os.urandom(4 * CHUNK)


def somebody(number):
    return Did(f"did:mesh:{number:032x}")


async def silent_offers(us, count=AT_ONCE, first=0):
    for number in range(first, first + count):
        await us.hear(offer(DATA, f"t{number % EACH}"), somebody(number // EACH))


async def test_who_offers_files_and_does_not_send_them_makes_way_for_others_after_some_minutes(tmp_path):
    async with desk(tmp_path) as us:
        await silent_offers(us)
        await us.hear(offer(DATA))
        assert us.said(FileTransferAck)[0].reason == "busy"
        await us.pass_time(IDLE_AFTER)
        await us.hear(offer(DATA))
        for index in range(4):
            await us.hear(chunk(DATA, index))
        await us.until(lambda: len(us.said(FileTransferAck)) == 2)
        assert us.said(FileTransferAck)[1].success


async def test_a_file_in_one_message_needs_no_place(tmp_path):
    async with desk(tmp_path) as us:
        await silent_offers(us)
        await us.hear(whole())
        assert us.said(FileTransferAck)[0].success


async def test_a_file_that_made_way_goes_on_where_it_was_when_its_peer_is_back(tmp_path):
    async with desk(tmp_path) as us:
        await us.hear(offer(DATA))
        await us.hear(chunk(DATA, 0))
        us.now += IDLE_AFTER
        await silent_offers(us)
        (receipt,) = (one for one in us.files.receipts() if one.peer == PEER)
        assert receipt.state is TransferState.WAITING
        await us.hear(chunk(DATA, 1))  # there is no place yet
        assert receipt.moved == 0
        us.now += IDLE_AFTER
        for index in range(1, 4):
            await us.hear(chunk(DATA, index))
        await us.until(lambda: us.said(FileTransferAck))
        assert us.said(FileTransferAck)[0].success
        assert us.said(TransferChunkRequest)[0].missing == (0, 1, 2, 3)


async def test_a_file_that_made_way_is_asked_for_again(tmp_path):
    async with desk(tmp_path) as us:
        await us.hear(offer(DATA))
        us.now += IDLE_AFTER
        await silent_offers(us)
        asked = len(us.said(TransferChunkRequest))
        await us.pass_time(ASK_AGAIN_AFTER[-1])
        await us.until(lambda: len(us.said(TransferChunkRequest)) > asked)


async def test_who_promises_to_fill_the_folder_and_does_not_makes_way_for_others(tmp_path):
    async with desk(tmp_path, quota=5 * CHUNK) as us:
        await us.hear(offer(DATA), EVE)
        await us.hear(whole(DATA))
        assert us.said(FileTransferAck)[0].reason == "quota"
        us.now += IDLE_AFTER
        await us.hear(whole(DATA, "w2"))
        assert us.said(FileTransferAck)[1].success
        await us.hear(chunk(DATA, 0), EVE)  # there is no room any more
        (receipt,) = us.files.receipts()
        assert (receipt.state, receipt.moved) == (TransferState.WAITING, 0)


async def test_files_that_wait_for_their_peers_after_a_restart_are_in_nobodys_way(tmp_path):
    async with desk(tmp_path, durable=True) as us:
        await silent_offers(us)
    async with desk(tmp_path, durable=True, identity=us.identity) as us:
        await us.hear(offer(DATA))
        assert us.said(TransferChunkRequest)
        await us.hear(chunk(DATA, 0), somebody(0))
        moving = [one.peer for one in us.files.receipts() if one.state is TransferState.MOVING]
        assert moving == [somebody(0)]


async def test_of_one_peer_a_bounded_number_of_files_rests_and_the_others_are_to_be_offered_again(tmp_path):
    async with desk(tmp_path) as us:
        for number in range(3 * EACH):
            us.now += IDLE_AFTER
            await us.hear(offer(DATA, f"t{number}"))
            if not number:
                await us.hear(chunk(DATA, 0, "t0"))
        known = {one.id for one in us.files.receipts()}
        assert len(known) <= 2 * EACH + 1
        assert "t0" in known  # it had come furthest
        again = {ack.transfer_id for ack in us.said(FileTransferAck) if ack.reason == "busy"}
        assert again == {f"t{number}" for number in range(3 * EACH)} - known


async def test_of_all_peers_a_bounded_number_of_files_rests():
    arrivals = Arrivals()
    for number in range(RESTING + 10):
        record = Receiving(
            id="t", peer=somebody(number), name="", size=len(DATA), chunk=CHUNK, style="pulled", have=int(number < 5)
        )
        receipt = FileReceipt("t", somebody(number), Path(), "", len(DATA), None, incoming=True)
        arrivals.add(Arriving(record, Fetch(record, float(number)), receipt, resting=True))
    assert {one.record.peer for one in arrivals.surplus()} == {somebody(number) for number in range(5, 15)}
