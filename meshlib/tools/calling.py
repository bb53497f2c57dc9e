"""Tools called by agent frameworks, all of which run on asyncio and take a text for an answer."""

import asyncio
from collections.abc import Mapping
from typing import Any

from meshlib.tools.toolbox import Toolbox

_confirming: set[asyncio.Task[None]] = set()
"""The loop itself holds tasks weakly."""


async def text_of_call(toolbox: Toolbox, name: str, arguments: Mapping[str, Any] | str | None) -> str:
    """Call a tool and return its result.

    The messages in it are confirmed by a task of its own, which runs once the framework has the text. A program that
    ends before that finds them in its inbox again.
    """
    call = await toolbox.call(name, arguments)
    task = asyncio.get_running_loop().create_task(call.confirm())
    _confirming.add(task)
    task.add_done_callback(_confirming.discard)
    return call.text
