"""Tools on an event loop: bounded waits for clients and daemons that run on anyio."""

import os
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import TypeVar

import anyio

from meshlib.client.verbs import Mesh
from meshlib.tools.desk import Permissions, default_folders
from meshlib.tools.toolbox import Toolbox

T = TypeVar("T")


async def within(seconds: float, awaitable: Awaitable[T], /) -> T | None:
    """Wait ``seconds`` at most; then it is cancelled, and ``None`` says so."""
    with anyio.move_on_after(seconds):
        return await awaitable
    return None


def toolbox(mesh: Mesh, *, folders: Iterable[str | Path] | None = None, hops: int = 0) -> Toolbox:
    """The tools of one model.

    Args:
        mesh: a client, or a daemon's.
        folders: whose files the model may send; the current folder if it is not told, unless that holds the home.
        hops: how many agents have passed work on before this one; see ``MESH_HOPS`` in docs/tools.md.
    """
    if folders is None:
        home = Path.home()
        opened = default_folders(Path.cwd(), home)
    else:
        opened = tuple(Path(folder).resolve() for folder in folders)
    return Toolbox(mesh, within, Permissions(opened, hops=hops), os.urandom)
