"""Hermes as a library: the responder's own interpreter runs it, with everything of ours beside it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.commands import environment
from tests.runtimes.environments import python_of
from tests.runtimes.model_server import Model, model_server

pytestmark = [pytest.mark.slow, pytest.mark.runtimes]

PROGRAM = """
import anyio, json, sys, time
from meshlib.identity import Did
from meshlib.responder.outcomes import checked
from meshlib.responder.runtimes.hermes_inprocess import HermesRuntime
from meshlib.responder.runtimes.presets import Options
from meshlib.responder.runtimes.protocol import Task

runtime = HermesRuntime(Options(model="fake", base_url=sys.argv[1], api_key="key"))

async def main():
    for content in sys.argv[2:]:
        started = time.monotonic()
        returned = await runtime.run(Task("r1", content, Did("did:mesh:" + "a" * 32), "parent", timeout=60))
        outcome, thought = checked(returned)
        said = {"kind": type(outcome).__name__, "content": getattr(outcome, "content", ""), "thought": thought}
        print("\\n" + json.dumps({**said, "seconds": time.monotonic() - started}), flush=True)

anyio.run(main)
"""


def outcomes(model: Model, home: str, *contents: str) -> list[dict[str, Any]]:
    run = subprocess.run(
        [python_of("hermes-inprocess"), "-c", PROGRAM, f"{model.url}/v1", *contents],
        capture_output=True,
        text=True,
        env=environment(HOME=home, HERMES_HOME=f"{home}/.hermes"),
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"kind"')]


def test_it_answers_and_an_error_is_no_answer(tmp_path: Any) -> None:
    with model_server() as model:
        first, second, failed, silent = outcomes(
            model, str(tmp_path), "[[say one]]", "[[think hm]][[say two]]", "[[status 500]]", "[[silent]]"
        )
        offered = {tool for request in model.prompts for tool in request.tools}
    assert [one["kind"] for one in (first, second, failed, silent)] == ["Done", "Done", "Failed", "Failed"]
    assert (first["content"], second["content"]) == ("one", "two")
    assert offered == set()
