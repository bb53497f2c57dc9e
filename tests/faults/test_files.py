"""Files between real processes that are killed, and what they cost."""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path

import pytest

from tests.commands import MESH, Servers, running
from tests.faults.large_file import MIB, arriving, digest_of, listener_of, listening, make, sending, transfer

pytestmark = pytest.mark.slow


def test_a_recipient_that_is_killed_goes_on_where_it_was(servers: Servers, tmp_path: Path) -> None:
    digest = make(tmp_path / "big", 40 * MIB)
    name = f"bob-{uuid.uuid4().hex[:8]}"
    with listening(servers, tmp_path, name) as first:
        did = listener_of(first)
        with sending(servers, tmp_path, did) as sender:
            arriving(tmp_path / "in", 30 * MIB, sender)
            first.signal(signal.SIGKILL)
            first.ended()
            (part,) = (tmp_path / "in").glob(".mesh-part-*")
            inode = part.stat().st_ino
            with listening(servers, tmp_path, name) as second:
                listener_of(second)
                notice = second.said()["payload"]
                assert sender.ended() == 0
    saved = Path(notice["saved_to"])
    assert saved.stat().st_ino == inode  # it went on with what was there
    assert digest_of(saved) == notice["sha256"] == digest
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["big"]


def test_a_sender_that_is_killed_goes_on_where_it_was(servers: Servers, tmp_path: Path) -> None:
    digest = make(tmp_path / "big", 40 * MIB)
    with listening(servers, tmp_path, f"bob-{uuid.uuid4().hex[:8]}") as recipient:
        did = listener_of(recipient)
        with sending(servers, tmp_path, did) as sender:
            arriving(tmp_path / "in", 20 * MIB, sender)
            sender.signal(signal.SIGKILL)
            sender.ended()
        assert [path.name for path in (tmp_path / "in").iterdir() if not path.name.startswith(".")] == []
        # Whatever this agent does next, the file that was on its way goes on.
        argv = [*MESH, "listen", "--json", "--name", "alice", "--store", tmp_path / "alice"]
        with running(argv, **servers.variables):
            notice = recipient.said()["payload"]
    assert digest_of(Path(notice["saved_to"])) == notice["sha256"] == digest
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["big"]


def test_a_large_file_needs_little_memory_anywhere(servers: Servers, tmp_path: Path) -> None:
    used = transfer(servers, tmp_path, 256 * MIB)
    print(json.dumps({what: round(value) for what, value in used.items()}))
    for side in ("sender", "recipient", "relay"):
        assert used[side] < 200 * MIB, side
    assert used["relay's disk"] < 200 * MIB
