"""The real Codex and Claude Code with ``mesh mcp`` as their tool server, as docs/tools.md sets it up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshlib.tools.definitions import TOOLS
from tests.commands import Servers, environment
from tests.runtimes.mesh_kit import peer
from tests.runtimes.model_server import Model, model_server
from tests.runtimes.programs import program

pytestmark = [pytest.mark.slow, pytest.mark.runtimes, pytest.mark.node]

Run = Callable[[Path, Model, Path, str], str]

CODEX = """\
model = "fake"
model_provider = "local"
approval_policy = "never"
sandbox_mode = "read-only"
web_search = "disabled"
check_for_update_on_startup = false
[analytics]
enabled = false
[features]
plugins = false
apps = false
shell_tool = false
[model_providers.local]
name = "local"
base_url = "{url}"
wire_api = "responses"
request_max_retries = 1
[mcp_servers.mesh]
command = "{python}"
args = ["-m", "meshlib", "mcp"]
env = {{ MESH_STORE = "{store}" }}
required = true
default_tools_approval_mode = "approve"
"""


def codex(folder: Path, model: Model, store: Path, prompt: str) -> str:
    home = folder / "codex"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(CODEX.format(url=f"{model.url}/v1", python=sys.executable, store=store))
    options = ["--skip-git-repo-check", "--ephemeral", "--color", "never", "-o", str(folder / "last"), "-"]
    ended(folder, [str(program("npm", "codex")), "exec", *options], prompt, CODEX_HOME=str(home))
    return (folder / "last").read_text()


def claude(folder: Path, model: Model, store: Path, prompt: str) -> str:
    server = {"command": sys.executable, "args": ["-m", "meshlib", "mcp"], "env": {"MESH_STORE": str(store)}}
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": {"mesh": server}}))
    allowed = ",".join(f"mcp__mesh__{tool.name}" for tool in TOOLS)
    options = ["--bare", "--tools", "", "--strict-mcp-config", "--mcp-config", str(folder / "mcp.json")]
    options += ["--allowedTools", allowed, "--no-session-persistence", "--output-format", "json"]
    said = ended(
        folder,
        [str(program("npm", "claude")), "-p", *options],
        prompt,
        ANTHROPIC_BASE_URL=model.url,
        ANTHROPIC_API_KEY="none",
        MCP_CONNECTION_NONBLOCKING="0",
        CLAUDE_CODE_MAX_RETRIES="1",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    result: str = json.loads(said)["result"]
    return result


def ended(folder: Path, command: list[str], prompt: str, **env: str) -> str:
    (folder / "work").mkdir(exist_ok=True)
    run = subprocess.run(
        command,
        input=prompt,
        env=environment(HOME=str(folder), **env),
        cwd=folder / "work",
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture
def model() -> Iterator[Model]:
    with model_server() as started:
        yield started


@pytest.mark.parametrize("runtime", [codex, claude], ids=["codex", "claude"])
def test_model_sends_and_reads(servers: Servers, tmp_path: Path, model: Model, runtime: Run) -> None:
    store = tmp_path / "store"

    def run(tool: str, **arguments: Any) -> str:
        return runtime(tmp_path, model, store, f"[[call {tool} {json.dumps(arguments)}]]")

    with peer(servers, "alice", store) as alice, peer(servers, "bob", tmp_path / "bob") as bob:
        assert '"ok": true' in run("mesh_send", to_agent=bob.name, content="hello")
        message = bob.next()
        assert (message.sender, message.payload) == (alice.did, "hello")
        offered = {name for request in model.requests for name in request.tools}
        assert {f"mcp__mesh__{tool.name}" for tool in TOOLS} <= offered

        bob.send(alice.did, "good morning")
        assert "good morning" in run("mesh_await", senders=[bob.name], timeout_seconds=30)
        assert '"messages": []' in run("mesh_inbox")  # it was confirmed
