"""The tools over a real daemon, with real servers behind it: what happens to messages when a program dies."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from meshlib import ClientConfig, MeshClient
from meshlib.daemon.address import socket_path
from meshlib.daemon.blocking import BlockingDaemonClient
from meshlib.daemon.server import serve_daemon
from meshlib.tools.blocking import BlockingToolbox
from meshlib.tools.desk import Permissions
from meshlib.tools.link import daemon_at_first_use
from meshlib.tools.toolbox import Toolbox
from meshlib.tools.waiting import within
from tests.commands import Servers
from tests.runtimes.mesh_kit import unique

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 30


@asynccontextmanager
async def agents(servers: Servers, store: Path) -> AsyncIterator[tuple[MeshClient, MeshClient]]:
    """One with a daemon on ``store``, and one that talks to it."""
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(MeshClient(ClientConfig(name=unique("alice"), store=store, **urls)))
        await stack.enter_async_context(serve_daemon(alice))
        yield alice, await stack.enter_async_context(MeshClient(ClientConfig(name=unique("bob"), **urls)))


async def test_message_comes_again_if_the_program_dies_before_the_model_has_it(
    servers: Servers, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    async with agents(servers, store) as (alice, bob):
        await bob.send(alice.did, "hello", wait="delivered")

        def read(confirm: bool) -> Any:
            with BlockingDaemonClient(socket_path(store)) as client:
                box = BlockingToolbox(client, Permissions(), os.urandom)
                call = box.call("mesh_await", {"timeout_seconds": 5})
                if confirm:
                    box.confirm(call)
                return json.loads(call.text)["messages"]

        (first,) = await anyio.to_thread.run_sync(read, False)
        (again,) = await anyio.to_thread.run_sync(read, True)
        assert "hello" in first["content"]
        assert "hello" in again["content"]
        assert again["shown_before"] is True
        assert "shown_before" not in first
        await bob.send(alice.did, "goodbye", wait="delivered")
        (last,) = await anyio.to_thread.run_sync(read, True)
        assert "goodbye" in last["content"]  # what was confirmed does not come again


async def test_tools_start_before_the_daemon_and_outlive_it(servers: Servers, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    async with daemon_at_first_use(socket_path(store)) as mesh:
        toolbox = Toolbox(mesh, within, Permissions(), os.urandom)

        async def peers() -> Any:
            return json.loads((await toolbox.call("mesh_peers", {})).text)

        assert (await peers())["fault"] == "this machine"
        for _ in range(2):
            async with agents(servers, store) as (alice, _bob):
                assert (await peers())["you"] == alice.did
            assert (await peers())["ok"] is False


async def test_wait_that_is_given_up_loses_nothing(servers: Servers, tmp_path: Path) -> None:
    store = tmp_path / "store"
    async with agents(servers, store) as (alice, bob), daemon_at_first_use(socket_path(store)) as mesh:
        toolbox = Toolbox(mesh, within, Permissions(), os.urandom)
        with anyio.move_on_after(0.2):
            await toolbox.call("mesh_await", {"timeout_seconds": 60})
        await bob.send(alice.did, "hello", wait="delivered")
        call = await toolbox.call("mesh_await", {"timeout_seconds": PATIENCE})
        assert "hello" in call.text
        await call.confirm()
