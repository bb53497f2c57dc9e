"""The network AI agents talk over: end-to-end encrypted messages between agents that know each other's name.

Names are loaded when they are first used, so that the servers, which borrow identities and the wire, never load the
client's HTTP and WebSocket stack.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.client.blocking import BlockingMeshClient
    from meshlib.client.events import (
        Connected,
        DeliveryChanged,
        DeliveryState,
        Disconnected,
        Event,
        FaultFound,
        FileReceived,
        KnockAccepted,
        KnockReceived,
        KnockRejected,
        PeerVerified,
        SessionLost,
    )
    from meshlib.client.handles import Agent, Message, Receipt
    from meshlib.client.mesh import MeshClient
    from meshlib.client.requests import (
        Answer,
        Gathering,
        Progress,
        Result,
        TaskState,
    )
    from meshlib.client.routes import Route
    from meshlib.client.stats import ClientStats, Sighting, Trouble
    from meshlib.client.verbs import Mesh, PeerSummary
    from meshlib.config import (
        Backoff,
        ClientConfig,
        Limits,
        Prekeys,
        Timeouts,
        accept_everyone,
        accept_only,
        files_from,
        files_from_everyone,
        refuse_everyone,
    )
    from meshlib.crypto.x3dh import Dialect
    from meshlib.daemon.blocking import BlockingDaemonClient
    from meshlib.daemon.client import DaemonClient
    from meshlib.errors import (
        AgentNotFound,
        AmbiguousName,
        DaemonNotRunning,
        IdentityInUse,
        InvalidValue,
        KnockRefused,
        MeshError,
        NotAuthentic,
        NotConnected,
        PeerError,
        QueueFull,
        RegistryRefused,
        RelayRefused,
        ServiceError,
        StoreError,
        TaskFailed,
        TaskUnfinished,
        TransferFailed,
        TransportError,
        UsageError,
    )
    from meshlib.files.receipts import FileReceipt, TransferState
    from meshlib.identity import Did, Identity

__all__ = [
    "Agent",
    "AgentNotFound",
    "AmbiguousName",
    "Answer",
    "Backoff",
    "BlockingDaemonClient",
    "BlockingMeshClient",
    "ClientConfig",
    "ClientStats",
    "Connected",
    "DaemonClient",
    "DaemonNotRunning",
    "DeliveryChanged",
    "DeliveryState",
    "Dialect",
    "Did",
    "Disconnected",
    "Event",
    "FaultFound",
    "FileReceipt",
    "FileReceived",
    "Gathering",
    "Identity",
    "IdentityInUse",
    "InvalidValue",
    "KnockAccepted",
    "KnockReceived",
    "KnockRefused",
    "KnockRejected",
    "Limits",
    "Mesh",
    "MeshClient",
    "MeshError",
    "Message",
    "NotAuthentic",
    "NotConnected",
    "PeerError",
    "PeerSummary",
    "PeerVerified",
    "Prekeys",
    "Progress",
    "QueueFull",
    "Receipt",
    "RegistryRefused",
    "RelayRefused",
    "Result",
    "Route",
    "ServiceError",
    "SessionLost",
    "Sighting",
    "StoreError",
    "TaskFailed",
    "TaskState",
    "TaskUnfinished",
    "Timeouts",
    "TransferFailed",
    "TransferState",
    "TransportError",
    "Trouble",
    "UsageError",
    "accept_everyone",
    "accept_only",
    "files_from",
    "files_from_everyone",
    "refuse_everyone",
]

_HOMES = {
    "Agent": "meshlib.client.handles",
    "AgentNotFound": "meshlib.errors",
    "AmbiguousName": "meshlib.errors",
    "Answer": "meshlib.client.requests",
    "Backoff": "meshlib.config",
    "BlockingDaemonClient": "meshlib.daemon.blocking",
    "BlockingMeshClient": "meshlib.client.blocking",
    "ClientConfig": "meshlib.config",
    "ClientStats": "meshlib.client.stats",
    "Connected": "meshlib.client.events",
    "DaemonClient": "meshlib.daemon.client",
    "DaemonNotRunning": "meshlib.errors",
    "DeliveryChanged": "meshlib.client.events",
    "DeliveryState": "meshlib.client.events",
    "Dialect": "meshlib.crypto.x3dh",
    "Did": "meshlib.identity",
    "Disconnected": "meshlib.client.events",
    "Event": "meshlib.client.events",
    "FaultFound": "meshlib.client.events",
    "FileReceipt": "meshlib.files.receipts",
    "FileReceived": "meshlib.client.events",
    "Gathering": "meshlib.client.requests",
    "Identity": "meshlib.identity",
    "IdentityInUse": "meshlib.errors",
    "InvalidValue": "meshlib.errors",
    "KnockAccepted": "meshlib.client.events",
    "KnockReceived": "meshlib.client.events",
    "KnockRefused": "meshlib.errors",
    "KnockRejected": "meshlib.client.events",
    "Limits": "meshlib.config",
    "Mesh": "meshlib.client.verbs",
    "MeshClient": "meshlib.client.mesh",
    "MeshError": "meshlib.errors",
    "Message": "meshlib.client.handles",
    "NotAuthentic": "meshlib.errors",
    "NotConnected": "meshlib.errors",
    "PeerError": "meshlib.errors",
    "PeerSummary": "meshlib.client.verbs",
    "PeerVerified": "meshlib.client.events",
    "Prekeys": "meshlib.config",
    "Progress": "meshlib.client.requests",
    "QueueFull": "meshlib.errors",
    "Receipt": "meshlib.client.handles",
    "RegistryRefused": "meshlib.errors",
    "RelayRefused": "meshlib.errors",
    "Result": "meshlib.client.requests",
    "Route": "meshlib.client.routes",
    "ServiceError": "meshlib.errors",
    "SessionLost": "meshlib.client.events",
    "Sighting": "meshlib.client.stats",
    "StoreError": "meshlib.errors",
    "TaskFailed": "meshlib.errors",
    "TaskState": "meshlib.client.requests",
    "TaskUnfinished": "meshlib.errors",
    "Timeouts": "meshlib.config",
    "TransferFailed": "meshlib.errors",
    "TransferState": "meshlib.files.receipts",
    "TransportError": "meshlib.errors",
    "Trouble": "meshlib.client.stats",
    "UsageError": "meshlib.errors",
    "accept_everyone": "meshlib.config",
    "accept_only": "meshlib.config",
    "files_from": "meshlib.config",
    "files_from_everyone": "meshlib.config",
    "refuse_everyone": "meshlib.config",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
