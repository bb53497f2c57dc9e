"""What peers hear of their files: never more than they take, and late rather than not at all."""

import pytest

from meshlib.errors import QueueFull, RelayRefused
from meshlib.files.answers import AGAIN, IN_ALL, OF_ONE, REFUSALS
from meshlib.identity import Did
from meshlib.wire.transfers import FileTransferAck, TransferCancel, TransferChunkRequest, TransferComplete
from tests.unit.meshlib.files.kit import CHUNK, EVE, PEER, chunk, desk, in_pieces, offer, whole

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 12


def somebody(number):
    return Did(f"did:mesh:{number:032x}")


def asks(number):
    return TransferChunkRequest(transfer_id=f"never-{number}", missing=(0,))


async def test_who_asks_for_files_that_never_were_is_told_a_bounded_number_of_times(tmp_path):
    async with desk(tmp_path) as us:
        for number in range(1_000):
            await us.hear(asks(number), EVE)
        assert len(us.said(TransferCancel, EVE)) == REFUSALS.burst
        await us.hear(asks(0), PEER)
        assert len(us.said(TransferCancel, PEER)) == 1


async def test_who_sends_files_that_are_refused_or_malformed_is_told_a_bounded_number_of_times(tmp_path):
    async with desk(tmp_path, policy=lambda peer: False) as us:
        for number in range(300):
            await us.hear(whole(transfer_id=f"a{number}"))
            await us.hear({"type": "file_transfer", "file_name": "no data", "transfer_id": f"b{number}"})
            await us.hear({"type": "mesh:ping", "nonce": f"c{number}", "file": {}})
        assert len(us.said(FileTransferAck)) == REFUSALS.burst
        us.take_everything()
        us.now += 2 / REFUSALS.per_second
        await us.hear(whole(transfer_id="later"))
        assert us.said(FileTransferAck)[-1].transfer_id == "later"


async def test_a_peer_that_takes_no_answers_gets_no_more_of_them_whatever_they_are(tmp_path):
    async with desk(tmp_path) as us:
        for number in range(3 * OF_ONE):
            await us.hear(offer(DATA, f"t{number}"))
            await us.hear(TransferCancel(transfer_id=f"t{number}"))
            await us.hear(whole(transfer_id="again and again"))
        assert len(us.sent) == OF_ONE
        us.take_everything()
        await us.hear(offer(DATA, "one more"))
        assert us.said(TransferChunkRequest)[-1].transfer_id == "one more"


async def test_many_peers_that_take_no_answers_leave_most_of_the_outbox_free_and_the_others_answered(tmp_path):
    async with desk(tmp_path) as us:
        for number in range(IN_ALL // OF_ONE + 5):
            for question in range(OF_ONE):
                await us.hear(asks(question), somebody(number))
        assert len(us.sent) == IN_ALL + 5
        await us.hear(asks(0), PEER)
        assert len(us.said(TransferCancel)) == 1


async def test_an_ack_that_finds_the_outbox_full_is_sent_when_there_is_room(tmp_path):
    async with desk(tmp_path) as us:
        us.has_room = False
        await us.hear(whole())
        assert us.names() == ["hello.txt"]
        assert len(us.notices) == len(us.events) == 1
        assert us.sent == []
        us.has_room = True
        await us.pass_time(AGAIN)
        await us.until(lambda: us.said(FileTransferAck))
        (ack,) = us.said(FileTransferAck)
        assert (ack.success, ack.saved_to) == (True, "hello.txt")
        await us.pass_time(10 * AGAIN)
        assert len(us.said(FileTransferAck)) == len(us.notices) == len(us.events) == 1


@pytest.mark.parametrize("fault", [QueueFull("full"), RelayRefused(4006, "somebody else has this identity")])
async def test_a_question_that_cannot_be_posted_is_asked_when_it_can(tmp_path, fault):
    async with desk(tmp_path) as us:
        us.fault = fault
        us.has_room = False
        await us.hear(offer(DATA))
        us.has_room = True
        await us.pass_time(AGAIN)
        await us.until(lambda: us.said(TransferChunkRequest))
        (ask,) = us.said(TransferChunkRequest)
        assert ask.missing == tuple(range(len(DATA) // CHUNK))


async def test_that_a_file_came_damaged_is_told_when_there_is_room(tmp_path):
    async with desk(tmp_path) as us:
        await us.hear(offer(DATA[:CHUNK]))
        us.has_room = False
        for _ in range(3):
            await us.hear(chunk(DATA[: CHUNK - 1], 0))
        us.has_room = True
        assert us.files.receipts() == []
        await us.pass_time(AGAIN)
        await us.until(lambda: us.said(FileTransferAck))
        (ack,) = us.said(FileTransferAck)
        assert (ack.success, ack.reason) == (False, "mismatch")


async def test_a_full_outbox_does_not_keep_files_from_being_resumed(tmp_path):
    async with desk(tmp_path, durable=True) as us:
        await us.hear(offer(DATA))
        us.has_room = False
        await us.hear(whole())
    async with desk(tmp_path, durable=True, identity=us.identity, has_room=False) as us:
        assert len(us.notices) == 1  # the client tells the application once
        us.has_room = True
        await us.pass_time(AGAIN)
        await us.until(lambda: us.said(FileTransferAck) and us.said(TransferChunkRequest))


async def test_who_sends_in_pieces_hears_that_they_are_complete_before_the_ack(tmp_path):
    async with desk(tmp_path) as us:
        manifest, pieces = in_pieces(whole())
        await us.hear(manifest)
        us.has_room = False
        for piece in pieces:
            await us.hear(piece)
        await us.until(lambda: us.notices)
        us.has_room = True
        await us.pass_time(AGAIN)
        await us.until(lambda: us.said(FileTransferAck))
        assert [type(envelope) for _, envelope in us.sent] == [TransferComplete, FileTransferAck]
