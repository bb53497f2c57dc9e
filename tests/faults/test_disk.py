"""Disks that are full or read-only, on a file system of their own.

Each test runs in a mount namespace: whatever it mounts goes with its process.
"""

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp
from tests.commands import ROOT
from tests.faults.fleet import until
from tests.faults.flow import flow
from tests.unit.mesh_registry.helpers import Actor
from tests.unit.mesh_relay.kit import connect_frame
from tests.watched import Server, serving

pytestmark = pytest.mark.slow

MESSAGES = 600
INSIDE = "MESH_FAULTS_MOUNTS"


def namespace() -> list[str] | None:
    """The command that gives a process mounts of its own, as root or as anybody; ``None`` where that is forbidden."""
    if shutil.which("unshare") is None:
        return None
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
            return command
    return None


def with_own_mounts(test):
    """Run a test again, alone, where it may mount."""

    @functools.wraps(test)
    def run(request, tmp_path, **given):
        if os.environ.get(INSIDE):
            return test(request, tmp_path, **given)
        command = namespace()
        if command is None:
            pytest.skip("needs unshare and the right to mount a tmpfs: run as root, or allow user namespaces")
        name = f"{Path(__file__).relative_to(ROOT)}::{request.node.name}"
        argv = [*command, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp"]
        argv += [str(tmp_path / "inside"), name]
        done = subprocess.run(argv, cwd=ROOT, env=os.environ | {INSIDE: "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]

    return run


class Disk:
    """A small file system."""

    def __init__(self, folder: Path, size: str = "16m") -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)

    def fill(self) -> None:
        """Take what space there is, to the last byte."""
        with suppress(OSError), (self.folder / "ballast").open("ab", buffering=0) as ballast:
            for size in (65_536, 512, 1):
                with suppress(OSError):
                    while ballast.write(bytes(size)) == size:
                        pass

    def empty(self) -> None:
        (self.folder / "ballast").unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


@pytest.mark.parametrize("victim", ["alice", "bob", "relay"])
@with_own_mounts
def test_a_full_disk_loses_nothing(request, tmp_path, victim):
    disk = Disk(tmp_path / "disk")
    with flow(tmp_path / "run", MESSAGES, stores={victim: disk.folder / "store"}) as run:
        kept = run.program(victim)
        kept.may_end = True
        run.more()
        disk.fill()
        run.until(lambda: kept.says("full"), "the full disk is named")
        kept.kill()
        disk.fill()
        run.until(lambda: kept.says("full", 3), "it stays full over a restart")
        disk.empty()
        run.finish()


@with_own_mounts
def test_a_registry_with_a_full_disk_answers_who_is_there_and_takes_newcomers_later(request, tmp_path):
    disk = Disk(tmp_path / "disk")
    with flow(tmp_path / "run", MESSAGES, stores={"registry": disk.folder / "registry.db"}) as run:
        run.made.registry.may_end = True
        run.more()
        disk.fill()
        run.bob.kill()
        run.until(lambda: run.bob.says("registry"), "the recipient is told that it cannot publish prekeys")
        disk.empty()
        run.finish()


@pytest.mark.parametrize("victim", ["alice", "bob", "relay", "registry"])
@with_own_mounts
def test_a_read_only_disk_is_named_and_loses_nothing(request, tmp_path, victim):
    disk = Disk(tmp_path / "disk")
    name = {"relay": "relay.db", "registry": "registry.db"}.get(victim, "store")
    with flow(tmp_path / "run", MESSAGES, stores={victim: disk.folder / name}) as run:
        kept = run.program(victim)
        kept.may_end = True
        run.more()
        kept.kill(None)
        disk.remount("ro")
        kept.start()
        run.until(lambda: kept.says("Read-only file system"), "the read-only disk is named")
        disk.remount("rw")
        run.finish()


def readiness(server: Server) -> tuple[int, str | None]:
    answer = server.get("/health/ready")
    return answer.status_code, answer.json()["reason"]


@pytest.mark.parametrize("role", ["relay", "registry"])
@with_own_mounts
def test_a_server_whose_disk_is_full_is_not_ready_and_alive(request, tmp_path, role):
    disk = Disk(tmp_path / "disk", "96m")
    with serving(role, "--store", disk.folder / "store.db") as server:
        assert readiness(server) == (200, None)
        disk.fill()
        assert readiness(server) == (503, "disk_full")
        assert server.value(f"mesh_{role}_ready") == 0
        assert server.value(f"mesh_{role}_store_free_bytes") == 0
        for page in ("/health", "/health/live"):
            assert server.get(page).status_code == 200
        disk.empty()
        assert readiness(server) == (200, None)


@contextmanager
def refused_writes(server: Server) -> Iterator[None]:
    """No file of the process may grow beyond a page. There is room on the disk, and it takes nothing."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


def change_something(role: str, server: Server, number: int) -> None:
    """Have a server write."""
    who = Actor(f"agent {number}")
    if role == "registry":
        asked = who.registration(time.time())
        headers = dict(wire.headers(asked, None, timestamp(time.time()), bound=False))
        url = f"{server.url}{asked.target}"
        httpx.request(asked.method, url, headers=headers, content=asked.body, trust_env=False)
        return
    with connect(f"{server.url.replace('http', 'ws', 1)}/ws", compression=None) as socket:
        nonce = socket.response.headers["Mesh-Challenge"]
        features = ["challenge"]
        socket.send(connect_frame(who.identity, time.time(), nonce=nonce, features=features).decode())
        assert json.loads(socket.recv(10))["type"] == "connected"


@pytest.mark.parametrize("role", ["relay", "registry"])
def test_a_server_is_ready_again_by_itself_once_its_disk_takes_changes(tmp_path, role):
    with serving(role, "--store", tmp_path / "store.db") as server:
        change_something(role, server, 0)
        until(lambda: server.value(f"mesh_{role}_commit_seconds_count") >= 1, "the first change is on the disk")
        with refused_writes(server):
            change_something(role, server, 1)
            until(lambda: readiness(server) == (503, "commit_failed"), "the server says that its disk refuses")
            assert server.value(f"mesh_{role}_commit_failures_total") >= 1
            assert server.get("/health").json()["status"] == "degraded"
            assert server.get("/health/live").status_code == 200
        until(lambda: readiness(server) == (200, None), "the server says that its disk works again", pause=0.2)
        assert server.get("/health").json()["status"] == "healthy"
