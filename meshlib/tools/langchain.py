"""The tools for LangChain and LangGraph (package ``langchain-core``)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langchain_core.tools import StructuredTool

from meshlib.client.verbs import Mesh
from meshlib.tools.calling import text_of_call
from meshlib.tools.definitions import TOOLS, Tool
from meshlib.tools.toolbox import Toolbox
from meshlib.tools.waiting import toolbox


def tools_for(mesh: Mesh, *, folders: Iterable[str | Path] | None = None, hops: int = 0) -> list[StructuredTool]:
    """The tools of one agent, for ``ainvoke``. See :func:`meshlib.tools.waiting.toolbox`."""
    box = toolbox(mesh, folders=folders, hops=hops)
    return [_tool(box, tool) for tool in TOOLS]


def _tool(box: Toolbox, tool: Tool) -> StructuredTool:
    async def invoke(**arguments: Any) -> str:
        return await text_of_call(box, tool.name, arguments)

    return StructuredTool.from_function(
        coroutine=invoke, name=tool.name, description=tool.description, args_schema=dict(tool.parameters)
    )
