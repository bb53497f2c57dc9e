"""Every example runs, against real servers, and prints what its first lines promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, Agent, Servers, environment, running

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
PRINTED = {
    "asyncio_agents.py": "the answer is {'sum': 6}",
    "blocking_agent.py": "echo says is anybody there?",
    "delegate.py": (
        "analyst: sales are up 6 %\nviz: here is a chart\nwriter: Sales rose again.\nreceived chart.svg, 6 bytes"
    ),
    "knock_policy.py": "friend: it's me\nstranger: refused, policy_denied",
    "restart.py": "waiting for me: good morning\nthe writer's receipt says delivered",
    "trio_agents.py": "2 workers found; worker-",
}


def test_no_example_is_forgotten() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == set(PRINTED)
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".mjs"} == {
        "typescript_agent.mjs",
        "typescript_responder.mjs",
    }


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_example_runs(name: str, servers: Servers) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        capture_output=True,
        text=True,
        env=environment(**servers.variables),
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(PRINTED[name])
    assert run.stderr == ""


@pytest.mark.node
def test_typescript_example_answers(servers: Servers, tmp_path: Path) -> None:
    alice = Agent(tmp_path, {**servers.variables, "MESH_NAME": "asks-typescript"})
    with running(["node", EXAMPLES / "typescript_agent.mjs"], **servers.variables) as typescript:
        did = typescript.line().removeprefix("listening as ")
        assert alice.mesh("send", did, "hello").code == 0
        assert typescript.line().endswith('says "hello"')
        answer = alice.mesh("listen", "--count", "1", "--json", "--timeout", "30")
        assert answer.lines[0]["payload"] == "hello from TypeScript"
        assert typescript.ended() == 0


@pytest.mark.node
def test_typescript_agent_is_one_of_the_team(servers: Servers) -> None:
    with running(["node", EXAMPLES / "typescript_responder.mjs"], **servers.variables) as typescript:
        did = typescript.line().removeprefix("answering as ")
        run = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / "delegate.py"],
            capture_output=True,
            text=True,
            env=environment(**servers.variables, MESH_WRITER=did),
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "writer: written in TypeScript: the sales of last quarter, please" in run.stdout
        assert "received chart.svg" in run.stdout
        assert typescript.line().startswith("answered ")


def test_examples_are_typed() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", EXAMPLES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout
