"""Runs one command and sees to it that nothing of it outlives the responder. A program of its own.

    python -I -S supervisor.py LIFELINE COMMAND [ARGUMENT...]

``LIFELINE`` is the reading end of a pipe whose other end the responder holds. When it closes, because the task was
stopped or because the responder was killed, the command and everything it started is ended: interrupted, then asked to
terminate, then killed. The same befalls whatever the command leaves behind when it ends by itself. Exits with the
command's status, 128 + N when signal N ended it, 125 when it could not be started.

On Linux all descendants are found, those in sessions of their own and those whose parents have died included: orphans
become children of this process (PR_SET_CHILD_SUBREAPER), so that it has children as long as anything is left. Elsewhere
it is the command's process group.

A command may kill its parent. So this is two processes: the first does nothing but outlive the second, ends what that
left and hands on its status; the second ends everything when the first is killed. A program that kills both at once
gets away, since programs of one user can kill each other: only bounds of the system's, like a systemd unit, hold it.

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
STEPS = ((signal.SIGINT, 2.0), (signal.SIGTERM, 2.0))
"""What is sent at first, and how long it may take to have an effect. SIGKILL follows, for as long as it takes."""
LOOK_EVERY = 0.05
KILL_EVERY = 0.001
"""Seconds between two looks; the second at first, while those that are killed die."""
NOT_STARTED = 125

LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def main(lifeline: int, command: list[str]) -> int:
    """Run ``command`` to its end, or to that of the responder."""
    control(PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    supervisor = os.fork()
    if supervisor == 0:
        control(PR_SET_CHILD_SUBREAPER, 1)
        control(PR_SET_PDEATHSIG, signal.SIGTERM)
        os._exit(supervise(lifeline, command, guard))
    for stream in (lifeline, 0, 1):  # held by the command alone: their end is its end
        os.close(stream)
    _, status = os.waitpid(supervisor, 0)
    kill(supervisor)
    return exit_code(status)


def supervise(lifeline: int, command: list[str], guard: int) -> int:
    """Run ``command``, then end what is left of it."""
    os.set_inheritable(lifeline, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    if os.getppid() != guard:
        return NOT_STARTED

    def die_with_us() -> None:
        # Should this process be killed, too: the command at least goes with it.
        control(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_us)  # noqa: S603
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_STARTED
    for stream in (0, 1):
        os.close(stream)
    status: int | None = None
    while status is None:
        readable, _, _ = select.select([lifeline, woken], [], [])
        if lifeline in readable:
            break
        signals = os.read(woken, 4096)
        if signal.SIGTERM in signals or signal.SIGINT in signals:
            break
        status = reap(child.pid)[0]
    for number, patience in STEPS:
        found, left = end(child.pid, number, patience)
        status = found if status is None else status
        if not left:
            break
    else:
        found = kill(child.pid)
        status = found if status is None else status
    return NOT_STARTED if status is None else exit_code(status)


def control(option: int, value: int) -> None:
    """prctl, where there is one."""
    if LIBC is not None:
        LIBC.prctl(option, value, 0, 0, 0)


def exit_code(status: int) -> int:
    """What a shell would exit with."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def end(child: int, number: int, patience: float) -> tuple[int | None, bool]:
    """Send a signal to all that is left, as it turns up. Returns the child's status, and whether something is left."""
    deadline = time.monotonic() + patience
    told: set[int] = set()
    status = None
    while True:
        found, left = reap(child)
        status = found if status is None else status
        if not left or time.monotonic() >= deadline:
            return status, left
        for pid in descendants(child):
            if pid not in told:
                told.add(pid)
                send(pid, number)
        time.sleep(LOOK_EVERY)


def kill(child: int) -> int | None:
    """Kill until nothing is left. Returns the status of ``child``.

    Who loses its parent becomes a child of ours, so the children are enough, and a list as short as theirs is read and
    gone through faster than a program can fork and exit again and again to get away.
    """
    status = None
    before: list[int] = []
    pause = KILL_EVERY
    while True:
        found, left = reap(child)
        status = found if status is None else status
        if not left:
            return status
        now = children(child)
        for pid in now:
            send(pid, signal.SIGKILL)
        if now == before:  # they take their time to die
            time.sleep(pause)
            pause = min(2 * pause, LOOK_EVERY)
        else:
            before, pause = now, KILL_EVERY


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def reap(child: int) -> tuple[int | None, bool]:
    """Collect whoever has ended. The status of ``child``, if it is among them, and whether anything is left."""
    status = None
    try:
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return status, True
            if pid == child:
                status = ended
    except ChildProcessError:
        return status, False


def children(child: int) -> list[int]:
    """The direct children of this process; everything below it where the system keeps no list of them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return list(descendants(child))


def descendants(child: int) -> Iterator[int]:
    """Everything below this process that has not ended."""
    if sys.platform != "linux":
        yield -child  # its process group
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
