"""Files between clients on real servers, on both event loops."""

import os
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from meshlib import (
    ClientConfig,
    FileReceived,
    MeshClient,
    TransferState,
)
from meshlib.wire.transfers import FileTransfer, read_transfer

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 60


def unique(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def pair(servers, tmp_path, sender=None, **recipient):
    """A sender, and a recipient with a folder of its own."""
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    async with AsyncExitStack() as stack:
        recipient = {"incoming": tmp_path / "in", **recipient}
        yield (
            await stack.enter_async_context(MeshClient(ClientConfig(name=unique("alice"), **urls, **(sender or {})))),
            await stack.enter_async_context(MeshClient(ClientConfig(name=unique("bob"), **urls, **recipient))),
        )


def make(path, size):
    path.write_bytes(os.urandom(size))
    return path


async def finish(receipt):
    with anyio.fail_after(PATIENCE):
        return await receipt.wait()


def received(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
async def test_a_file_arrives_as_it_was_sent_and_the_application_is_told(servers, tmp_path, size):
    path = make(tmp_path / "report.pdf", size)
    async with pair(servers, tmp_path) as (alice, bob):
        events = bob.events()
        receipt = await alice.send_file(bob.did, path, description="the report")
        assert await finish(receipt) is TransferState.DONE
        assert (receipt.moved, receipt.saved_to) == (size, "report.pdf")
        message = await bob.receive()
        notice = read_transfer(message.payload)
        assert isinstance(notice, FileTransfer)
        assert message.sender == alice.did
        assert (notice.file_name, notice.description, notice.size_bytes) == ("report.pdf", "the report", size)
        assert Path(notice.saved_to).read_bytes() == path.read_bytes()
        assert notice.sha256 == sha256(path.read_bytes()).hexdigest()
        async for told in events:
            if isinstance(told, FileReceived):
                break
        assert (told.peer, told.path, told.size) == (alice.did, notice.saved_to, size)
        assert received(tmp_path / "in") == ["report.pdf"]
        assert alice.transfers() == bob.transfers() == []
