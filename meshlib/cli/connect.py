"""Who does what a command asks for: the daemon that owns the store, or a client of our own."""

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from meshlib.cli.options import CONNECT_SECONDS, Settings
from meshlib.client.mesh import MeshClient
from meshlib.config import KnockPolicy, accept_everyone
from meshlib.daemon.address import socket_path
from meshlib.daemon.client import DaemonClient
from meshlib.errors import DaemonNotRunning


@asynccontextmanager
async def open_mesh(
    settings: Settings,
    policy: KnockPolicy = accept_everyone,
    patience: float = CONNECT_SECONDS,
    *,
    receiving: bool = False,
) -> AsyncIterator[MeshClient | DaemonClient]:
    """The daemon of the store when one runs, else a client as ``settings`` say.

    A daemon has its own relay, registry, policy and folder for files; ours are not asked then.

    Args:
        patience: seconds until a relay that cannot be reached ends the command.
        receiving: take files of peers, if a folder for them was named.
    Raises:
        TransportError: a daemon runs, and speaks another version or does not speak.
        IdentityInUse: somebody holds the store and offers no daemon.
    """
    async with AsyncExitStack() as stack:
        mesh: MeshClient | DaemonClient
        try:
            mesh = await stack.enter_async_context(DaemonClient(socket_path(settings.store)))
        except DaemonNotRunning:
            mesh = await stack.enter_async_context(MeshClient(settings.client(policy, patience, receiving=receiving)))
        yield mesh


async def features_of(mesh: MeshClient | DaemonClient) -> Collection[str]:
    """Extensions the relay knows."""
    return mesh.features if isinstance(mesh, MeshClient) else (await mesh.status()).features
