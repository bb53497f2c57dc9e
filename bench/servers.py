"""Relays and registries as fresh processes on one core: started, waited for, always ended."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine, peers
from interop.processes import ROOT, environment

PATIENCE = 30.0
"""Seconds a server may take until it answers."""


@dataclass(frozen=True)
class Server:
    """A server that answers on 127.0.0.1."""

    pid: int
    port: int
    folder: Path
    started_in: float
    """Seconds from starting the process to its first answer."""


@dataclass(frozen=True)
class Program:
    """How to start a server: arguments from port and a folder for what it stores."""

    argv: Callable[[int, Path], list[str | Path]]
    speaks_http: bool = True


def _ours(kind: str, *options: str, durable: bool = True) -> Program:
    def argv(port: int, folder: Path) -> list[str | Path]:
        store = str(folder / "store.db") if durable else ":memory:"
        line = [sys.executable, "-m", f"mesh_{kind}", "serve", "--port", str(port), "--store", store]
        return [*line, "--log-level", "warning", *options]

    return Program(argv)


def _agt(kind: str) -> Program:
    # At its default level it logs every connection, and the registry every request: that would be measured, too.
    def argv(port: int, _: Path) -> list[str | Path]:
        interpreter = peers.agt_python()
        assert interpreter is not None
        line: list[str | Path] = [interpreter, "-m", f"agentmesh.{kind}", "--host", "127.0.0.1"]
        return [*line, "--port", str(port), "--log-level", "warning"]

    return Program(argv)


OUR_RELAY = _ours("relay")
OUR_RELAY_STRICT = _ours("relay", "--durability", "strict")
OUR_RELAY_IN_MEMORY = _ours("relay", durable=False)
OUR_RELAY_LEGACY = _ours("relay", "--allow-legacy")
AGT_RELAY = _agt("relay")


def _nats(port: int, folder: Path) -> list[str | Path]:
    return [_found("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder]


def _mosquitto(port: int, folder: Path) -> list[str | Path]:
    settings = folder / "mosquitto.conf"
    settings.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        "max_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_type error\n"
    )
    return [_found("mosquitto"), "-c", settings]


def _found(name: str) -> Path:
    found = peers.broker(name)
    assert found is not None
    return found


NATS = Program(_nats, speaks_http=False)
MOSQUITTO = Program(_mosquitto, speaks_http=False)

_UNLIMITED = "900000/900000"  # all requests come from one address, which the default limits would stop
_REGISTRY = (
    *("--registrations-per-address", _UNLIMITED, "--keys-per-target", _UNLIMITED),
    *("--keys-per-requester", _UNLIMITED, "--lookups-per-requester", _UNLIMITED),
)
OUR_REGISTRY = _ours("registry", *_REGISTRY)
OUR_REGISTRY_LEGACY = _ours("registry", *_REGISTRY, "--allow-legacy")
AGT_REGISTRY = _agt("registry")


@contextlib.contextmanager
def running(program: Program) -> Iterator[Server]:
    """A fresh server on a free port and the servers' core, with an empty store on a real disk."""
    runs = peers.CACHE / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=runs))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    errors = (folder / "errors").open("w+")
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in program.argv(port, folder)],
        cwd=ROOT,
        env=environment() | {"LD_LIBRARY_PATH": peers.broker_libraries()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        preexec_fn=lambda: machine.pin(machine.SERVER_CORE),
    )
    try:
        _wait(process, port, errors.name, health if program.speaks_http else _answers)
        yield Server(process.pid, port, folder, time.perf_counter() - began)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        errors.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int, errors: str, ask: Callable[[int], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            ask(port)
            return
        time.sleep(0.005)
    raise RuntimeError(f"a server does not answer: {Path(errors).read_text()[-2000:]}")


def _answers(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()


def health(port: int) -> bytes:
    """What ``/health`` says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().read()
    finally:
        connection.close()
