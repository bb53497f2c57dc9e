"""What a large file costs: sender, recipient and relay as real processes on SQLite.

    python -m tests.faults.large_file --mib 1024

Prints as JSON the most memory each used (bytes), the relay's disk, seconds and megabytes per second; fails if the file
that arrived is another one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.commands import MESH, Running, Servers, mesh_up, running

MIB = 1024 * 1024


def make(path: Path, size: int) -> str:
    """A file of random bytes, written block by block. Returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def listening(servers: Servers, folder: Path, name: str) -> Iterator[Running]:
    argv = [*MESH, "listen", "--json", "--name", name, "--store", folder / name, "--incoming", folder / "in"]
    with running([*argv, "--count", "1"], **servers.variables) as process:
        yield process


@contextmanager
def sending(servers: Servers, folder: Path, peer: str) -> Iterator[Running]:
    argv = [*MESH, "send-file", "--json", "--name", "alice", "--store", folder / "alice", peer, folder / "big"]
    with running(argv, **servers.variables) as process:
        yield process


def listener_of(process: Running) -> str:
    said = process.said("err")
    assert said["event"] == "listening"
    return str(said["did"])


def arriving(folder: Path, size: int, sender: Running) -> None:
    """Wait until ``size`` bytes of a file have arrived."""
    while not any(path.stat().st_size >= size for path in folder.glob(".mesh-part-*")):
        assert sender.lives(0.01), sender.rest("err")


def memory_of(pid: int) -> int:
    """Bytes a process has used at its highest, or 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def transfer(servers: Servers, folder: Path, size: int) -> dict[str, float]:
    """Send a file of ``size`` bytes; tells what it cost."""
    digest = make(folder / "big", size)
    with listening(servers, folder, f"bob-{uuid.uuid4().hex[:8]}") as recipient:
        did = listener_of(recipient)
        started = time.monotonic()
        with sending(servers, folder, did) as sender:
            pids = {"sender": sender.pid, "recipient": recipient.pid}
            relays = [servers.process.pid, *children_of(servers.process.pid)]
            used: dict[str, float] = dict.fromkeys([*pids, "relay", "relay's disk"], 0)
            while sender.lives(0.05):
                for side, pid in pids.items():
                    used[side] = max(used[side], memory_of(pid))
                used["relay"] = max(used["relay"], *map(memory_of, relays))
                disk = sum(path.stat().st_size for path in servers.data.rglob("*") if path.is_file())
                used["relay's disk"] = max(used["relay's disk"], disk)
            assert sender.ended() == 0
            seconds = time.monotonic() - started
        notice = recipient.said()["payload"]
    assert digest_of(Path(notice["saved_to"])) == notice["sha256"] == digest
    return {**used, "seconds": seconds, "MB/s": size / seconds / 1e6}


def main() -> None:
    """Send one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default: %(default)s)")
    size = parser.parse_args().mib * MIB
    with tempfile.TemporaryDirectory(prefix="mesh-large-") as folder, mesh_up(Path(folder) / "servers") as servers:
        print(json.dumps({what: round(value, 1) for what, value in transfer(servers, Path(folder), size).items()}))


if __name__ == "__main__":
    main()
