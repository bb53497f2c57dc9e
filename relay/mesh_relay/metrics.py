"""What the relay says about itself: ``/health`` as JSON, ``/metrics`` as Prometheus text. Counts only, no names."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from mesh_relay.core import RelayCore
from meshlib.clock import Instant
from meshlib.wire.encoding import timestamp


@dataclass(slots=True)
class StorageCounters:
    """What the storage task has seen. Times in seconds."""

    commits: int = 0
    commit_seconds: float = 0.0
    commit_failures: int = 0
    healthy: bool = True
    """The last transaction succeeded."""


def health(core: RelayCore, storage: StorageCounters, started: Instant, now: Instant, durability: str) -> bytes:
    """The body of ``/health``; the first six keys are upstream's."""
    frames, size, agents = core.kept
    counters = core.counters
    return json.dumps(
        {
            "status": "healthy" if storage.healthy else "degraded",
            "service": "mesh-relay",
            "connected_agents": core.connected,
            "verified_agents": core.verified,
            "entra_verify_enabled": False,
            "stats": {
                "messages_routed": counters.routed,
                "messages_stored": counters.stored,
                "messages_delivered": counters.delivered,
            },
            "version": metadata.version("agent-meshlib"),
            "server_time": timestamp(now.utc),
            "uptime_seconds": round(now.monotonic - started.monotonic, 3),
            "inbox": {"frames": frames, "bytes": size, "recipients": agents},
            "durability": durability,
        },
        separators=(",", ":"),
    ).encode()


def prometheus(core: RelayCore, storage: StorageCounters, started: Instant, now: Instant) -> bytes:
    """The body of ``/metrics``, text format 0.0.4."""
    return "".join(f"{line}\n" for line in _lines(core, storage, started, now)).encode()


_HELP = {
    "routed": "Frames accepted for another agent",
    "stored": "Frames committed to the inbox",
    "delivered": "Frames their recipient has acked",
    "expired": "Frames nobody fetched in time",
    "unread": "Frames their recipient has acked as unreadable",
    "abandoned": "Frames their recipient's client could not read",
    "refused": "Frames refused by a quota",
    "retransmitted": "Frames not taken again because the same bytes were known",
    "malformed": "Frames answered with an error",
    "connects": "Sockets bound to an agent",
    "replaced": "Sockets closed for a newer one of the same agent",
    "idle": "Sockets closed for their silence",
    "spilled": "Times a slow reader was switched to its inbox",
    "throttled": "Times a sender was read more slowly",
    "turned_away": "Sockets refused by a limit per address",
    "tls_failed": "TLS connections that failed, most of them in their handshake",
}


def _lines(core: RelayCore, storage: StorageCounters, started: Instant, now: Instant) -> Iterator[str]:
    counters = dataclasses.asdict(core.counters)
    for name, text in _HELP.items():
        yield from _metric(f"{name}_total", "counter", text, counters[name])
    yield "# HELP mesh_relay_refused_connects_total Sockets refused, by close code"
    yield "# TYPE mesh_relay_refused_connects_total counter"
    for code, count in sorted(core.counters.refused_connects.items()):
        yield f'mesh_relay_refused_connects_total{{code="{code}"}} {count}'
    frames, size, agents = core.kept
    yield from _metric("agents", "gauge", "Agents connected", core.connected)
    yield from _metric("verified_agents", "gauge", "Agents connected that proved a key", core.verified)
    yield from _metric("unproven_sockets", "gauge", "Sockets that have proved nothing yet", core.unproven)
    yield from _metric("inbox_frames", "gauge", "Frames not acked yet", frames)
    yield from _metric("inbox_bytes", "gauge", "Their size", size)
    yield from _metric("inbox_recipients", "gauge", "Agents they wait for", agents)
    yield from _metric("uncommitted_bytes", "gauge", "Accepted and not on disk", core.uncommitted)
    yield from _metric("commits_total", "counter", "Transactions", storage.commits)
    yield from _metric("commit_seconds_total", "counter", "Time spent in them", f"{storage.commit_seconds:.6f}")
    yield from _metric("commit_failures_total", "counter", "Transactions that failed", storage.commit_failures)
    yield from _metric("uptime_seconds", "gauge", "Since the start", f"{now.monotonic - started.monotonic:.3f}")


def _metric(name: str, kind: str, text: str, value: object) -> Iterator[str]:
    yield f"# HELP mesh_relay_{name} {text}"
    yield f"# TYPE mesh_relay_{name} {kind}"
    yield f"mesh_relay_{name} {value}"
