"""Real processes under a keeper that starts again whatever ends: a registry, a relay, and applications on both.

Servers and applications keep their addresses and folders over every restart, as under a service manager. Only what
this module started is ever signalled, by its own handle, and nothing outlives a ``with`` block.
"""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import PATIENCE, ROOT, environment

POLL = 0.002
SURPRISES = 3
"""Ends that nobody asked for, after which a program is given up."""


def free_port(chosen: random.Random) -> int:
    """A port nobody listens on, below those the system gives to clients: one of these could connect to itself."""
    while True:
        port = chosen.randrange(20_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def until(happened: Callable[[], object], what: str, seconds: float = PATIENCE, pause: float = POLL) -> None:
    """Wait for something; say what it was when it does not come."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


@dataclass
class Kept:
    """One program: its process of now, and what became of the earlier ones."""

    name: str
    argv: Sequence[str]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Callable[[], None] | None = None
    """Runs in the child before the program does."""
    kills: int = 0
    surprises: list[str] = field(default_factory=list)
    """Ends that nobody asked for."""
    may_end: bool = False
    """Whether ending by itself is what it should do, as on a read-only disk."""
    process: subprocess.Popen[bytes] | None = None
    again_at: float | None = None

    _silent: int = 0
    """Length of its output when it was started last."""

    def start(self) -> None:
        self.again_at = None
        self._silent = self.out.stat().st_size if self.out.exists() else 0
        with self.out.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=environment(**self.env),
                cwd=ROOT,
                preexec_fn=self.limits,
            )

    @property
    def out(self) -> Path:
        return self.folder / f"{self.name}.out"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def store(self) -> Path:
        """An application's mesh folder."""
        at = self.argv.index("--store") if "--store" in self.argv else None
        return Path(self.argv[at + 1]) if at is not None else self.folder / self.name / "store"

    def says(self, words: str, times: int = 1) -> bool:
        """Whether it has said something on standard error, in all of its lives together."""
        return self.log.exists() and self.log.read_text(errors="replace").count(words) >= times

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def listening(self) -> bool:
        """Whether a server has said so since it was started last."""
        return self.runs and self.out.read_bytes()[self._silent :].endswith(b"}\n")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self, away: float | None = 0.0) -> bool:
        """kill -9, and start again after ``away`` seconds; never, if that is ``None``. ``False`` if nothing ran."""
        if not self.runs or self.process is None:
            return False
        self.process.kill()
        self.process.wait()
        self.process = None
        self.kills += 1
        self.again_at = None if away is None else time.monotonic() + away
        return True

    def look(self) -> None:
        """Start what is due; note what ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            if self.process.returncode != 0 and self.may_end:
                self.process, self.again_at = None, time.monotonic() + 0.2
            elif self.process.returncode != 0:
                self.surprises.append(f"{self.name} ended by itself with {self.process.returncode}")
                if len(self.surprises) == SURPRISES:
                    raise AssertionError(f"{self.name} keeps ending by itself")
                self.process, self.again_at = None, time.monotonic() + 0.5
            return
        if self.process is None and self.again_at is not None and time.monotonic() >= self.again_at:
            self.start()

    def leave(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def tail(self, lines: int = 12) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(f"    {self.name}: {line}" for line in text.splitlines()[-lines:])


@dataclass
class Fleet:
    """A registry, a relay and applications."""

    folder: Path
    relay: Kept
    registry: Kept
    relay_url: str
    registry_url: str
    applications: list[Kept] = field(default_factory=list)

    @property
    def all(self) -> list[Kept]:
        return [self.registry, self.relay, *self.applications]

    def application(self, name: str, *options: object, relay: str = "", registry: str = "", **env: str) -> Kept:
        """Another application, not started yet."""
        argv = [sys.executable, "-m", "tests.faults.peer", str(self.folder / name), "--name", name]
        argv += ["--relay", relay or self.relay_url, "--registry", registry or self.registry_url]
        kept = Kept(name, [*argv, *map(str, options)], self.folder, env)
        self.applications.append(kept)
        return kept

    def look(self) -> None:
        for kept in self.all:
            kept.look()

    def wait(self, happened: Callable[[], object], what: str, seconds: float = PATIENCE, pause: float = POLL) -> None:
        """Wait while keeping everything running."""

        def look() -> object:
            self.look()
            return happened()

        until(look, what, seconds, pause)

    def start_servers(self) -> None:
        for server in (self.registry, self.relay):
            server.start()
        until(lambda: self.registry.listening and self.relay.listening, "the servers listen")

    def relay_metric(self, name: str) -> float:
        url = self.relay_url.replace("ws://", "http://") + "/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        found = re.search(rf"^mesh_relay_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def describe(self) -> str:
        return "\n".join(kept.tail() for kept in self.all)


@contextmanager
def fleet(
    folder: Path,
    chosen: random.Random,
    *,
    relay_env: Mapping[str, str] | None = None,
    relay_store: Path | None = None,
    registry_store: Path | None = None,
) -> Iterator[Fleet]:
    """Servers on SQLite, not started yet."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_port(chosen), free_port(chosen)
    relay_argv = [sys.executable, "-m", "mesh_relay", "serve", "--host", "127.0.0.1", "--port", str(ports[0])]
    relay_argv += ["--store", str(relay_store or folder / "relay.db")]
    registry_argv = [sys.executable, "-m", "mesh_registry", "serve", "--host", "127.0.0.1", "--port", str(ports[1])]
    registry_argv += ["--store", str(registry_store or folder / "registry.db")]
    made = Fleet(
        folder,
        Kept("relay", relay_argv, folder, relay_env or {}),
        # Everybody here is the same address: what a crash loop fetches must not look like an attack.
        Kept("registry", registry_argv, folder, {"MESH_REGISTRY_KEYS_PER_TARGET": "1000/100"}),
        f"ws://127.0.0.1:{ports[0]}",
        f"http://127.0.0.1:{ports[1]}",
    )
    try:
        yield made
    finally:
        for kept in made.all:
            if kept.process is not None and kept.process.poll() is None:
                kept.process.send_signal(signal.SIGCONT)
                kept.process.kill()
            if kept.process is not None:
                kept.process.wait()


__all__ = ["Fleet", "Kept", "fleet", "free_port", "until"]
