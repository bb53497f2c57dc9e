"""The plugin as files, for a Hermes in whose environment meshlib is not installed."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from meshlib import places
from meshlib.tools.definitions import TOOLS, renamed

FOLDER = "plugins/mesh"
"""Where Hermes looks for them, below its home."""

_LOADER = '''\
"""Tools of the mesh, by way of the mesh daemon on this machine. Written by meshlib; write it anew after meshlib has
moved. Loads meshlib by its path, and nothing else of the environment that it lies in."""

import importlib.util
import sys

if importlib.util.find_spec("meshlib") is None:
    _spec = importlib.util.spec_from_file_location("meshlib", {init!r}, submodule_search_locations=[{folder!r}])
    sys.modules["meshlib"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["meshlib"])

from meshlib.tools.hermes import register

__all__ = ["register"]
'''


def plugin_files() -> Mapping[str, str]:
    """Their texts by name."""
    package = Path(places.__file__).resolve().parent
    loader = _LOADER.format(init=str(package / "__init__.py"), folder=str(package))
    return {"__init__.py": loader, "plugin.yaml": _manifest()}


def _manifest() -> str:
    names = [name for tool in TOOLS for name in (tool.name, renamed(tool).name)]
    try:
        number = version("agent-meshlib")
    except PackageNotFoundError:
        number = "0"
    return "\n".join(
        [
            "name: mesh",
            f'version: "{number}"',
            "description: Talk to other agents, end-to-end encrypted",
            "author: meshlib",
            "provides_tools:",
            *(f"  - {name}" for name in names),
            "provides_hooks:",
            "  - post_tool_call",
            "",
        ]
    )
