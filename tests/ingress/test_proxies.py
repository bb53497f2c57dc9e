"""Clients behind real proxies: pproxy as a process, which speaks HTTP CONNECT and SOCKS 5 on one port."""

from __future__ import annotations

import gc
import socket
import sys
import warnings
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshlib import TransportError
from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.client.transport import WebSocket
from tests.certificates import Authority
from tests.commands import Agent, Running, running
from tests.ingress.servers import Server, pair, server, talk

ROLES = ("relay", "registry")
USER, PASSWORD = "anna@corp", "hunter2/:@"  # what a URL holds percent-encoded only
_PPROXY = """
import asyncio, sys
sys.modules["uvloop"] = None  # it would take it, and then miss an event loop
asyncio.set_event_loop(asyncio.new_event_loop())
from pproxy.server import main
main()
"""
LOGIN = "anna%40corp:hunter2%2F%3A%40@"
pytestmark = pytest.mark.anyio


@dataclass
class Passed:
    """A proxy that runs, and what has gone through it."""

    process: Running
    port: int
    lines: list[str] = field(default_factory=list)

    def url(self, scheme: str, login: str = LOGIN) -> str:
        return f"{scheme}://{login}127.0.0.1:{self.port}"

    def has_passed(self, target: Server) -> str:
        """Wait for its word about a connection to a server: the protocol it came by."""
        while not (found := [line for line in self.lines if f"-> 127.0.0.1:{target.port}" in line]):
            self.lines.append(self.process.line())
        return found[0].split()[0]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def proxy(*options: str, protocols: str = "http+socks5") -> Iterator[Passed]:
    port = free_port()
    listens = f"{protocols}://127.0.0.1:{port}#{USER}:{PASSWORD}"
    with running([sys.executable, "-c", _PPROXY, "-v", "-l", listens, *options]) as process:
        while "Serving on" not in process.line():
            pass
        yield Passed(process, port)


@contextmanager
def secure(authority: Authority) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        relay, registry = (stack.enter_context(server(role, *authority.issue(role))) for role in ROLES)
        yield relay, registry


@contextmanager
def plain() -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        relay, registry = (stack.enter_context(server(role)) for role in ROLES)
        yield relay, registry


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
async def test_clients_talk_through_a_proxy_that_asks_for_a_password(tmp_path: Path, scheme: str) -> None:
    authority = Authority(tmp_path)
    with secure(authority) as (relay, registry), proxy() as between:
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=authority.trusting(), proxy=between.url(scheme)) as (anna, bert):
            await talk(anna, bert)
            await talk(anna, bert, size=400_000)
        assert between.has_passed(relay) == between.has_passed(registry) == scheme.removesuffix("h")
    with plain() as (relay, registry), proxy() as between:
        urls = {"relay_url": relay.url("ws"), "registry_url": registry.url("http")}
        async with pair(**urls, proxy=between.url(scheme)) as (anna, bert):
            await talk(anna, bert)
        assert between.has_passed(relay) == between.has_passed(registry) == scheme.removesuffix("h")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_proxy_may_itself_be_reached_by_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.files("proxy")
    with (
        secure(authority) as (relay, registry),
        proxy("--ssl", f"{certificate},{key}", protocols="http+ssl") as between,
    ):
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=authority.trusting(), proxy=between.url("https")) as (anna, bert):
            await talk(anna, bert)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("wrong", ["password", "port"])
async def test_a_proxy_that_does_not_help_is_named_without_its_password(scheme: str, wrong: str) -> None:
    with plain() as (relay, registry), proxy() as between:
        url = between.url(scheme, "anna:S3CRET@")
        if wrong == "port":
            url = url.replace(str(between.port), "1")  # nobody listens there
        shown = url.replace("anna:S3CRET@", "")
        options = RegistryOptions(proxy=url, max_retries=0)
        with warnings.catch_warnings():  # httpcore leaves a socket to the collector when a SOCKS proxy says no
            warnings.simplefilter("ignore", ResourceWarning)
            refusals = [await refusal_of(WebSocket.connect(relay.url("ws"), proxy=url))]
            async with RegistryClient(registry.url("http"), options=options) as client:
                refusals.append(await refusal_of(client.discover("anna")))
            gc.collect()
        for refusal in refusals:
            assert shown in refusal
            assert "--proxy" in refusal
            assert "S3CRET" not in refusal
            assert "anna" not in refusal


async def refusal_of(attempt: Awaitable[object]) -> str:
    with pytest.raises(TransportError) as refused:
        await attempt
    return str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"HTTPS_PROXY": "http"},
        {"https_proxy": "http"},
        {"ALL_PROXY": "socks5h"},
        {"ALL_PROXY": "socks5", "HTTP_PROXY": "http"},
        {"MESH_PROXY": "socks5", "HTTPS_PROXY": "http", "NO_PROXY": "*"},
    ],
    ids=" ".join,
)
def test_commands_take_the_proxy_of_the_environment(tmp_path: Path, variables: dict[str, str]) -> None:
    authority = Authority(tmp_path / "authority")
    with secure(authority) as (relay, registry), proxy() as between:
        environment = {"NO_PROXY": "", "MESH_CA": str(authority.ca)}
        environment |= {name: value if name == "NO_PROXY" else between.url(value) for name, value in variables.items()}
        environment |= {"MESH_RELAY_URL": relay.url("wss"), "MESH_REGISTRY_URL": registry.url("https")}
        anna = Agent(tmp_path / "anna", environment)
        examined = anna.mesh("doctor", "--verbose")
        assert examined.code == 0, examined.err
        used = next(iter(variables.values())).removesuffix("h")
        assert between.has_passed(relay) == between.has_passed(registry) == used
        assert f"127.0.0.1:{between.port}" in examined.out
        assert "hunter2" not in examined.out + examined.err


@pytest.mark.slow
def test_addresses_of_no_proxy_go_without(tmp_path: Path) -> None:
    with plain() as (relay, registry):
        environment = {"ALL_PROXY": "http://127.0.0.1:1", "NO_PROXY": "example.org,127.0.0.1"}
        environment |= {"MESH_RELAY_URL": relay.url("ws"), "MESH_REGISTRY_URL": registry.url("http")}
        anna = Agent(tmp_path / "anna", environment)
        assert anna.mesh("doctor").code == 0
        assert anna.mesh("doctor", NO_PROXY="example.org").code == 1
