"""Every preset against the real program, with a model server that does as the prompt says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from meshlib.identity import Did
from meshlib.responder.outcomes import checked
from meshlib.responder.runtimes.command import CommandRuntime
from meshlib.responder.runtimes.presets import Options, preset
from meshlib.responder.runtimes.protocol import Done, Failed, Outcome, Task
from tests.runtimes.environments import python_of
from tests.runtimes.model_server import Model, model_server
from tests.runtimes.programs import node_folder, program

pytestmark = [pytest.mark.slow, pytest.mark.runtimes]

PATIENCE = 240.0
SECRET = "a variable of the responder that is nobody's business"


def _program(name: str) -> str:
    match name:
        case "hermes":
            return str(python_of("hermes", ours=False))
        case "llm":
            return str(python_of("llm", ours=False).with_name("llm"))
        case "openclaw":
            return str(program("openclaw", "openclaw", with_node=True))
        case _:
            return str(program("npm", name))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with model_server() as started:
        yield started


class Preset:
    """One preset, ready to run."""

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.model = model
        base_url = model.url if name == "claude" else f"{model.url}/v1"
        self._options = Options(program=_program(name), model="fake", base_url=base_url, api_key="key-123")
        self._environment = {**os.environ, "SECRET": SECRET}
        if name == "openclaw":
            self._environment["PATH"] = f"{node_folder()}{os.pathsep}{os.environ['PATH']}"
        self.thoughts: list[str] = []

    def run(self, content: str, seconds: float = PATIENCE) -> Outcome | None:
        """What it makes of a task; ``None`` if it was stopped."""
        self.model.requests.clear()
        runtime = CommandRuntime(
            preset(self.name, self._options),
            self._environment,
        )
        task = Task("r1", content, Did("did:mesh:" + "a" * 32), "parent", timeout=seconds)

        async def run() -> Outcome | None:
            with anyio.move_on_after(seconds):
                outcome, thought = checked(await runtime.run(task))
                self.thoughts += [thought] if thought else []
                return outcome
            return None

        return anyio.run(run)

    @property
    def asked(self) -> str:
        """All that reached the model."""
        return "\n".join(str(request.body) for request in self.model.requests)


@pytest.fixture(scope="module", params=["hermes", "claude", "codex", "openclaw", "llm"])
def agent(request: pytest.FixtureRequest, model: Model) -> Preset:
    return Preset(request.param, model)


def test_an_answer_is_an_answer_and_thinking_is_none(agent: Preset) -> None:
    outcome = agent.run("[[think my secret plan]][[say forty-two]]")
    assert isinstance(outcome, Done)
    assert outcome.content == "forty-two"
    if agent.name in ("claude", "codex", "llm"):  # the others cut it themselves
        assert agent.thoughts == ["my secret plan"]


def test_a_model_that_fails_gives_no_answer(agent: Preset) -> None:
    outcome = agent.run("[[status 500]]")
    assert isinstance(outcome, Failed)
    assert "500" not in outcome.reason


def test_a_model_that_says_nothing_gives_no_answer(agent: Preset) -> None:
    assert isinstance(agent.run("[[silent]]"), Failed)


def test_a_prompt_is_no_command_and_opens_no_file(agent: Preset) -> None:
    contents = ["@/etc/passwd", "/help", "--help", "-h", "!cat /etc/passwd", "#remember this"]
    for content in contents[: 1 if agent.name == "openclaw" else None]:  # which takes ten seconds to start
        outcome = agent.run(f"{content} [[say ok]]")
        assert isinstance(outcome, Done)
        assert outcome.content == "ok"
        assert content in "".join(request.text for request in agent.model.prompts)
        assert "root:x:0" not in agent.asked


def test_its_model_has_no_tools(agent: Preset, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for tool in ("exec",) if agent.name == "openclaw" else ("shell", "Bash", "terminal"):
        agent.run(f'[[call {tool} {{"command": "touch {mark}"}}]]')
        offered = {tool for request in agent.model.prompts for tool in request.tools}
        assert offered <= {"request_user_input"}, "codex's question to its user, whom nobody answers, is all there is"
        assert not mark.exists()


def test_the_responders_environment_stays_its_own(agent: Preset) -> None:
    agent.run("[[say ok]]")
    assert SECRET not in agent.asked


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who descends from whom")
def test_a_task_that_is_stopped_leaves_nothing_running(agent: Preset) -> None:
    before = _of_task_folders()
    assert agent.run("[[sleep 120]]", seconds=25 if agent.name == "openclaw" else 6) is None
    assert _of_task_folders() - before == set()
    assert agent.model.requests, "it was stopped before it had begun"


def _of_task_folders() -> set[int]:
    """Processes that run in a folder of a task, or did before it was removed."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if "/mesh-task-" in os.readlink(entry / "cwd"):
                    found.add(int(entry.name))
            except OSError:
                continue
    return found
