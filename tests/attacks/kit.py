"""What attacks need: servers as processes with their counters and memory, an honest pair, and a raw socket to hit with.

Attackers come from addresses of their own, 127.0.0.2 and up, which Linux has without being told; the servers run
with ``--no-exempt-loopback``. The honest pair is at 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.load.wire import UPGRADE, Agent, client_frame, cut
from tests.certificates import Authority
from tests.commands import PATIENCE, ROOT, Running, environment, running

MIB = 1024 * 1024
CALM, STORM = 25, 25
"""Laps of the honest pair that make a median."""
FACTOR = 25
"""A median under attack may be so many times the one before: attacker, server and pair share two busy cores."""
STORED = 80 * MIB
"""What a server may grow by when the attack stores things: SQLite's page cache of 64 MiB, and what is on the way."""
CAP = 1.0
"""Seconds that no median may reach, whatever it was before."""


def until(happened: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for something; say what it was when it does not come."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


# --- servers ----------------------------------------------------------------------------------------------------------


class Server:
    """A server process under attack."""

    def __init__(self, process: Running, trusting: ssl.SSLContext | None = None) -> None:
        self.process = process
        self._trusting = trusting
        self._asked = 0
        said = process.said()
        self.host, self.port = said["host"], int(said["port"])

    @property
    def pid(self) -> int:
        return self.process.pid

    def metrics(self) -> dict[str, float]:
        """What ``/metrics`` says, labels included in the names, without ``mesh_relay_`` or ``mesh_registry_``."""
        self._asked += 1  # who watches has an address of its own each time, so as to be in nobody's account
        source = f"127.9.{self._asked // 250}.{self._asked % 250 + 1}"
        with contextlib.closing(self.connection(source)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        lines = [line for line in lines if not line.startswith("#")]
        pairs = [line.rsplit(" ", 1) for line in lines]
        return {name.removeprefix("mesh_").partition("_")[2]: float(value) for name, value in pairs}

    def connection(self, source: str) -> http.client.HTTPConnection:
        """An honest connection from an address, over TLS where the server speaks it."""
        if self._trusting is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, PATIENCE, source_address=(source, 0))
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=PATIENCE, source_address=(source, 0), context=self._trusting
        )

    def counted(self, name: str) -> float:
        """One number of ``/metrics``; 0 as long as it is not there. Without labels: over all of them."""
        return sum(value for key, value in self.metrics().items() if key == name or key.startswith(name + "{"))

    def descriptors(self) -> int:
        """Open files and sockets."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def memory(self, which: str = "VmRSS") -> int:
        """Resident bytes now, or at their highest with ``VmHWM``."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(which))

    def forget_peak(self) -> None:
        """Let ``VmHWM`` start from here."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def _serve(
    kind: str, folder: Path, options: dict[str, object], *flags: str
) -> contextlib.AbstractContextManager[Running]:
    argv = [sys.executable, "-m", f"mesh_{kind}", "serve", "--port", "0", "--store", folder / f"{kind}.db", *flags]
    return running(argv, **{f"MESH_{kind.upper()}_{name.upper()}": str(value) for name, value in options.items()})


class Pair:
    """The honest pair: its laps, as they come."""

    def __init__(self, relay: Server, registry: Server, ca: Path | None = None) -> None:
        scheme, trusted = ("http", ()) if ca is None else ("https", (str(ca),))
        urls = f"ws://127.0.0.1:{relay.port}", f"{scheme}://127.0.0.1:{registry.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.honest", *urls, *trusted],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        self.laps: dict[str, list[float]] = defaultdict(list)
        self._ready = threading.Event()
        self.did = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # it was ended while it wrote
                word, value = line.decode().split()
                if word == "ready":
                    self.did = value
                    self._ready.set()
                else:
                    self.laps[word].append(float(value))

    def wait(self) -> None:
        assert self._ready.wait(PATIENCE), "the honest pair has not found together"

    def more(self, kind: str, count: int) -> list[float]:
        """The next laps."""
        start = len(self.laps[kind])
        until(lambda: len(self.laps[kind]) >= start + count, f"{count} laps ({kind}) of the honest pair")
        return self.laps[kind][start:]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)


class Watch:
    """What the honest pair and the server's memory do while an attack goes on."""

    def __init__(self, pair: Pair, kind: str) -> None:
        self._laps = pair.laps[kind]
        self._start = len(self._laps)
        self._deadline = time.monotonic() + PATIENCE

    @property
    def going(self) -> bool:
        """Whether the attack must go on: the pair has not been observed for long enough."""
        assert time.monotonic() < self._deadline, f"under attack the honest pair made {len(self.laps)} laps only"
        return len(self.laps) < STORM

    def rest(self, seconds: float = 0.05) -> None:
        """Leave the pair a moment: an attack that only waits must not use up a core."""
        time.sleep(seconds)

    @property
    def laps(self) -> list[float]:
        return self._laps[self._start :]


@dataclass
class Siege:
    """A relay, a registry, and the pair that talks through them."""

    relay: Server
    registry: Server
    pair: Pair

    @contextmanager
    def watch(self, kind: str = "message", grows: int = 32 * MIB) -> Iterator[Watch]:
        """Attack inside, ``while watch.going``: latency stays normal, memory grows by ``grows`` bytes at most."""
        server = self.relay if kind == "message" else self.registry
        calm = statistics.median(self.pair.more(kind, CALM))
        server.forget_peak()
        before = server.memory()
        watch = Watch(self.pair, kind)
        yield watch
        until(lambda: len(watch.laps) >= STORM, "laps under attack")
        storm = statistics.median(watch.laps)
        grown = server.memory("VmHWM") - before
        print(
            f"{calm * 1000:.1f} -> {storm * 1000:.1f} ms, max {max(watch.laps) * 1000:.0f} ms, {grown / MIB:+.1f} MiB"
        )
        assert storm < min(FACTOR * calm, CAP), f"the honest pair's median went from {calm:.4f} to {storm:.4f} s"
        assert grown <= grows, f"the server grew by {grown / MIB:.1f} MiB"


@contextmanager
def siege(
    folder: Path,
    relay: dict[str, object],
    registry: dict[str, object] | None = None,
    *,
    authority: Authority | None = None,
) -> Iterator[Siege]:
    """Both servers on SQLite with these limits, and the honest pair. With ``authority`` the registry speaks TLS."""
    certificate = [] if authority is None else authority.issue("registry")
    with (
        _serve("relay", folder, relay, "--no-exempt-loopback") as first,
        _serve("registry", folder, registry or {}, "--no-exempt-loopback", *certificate) as second,
    ):
        servers = Server(first), Server(second, None if authority is None else authority.trusting())
        pair = Pair(*servers, None if authority is None else authority.ca)
        try:
            pair.wait()
            yield Siege(*servers, pair)
        finally:
            pair.stop()


# --- attackers --------------------------------------------------------------------------------------------------------


class Raw:
    """A TCP connection from an address of choice; a WebSocket after :meth:`upgrade`."""

    def __init__(self, server: Server, address: str, *, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)  # what waits is not sent yet
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", server.port))
        self.nonce = ""
        self._rest = b""
        self._frames: deque[tuple[int, bytes]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def hang_up(self) -> None:
        """End both directions; whoever reads sees it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def write(self, data: bytes) -> bool:
        """Write all of it; False when the other side has closed."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            return False
        return True

    def read(self) -> bytes:
        """Some bytes; none at the end, however it came."""
        try:
            return self.socket.recv(256 * 1024)
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return b""

    def answer(self) -> tuple[int, bytes]:
        """Status and everything else of an HTTP answer after which the server closes; 0 without one."""
        data = b""
        while more := self.read():
            data += more
        return (int(data.split()[1]), data) if data.startswith(b"HTTP/1.1 ") else (0, data)

    def upgrade(self) -> int:
        """Open a WebSocket; the status."""
        self.write(UPGRADE)
        while b"\r\n\r\n" not in self._rest:
            more = self.read()
            if not more:
                break
            self._rest += more
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        self.head = head
        for line in head.decode().splitlines():
            if line.lower().startswith("mesh-challenge:"):
                self.nonce = line.partition(":")[2].strip()
        return int(head.split()[1]) if head else 0

    def say(self, *payloads: bytes, opcode: int = 1) -> bool:
        return self.write(b"".join(client_frame(payload, opcode) for payload in payloads))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Whole frames, until the end."""
        while True:
            found, self._rest = cut(self._rest)
            self._frames.extend(found)
            while self._frames:
                yield self._frames.popleft()
            more = self.read()
            if not more:
                return
            self._rest += more

    def next(self, kind: str) -> dict[str, Any]:
        """The next JSON frame of a type."""
        for opcode, payload in self.frames():
            if opcode == 1 and (frame := json.loads(payload)).get("type") == kind:
                return dict(frame)
        raise AssertionError(f"the connection ended before a frame of type {kind!r}")

    def close_code(self) -> int:
        """Read to the end: the code of the close frame, 0 without one."""
        code = 0
        with contextlib.suppress(TimeoutError):
            for opcode, payload in self.frames():
                if opcode == 8:
                    code = int.from_bytes(payload[:2], "big")
                    self.say(payload[:2], opcode=8)
        return code

    @classmethod
    def join(cls, server: Server, address: str, agent: Agent | None = None, **options: Any) -> Self:
        """Connected and proven."""
        raw = cls(server, address, **options)
        assert raw.upgrade() == 101
        raw.agent = agent or Agent()  # type: ignore[attr-defined]
        raw.write(raw.agent.connect(raw.nonce, time.time(), receipts=True))  # type: ignore[attr-defined]
        raw.next("connected")
        return raw


def ask(
    server: Server, address: str, method: str, target: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
) -> tuple[int, bytes]:
    """One HTTP request on a connection of its own: status and body; 0 when the server hung up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, PATIENCE, source_address=(address, 0))
    with contextlib.closing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it had all, and close
            connection.request(method, target, body or None, dict(headers))
        try:
            with connection.getresponse() as response:
                return response.status, response.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, b""


def dump(frame: object) -> bytes:
    return json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode()


def message(to: str, frame_id: str, body: str = "", kind: str = "message", **members: object) -> bytes:
    """A frame to be routed; the relay stamps its sender."""
    return dump({"v": 1, "type": kind, "to": to, "id": frame_id, **members, "ciphertext": body})
