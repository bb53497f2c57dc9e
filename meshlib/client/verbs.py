"""What one can do on the mesh, whoever owns the identity: this process, or a daemon on the same machine.

The command line, tools for models and plugins are written against :class:`Mesh`; :class:`meshlib.MeshClient` and
:class:`meshlib.daemon.DaemonClient` are both one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from meshlib.client.events import DeliveryState
from meshlib.client.handles import Agent
from meshlib.client.requests import Answer, OnProgress
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

    async def wait(self, state: DeliveryState | str = DeliveryState.DELIVERED) -> DeliveryState: ...


class AnyMessage(Protocol):
    """A message of a peer; see :class:`meshlib.Message`."""

    sender: Did
    id: MessageId
    payload: object
    encrypted: bool
    redelivered: bool

    async def ack(self) -> None: ...


class Mesh(Protocol):
    """An agent's place on the mesh. Each verb is documented at :class:`meshlib.MeshClient`."""

    @property
    def did(self) -> Did: ...

    async def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: DeliveryState | str | None = None,
        message_id: str | None = None,
    ) -> AnyReceipt: ...

    async def receive(self, senders: Collection[str] | None = None) -> AnyMessage: ...

    async def resolve(self, peer: str) -> Did: ...

    async def discover(self, capability: str, limit: int = 50) -> list[Agent]: ...

    async def request(
        self,
        peer: str,
        content: str,
        *,
        timeout: float = 1500.0,  # noqa: ASYNC109 - the agent is told how long we wait
        hops: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Answer: ...

    async def peers(self) -> list[PeerSummary]: ...
