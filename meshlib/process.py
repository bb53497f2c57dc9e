"""What this process uses of the machine: memory, processor, open files. Read where the system has ``/proc``."""

import os
import re
from pathlib import Path

from meshlib.prometheus import Page

_SELF = Path("/proc/self")
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB$", re.MULTILINE)
_FILES = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)


def show(page: Page, started_at: float) -> None:
    """Add the process's numbers to a page of metrics, those that can be had.

    Args:
        started_at: UTC seconds.
    """
    page.process("start_time_seconds", "gauge", "When it started, in UTC seconds", started_at)
    times = os.times()
    page.process("cpu_seconds_total", "counter", "Processor time it has used", round(times.user + times.system, 2))
    if (resident := _number(_RESIDENT, "status")) is not None:
        page.process("resident_memory_bytes", "gauge", "Memory it holds", resident * 1024)
    if (opened := _open_files()) is not None:
        page.process("open_fds", "gauge", "Files and sockets it has open", opened)
    if (most := _number(_FILES, "limits")) is not None:
        page.process("max_fds", "gauge", "How many it may have open", most)


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    try:
        found = pattern.search((_SELF / name).read_text())
    except OSError:
        return None
    return None if found is None else int(found[1])


def _open_files() -> int | None:
    try:
        # Linux 6.2 and newer say it at once; to list ten thousand sockets takes milliseconds.
        return (_SELF / "fd").stat().st_size or len(os.listdir(_SELF / "fd"))
    except OSError:
        return None
