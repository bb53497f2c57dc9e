"""``mesh up``: a relay and a registry as two children of one command, both or neither.

Owns their start, their addresses and their end. What they are is in their own packages; meshlib does not import them.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread

from meshlib.cli.exits import Exit
from meshlib.cli.output import Console, Style
from meshlib.errors import InvalidValue, MeshError, StoreError, TransportError
from meshlib.places import data_home

START_SECONDS = 30.0
"""Until a server that has not said where it listens counts as not starting."""
STOP_SECONDS = 15.0
"""A server's time to drain; after it, it is killed."""
_NEEDED = {"relay": ("mesh_relay", "trio"), "registry": ("mesh_registry", "starlette", "uvicorn")}
_SCHEMES = {("relay", False): "ws", ("relay", True): "wss", ("registry", False): "http", ("registry", True): "https"}
_TLS = ("tls_cert", "tls_key", "tls_client_ca")
_RELOAD = getattr(signal, "SIGHUP", None)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound
_PR_SET_PDEATHSIG = 1


class Server:
    """One server in a process of its own."""

    def __init__(self, role: str, port: int, arguments: Namespace, store: Path) -> None:
        self.role = role
        self._scheme = _SCHEMES[role, arguments.tls_cert is not None]
        self.store = store
        self.url = ""
        argv = [sys.executable, "-m", f"mesh_{role}", "serve", "--host", arguments.host, "--port", str(port)]
        argv += ["--store", str(store), *(["--allow-legacy"] if arguments.allow_legacy else [])]
        for option in _TLS:
            if (path := getattr(arguments, option)) is not None:
                argv += [f"--{option.replace('_', '-')}", path]
        argv += ["--log-level", "info" if getattr(arguments, "verbose", False) else "warning"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module with checked arguments
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C on the terminal is ours to handle
            preexec_fn=_die_with_parent(),
        )

    async def listening(self) -> None:
        """Wait until the server takes connections; afterwards ``url`` is set.

        Raises:
            TransportError: it ended, said something else or nothing in time.
        """
        stdout = self._process.stdout
        assert stdout is not None
        with anyio.move_on_after(START_SECONDS):
            line = await anyio.to_thread.run_sync(stdout.readline, abandon_on_cancel=True)
            if not line:
                code = await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
                raise TransportError(f"the {self.role} did not start (exit status {code}); its own words are above")
            host, port = _address(line)
            host = _EVERYWHERE.get(host, host)
            shown = f"[{host}]" if ":" in host else host
            self.url = f"{self._scheme}://{shown}:{port}"
            return
        raise TransportError(f"the {self.role} did not say within {START_SECONDS:g} s where it listens")

    async def ended(self) -> int:
        """Wait for the server's end; returns its exit status."""
        stdout = self._process.stdout
        assert stdout is not None
        await anyio.to_thread.run_sync(_read_away, stdout, abandon_on_cancel=True)
        return await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    def reload(self, number: int) -> None:
        """Let it read its certificate anew."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def ask_to_stop(self) -> None:
        """Let it drain and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> int:
        """Wait until it has drained, and insist when it takes too long; returns its exit status."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def up(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Run both servers until Ctrl-C, SIGTERM or the end of one of them."""
    for role, modules in _NEEDED.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            raise InvalidValue(
                f"the {role} needs what is not installed ({', '.join(missing)}): pip install 'agent-meshlib[all]'"
            )
    folder = Path(arguments.data) if arguments.data else data_home(environment) / "mesh-servers"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}; name another folder with --data") from error
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise InvalidValue("--tls-cert and --tls-key belong together")
    if arguments.tls_client_ca is not None and arguments.tls_cert is None:
        raise InvalidValue("--tls-client-ca needs --tls-cert and --tls-key")
    ports = {"registry": arguments.registry_port, "relay": arguments.relay_port}
    return anyio.run(_supervise, arguments, ports, folder, console)


async def _supervise(arguments: Namespace, ports: Mapping[str, int], folder: Path, console: Console) -> int:
    servers: list[Server] = []
    problem: list[MeshError] = []
    # Handlers first: a signal between the start of a child and its first line must stop the child, too.
    heeded = [signal.SIGINT, signal.SIGTERM]
    if _RELOAD is not None and arguments.tls_cert is not None:  # else it still means that the terminal has gone
        heeded.append(_RELOAD)
    with anyio.open_signal_receiver(*heeded) as signals:
        try:
            # Both children are made before any thread: the code between fork and exec must not meet a held lock.
            servers += [Server(role, port, arguments, folder / f"{role}.db") for role, port in ports.items()]
            async with anyio.create_task_group() as tasks:

                async def wait_for_signal() -> None:
                    async for number in signals:
                        if number != _RELOAD:
                            break
                        for server in servers:
                            if server.url:  # before it listens it would be ended by the signal
                                server.reload(number)
                    tasks.cancel_scope.cancel()

                async def serve() -> None:
                    try:
                        for server in servers:
                            await server.listening()
                    except TransportError as error:
                        problem.append(error)
                        tasks.cancel_scope.cancel()
                        return
                    _announce(servers, arguments, folder, console)
                    for server in servers:
                        tasks.start_soon(watch, server)

                async def watch(server: Server) -> None:
                    code = await server.ended()
                    problem.append(TransportError(f"the {server.role} ended by itself (exit status {code})"))
                    tasks.cancel_scope.cancel()

                tasks.start_soon(wait_for_signal)
                tasks.start_soon(serve)
        finally:
            for server in servers:
                server.ask_to_stop()
            codes = {server.role: server.stop() for server in servers}
    if problem:
        raise problem[0]
    if any(codes.values()):
        bad = ", ".join(f"{role}: {code}" for role, code in codes.items() if code)
        raise TransportError(f"not every server stopped in order (exit status of {bad})")
    return Exit.OK


def _announce(servers: list[Server], arguments: Namespace, folder: Path, console: Console) -> None:
    urls = {server.role: server.url for server in servers}
    if console.json:
        console.emit(event="ready", **urls, data=str(folder), allow_legacy=arguments.allow_legacy, pid=os.getpid())
        return
    console.say(f"{console.paint('the mesh is up', Style.GOOD)}   (Ctrl-C stops it)\n")
    console.table(
        [[server.role, server.url, str(server.store)] for server in servers], (Style.BOLD, Style.NAME, Style.DIM)
    )
    console.say("\npoint agents at it:")
    console.say(f"  export MESH_RELAY_URL={urls['relay']} MESH_REGISTRY_URL={urls['registry']}")
    if arguments.allow_legacy:
        console.say(console.paint("\nlegacy agents are admitted: their DIDs prove nothing", Style.WARN))


def _address(line: bytes) -> tuple[str, int]:
    try:
        said = json.loads(line)
        if said["event"] == "listening":
            return str(said["host"]), int(said["port"])
    except (ValueError, TypeError, KeyError):
        pass
    raise TransportError("a server said something else than where it listens; are the versions of all parts the same?")


def _read_away(stream: IO[bytes]) -> None:
    """Read to the end, so that a server that prints can never be stopped by a full pipe."""
    while stream.read(65_536):
        pass


def _die_with_parent() -> Callable[[], None] | None:
    """What makes a child end when we are killed without a chance to stop it. Only Linux can."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def run() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # we died before the line above
            os._exit(1)

    return run
