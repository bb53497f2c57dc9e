"""Whether there is a node that can run the TypeScript agent."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OLDEST = 20
_MODULES = Path(__file__).resolve().parent.parent / "interop" / "node_modules"


@dataclass(frozen=True)
class MissingNode:
    """Why there is no TypeScript agent."""

    reason: str


def find_node() -> Path | MissingNode:
    """The node to use, or why there is none."""
    node = shutil.which("node")
    if node is None:
        return MissingNode(f"node is not installed; with node {OLDEST} or newer there will be one")
    try:
        said = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
        major = int(said.removeprefix("v").split(".")[0])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return MissingNode(f"{node} does not work: {error}")
    if major < OLDEST:
        return MissingNode(f"node {said} is too old; {OLDEST} or newer is needed")
    if not _MODULES.is_dir():
        return MissingNode("its npm packages are not installed; 'make npm' installs them")
    return Path(node)
