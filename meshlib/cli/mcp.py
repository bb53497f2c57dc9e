"""``mesh mcp``: tools for a model's program that speaks MCP."""

import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio

from meshlib.cli.exits import Exit
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console
from meshlib.client.mesh import MeshClient
from meshlib.client.verbs import Mesh
from meshlib.daemon.address import socket_path
from meshlib.tools.definitions import TOOLS, renamed
from meshlib.tools.desk import permissions_from
from meshlib.tools.link import daemon_at_first_use
from meshlib.tools.mcp import claimed, serve
from meshlib.tools.toolbox import Toolbox
from meshlib.tools.waiting import within


def mcp(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Serve until standard input ends."""
    settings = settings_from(arguments, environment)
    permissions = permissions_from(environment, Path.cwd(), arguments.files, settings.store)
    tools = [renamed(tool) if arguments.kars else tool for tool in TOOLS]

    async def main() -> int:
        with claimed() as (stdin, stdout):
            async with _mesh(settings, standalone=arguments.standalone) as mesh:
                await serve(Toolbox(mesh, within, permissions, os.urandom), tools, stdin, stdout)
        return Exit.OK

    return anyio.run(main)


def _mesh(settings: Settings, *, standalone: bool) -> AbstractAsyncContextManager[Mesh]:
    return MeshClient(settings.client()) if standalone else daemon_at_first_use(socket_path(settings.store))
