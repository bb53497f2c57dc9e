"""Which sockets are ready, by either means."""

import socket

import pytest
import trio
import trio.testing
from mesh_relay.readiness import READ, EpollReadiness, Readiness, TaskReadiness


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["epoll", "tasks"])
async def test_a_socket_that_is_not_to_be_read_says_nothing_of_a_hang_up(kind: str) -> None:
    """A throttled sender that hangs up would otherwise be read at once, as fast as it can be."""
    ours, theirs = socket.socketpair()
    quiet, marker = socket.socketpair()
    with ours, theirs, quiet, marker:
        async with trio.open_nursery() as nursery:
            readiness: Readiness = EpollReadiness() if kind == "epoll" else TaskReadiness(nursery)
            readiness.watch(ours.fileno(), READ)
            readiness.watch(ours.fileno(), 0)
            readiness.watch(quiet.fileno(), READ)
            theirs.sendall(b"one more")
            theirs.close()
            marker.sendall(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert await readiness.wait() == [(quiet.fileno(), READ)]
            quiet.recv(1)
            readiness.watch(ours.fileno(), READ)
            assert ours.fileno() in [fd for fd, _ in await readiness.wait()]
            readiness.forget(ours.fileno())
            readiness.forget(quiet.fileno())
            readiness.close()
            nursery.cancel_scope.cancel()
