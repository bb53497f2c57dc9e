"""Agents known by name: how each is called for one task, locked by default, and when what it says is an answer.

Facts about them, each held by a test against the real program, are in docs/responder.md.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from meshlib.errors import InvalidValue
from meshlib.responder.runtimes.command import HOPS_VARIABLE, Call, Recipe, Text, failed_status, last_line, read_stdout
from meshlib.responder.runtimes.processes import Finished, Workplace
from meshlib.responder.runtimes.protocol import Failed, Task
from meshlib.tools.hermes_folder import FOLDER, plugin_files
from meshlib.wire.envelopes import Telemetry


class Tools(StrEnum):
    """What a runtime's model may do besides answering. Unattended, every tool is one that strangers use."""

    NONE = "none"
    """Nothing."""
    MESH = "mesh"
    """Talk to other agents, through the daemon of this identity."""
    OWN = "own"
    """Whatever the runtime brings: a shell, files, the web. Remote code execution for whoever may give tasks."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator says about a preset."""

    program: str | None = None
    """Path of its program; ``None``: looked up."""
    model: str | None = None
    base_url: str | None = None
    """Of an OpenAI-compatible model server."""
    api_key: str | None = None
    tools: Tools = Tools.NONE
    store: Path | None = None
    """Folder of the identity whose daemon the mesh tools use."""
    arguments: tuple[str, ...] = ()
    """More for the command line."""

    def __repr__(self) -> str:
        return f"Options(program={self.program!r}, model={self.model!r}, tools={self.tools})"

    def mesh_server(self, task: Task) -> dict[str, Any]:
        """How an MCP client starts the mesh tools. Most of them hand on no environment but the one named here."""
        store = [] if self.store is None else ["--store", str(self.store.absolute())]
        return {
            "command": sys.executable,
            "args": ["-m", "meshlib", "mcp", *store],
            "env": {HOPS_VARIABLE: str(task.hops)},
        }


# --- hermes ----------------------------------------------------------------------------------------------------------

_HERMES_LAUNCHER = """\
import sys
prompt = sys.stdin.read()
sys.argv = ["hermes", *sys.argv[1:], "--oneshot=" + prompt]
try:
    from hermes_cli.mcp_startup import wait_for_mcp_discovery
    wait_for_mcp_discovery(20)
except ImportError:
    pass
from hermes_cli.main import main
sys.exit(main())
"""
_HERMES_TOOLSETS = {
    Tools.NONE: "context_engine",  # the one built in that holds no tool; naming none at all means everything
    Tools.MESH: "mesh",
}
HERMES_ERROR = "\u26a0\ufe0f No reply:"
"""How the text begins that Hermes gives instead of an answer, and calls one."""


def hermes(options: Options) -> Recipe:
    """hermes-agent in an interpreter of its own (``program``: that interpreter).

    It exits with 0 and the error's text when the model fails; only its usage file tells.
    """

    def call(place: Workplace, task: Task) -> Call:
        launcher, usage, home = place.root / "launcher.py", place.root / "usage.json", place.home / ".hermes"
        settings: dict[str, Any] = {}
        environment, files = {"HERMES_HOME": str(home)}, {launcher: _HERMES_LAUNCHER}
        if options.base_url is not None:
            settings["model"] = {
                "provider": "custom",
                "default": options.model or "default",
                "base_url": options.base_url,
                "api_key": options.api_key or "none",
                "context_length": 131_072,
            }
        if options.tools is Tools.MESH:
            # As a plugin, which needs nothing of Hermes: its MCP client is an extra that may not be installed.
            settings["plugins"] = {"enabled": ["mesh"]}
            files |= {home / FOLDER / name: text for name, text in plugin_files().items()}
            environment |= {} if options.store is None else {"MESH_STORE": str(options.store.absolute())}
        model = ["-m", options.model] if options.model and options.base_url is None else []
        toolset = [] if options.tools is Tools.OWN else ["-t", _HERMES_TOOLSETS[options.tools]]
        python = options.program or "python3"
        return Call(
            [python, str(launcher), *toolset, *model, *options.arguments, "--usage-file", str(usage)],
            environment,
            {**files, home / "config.yaml": json.dumps(settings)},
        )

    def read(finished: Finished, place: Workplace) -> Text | Failed:
        if failure := failed_status(finished):
            return failure
        usage = _object(_read(place.root / "usage.json"))
        text = finished.stdout.decode("utf-8", "replace")
        if usage.get("completed") is not True or usage.get("failed") or text.lstrip().startswith(HERMES_ERROR):
            return Failed("the agent's model gave no answer", f"hermes: {last_line(finished.stdout)}")
        return Text(
            text,
            _telemetry({**usage, "rounds": usage.get("api_calls")}, "input_tokens", "output_tokens", "total_tokens"),
        )

    return Recipe("hermes", call, read)


# --- claude ----------------------------------------------------------------------------------------------------------


def claude(options: Options) -> Recipe:
    """Claude Code. ``--bare`` keeps ``@/path`` in a prompt from becoming that file's content."""

    def call(place: Workplace, task: Task) -> Call:
        argv = [options.program or "claude", "-p", "--bare", "--strict-mcp-config", "--no-session-persistence"]
        argv += ["--output-format", "json"]
        files: dict[Path, str] = {}
        if options.tools is Tools.MESH:
            config = place.root / "mcp.json"
            files[config] = json.dumps({"mcpServers": {"mesh": options.mesh_server(task)}})
            argv += ["--tools", "", "--mcp-config", str(config), "--allowedTools", "mcp__mesh"]
        elif options.tools is Tools.NONE:
            argv += ["--tools", ""]
        if options.model is not None:
            argv += ["--model", options.model]
        environment = {
            "MCP_CONNECTION_NONBLOCKING": "0",
            "CLAUDE_CODE_MAX_RETRIES": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        if options.base_url is not None:
            environment["ANTHROPIC_BASE_URL"] = options.base_url
        if options.api_key is not None:
            environment["ANTHROPIC_API_KEY"] = options.api_key
        return Call([*argv, *options.arguments], environment, files)

    def read(finished: Finished, place: Workplace) -> Text | Failed:
        result = _object(finished.stdout)
        text = result.get("result")
        if finished.status != 0 or result.get("is_error") or not isinstance(text, str):
            detail = last_line(text.encode() if isinstance(text, str) else finished.stderr)
            return Failed("the agent's model gave no answer", f"claude ({finished.status}): {detail}")
        usage = result.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        telemetry = _telemetry({**usage, "rounds": result.get("num_turns")}, "input_tokens", "output_tokens", "")
        return Text(text, telemetry)

    return Recipe("claude", call, read)


# --- codex -----------------------------------------------------------------------------------------------------------

_CODEX_FEATURES = (
    "apps",
    "browser_use",
    "computer_use",
    "goals",
    "hooks",
    "image_generation",
    "memories",
    "multi_agent",
    "plugins",
    "shell_tool",
    "skill_search",
    "sleep_tool",
    "tool_suggest",
    "unified_exec",
    "view_image",  # reads any picture on the disk
)


def codex(options: Options) -> Recipe:
    """Codex. Its configuration is written anew for each task: nothing asked for, nothing run, nobody called."""

    def call(place: Workplace, task: Task) -> Call:
        last = place.root / "last"
        lines = [
            'approval_policy = "never"',
            'sandbox_mode = "read-only"',
            'web_search = "disabled"',
            "check_for_update_on_startup = false",
            "unbounded_connection_retries = false",
        ]
        if options.base_url is not None:
            lines += [f"model = {json.dumps(options.model or 'default')}", 'model_provider = "own"']
        elif options.model is not None:
            lines += [f"model = {json.dumps(options.model)}"]
        lines += ["[analytics]", "enabled = false"]
        if options.tools is not Tools.OWN:
            lines += ["[features]", *(f"{feature} = false" for feature in _CODEX_FEATURES)]
        if options.base_url is not None:
            lines += [
                "[model_providers.own]",
                'name = "own"',
                f"base_url = {json.dumps(options.base_url)}",
                'wire_api = "responses"',
                'env_key = "MESH_MODEL_KEY"',
                "request_max_retries = 1",
                "stream_max_retries = 1",
            ]
        if options.tools is Tools.MESH:
            server = options.mesh_server(task)
            lines += [
                "[mcp_servers.mesh]",
                f"command = {json.dumps(server['command'])}",
                f"args = {json.dumps(server['args'])}",
                f"env = {{ {HOPS_VARIABLE} = {json.dumps(server['env'][HOPS_VARIABLE])} }}",
                "required = true",
                'default_tools_approval_mode = "approve"',
                f"tool_timeout_sec = {int(task.timeout) + 1}",  # a task of another agent takes longer than a minute
            ]
        argv = [options.program or "codex", "exec", "--skip-git-repo-check", "--ephemeral", "--color", "never"]
        return Call(
            [*argv, *options.arguments, "-o", str(last), "-"],
            {"CODEX_HOME": str(place.home / ".codex"), "MESH_MODEL_KEY": options.api_key or "none"},
            {place.home / ".codex/config.toml": "\n".join(lines) + "\n"},
        )

    def read(finished: Finished, place: Workplace) -> Text | Failed:
        return failed_status(finished) or Text(_read(place.root / "last").decode("utf-8", "replace"))

    return Recipe("codex", call, read)


# --- openclaw --------------------------------------------------------------------------------------------------------


def openclaw(options: Options) -> Recipe:
    """OpenClaw. Needs node 24.16 or newer."""

    def call(place: Workplace, task: Task) -> Call:
        config = place.root / "openclaw.json"
        settings: dict[str, Any] = {}
        if options.base_url is not None:
            settings["models"] = {
                "providers": {
                    "own": {
                        "baseUrl": options.base_url,
                        "apiKey": options.api_key or "none",
                        "api": "openai-completions",
                        "models": [{"id": options.model or "default", "name": options.model or "default"}],
                    }
                }
            }
            settings["agents"] = {"defaults": {"model": {"primary": f"own/{options.model or 'default'}"}}}
        if options.tools is Tools.NONE:  # to allow an empty list would allow everything
            settings["tools"] = {"toolSearch": False, "deny": ["*"]}
        elif options.tools is Tools.MESH:
            settings["tools"] = {"toolSearch": False, "allow": ["mesh__*"]}
            settings["mcp"] = {"servers": {"mesh": options.mesh_server(task)}}
        argv = [options.program or "openclaw", "agent", "exec", "--config", str(config), "--json"]
        argv += ["--timeout", str(int(task.timeout) + 1), *options.arguments, "--message-file", "-"]
        return Call(argv, {"OPENCLAW_STATE_DIR": str(place.home / ".openclaw")}, {config: json.dumps(settings)})

    def read(finished: Finished, place: Workplace) -> Text | Failed:
        if failure := failed_status(finished):
            return failure
        result = _object(finished.stdout)
        text = result.get("final")
        if result.get("ok") is not True or not isinstance(text, str):
            return Failed("the agent's model gave no answer", f"openclaw: {last_line(finished.stderr)}")
        return Text(text)

    return Recipe("openclaw", call, read)


# --- llm -------------------------------------------------------------------------------------------------------------


def llm(options: Options) -> Recipe:
    """The ``llm`` command: no tools at all."""

    def call(place: Workplace, task: Task) -> Call:
        argv = [options.program or "llm", "-n", "--no-stream"]
        files: dict[Path, str] = {}
        environment = {"LLM_USER_PATH": str(place.home / "llm")}
        if options.base_url is not None:
            model = {"model_id": "own", "model_name": options.model or "default", "api_base": options.base_url}
            files[place.home / "llm/extra-openai-models.yaml"] = json.dumps([model])
            environment["OPENAI_API_KEY"] = options.api_key or "none"
            argv += ["-m", "own"]
        elif options.model is not None:
            argv += ["-m", options.model]
        return Call([*argv, *options.arguments], environment, files)

    return Recipe("llm", call, read_stdout)


PRESETS: Mapping[str, Callable[[Options], Recipe]] = {
    "hermes": hermes,
    "claude": claude,
    "codex": codex,
    "openclaw": openclaw,
    "llm": llm,
}
"""Runtimes known by name that are programs."""


def preset(name: str, options: Options) -> Recipe:
    """The recipe of a runtime.

    Raises:
        InvalidValue: there is none of that name.
    """
    make = PRESETS.get(name)
    if make is None:
        raise InvalidValue(f"no runtime is called {name!r}: there are {', '.join(PRESETS)}; or give a command after --")
    return make(options)


# --- small verbs -----------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """A file a program was to write; nothing if it did not."""
    try:
        with path.open("rb") as file:
            return file.read(4 * 1024 * 1024)
    except OSError:
        return b""


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _telemetry(usage: Mapping[str, Any], prompt: str, completion: str, total: str) -> Telemetry:
    def count(name: str) -> int:
        value = usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0

    asked, said = count(prompt), count(completion)
    return Telemetry(asked, said, count(total) or asked + said, count("rounds"), count("tool_calls"))
