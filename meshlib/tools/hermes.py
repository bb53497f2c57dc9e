"""The tools as a plugin of Hermes: the entry point ``hermes_agent.plugins`` names this module.

It runs in the interpreter of Hermes, whose packages are pinned, and so loads the standard library only: the daemon of
this machine does the work. Messages in a result are confirmed when Hermes tells that the tool call has ended.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from meshlib.daemon.address import socket_path
from meshlib.daemon.blocking import BlockingDaemonClient
from meshlib.places import store_folder
from meshlib.tools.blocking import BlockingToolbox
from meshlib.tools.definitions import TOOLS, Tool, renamed
from meshlib.tools.desk import permissions_from
from meshlib.tools.toolbox import Call

log = logging.getLogger("meshlib.tools")

TOOLSET = "mesh"
FIELD_TOOLSET = "kars_mesh"
"""Where configurations in the field look for the tools under their other names."""
UNCONFIRMED = 100
"""Results whose end Hermes has not told; beyond it the messages in the oldest come again after a restart."""


def register(ctx: Any) -> None:
    """Called by Hermes when it loads the plugin.

    Args:
        ctx: has ``register_tool`` and ``register_hook``.
    """
    plugin = Plugin(os.environ, Path.cwd())
    for tool in TOOLS:
        for offered, toolset in ((tool, TOOLSET), (renamed(tool), FIELD_TOOLSET)):
            ctx.register_tool(
                name=offered.name,
                toolset=toolset,
                schema=_schema(offered),
                handler=plugin.handler(offered.name),
                description=offered.description,
                emoji="🕸",
            )
    ctx.register_hook("post_tool_call", plugin.ended)


def _schema(tool: Tool) -> dict[str, object]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


class Plugin:
    """The toolbox of one Hermes.

    Args:
        environment: ``MESH_STORE`` or ``MESH_NAME`` names the agent whose daemon is used.
        cwd: open for sending files, unless ``MESH_FILES`` names folders.
    """

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        store = Path(environment.get("MESH_STORE") or store_folder(_name(environment), environment))
        permissions = permissions_from(environment, cwd, store=store)
        self._toolbox = BlockingToolbox(BlockingDaemonClient(socket_path(store)), permissions, os.urandom)
        self._lock = threading.Lock()
        self._returned: OrderedDict[str, Call] = OrderedDict()

    def handler(self, name: str) -> Callable[..., str]:
        """What Hermes calls for a tool: arguments in, JSON text out."""
        return partial(self._call, name)

    def _call(self, name: str, args: Any = None, **_: object) -> str:
        call = self._toolbox.call(name, args)
        with self._lock:
            self._returned[call.text] = call
            while len(self._returned) > UNCONFIRMED:
                self._returned.popitem(last=False)
        return call.text

    def ended(self, **facts: Any) -> None:
        """Hermes has a result, and the model will see it."""
        result = facts.get("result")
        with self._lock:
            call = self._returned.pop(result, None) if isinstance(result, str) else None
        if call is not None:
            self._toolbox.confirm(call)


def _name(environment: Mapping[str, str]) -> str | None:
    return environment.get("MESH_NAME") or environment.get("SANDBOX_NAME")
