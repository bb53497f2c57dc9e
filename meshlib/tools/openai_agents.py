"""The tools for the OpenAI Agents SDK (package ``openai-agents``)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agents import FunctionTool

from meshlib.client.verbs import Mesh
from meshlib.tools.calling import text_of_call
from meshlib.tools.definitions import TOOLS, Tool
from meshlib.tools.toolbox import Toolbox
from meshlib.tools.waiting import toolbox


def tools_for(mesh: Mesh, *, folders: Iterable[str | Path] | None = None, hops: int = 0) -> list[FunctionTool]:
    """The tools of one agent: ``Agent(tools=tools_for(client))``. See :func:`meshlib.tools.waiting.toolbox`."""
    box = toolbox(mesh, folders=folders, hops=hops)
    return [_tool(box, tool) for tool in TOOLS]


def _tool(box: Toolbox, tool: Tool) -> FunctionTool:
    async def invoke(context: Any, arguments: str) -> str:
        return await text_of_call(box, tool.name, arguments)

    return FunctionTool(
        name=tool.name,
        description=tool.description,
        params_json_schema=dict(tool.parameters),
        on_invoke_tool=invoke,
        strict_json_schema=False,  # strict ones have no optional parameters
    )
