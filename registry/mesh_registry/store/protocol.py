"""What a store promises. Each verb is one transaction: done and durable when it returns, or not done at all."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

from mesh_registry.store.vitals import Supply, Vitals
from mesh_registry.verbs import (
    Account,
    Agent,
    Bundle,
    Delete,
    Discover,
    MarkVerified,
    Page,
    Proof,
    PutPrekeys,
    PutRefused,
    Rate,
    RecordSession,
    Register,
    Registered,
    Sweep,
    TakePrekeys,
    TooSoon,
    Touch,
    Update,
)

TOTAL_BOUND = 200
"""A discovery counts matches up to here, as far as upstream can, so that its cost stays
flat however many agents there are."""


Heard: TypeAlias = Callable[[Collection[str]], None]
"""Is told the names, DIDs and capabilities alike, that answers may have changed about."""


class StoreBusy(Exception):
    """More changes wait than the store is willing to queue: try again in a moment. Nothing has changed."""


class StoreFailed(Exception):
    """The disk refused the change. Nothing has changed."""


class RegistryStore(Protocol):
    """Agents, prekeys and used proofs.

    Every change made by a caller also records its proof as used and moves the caller's latches, in the same
    transaction. Raises :class:`StoreBusy` and :class:`StoreFailed`.
    """

    def listen(self, heard: Heard) -> None:
        """Tell ``heard`` of every change from now on, on the event loop: whose records and which capabilities' pages it
        may have touched, after it can be read and before whoever made it gets its result."""

    async def account(self, did: str) -> Account | None:
        """What authentication needs, or None when there is no such agent."""

    async def find(self, did: str) -> Agent | None:
        """The public record."""

    async def discover(self, query: Discover) -> Page:
        """Exact matches, freshest first. The cost depends on the limit, not on the number of agents."""

    async def used_proofs(self, now: float) -> list[Proof]:
        """Proofs recorded and still valid, so that a restart opens no window for their replay."""

    async def record_proofs(self, proofs: Sequence[Proof]) -> None:
        """Record proofs that came with no change."""

    async def register(self, change: Register) -> Registered:
        """``created``; ``exists``: the DID is taken; ``replayed``: its proof was used, the agent deleted; ``full``."""

    async def update(self, change: Update) -> Agent | None:
        """The changed record, or None when there is no such agent."""

    async def delete(self, change: Delete) -> bool:
        """Whether there was something to delete. Its prekeys go with it."""

    async def put_prekeys(self, change: PutPrekeys) -> int | PutRefused:
        """How many one-time keys there are now. A key that was taken is not handed out again."""

    async def take_prekeys(self, change: TakePrekeys) -> Bundle | None:
        """The bundle, or None when none is published. A one-time key is handed out once, whatever happens."""

    async def touch(self, change: Touch) -> float | TooSoon | None:
        """When the agent was last seen now, how long to wait, or None when there is no such agent."""

    async def rate(self, change: Rate) -> float | None:
        """The reputation afterwards, or None when there is no such agent."""

    async def record_session(self, change: RecordSession) -> Mapping[str, float] | None:
        """The reputation afterwards of whom the report concerns, moved unless its reporter has reported on this
        session before. None when a participant is not registered."""

    async def mark_verified(self, change: MarkVerified) -> Agent | None:
        """The changed record, or None when there is no such agent."""

    async def count(self) -> int:
        """How many agents are registered, as of the last commit. Asks neither the disk nor the writer."""

    async def check(self) -> None:
        """Write something that changes nothing, so as to know whether the disk takes it."""

    async def sweep(self, change: Sweep) -> int:
        """How many agents have been forgotten; as many as possible when there are more. Their DIDs are free again."""

    @property
    def vitals(self) -> Vitals:
        """How the store is doing. Asks nobody, like the two below."""

    def supply(self) -> Supply | None:
        """One-time keys left; None as long as they are being counted after the start."""

    def free(self) -> int | None:
        """Bytes left on the store's disk; None without one."""

    async def close(self) -> None:
        """Finish what waits, then let go of the disk."""
