"""Everything one registry consists of, as its HTTP application is handed it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from mesh_registry.config import Limits
from mesh_registry.core import Core
from mesh_registry.metrics import Metrics
from mesh_registry.oidc import TokenChecker
from mesh_registry.shown import Shown
from mesh_registry.store.protocol import RegistryStore
from meshlib.clock import Instant


@dataclass
class Registry:
    """One registry, not served yet."""

    core: Core
    store: RegistryStore
    now: Callable[[], Instant]
    tokens: TokenChecker | None = None
    version: str = "0"
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    pages: Shown = field(default_factory=Shown)
    """Discoveries that show all there is, by capability."""
    agents: Shown = field(default_factory=Shown)
    """Public records, by DID."""
    draining: bool = False
    """It has been told to stop and works on for a moment, so that no more requests are sent here."""
    started: Instant = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.now()
        self.store.listen(self._changed)

    def _changed(self, names: Collection[str]) -> None:
        self.pages.forget(names)
        self.agents.forget(names)
