"""The machine underneath: cores, CPU time and memory of processes, and what to write down about it all."""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cores() -> tuple[int | None, int | None]:
    """One core for servers and another for the load; None where there are no two, or pinning does not exist."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


SERVER_CORE, LOAD_CORE = cores()


def pin(core: int | None, pid: int = 0) -> None:
    """Keep a process and its coming threads on one core."""
    if core is not None:
        os.sched_setaffinity(pid, {core})


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found, position = [pid], 0
    while position < len(found):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[position]}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        position += 1
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time a process and its descendants have used so far."""
    return sum(_cpu(one) for one in family(pid))


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident(pid: int) -> int:
    """Bytes of memory a process and its descendants have resident."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE
    return total


def describe() -> dict[str, str]:
    """What a reader must know to compare: processor, cores, versions."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "pinned": "server and load on a core each" if SERVER_CORE is not None else "no",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load before": f"{os.getloadavg()[0]:.2f}",
        **{name: _version(name) for name in ("agent-meshlib", "cryptography", "pynacl", "websockets", "trio")},
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "none"


def output_of(*argv: str) -> str:
    """The first line a command prints, or nothing when there is no such command."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        run = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
        return (run.stdout or run.stderr).strip().splitlines()[0]
    return ""


@contextlib.contextmanager
def on_load_core() -> Iterator[None]:
    """Run on the core of the load, whatever core was ours before."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    pin(LOAD_CORE)
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


if __name__ == "__main__":
    print(describe(), file=sys.stdout)
