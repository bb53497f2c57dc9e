"""``mesh daemon``: one process owns the identity, everything else on the machine uses it."""

import signal
import time
from argparse import Namespace
from collections.abc import Mapping

import anyio

from meshlib.cli.exits import Exit
from meshlib.cli.messages import watch
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console, Style
from meshlib.client.mesh import MeshClient
from meshlib.config import accept_everyone, accept_only
from meshlib.daemon.address import socket_path
from meshlib.daemon.client import DaemonClient
from meshlib.daemon.server import serve_daemon
from meshlib.errors import IdentityInUse, MeshError, TransportError
from meshlib.identity import parse_did
from meshlib.store.lock import FolderLock

STOP_SECONDS = 15.0
"""A daemon's time to finish what is under way and to say goodbye to the relay."""
_LOOK_EVERY = 0.05


def daemon(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Run until Ctrl-C, SIGTERM or ``mesh daemon --stop``."""
    settings = settings_from(arguments, environment)
    if arguments.stop:
        anyio.run(_stop, settings)
        console.note("the daemon has stopped", event="stopped")
        return Exit.OK
    policy = accept_only(*(parse_did(one) for one in arguments.only)) if arguments.only else accept_everyone

    async def main() -> int:
        failure: list[Exception] = []
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                stop = anyio.Event()
                serving = False

                async def until_signal() -> None:
                    async for _ in signals:
                        stop.set()
                        if not serving:  # nothing is under way that could be finished
                            tasks.cancel_scope.cancel()

                tasks.start_soon(until_signal)
                try:
                    async with (
                        MeshClient(settings.client(policy, receiving=True)) as client,
                        serve_daemon(client, on_stop=stop.set) as served,
                        anyio.create_task_group() as watching,
                    ):
                        serving = True
                        _announce(console, settings, client, str(served.path))
                        watching.start_soon(watch, client, console, failure, watching.cancel_scope)
                        await stop.wait()
                        watching.cancel_scope.cancel()
                except (MeshError, OSError) as error:
                    failure.append(error)  # raised outside of the group, as itself
                tasks.cancel_scope.cancel()
        if failure:
            raise failure[0]
        return Exit.OK

    return anyio.run(main)


def _announce(console: Console, settings: Settings, client: MeshClient, path: str) -> None:
    if console.json:
        console.emit(event="listening", socket=path, did=str(client.did), name=settings.name)
        return
    console.say(f"{console.paint('the daemon listens', Style.GOOD)}   (Ctrl-C stops it)\n")
    rows = [["socket", path], ["did", str(client.did)], ["name", settings.name or "-"]]
    console.table(rows, (Style.BOLD, Style.NAME))


async def _stop(settings: Settings) -> None:
    """Ask the daemon to end, and wait until the identity is free.

    Raises:
        DaemonNotRunning: there is none.
        TransportError: it goes on.
    """
    deadline = time.monotonic() + STOP_SECONDS
    async with DaemonClient(socket_path(settings.store)) as mesh:
        await mesh.stop()
        with anyio.move_on_after(STOP_SECONDS):
            await mesh.gone()
    while time.monotonic() < deadline:
        try:
            FolderLock(settings.store).release()
        except IdentityInUse:
            await anyio.sleep(_LOOK_EVERY)
        else:
            return
    raise TransportError(f"the daemon still holds {settings.store} after {STOP_SECONDS:g} s: 'mesh status' names it")
