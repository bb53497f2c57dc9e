"""Servers on Unix sockets, as processes, and clients that reach them there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.commands import Agent
from tests.ingress.servers import pair, server, talk

ROLES = ("relay", "registry")
pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_clients_talk_over_unix_sockets_alone(tmp_path: Path) -> None:
    places = {role: tmp_path / f"{role}.sock" for role in ROLES}
    with ExitStack() as stack:
        for role, path in places.items():
            said = stack.enter_context(server(role, "--unix", path, port=False)).said
            assert said["unix"] == str(path)
            assert "port" not in said
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        urls = {"relay_url": f"ws+unix://{places['relay']}", "registry_url": f"http+unix://{places['registry']}"}
        async with pair(**urls) as (anna, bert):
            await talk(anna, bert)
            await talk(anna, bert, size=400_000)
    assert not any(path.exists() for path in places.values()), "the files go when the servers do"


async def test_tcp_with_tls_and_a_unix_socket_without_serve_the_same_agents(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    with ExitStack() as stack:
        relay, registry = (
            stack.enter_context(server(role, "--unix", tmp_path / f"{role}.sock", *authority.issue(role)))
            for role in ROLES
        )
        outside = {"relay_url": relay.url("wss"), "registry_url": registry.url("https"), "tls": authority.trusting()}
        inside = {
            "relay_url": f"ws+unix://{tmp_path}/relay.sock",
            "registry_url": f"http+unix://{tmp_path}/registry.sock",
        }
        async with pair(**outside) as (anna, _), pair(**inside) as (bert, _):
            await talk(anna, bert)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_killed_servers_socket_is_replaced_and_a_live_ones_is_not(tmp_path: Path, role: str) -> None:
    path = tmp_path / "s.sock"
    with server(role, "--unix", path, port=False) as killed:
        killed.process.signal(signal.SIGKILL)
        assert killed.process.ended() == -signal.SIGKILL
    assert path.exists()
    with server(role, "--unix", path, "--unix-mode", "600", port=False):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        argv = [sys.executable, "-m", f"mesh_{role}", "serve", "--store", ":memory:", "--unix", str(path)]
        second = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith(f"mesh-{role}: cannot listen on {path}: another server listens there")
        assert len(second.stderr.splitlines()) == 1
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
            assert http.get("http://localhost/health").status_code == 200
    assert not path.exists()


@pytest.mark.slow
def test_commands_know_unix_sockets(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for role in ROLES:
            stack.enter_context(server(role, "--unix", tmp_path / f"{role}.sock", port=False))
        anna = Agent(
            tmp_path / "anna",
            {
                "MESH_RELAY_URL": f"ws+unix://{tmp_path}/relay.sock",
                "MESH_REGISTRY_URL": f"http+unix://{tmp_path}/registry.sock",
                "MESH_NAME": "anna",
                "ALL_PROXY": "http://127.0.0.1:1",  # is for other addresses
                "NO_PROXY": "",
            },
        )
        assert anna.mesh("identity", "create").code == 0
        examined = anna.mesh("doctor", "--json")
        assert examined.code == 0, examined.out
        where = [step["detail"] for step in examined.lines[0]["steps"] if step["what"] == "connection"]
        assert where == [f"{tmp_path}/registry.sock answers", f"{tmp_path}/relay.sock answers"]
        assert anna.mesh("status").code == 0
        elsewhere = anna.mesh("doctor", "--json", "--relay", f"ws+unix://{tmp_path}/nowhere.sock")
        failed = [step for step in elsewhere.lines[0]["steps"] if step["outcome"] == "failed"]
        assert [(step["where"], step["what"]) for step in failed] == [("relay", "connection")]
        assert "--unix" in failed[0]["advice"]
        assert anna.mesh("status", "--relay", "ws+unix://relative").code == 2


@pytest.mark.parametrize("role", ROLES)
def test_the_environment_names_the_path_too(tmp_path: Path, role: str) -> None:
    path = tmp_path / "s.sock"
    prefix = f"MESH_{role.upper()}_"
    with server(role, port=False, **{f"{prefix}UNIX": str(path), f"{prefix}UNIX_MODE": "666"}) as one:
        assert one.said["unix"] == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert os.path.exists(path)
