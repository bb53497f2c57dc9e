"""What one can do on the mesh, whoever owns the identity: this process, or a daemon on the same machine.

The command line, tools for models and plugins are written against :class:`Mesh`; :class:`meshlib.MeshClient` and
:class:`meshlib.daemon.DaemonClient` are both one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from meshlib.client.events import DeliveryState
from meshlib.client.handles import Agent
from meshlib.client.requests import Answer, OnProgress
from meshlib.client.stats import ClientStats, Sighting
from meshlib.files.receipts import OnTransfer, TransferState
from meshlib.identity import Did
from meshlib.wire.encoding import MessageId


@dataclass(frozen=True, slots=True)
class PeerSummary:
    """What is known of a peer, at a glance."""

    did: Did
    name: str | None
    """The display name it was last found under."""
    verified: bool
    """A message of it has authenticated."""
    undelivered: int
    """Messages of ours that it does not have yet."""


class AnyReceipt(Protocol):
    """What has become of a message of ours; see :class:`meshlib.Receipt`."""

    id: MessageId
    peer: Did
    state: DeliveryState
    detail: str

    async def wait(self, state: DeliveryState | str = DeliveryState.DELIVERED) -> DeliveryState:
        """Wait until it has come at least as far as ``state``."""


class AnyMessage(Protocol):
    """A message of a peer; see :class:`meshlib.Message`."""

    sender: Did
    id: MessageId
    payload: object
    encrypted: bool
    redelivered: bool

    async def ack(self) -> None:
        """Confirm that the message has been dealt with."""


class AnyFileReceipt(Protocol):
    """What has become of a file; see :class:`meshlib.FileReceipt`."""

    id: str
    peer: Did
    name: str
    size: int
    state: TransferState
    moved: int
    detail: str
    reason: str
    saved_to: str

    async def wait(self) -> TransferState:
        """Wait until it is over."""

    async def cancel(self) -> None:
        """Stop it."""


class Mesh(Protocol):
    """An agent's place on the mesh. Each verb is documented at :class:`meshlib.MeshClient`."""

    @property
    def did(self) -> Did:
        """The DID of whom we speak for."""

    async def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: DeliveryState | str | None = None,
        message_id: str | None = None,
    ) -> AnyReceipt:
        """Send a message, end to end encrypted; returns once it is in the outbox."""

    async def receive(self, senders: Collection[str] | None = None) -> AnyMessage:
        """The next message, of one of ``senders`` if they are given."""

    async def resolve(self, peer: str) -> Did:
        """The DID of a display name."""

    async def discover(self, capability: str, limit: int = 50) -> list[Agent]:
        """Agents that publish a capability, the freshest first."""

    async def request(
        self,
        peer: str,
        content: str,
        *,
        timeout: float = 1500.0,  # noqa: ASYNC109 - the agent is told how long we wait
        hops: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Have a peer do something, and wait for its answer."""

    async def send_file(
        self, peer: str, path: Path, *, description: str = "", on_progress: OnTransfer | None = None
    ) -> AnyFileReceipt:
        """Send a file."""

    async def stats(self) -> ClientStats:
        """The numbers of the client that owns the identity."""

    async def trace(self, message: str) -> tuple[Sighting, ...]:
        """Where a message stands, by its id."""

    async def peers(self) -> list[PeerSummary]:
        """Everybody we have talked to, the last first."""
