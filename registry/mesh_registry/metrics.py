"""What the registry says about itself at ``/metrics``, as Prometheus text. Counts only, no names."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import get_args

from mesh_registry.refusal import Reason
from mesh_registry.store.vitals import Supply, Vitals
from meshlib import process
from meshlib.clock import Instant
from meshlib.prometheus import Histogram, Page

OTHER = "other"
"""The endpoint of requests for no endpoint."""


@dataclass
class Metrics:
    """What has been counted since the start. Owned by the event loop."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By endpoint and status."""
    seconds: defaultdict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    """From a request's headers to its answer, by endpoint."""
    refused: Counter[Reason] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(Reason), 0)))
    refused_connections: Counter[str] = field(default_factory=Counter)
    """By reason: what never became a request that an endpoint counts."""
    one_time_keys_taken: int = 0
    bundles_without_key: int = 0
    lag: Histogram = field(default_factory=Histogram)
    """Seconds by which a task that slept a second was late: what every request waits for."""

    def answered(self, endpoint: str, status: int, seconds: float | None, reason: Reason | None) -> None:
        """Count a request."""
        self.requests[endpoint, status] += 1
        if seconds is not None:
            self.seconds[endpoint].observe(seconds)
        if reason is not None:
            self.refused[reason] += 1


@dataclass(frozen=True)
class Standing:
    """What holds at the moment of asking."""

    version: str
    started: Instant
    now: Instant
    agents: int
    proofs: int
    supply: Supply | None
    free: int | None
    ready: bool


def prometheus(metrics: Metrics, vitals: Vitals, standing: Standing) -> str:
    """The page ``/metrics`` shows."""
    page = Page("mesh_registry")
    page.gauge("build_info", "The version that runs", {standing.version: 1}, "version")
    page.counter("requests_total", "Requests answered", metrics.requests, "endpoint", "status")
    page.histogram("request_seconds", "From a request's headers to its answer", metrics.seconds, "endpoint")
    page.counter("refused_requests_total", "Requests refused, by why", metrics.refused, "reason")
    text = "Connections ended, and requests refused, before an endpoint saw them"
    page.counter("refused_connections_total", text, metrics.refused_connections, "reason")
    page.gauge("agents", "Agents registered", standing.agents)
    if standing.supply is not None:
        page.gauge("one_time_keys_left", "One-time keys of all agents", standing.supply.left)
        text = "Agents that have published keys and have no one-time key left"
        page.gauge("agents_without_one_time_keys", text, standing.supply.agents_without)
    page.counter("one_time_keys_taken_total", "One-time keys handed out", metrics.one_time_keys_taken)
    text = "Bundles handed out without a one-time key"
    page.counter("bundles_without_one_time_key_total", text, metrics.bundles_without_key)
    page.gauge("proofs_remembered", "Signatures that may not come again", standing.proofs)
    page.histogram("commit_seconds", "Time of a transaction that changed something", vitals.commits)
    page.counter("commit_failures_total", "Changes the disk did not take", vitals.commit_failures)
    if standing.free is not None:
        page.gauge("store_free_bytes", "Left on the disk of the store", standing.free)
    page.histogram("loop_lag_seconds", "How late a task ran that slept a second", metrics.lag)
    page.gauge("ready", "Whether /health/ready says so", int(standing.ready))
    page.gauge("uptime_seconds", "Since the start", round(standing.now.monotonic - standing.started.monotonic, 3))
    process.show(page, standing.started.utc)
    return page.text()
