"""A real client meets a relay or registry that means harm: it ends the matter, with bounded memory and in time."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from meshlib import ClientConfig, MeshClient
from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.config import Backoff, Timeouts
from meshlib.errors import MeshError
from tests.attacks.kit import MIB
from tests.commands import Running, running

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

TIMEOUTS = Timeouts(connect=0.5, proof=0.5, silent_relay=0.2, registry=0.5, close=0.5)
SENT = 8 * MIB
"""What a client may let itself be sent: one frame or answer at the most, and what sockets hold."""
GROWN = 48 * MIB


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def hostile(kind: str) -> Iterator[tuple[Running, int]]:
    with running([sys.executable, "-m", "tests.attacks.hostile", kind]) as process:
        word, port = process.line().split()
        assert word == "listening"
        yield process, int(port)


def told(process: Running) -> tuple[int, int]:
    """How much was sent on the connection that ends next, and the close code the client sent."""
    while (words := process.line().split())[0] != "told":
        pass
    return int(words[1]), int(words[2])


def peak(*, forget: bool = False) -> int:
    """The highest resident memory of this process, since it was last told to forget."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def client(port: int, timeouts: Timeouts = TIMEOUTS) -> MeshClient:
    return MeshClient(
        ClientConfig(
            relay_url=f"ws://127.0.0.1:{port}",
            register=False,
            timeouts=timeouts,
            backoff=Backoff(first=0.2, last=0.2),
        )
    )


@pytest.mark.parametrize("kind", ["silent", "endless headers", "dripping headers", "endless refusal", "compression"])
async def test_a_relay_that_never_becomes_one_is_given_up(kind: str) -> None:
    with hostile(kind) as (process, port):
        before = peak(forget=True)
        with pytest.raises(MeshError), anyio.fail_after(20):
            async with client(port):
                pass
        assert told(process)[0] <= SENT
        assert peak() - before <= GROWN


@pytest.mark.parametrize(
    ("kind", "code"), [("a huge frame", 1009), ("growing fragments", 1009), ("endless fragments", 1000)]
)
async def test_a_relay_that_sends_messages_without_end_is_left(kind: str, code: int) -> None:
    with hostile(kind) as (process, port):
        before = peak(forget=True)
        with anyio.move_on_after(1):
            async with client(port):
                await anyio.sleep_forever()
        amount, said = told(process)
        assert amount <= SENT
        assert said in (code, 0)
        assert peak() - before <= GROWN


@pytest.mark.parametrize("kind", ["pings", "junk"])
async def test_a_relay_that_floods_costs_no_memory(kind: str) -> None:
    with hostile(kind) as (_, port):
        before = peak(forget=True)
        with anyio.move_on_after(1):
            async with client(port):
                await anyio.sleep_forever()
        assert peak() - before <= GROWN


async def test_a_fleet_does_not_come_back_all_at_once() -> None:
    """Full jitter: times between nothing and the ceiling, so that who was cut off together comes back spread out."""
    with hostile("hangs up") as (process, port):
        with anyio.move_on_after(3):
            async with anyio.create_task_group() as agents:
                for _ in range(10):
                    agents.start_soon(_stay, client(port, Timeouts()))
        came = []
        while len(came) < 60:
            word, value = process.line().split()[:2]
            if word == "came":
                came.append(float(value))
        waits = [later - earlier for earlier, later in itertools.pairwise(came[20:])]
        assert statistics.pstdev(waits) < 0.2  # no pauses in which nobody comes: nobody waits for the same moment
        assert max(waits) < 0.2


async def _stay(agent: MeshClient) -> None:
    async with agent:
        await anyio.sleep_forever()


REGISTRY = ["an endless body", "endless chunks", "a dripping body", "a bomb", "deep JSON", "endless answer headers"]


@pytest.mark.parametrize("kind", [*REGISTRY, "another address", "silent"])
async def test_a_registry_that_means_harm_is_an_error_in_time(kind: str) -> None:
    options = RegistryOptions(timeout=1.0, max_retries=0)
    with hostile(kind) as (process, port):
        before = peak(forget=True)
        with pytest.raises(MeshError), anyio.fail_after(20):
            async with RegistryClient(f"http://127.0.0.1:{port}", options=options) as registry:
                await registry.discover("somebody")
        assert told(process)[0] <= SENT
        assert peak() - before <= GROWN
