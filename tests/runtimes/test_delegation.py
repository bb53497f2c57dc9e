"""A task goes round by way of three agents: the model of a responder has another agent do the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import Agent, Servers
from tests.runtimes.environments import python_of
from tests.runtimes.mesh_kit import peer, unique
from tests.runtimes.model_server import model_server
from tests.runtimes.programs import program

pytestmark = [pytest.mark.slow, pytest.mark.runtimes]

PATIENCE = 120


@pytest.mark.parametrize("runtime", ["claude", "codex", "hermes"])
def test_model_of_a_responder_delegates(servers: Servers, tmp_path: Path, runtime: str) -> None:
    name = unique("analyst")
    analyst = Agent(tmp_path, {**servers.variables, "MESH_NAME": name, "KEY": "none"})
    installed = python_of("hermes", ours=False) if runtime == "hermes" else program("npm", runtime)
    with (
        model_server() as model,
        peer(servers, "parent") as parent,
        peer(servers, "worker", tmp_path / "worker") as worker,
    ):
        base_url = model.url if runtime == "claude" else f"{model.url}/v1"
        options = ["--model", "fake", "--base-url", base_url, "--api-key-env", "KEY", "--program", str(installed)]
        arguments = ["respond", runtime, "--json", "--tools", "mesh", "--allow-everyone", *options]
        with analyst.starting(*arguments) as responder:
            assert responder.said("err")["event"]
            delegated = worker.answer_one("42")
            order = json.dumps({"to_agent": worker.name, "content": "6 x 7?", "timeout_seconds": 60})
            task = f"[[call mesh_request {order}]]"
            answer = parent.portal.call(lambda: parent.client.request(name, task, timeout=PATIENCE))
    assert "\\n42\\n" in answer.content
    assert "untrusted" in answer.content
    assert (delegated.result(PATIENCE).content, delegated.result(PATIENCE).hops) == ("6 x 7?", 1)
