"""The plugin inside the real Hermes: a model calls a tool, and the peer has the message.

Hermes lives in an environment of its own with nothing of ours but meshlib's own files: no cryptography of ours, no
msgspec. The daemon does the work.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import MESH, Servers, environment
from tests.runtimes.environments import python_of
from tests.runtimes.mesh_kit import Peer, peer
from tests.runtimes.model_server import Model, model_server

pytestmark = [pytest.mark.slow, pytest.mark.runtimes]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with model_server() as started:
        yield started


@pytest.fixture
def home(tmp_path: Path, model: Model) -> Path:
    """The folder of a Hermes that uses our model, with the plugin in it."""
    folder = tmp_path / "hermes"
    folder.mkdir()
    chosen = f'{{provider: custom, default: fake, base_url: "{model.url}/v1", api_key: x, context_length: 131072}}'
    (folder / "config.yaml").write_text(f"model: {chosen}\nplugins: {{enabled: [mesh]}}\n")
    done = subprocess.run(
        [*MESH, "hermes-plugin", "--json", "--hermes-home", folder],
        env=environment(HOME=str(tmp_path)),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"folder": str(folder / "plugins/mesh")}
    return folder


@pytest.fixture
def alice(servers: Servers, tmp_path: Path) -> Iterator[Peer]:
    with peer(servers, "alice", tmp_path / "store") as started:
        yield started


@pytest.fixture
def bob(servers: Servers, tmp_path: Path) -> Iterator[Peer]:
    with peer(servers, "bob", tmp_path / "bob") as started:
        yield started


def hermes(home: Path, prompt: str, toolset: str = "mesh", **env: str) -> str:
    """Run Hermes once. Returns what it says."""
    run = subprocess.run(
        [python_of("hermes", ours=False).parent / "hermes", "-t", toolset, f"--oneshot={prompt}"],
        env=environment(HOME=str(home.parent), HERMES_HOME=str(home), **env),
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def call(tool: str, **arguments: Any) -> str:
    """A prompt that makes the model call a tool."""
    return f"[[call {tool} {json.dumps(arguments)}]]"


def result_of(said: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(said.removeprefix("the tool returned: "))
    return result


@pytest.mark.parametrize(("toolset", "prefix"), [("mesh", ""), ("kars_mesh", "kars_")])
def test_model_sends_a_message(home: Path, alice: Peer, bob: Peer, model: Model, toolset: str, prefix: str) -> None:
    order = call(f"{prefix}mesh_send", to_agent=bob.name, content="hello from Hermes")
    result = result_of(hermes(home, order, toolset, MESH_STORE=str(home.parent / "store")))
    assert (result["ok"], result["to"]) == (True, bob.did)
    message = bob.next()
    assert (message.sender, message.payload) == (alice.did, "hello from Hermes")


def test_model_gives_a_task_and_reads_the_answer(home: Path, alice: Peer, bob: Peer) -> None:
    task = bob.answer_one("42")
    order = call("mesh_request", to_agent=bob.name, content="6 x 7?", timeout_seconds=60)
    result = result_of(hermes(home, order, MESH_STORE=str(home.parent / "store"), MESH_HOPS="2"))
    assert result["ok"]
    assert "\n42\n" in result["answer"]
    assert (task.result(60).content, task.result(60).hops) == ("6 x 7?", 3)


def test_model_sends_a_file(home: Path, servers: Servers, alice: Peer, tmp_path: Path) -> None:
    work, incoming = tmp_path / "work", tmp_path / "incoming"
    work.mkdir()
    (work / "report.txt").write_text("figures")
    with peer(servers, "carol", tmp_path / "carol", incoming) as carol:
        order = call("mesh_transfer_file", to_agent=carol.name, file_path="report.txt")
        result = result_of(hermes(home, order, MESH_STORE=str(home.parent / "store"), MESH_FILES=str(work)))
        assert (result["ok"], result["state"]) == (True, "done")
    assert (incoming / "report.txt").read_text() == "figures"


def test_message_is_confirmed_once_the_model_has_it(home: Path, alice: Peer, bob: Peer) -> None:
    bob.send(alice.did, "first")
    assert "first" in hermes(home, call("mesh_inbox"), MESH_STORE=str(home.parent / "store"))
    bob.send(alice.did, "second")
    said = hermes(home, call("mesh_await"), MESH_STORE=str(home.parent / "store"))
    assert "second" in said
    assert "first" not in said


def test_without_a_daemon_the_model_is_told(home: Path) -> None:
    said = hermes(home, call("mesh_send", to="bob", content="x"), MESH_STORE=str(home.parent / "nobody"))
    assert result_of(said)["fault"] == "this machine"
