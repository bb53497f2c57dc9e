"""The story of the field: a parent has three agents work at once, one in TypeScript; then one is killed midway."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from meshlib import ClientConfig, MeshClient, TaskState, TaskUnfinished
from tests.commands import MESH, PATIENCE, ROOT, Running, Servers, running

pytestmark = [pytest.mark.slow, pytest.mark.node]

ANALYSE = "import sys; sys.stdin.read(); print('sales are up 6 %')"
DRAW = "open('outbox/chart.svg', 'w').write('<svg/>'); print('here is a chart')"
HANG = "import time; open({mark!r}, 'w').close(); time.sleep(600)"


@contextmanager
def responder(servers: Servers, home: Path, name: str, code: str) -> Iterator[tuple[str, Running]]:
    argv = [*MESH, "respond", "--json", "--allow-everyone", "--", sys.executable, "-c", code]
    with running(argv, HOME=str(home), MESH_NAME=name, **servers.variables) as process:
        yield str(process.said("err")["did"]), process


@contextmanager
def typescript_writer(servers: Servers) -> Iterator[str]:
    with running(["node", ROOT / "examples/typescript_responder.mjs"], **servers.variables) as process:
        yield process.line().removeprefix("answering as ")


def parent(servers: Servers, folder: Path) -> MeshClient:
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    return MeshClient(ClientConfig(store=folder / "parent", incoming=folder / "incoming", **urls))


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def test_three_answers_and_a_file(servers: Servers, tmp_path: Path) -> None:
    with (
        responder(servers, tmp_path / "a", unique("analyst"), ANALYSE) as (analyst, _),
        responder(servers, tmp_path / "v", unique("viz"), DRAW) as (viz, _),
        typescript_writer(servers) as writer,
    ):

        async def main() -> tuple[dict[str, str], str]:
            async with parent(servers, tmp_path) as client:
                gathering = client.gather(dict.fromkeys((analyst, viz, writer), "sales"), timeout=PATIENCE)
                results = await gathering.results()
                answers = {peer: result.answer.content for peer, result in results.items() if result.answer}
                with anyio.fail_after(PATIENCE):
                    message = await client.receive()
                await message.ack()
                assert isinstance(message.payload, dict)
                return answers, str(message.payload["saved_to"])

        answers, saved_to = anyio.run(main)
    assert answers == {
        analyst: "sales are up 6 %",
        viz: "here is a chart",
        writer: "written in TypeScript: sales",
    }
    assert Path(saved_to).read_text() == "<svg/>"


def test_one_that_is_killed_midway_costs_its_own_answer_only(servers: Servers, tmp_path: Path) -> None:
    mark = tmp_path / "at-it"
    name = unique("analyst")
    with (
        responder(servers, tmp_path / "a", name, HANG.format(mark=str(mark))) as (analyst, process),
        responder(servers, tmp_path / "v", unique("viz"), DRAW) as (viz, _),
        typescript_writer(servers) as writer,
    ):

        async def kill() -> None:
            while not mark.exists():
                await anyio.sleep(0.01)
            process.signal(signal.SIGKILL)

        async def main() -> None:
            async with parent(servers, tmp_path) as client:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kill)
                    gathering = client.gather(dict.fromkeys((analyst, viz, writer), "sales"), timeout=8)
                    results = await gathering.results()
                assert results[viz].answer is not None
                assert results[writer].answer is not None
                unfinished = results[analyst].failure
                assert isinstance(unfinished, TaskUnfinished)
                assert unfinished.state is TaskState.RUNNING

                # It is started again: the task was called off meanwhile, and is not run a second time.
                mark.unlink()
                with responder(servers, tmp_path / "a", name, ANALYSE) as (again, _):
                    assert again == analyst
                    answer = await client.request(analyst, "and now?", timeout=PATIENCE)
                    assert answer.content == "sales are up 6 %"

        anyio.run(main)
    assert not mark.exists()
