"""``mesh respond`` as people and scripts meet it: real processes on real servers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from meshlib import ClientConfig, MeshClient, TaskFailed
from meshlib.responder.runtimes.named import NAMES
from tests.commands import PATIENCE, ROOT, Agent, Servers

pytestmark = pytest.mark.slow

UPPER = "import sys; print(sys.stdin.read().strip().splitlines()[-1].upper())"


@pytest.fixture
def agent(servers: Servers, tmp_path: Path) -> Callable[[str], Agent]:
    def make(name: str) -> Agent:
        return Agent(tmp_path / name, {**servers.variables, "MESH_NAME": f"{name}-{tmp_path.name}"})

    return make


@asynccontextmanager
async def parent(servers: Servers, **options: object) -> AsyncIterator[MeshClient]:
    config = ClientConfig(relay_url=servers.relay, registry_url=servers.registry, **options)  # type: ignore[arg-type]
    async with MeshClient(config) as client:
        yield client


def test_a_command_answers_and_every_task_is_shown(servers: Servers, agent: Callable[[str], Agent]) -> None:
    analyst = agent("analyst")

    async def ask(did: str) -> str:
        async with parent(servers) as client:
            return (await client.request(did, "loud", timeout=PATIENCE)).content

    with analyst.starting("respond", "--json", "--allow-everyone", "--", sys.executable, "-c", UPPER) as process:
        ready = process.said("err")
        assert (ready["event"], ready["tasks_from"]) == ("responding", "everyone")
        assert anyio.run(ask, ready["did"]) == "LOUD"
        shown = [process.said() for _ in range(2)]
        assert [line["what"] for line in shown] == ["started", "answered"]
        process.signal(signal.SIGTERM)
        assert process.ended() == 0


def test_nobody_may_give_tasks_unless_it_is_said(servers: Servers, agent: Callable[[str], Agent]) -> None:
    async def ask(did: str) -> str:
        async with parent(servers) as client:
            with pytest.raises(TaskFailed) as failed:
                await client.request(did, "loud", timeout=PATIENCE)
            return failed.value.error

    with agent("analyst").starting("respond", "--json", "--", sys.executable, "-c", UPPER) as process:
        ready = process.said("err")
        assert ready["tasks_from"] == []
        assert anyio.run(ask, ready["did"]) == "refused"
        assert process.said()["what"] == "refused"


@pytest.mark.parametrize("relative", [False, True])
def test_files_of_an_answer_arrive_and_leave_nothing_behind(
    servers: Servers, agent: Callable[[str], Agent], tmp_path: Path, relative: bool
) -> None:
    analyst = agent("viz")
    store = tmp_path / "viz store"
    named = Path(os.path.relpath(store, ROOT)) if relative else store
    code = "open('outbox/chart.svg', 'w').write('<svg/>'); print('see the chart')"

    async def ask(did: str) -> str:
        async with parent(servers, store=tmp_path / "parent", incoming=tmp_path / "in") as client:
            answer = await client.request(did, "draw", timeout=PATIENCE)
            assert [artifact.name for artifact in answer.artifacts] == ["chart.svg"]
            with anyio.fail_after(PATIENCE):
                message = await client.receive()
            await message.ack()
            return str(message.payload["saved_to"])  # type: ignore[index]

    options = ("--json", "--allow-everyone", "--store", named)
    with analyst.starting("respond", *options, "--", sys.executable, "-c", code) as process:
        saved_to = anyio.run(ask, process.said("err")["did"])
        assert Path(saved_to).read_text() == "<svg/>"
        process.signal(signal.SIGTERM)
        assert process.ended() == 0
    assert (store / "outgoing").is_dir()
    assert [path for path in store.rglob("outgoing/**/*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ((), {}, "say what answers"),
        (("hermess",), {}, "hermess"),
        (("--env", "NOT_THERE", "--", "true"), {}, "NOT_THERE"),
        (("--api-key-env", "NOT_THERE", "llm"), {}, "NOT_THERE"),
        (("--allow", "a", "--allow-everyone", "--", "true"), {}, "not allowed with"),
        (("--", "true"), {"KARS_MESH_AUTO_RESPONDER": "0"}, "switched off"),
        (("--", "true"), {"KARS_MESH_WORKER_TIMEOUT_S": "soon"}, "seconds"),
        (("hermes-inprocess",), {}, "hermes-agent"),
        (("http://127.0.0.1/x", "--concurrency", "0"), {}, "positive"),
        (("http://127.0.0.1/x", "--tools", "mesh"), {}, "leave out --tools"),
        (("--tools", "own", "--model", "x", "--", "true"), {}, "leave out --model, --tools"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    agent: Callable[[str], Agent], arguments: tuple[str, ...], variables: dict[str, str], told: str
) -> None:
    result = agent("analyst").mesh("respond", *arguments, **variables)
    assert result.code == 2
    assert told in result.err
    assert result.complaint


def test_the_help_names_every_runtime(agent: Callable[[str], Agent]) -> None:
    told = agent("analyst").mesh("respond", "--help").out
    assert all(name in told for name in NAMES)
