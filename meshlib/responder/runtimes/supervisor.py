"""Runs one command and sees to it that nothing of it outlives the responder. A program of its own.

    python -I -S supervisor.py LIFELINE COMMAND [ARGUMENT...]

``LIFELINE`` is the reading end of a pipe whose other end the responder holds. When it closes, because the task was
stopped or because the responder was killed, the command and everything it started is ended: interrupted, then asked to
terminate, then killed. The same befalls whatever the command leaves behind when it ends by itself. Exits with the
command's status, 128 + N when signal N ended it, 125 when it could not be started.

On Linux all descendants are found, those in sessions of their own and those whose parents have died included: orphans
become children of this process (PR_SET_CHILD_SUBREAPER). Elsewhere it is the command's process group.

Imports nothing but the standard library, so that it starts in a few milliseconds.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STEPS = ((signal.SIGINT, 2.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))
"""What is sent, and how long it may take to have an effect."""
LOOK_EVERY = 0.05
NOT_STARTED = 125


def main(lifeline: int, command: list[str]) -> int:
    """Run ``command`` to its end, or to that of the responder."""
    on_linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True) if on_linux else None
    if libc is not None:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.set_inheritable(lifeline, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def die_with_us() -> None:
        # Should this process be killed, too: the command at least goes with it.
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_us)  # noqa: S603
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    for stream in (0, 1):  # held by the command alone: its end is their end
        os.close(stream)
    status: int | None = None
    while status is None:
        readable, _, _ = select.select([lifeline, woken], [], [])
        if lifeline in readable:
            break
        signals = os.read(woken, 4096)
        if signal.SIGTERM in signals or signal.SIGINT in signals:
            break
        status = reap(child.pid)
    for number, patience in STEPS:
        status, left = end(child.pid, number, patience, status)
        if not left:
            break
    code = NOT_STARTED if status is None else os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def end(child: int, number: int, patience: float, status: int | None) -> tuple[int | None, bool]:
    """Send a signal to all that is left, again and again as more turn up; returns whether something is left."""
    deadline = time.monotonic() + patience
    told: set[int] = set()
    while True:
        found = reap(child)
        status = found if found is not None else status
        left = set(descendants(child, status is None))
        if not left:
            return status, False
        for pid in left if number == signal.SIGKILL else left - told:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        told |= left
        if time.monotonic() >= deadline:
            return status, True
        time.sleep(LOOK_EVERY)


def reap(child: int) -> int | None:
    """Collect whoever has ended. The status of ``child``, if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                status = ended
    return status


def descendants(child: int, child_runs: bool) -> Iterator[int]:
    """Everything below this process that has not ended."""
    if sys.platform != "linux":
        if child_runs:
            yield child
        return
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(name)] = int(parent)
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
            if above == os.getpid():
                yield pid


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
