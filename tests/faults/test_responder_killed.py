"""A responder killed with -9 while it works: every task is answered once, and none is forgotten."""

from __future__ import annotations

import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from meshlib import ClientConfig, MeshClient, TaskFailed
from meshlib.wire.envelopes import TaskResponse, read_envelope
from tests.commands import MESH, PATIENCE, Running, Servers, running

pytestmark = pytest.mark.slow

ROUNDS = 6
TASKS = 18
"""Of each round: what one peer may give at once. Over all rounds and both rules 216, with 84 kills."""
KILLS = 6
WORK = """
import re, sys, time
task = re.search(r"task number (\\d+)", sys.stdin.read())[1]
with open({runs!r}, "a") as file:
    file.write(task + "\\n")
time.sleep(0.3)
print("did", task)
"""


@contextmanager
def responder(servers: Servers, home: Path, name: str, after_crash: str) -> Iterator[Running]:
    work = WORK.format(runs=str(home / "runs"))
    argv = [*MESH, "respond", "--json", "--allow-everyone", "--after-crash", after_crash]
    with running([*argv, "--", sys.executable, "-c", work], HOME=str(home), MESH_NAME=name, **servers.variables) as one:
        yield one


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("after_crash", ["fail", "rerun"])
def test_every_task_is_answered_once_whenever_the_responder_is_killed(
    servers: Servers, tmp_path: Path, after_crash: str, number: int
) -> None:
    name = f"worker-{uuid.uuid4().hex[:8]}"
    chosen = random.Random(f"{after_crash} {number}")
    outcomes: dict[int, str] = {}
    late: Counter[str] = Counter()

    async def ask(client: MeshClient, did: str, number: int) -> None:
        try:
            answer = await client.request(did, f"task number {number}", timeout=PATIENCE * 2)
            outcomes[number] = answer.content
        except TaskFailed as failed:
            outcomes[number] = failed.error

    async def count_what_nobody_waits_for(client: MeshClient) -> None:
        async for message in client.inbox():
            if isinstance(read_envelope(message.payload), TaskResponse):
                late[message.id] += 1

    async def life(finished: anyio.Event | None = None) -> str:
        """One process of the responder, up to a random instant or until all is done. Its DID."""
        with responder(servers, tmp_path, name, after_crash) as process:
            said = await anyio.to_thread.run_sync(process.said, "err")
            if finished is None:
                await anyio.sleep(chosen.uniform(0.0, 1.2))
                process.signal(signal.SIGKILL)
                await anyio.to_thread.run_sync(process.ended)
            else:
                await finished.wait()
        return str(said["did"])

    async def main() -> None:
        config = ClientConfig(relay_url=servers.relay, registry_url=servers.registry)
        async with MeshClient(config) as client, anyio.create_task_group() as counting:
            counting.start_soon(count_what_nobody_waits_for, client)
            did = await life()  # once, so that it is registered
            finished = anyio.Event()

            async def ask_all() -> None:
                async with anyio.create_task_group() as asking:
                    for number in range(TASKS):
                        asking.start_soon(ask, client, did, number)
                finished.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask_all)
                for _ in range(KILLS):
                    await life()
                await life(finished)
            counting.cancel_scope.cancel()

    anyio.run(main)
    runs = Counter(map(int, (tmp_path / "runs").read_text().split()))
    assert sorted(outcomes) == list(range(TASKS))
    assert not late, "an answer came twice"
    lost = {number for number, said in outcomes.items() if said != f"did {number}"}
    if after_crash == "rerun":
        assert lost == set()
    else:
        assert {outcomes[number] for number in lost} <= {"lost"}
        assert max(runs.values()) == 1, "a task ran twice"
    assert len(outcomes) - len(lost) >= TASKS // 4, "hardly anything was done between the kills"
