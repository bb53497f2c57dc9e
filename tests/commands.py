"""Our commands as child processes: started with a clean environment, read with deadlines, always ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
MESH = (sys.executable, "-m", "meshlib")
PATIENCE = 60.0
"""Seconds until something that should happen at once counts as not happening; a busy machine starts slowly."""

_OURS = ("MESH_", "AGT_", "SANDBOX_NAME", "XDG_", "NO_COLOR", "PYTHONWARNINGS")


def environment(**more: str) -> dict[str, str]:
    """Ours without what would configure the children behind our back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"} | more


class Running:
    """A process that goes on, its standard output and error taken line by line."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=ROOT
        )
        self.pid = self._process.pid
        self._lines: dict[str, queue.Queue[str | None]] = {"out": queue.Queue(), "err": queue.Queue()}
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(stream, self._lines[name]), daemon=True)
            for name, stream in (("out", self._process.stdout), ("err", self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
        with stream:
            for line in stream:
                lines.put(line.decode(errors="replace").rstrip("\n"))
        lines.put(None)

    def line(self, stream: str = "out") -> str:
        """The next line of ``out`` or ``err``; fails when there is none."""
        line = self._lines[stream].get(timeout=PATIENCE)
        if line is None:
            raise AssertionError(f"the process ended instead of saying something on {stream}: {self.rest('err')}")
        return line

    def said(self, stream: str = "out") -> dict[str, Any]:
        """The next line as JSON."""
        value: dict[str, Any] = json.loads(self.line(stream))
        return value

    def rest(self, stream: str) -> list[str]:
        """All lines that are left, once the process has ended."""
        lines = []
        while (line := self._lines[stream].get(timeout=PATIENCE)) is not None:
            lines.append(line)
        self._lines[stream].put(None)
        return lines

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def lives(self, seconds: float) -> bool:
        """Whether it goes on for as long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def ended(self) -> int:
        """The exit status, once there is one."""
        return self._process.wait(PATIENCE)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)


@contextmanager
def running(argv: Sequence[str | Path], **env: str) -> Iterator[Running]:
    """A process for the length of a ``with`` block."""
    process = Running([str(one) for one in argv], environment(**env))
    try:
        yield process
    finally:
        process.stop()


@dataclass(frozen=True)
class Servers:
    """A relay and a registry that are running, started by ``mesh up``."""

    relay: str
    registry: str
    data: Path
    process: Running

    @property
    def variables(self) -> dict[str, str]:
        """What points an agent at them."""
        return {"MESH_RELAY_URL": self.relay, "MESH_REGISTRY_URL": self.registry}


@contextmanager
def mesh_up(data: Path, *options: str) -> Iterator[Servers]:
    """``mesh up`` on free ports."""
    argv: list[str | Path] = [*MESH, "up", "--json", "--relay-port", "0", "--registry-port", "0", *options]
    argv += ["--data", data]
    with running(argv) as process:
        said = process.said()
        yield Servers(said["relay"], said["registry"], data, process)


@dataclass(frozen=True)
class Result:
    """What a finished command left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output, one JSON object per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass(frozen=True)
class Agent:
    """Runs ``mesh`` as an agent with a home folder of its own."""

    home: Path
    variables: Mapping[str, str]

    @property
    def env(self) -> dict[str, str]:
        return {"HOME": str(self.home), **self.variables}

    def mesh(self, *arguments: str | Path, stdin: bytes = b"", **env: str) -> Result:
        """Run a command to its end."""
        done = subprocess.run(
            [*MESH, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=environment(**self.env | env),
            timeout=PATIENCE,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def starting(self, *arguments: str | Path, **env: str) -> Iterator[Running]:
        """Run a command that goes on."""
        with running([*MESH, *arguments], **self.env | env) as process:
            yield process

    @contextmanager
    def listening(self, *options: str | Path) -> Iterator[Running]:
        """``mesh listen --json``, once it is connected; what it said then is gone."""
        with self.starting("listen", "--json", *options) as process:
            assert process.said("err")["event"] == "listening"
            yield process
