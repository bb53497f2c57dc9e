"""hermes-agent inside this interpreter: a later task starts in a third of a second instead of three.

Needs a responder that runs in Hermes's own environment. A task that is stopped is answered without it; its thread runs
to its own end, for nothing can end a thread.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import anyio

from meshlib.errors import InvalidValue
from meshlib.responder.runtimes.presets import HERMES_ERROR, Options, Tools
from meshlib.responder.runtimes.prompt import prompt_for
from meshlib.responder.runtimes.protocol import Done, Failed, Outcome, Task

MAX_ROUNDS = 30
"""Turns of the model for one task."""


class HermesRuntime:
    """Hermes as a library.

    Args:
        options: which model, where. The program is this interpreter.
    Raises:
        InvalidValue: Hermes is not installed here, or no model server is named.
    """

    name = "hermes-inprocess"

    def __init__(self, options: Options) -> None:
        try:
            self._make: Callable[..., Any] = import_module("run_agent").AIAgent
            import_module("hermes_cli.plugins").discover_plugins()
        except ImportError as error:
            raise InvalidValue(
                "hermes-inprocess needs hermes-agent in the interpreter that runs mesh: install both, or use hermes"
            ) from error
        if options.base_url is None or options.model is None:
            raise InvalidValue("hermes-inprocess needs a model server: give base_url and model")
        self._options = options

    async def run(self, task: Task) -> Outcome:
        """Work on a task in a worker thread."""
        result = await anyio.to_thread.run_sync(self._converse, prompt_for(task), abandon_on_cancel=True)
        text = result.get("final_response")
        given = isinstance(text, str) and not text.lstrip().startswith(HERMES_ERROR)
        if result.get("completed") is not True or result.get("failed") or not isinstance(text, str) or not given:
            return Failed("the agent's model gave no answer", f"hermes: {type(result.get('error')).__name__}")
        if not text.strip():
            return Failed("the agent gave an empty answer", "hermes said nothing")
        return Done(text.strip())

    def _converse(self, prompt: str) -> dict[str, Any]:
        options = self._options
        toolsets = {Tools.NONE: ["context_engine"], Tools.MESH: ["mesh"], Tools.OWN: None}[options.tools]
        agent = self._make(
            base_url=options.base_url,
            api_key=options.api_key or "none",
            provider="custom",
            api_mode="chat_completions",
            model=options.model,
            enabled_toolsets=toolsets,
            quiet_mode=True,
            skip_context_files=True,
            skip_memory=True,
            max_iterations=MAX_ROUNDS,
        )
        result = agent.run_conversation(prompt)
        return result if isinstance(result, dict) else {}
