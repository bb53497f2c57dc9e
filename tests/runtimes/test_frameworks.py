"""The adapters in the real frameworks: an agent runs, its model calls tools, and the peer has the messages."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.tools.definitions import TOOLS
from tests.commands import Servers, environment
from tests.runtimes.environments import HERE, python_of
from tests.runtimes.mesh_kit import Peer, peer, unique
from tests.runtimes.model_server import model_server

pytestmark = [pytest.mark.slow, pytest.mark.runtimes]

FRAMEWORKS = ["openai_agents", "pydantic_ai", "langchain", "agent_framework"]


@pytest.fixture
def bob(servers: Servers, tmp_path: Path) -> Iterator[Peer]:
    with peer(servers, "bob", tmp_path / "bob") as started:
        yield started


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_agent_talks_to_a_peer(servers: Servers, bob: Peer, tmp_path: Path, framework: str) -> None:
    with model_server() as model:

        def agent(tool: str, **arguments: object) -> str:
            variables = {**servers.variables, "HOME": str(tmp_path), "MESH_NAME": unique("agent")}
            run = subprocess.run(
                [
                    python_of("frameworks"),
                    HERE / "framework_agent.py",
                    framework,
                    f"[[call {tool} {json.dumps(arguments)}]]",
                ],
                env=environment(**variables, OPENAI_BASE_URL=f"{model.url}/v1", OPENAI_API_KEY="none"),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            return run.stdout

        assert '"ok": true' in agent("mesh_send", to_agent=bob.name, content=f"hello from {framework}")
        assert bob.next().payload == f"hello from {framework}"
        assert {name for request in model.requests for name in request.tools} == {tool.name for tool in TOOLS}

        bob.answer_one("42")
        assert "42" in agent("mesh_request", to_agent=bob.name, content="6 x 7?", timeout_seconds=60)

        # What the schema does not know, and what cannot work, are results for the model, not the end of the run.
        assert '"fault": "this call"' in agent("mesh_discover", capability=" ")
