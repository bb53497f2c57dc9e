"""TLS of both servers as processes: who gets in, what changes while they run, and what attacks on it cost."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from meshlib import TransportError
from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.client.transport import WebSocket
from tests.certificates import Authority
from tests.commands import Agent, Running, mesh_up
from tests.ingress.servers import Server, pair, server, talk

ROLES = ("relay", "registry")
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@contextmanager
def both(authority: Authority, *options: str | Path, **environment: str) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        relay, registry = (
            stack.enter_context(server(role, *authority.issue(role), *options, **environment)) for role in ROLES
        )
        yield relay, registry


def shown_by(server: Server, context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection gets, DER."""
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def counted(server: Server, name: str, context: ssl.SSLContext) -> float:
    """One number of ``/metrics``."""
    with urllib.request.urlopen(f"{server.url('https')}/metrics", timeout=10, context=context) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_clients_talk_over_wss_and_https(authority: Authority) -> None:
    with both(authority) as (relay, registry):
        assert relay.said["tls"] is registry.said["tls"] is True
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=authority.trusting()) as (anna, bert):
            await talk(anna, bert)
            await talk(anna, bert, size=400_000)


async def test_new_certificates_are_for_new_connections_and_a_conversation_goes_on(authority: Authority) -> None:
    trusting = authority.trusting()
    with both(authority) as (relay, registry):
        before = [shown_by(one, trusting) for one in (relay, registry)]
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=trusting) as (anna, bert):
            await talk(anna, bert)
            for role in ROLES:
                authority.issue(role)
            assert "certificate_loaded" in relay.reload()
            assert "certificate_loaded" in registry.reload()
            await talk(anna, bert)
            assert all(old != shown_by(one, trusting) for old, one in zip(before, (relay, registry), strict=True))
            assert counted(relay, "mesh_relay_connects_total", trusting) == 2


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("broken", ["certificate", "key", "other key", "missing"])
def test_what_cannot_be_used_at_a_reload_is_said_and_the_old_one_stays(
    authority: Authority, role: str, broken: str
) -> None:
    trusting = authority.trusting()
    certificate, key = authority.files(role)
    with server(role, "--tls-cert", certificate, "--tls-key", key, "--log-format", "json") as one:
        before = shown_by(one, trusting)
        match broken:
            case "certificate":
                certificate.write_text("junk")
            case "key":
                key.write_text("junk")
            case "other key":
                key.write_bytes(authority.files("other")[1].read_bytes())
            case "missing":
                certificate.unlink()
        said = json.loads(one.reload())
        assert said["event"] == "certificate_kept"
        assert str(certificate) in said["error"]
        assert shown_by(one, trusting) == before
        authority.files(role)
        assert json.loads(one.reload())["event"] == "certificate_loaded"
        assert shown_by(one, trusting) != before


@pytest.mark.parametrize("role", ROLES)
def test_without_tls_there_is_nothing_to_reload(role: str) -> None:
    with server(role) as one:
        assert one.said["tls"] is False
        one.process.signal(1)
        one.logged("nothing_to_reload")


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("wrong", ["junk", "no file", "passphrase", "alone"])
def test_what_cannot_be_used_at_the_start_is_one_line(authority: Authority, role: str, wrong: str) -> None:
    certificate, key = authority.files(role)
    options = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    match wrong:
        case "junk":
            certificate.write_text("junk")
        case "no file":
            key.unlink()
        case "passphrase":
            plain = load_pem_private_key(key.read_bytes(), None)
            key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
        case "alone":
            options = options[:2]
    argv = [sys.executable, "-m", f"mesh_{role}", "serve", "--port", "0", "--store", ":memory:", *options]
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == (2 if wrong == "alone" else 1)
    assert f"mesh-{role}" in lines[-1]
    assert "belong together" in lines[-1] if wrong == "alone" else (len(lines) == 1 and str(key) in lines[0])


async def test_who_shows_no_certificate_of_the_client_ca_is_refused(authority: Authority, tmp_path: Path) -> None:
    members, strangers = Authority(tmp_path / "members"), Authority(tmp_path / "strangers")
    with both(authority, "--tls-client-ca", members.ca) as (relay, registry):
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        member = authority.trusting(members.files("anna"))
        async with pair(**urls, tls=member) as (anna, bert):
            await talk(anna, bert)
        for context in (authority.trusting(), authority.trusting(strangers.files("eve"))):
            with pytest.raises(TransportError, match="client certificate"):
                await WebSocket.connect(relay.url("wss"), tls=context)
            options = RegistryOptions(tls=context, max_retries=0)
            async with RegistryClient(registry.url("https"), options=options) as client:
                with pytest.raises(TransportError, match="certificate"):
                    await client.discover("anna")
        assert counted(relay, "mesh_relay_tls_failed_total", member) == 2


@pytest.mark.slow
async def test_a_client_ca_is_read_anew_too(authority: Authority, tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    ca = tmp_path / "clients.pem"
    ca.write_bytes(old.ca.read_bytes())
    with both(authority, "--tls-client-ca", ca) as servers:
        ca.write_bytes(new.ca.read_bytes())
        for one in servers:
            assert "certificate_loaded" in one.reload()
        relay, registry = servers
        with pytest.raises(TransportError, match="certificate"):
            await WebSocket.connect(relay.url("wss"), tls=authority.trusting(old.files("anna")))
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=authority.trusting(new.files("anna"))) as (anna, bert):
            await talk(anna, bert)


async def test_plain_words_to_a_tls_port_are_answered_and_harm_nobody(authority: Authority) -> None:
    with both(authority) as (relay, registry):
        with pytest.raises(TransportError, match="wss://"):
            await WebSocket.connect(relay.url("ws"))
        async with RegistryClient(registry.url("http"), options=RegistryOptions(max_retries=0)) as client:
            with pytest.raises(TransportError):
                await client.discover("anna")
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=authority.trusting()) as (anna, bert):
            await talk(anna, bert)


async def test_tls_to_a_plain_port_is_named() -> None:
    with server("relay") as relay, pytest.raises(TransportError, match=r"speaks no TLS|instead of speaking TLS"):
        await WebSocket.connect(relay.url("wss"))


@pytest.mark.slow
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(authority: Authority, version: ssl.TLSVersion) -> None:
    context = authority.trusting()
    context.minimum_version = context.maximum_version = version
    with both(authority) as (relay, registry):
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=context) as (anna, bert):
            await talk(anna, bert, size=100_000)


# --- attacks ----------------------------------------------------------------------------------------------------------


def hello(context: ssl.SSLContext) -> bytes:
    """The first message of a handshake."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def read_to_the_end(raw: socket.socket) -> None:
    """Wait until the other side has closed."""
    raw.settimeout(30)
    try:
        while raw.recv(65536):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.slow
async def test_slow_handshakes_are_cut_off_while_a_pair_talks(authority: Authority) -> None:
    trusting = authority.trusting()
    begins = hello(trusting)
    environment = {"MESH_RELAY_PROOF_SECONDS": "2", "MESH_RELAY_UNPROVEN": "100"}
    with both(authority, **environment) as (relay, registry), ExitStack() as stack:
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=trusting) as (anna, bert):
            slow = [
                stack.enter_context(closing(socket.create_connection(("127.0.0.1", one.port))))
                for one in (relay, registry)
                for _ in range(200)
            ]
            half_a_hello, hello_and_no_more, drips, silent = (slow[kind::4] for kind in range(4))
            assert len(silent) == 100
            for raw in half_a_hello:
                raw.sendall(begins[: len(begins) // 2])
            for raw in hello_and_no_more:
                raw.sendall(begins)
            ended = threading.Thread(target=lambda: [read_to_the_end(raw) for raw in slow])
            dripping = threading.Thread(target=drip_into, args=(drips, begins, ended))
            ended.start()
            dripping.start()
            while ended.is_alive():
                await talk(anna, bert)
            dripping.join()
            assert counted(relay, "mesh_relay_unproven_sockets", trusting) <= 1


@pytest.mark.slow
async def test_a_flood_of_handshakes_waits_its_turn_while_a_pair_talks(authority: Authority) -> None:
    trusting = authority.trusting()
    rate, burst, flood = 20, 5, 45
    environment = {"MESH_RELAY_TLS_RATE": str(rate), "MESH_RELAY_TLS_BURST": str(burst)}
    with both(authority, **environment) as (relay, registry):
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=trusting) as (anna, bert):
            threads = [threading.Thread(target=shown_by, args=(relay, trusting)) for _ in range(flood)]
            began = time.monotonic()
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                await talk(anna, bert)
            assert time.monotonic() - began > (flood - burst - 1) / rate
            assert counted(relay, "mesh_relay_tls_failed_total", trusting) == 0


def drip_into(slow: list[socket.socket], data: bytes, until: threading.Thread) -> None:
    """A byte at a time into each of them."""
    for position in range(len(data) - 1):
        for raw in slow:
            with suppress(OSError):
                raw.send(data[position : position + 1])
        until.join(0.1)
        if not until.is_alive():
            return


class KeyUpdates:
    """A client of TLS 1.3 that, after an honest handshake, asks for new keys again and again, which ``ssl`` cannot."""

    _REQUEST = b"\x18\x00\x00\x01\x01" + b"\x16"  # KeyUpdate, update requested; inner type: handshake

    def __init__(self, port: int, context: ssl.SSLContext, folder: Path) -> None:
        keys = folder / "keys"
        context.keylog_filename = str(keys)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        self.raw = socket.create_connection(("127.0.0.1", port), 30)
        while True:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                self.raw.sendall(outgoing.read())
                incoming.write(self.raw.recv(65536))
            else:
                break
        self.raw.sendall(outgoing.read())
        cipher = session.cipher()
        assert cipher is not None
        assert cipher[0] == "TLS_AES_256_GCM_SHA384"
        lines = [line.split() for line in keys.read_text().splitlines()]
        (self._secret,) = (bytes.fromhex(line[2]) for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")

    def _expand(self, label: bytes, length: int) -> bytes:
        info = length.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\x00"
        return HKDFExpand(SHA384(), length, info).derive(self._secret)

    def record(self) -> bytes:
        """The next request; the first record under its keys, as every one of them is."""
        header = b"\x17\x03\x03" + (len(self._REQUEST) + 16).to_bytes(2, "big")
        sealed = AESGCM(self._expand(b"key", 32)).encrypt(self._expand(b"iv", 12), self._REQUEST, header)
        self._secret = self._expand(b"traffic upd", 48)
        return header + sealed


async def test_a_flood_of_key_updates_is_cut_off_while_a_pair_talks(authority: Authority, tmp_path: Path) -> None:
    trusting = authority.trusting()
    with both(authority) as (relay, registry):
        urls = {"relay_url": relay.url("wss"), "registry_url": registry.url("https")}
        async with pair(**urls, tls=trusting) as (anna, bert):
            flood = KeyUpdates(relay.port, authority.trusting(), tmp_path)
            with closing(flood.raw):
                requests = [flood.record() for _ in range(10_000)]

                def send() -> int:
                    for number, request in enumerate(requests):
                        try:
                            flood.raw.sendall(request)
                        except OSError:
                            return number
                    return len(requests)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.to_thread.run_sync, send)
                    await talk(anna, bert)
                read_to_the_end(flood.raw)
            assert counted(relay, "mesh_relay_tls_failed_total", trusting) == 1
            await talk(anna, bert)


async def test_a_few_key_updates_are_nobodys_trouble(authority: Authority, tmp_path: Path) -> None:
    with server("relay", *authority.issue("relay")) as relay:
        honest = KeyUpdates(relay.port, authority.trusting(), tmp_path)
        with closing(honest.raw):
            honest.raw.sendall(b"".join(honest.record() for _ in range(100)))
            assert counted(relay, "mesh_relay_tls_failed_total", authority.trusting()) == 0
            assert counted(relay, "mesh_relay_unproven_sockets", authority.trusting()) == 2


# --- commands ---------------------------------------------------------------------------------------------------------


def agent(home: Path, servers: tuple[str, str], **variables: str) -> Agent:
    relay, registry = servers
    return Agent(home, {"MESH_RELAY_URL": relay, "MESH_REGISTRY_URL": registry, "MESH_NAME": home.name, **variables})


@pytest.mark.slow
def test_mesh_up_speaks_tls_and_passes_the_signal_on(authority: Authority, tmp_path: Path) -> None:
    with mesh_up(tmp_path / "data", *authority.issue("mesh"), "--tls-client-ca", str(authority.ca), "--verbose") as up:
        assert up.relay.startswith("wss://")
        assert up.registry.startswith("https://")
        cert, key = authority.files("anna")
        shows = {"MESH_CA": str(authority.ca), "MESH_CERT": str(cert), "MESH_KEY": str(key)}
        anna, bert = (agent(tmp_path / name, (up.relay, up.registry), **shows) for name in ("anna", "bert"))
        assert anna.mesh("doctor").code == 0
        with bert.listening("--count", "1") as listener:
            assert anna.mesh("send", "bert", "sealed twice").code == 0
            assert listener.said()["payload"] == "sealed twice"
        nobody = agent(tmp_path / "nobody", (up.relay, up.registry), MESH_CA=str(authority.ca)).mesh("doctor", "--json")
        failed = [step for step in nobody.lines[0]["steps"] if step["outcome"] == "failed"]
        assert [step["what"] for step in failed] == ["TLS", "TLS"]
        assert all("--cert" in step["advice"] for step in failed)
        authority.issue("mesh")
        up.process.signal(1)
        for _ in ROLES:
            heard(up.process, "certificate_loaded")
        assert anna.mesh("doctor").code == 0


def heard(process: Running, part: str) -> str:
    while part not in (line := process.line("err")):
        pass
    return line
