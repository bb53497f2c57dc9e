"""What the registry knows of an agent, kept true: its profile, its prekeys, its signs of life, its store's count.

Owns when the registry is told what. Leaves what is told to the core and to :mod:`meshlib.client.epochs`, and
running it beside the connection to the client.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from meshlib.client.core import ClientCore, Link
from meshlib.client.counters import Counters
from meshlib.client.epochs import EPOCH_KEY, published_epoch
from meshlib.client.events import Event, FaultFound
from meshlib.client.registry import RegistryClient
from meshlib.clock import Instant
from meshlib.config import ClientConfig
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import AgentNotFound, MeshError, RegistryRefused, ServiceError, StoreError, TransportError
from meshlib.wire.registry import PrekeyUpload

PRESENCE_EVERY = 60.0
"""Seconds between signs of life to the registry, which calls an agent online for 90 after the last."""


class Registration:
    """One agent at its registry.

    Args:
        durable: whether the store outlives the process, and so is worth counting.
        save: has everything saved that the core has changed; nothing is published before.
        give_up: ends the client.
    """

    def __init__(
        self,
        config: ClientConfig,
        core: ClientCore,
        registry: RegistryClient,
        counters: Counters,
        *,
        durable: bool,
        save: Callable[[], Awaitable[None]],
        tell: Callable[[Event], None],
        give_up: Callable[[MeshError], Awaitable[None]],
        now: Callable[[], Instant],
    ) -> None:
        self._config = config
        self._core = core
        self._registry = registry
        self._counters = counters
        self._durable = durable
        self._save = save
        self._tell = tell
        self._give_up = give_up
        self._now = now
        self._published: tuple[list[str], dict[str, object]] = ([], {})
        """Capabilities and metadata, as the registry has them."""
        self.keys_moved = False
        """Whether sessions have changed since the store counted last."""

    async def begin(self) -> None:
        """Register, or update what the registry knows, and publish prekeys.

        Raises:
            StoreError: the registry has counted further than the store (:func:`~meshlib.client.epochs.next_epoch`).
            ServiceError, TransportError: the registry refuses, or cannot be reached.
        """
        config, core = self._config, self._core
        capabilities = [config.name] if config.name else []
        capabilities.extend(one for one in config.capabilities if one != config.name)
        metadata = dict(config.metadata)
        if config.name:
            metadata.setdefault("display_name", config.name)
        identity, did = core.profile.identity, core.profile.did
        if config.dialect is Dialect.AGT4:
            await self._registry.register_legacy(did, identity.agreement_key.public, capabilities, metadata)
        else:
            await self._count_start(metadata)
            self._published = capabilities, metadata
            registration = await self._registry.register(identity, capabilities, metadata)
            if not registration.created:
                await self._update_profile(capabilities, metadata)
        await self._publish_prekeys(at_start=True)

    async def keep(self) -> None:
        """Show the registry that we are there, and publish prekeys before they run out; for ever."""
        check_every = self._config.prekeys.check_every
        show_at, check_at = time.monotonic() + PRESENCE_EVERY, time.monotonic() + check_every
        while True:
            await anyio.sleep(max(0.0, min(show_at, check_at) - time.monotonic()))
            try:
                if time.monotonic() >= show_at:
                    show_at = time.monotonic() + PRESENCE_EVERY
                    if self._core.link is Link.UP and self._config.dialect is not Dialect.AGT4:
                        await self._registry.heartbeat(self._core.profile.did)
                if time.monotonic() >= check_at or self._core.keyring.runs_low:
                    check_at = time.monotonic() + check_every
                    await self._publish_prekeys()
                    await self._count_on()
            except (ServiceError, TransportError) as error:
                self._tell(FaultFound("registry", str(error)))

    async def end(self) -> None:
        """Take back the registration of an agent whose key is gone with it: nobody could ever answer there."""
        if not self._durable and self._config.identity is None and self._config.dialect is Dialect.AGT5:
            await self._registry.delete_agent(self._core.profile.did)

    async def _count_start(self, metadata: dict[str, object]) -> None:
        """Count this start, here and at the registry."""
        if not self._durable:
            return
        published = 0
        with suppress(AgentNotFound):
            published = await self._published_epoch()
        metadata[EPOCH_KEY] = str(self._core.count_epoch(published))
        await self._save()

    async def _count_on(self) -> None:
        """Count on if keys were used since, so that a backup made in between is noticed to be old."""
        if EPOCH_KEY not in self._published[1] or not self.keys_moved:
            return
        published = await self._published_epoch()
        self.keys_moved = False
        try:
            epoch = self._core.count_epoch(published)
        except StoreError as error:
            await self._give_up(error)
            raise
        await self._save()
        self._published[1][EPOCH_KEY] = str(epoch)
        await self._update_profile(*self._published)

    async def _published_epoch(self) -> int:
        return published_epoch((await self._registry.get_agent(self._core.profile.did)).metadata)

    async def _update_profile(self, capabilities: list[str], metadata: dict[str, object]) -> None:
        """Tell a registry that knew us before what has changed; an upstream one cannot be told."""
        try:
            await self._registry.update(self._core.profile.did, capabilities, metadata)
        except RegistryRefused as error:
            if error.status not in (404, 405):
                raise
        except AgentNotFound:
            pass

    async def _publish_prekeys(self, *, at_start: bool = False) -> None:
        core, did = self._core, self._core.profile.did
        left = self._counters.published = (await self._registry.get_agent(did)).one_time_keys_left
        if not at_start and not core.keyring.refresh(self._now()) and not self._runs_low(left):
            return
        # What the registry has although this store never published is of a store that is gone: nobody can answer there.
        anew = not core.keyring.signed
        upload = core.replenish(0 if anew else left or 0, self._now())
        await self._save()  # a private key is saved before its public half leaves
        public = PrekeyUpload.of(core.profile.identity, upload.signed, upload.one_time)
        await self._registry.upload_prekeys(did, public, "replace" if anew else "merge")
        if left is not None:
            self._counters.published = len(upload.one_time) + (0 if anew else left)

    def _runs_low(self, left: int | None) -> bool:
        # An upstream registry does not say what is left; there what was published at the start must do.
        return left is not None and left < self._config.prekeys.top_up_below
