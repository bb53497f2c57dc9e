"""What the relay says about itself: ``/health`` as JSON, ``/metrics`` as Prometheus text. Counts only, no names."""

import dataclasses
import json
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

from mesh_relay.core import RelayCore
from meshlib import process
from meshlib.clock import Instant
from meshlib.prometheus import Histogram, Page
from meshlib.wire.encoding import timestamp

NotReady = Literal["draining", "disk_full", "commit_failed"]
"""Why no more agents should be sent here."""


@dataclass(slots=True)
class ShellCounters:
    """What the shell has seen: sockets, the storage task, its own delays."""

    bytes_in: int = 0
    bytes_out: int = 0
    control: int = 0
    """Pings, pongs and pieces of messages that agents sent."""
    commits: Histogram = field(default_factory=Histogram)
    """Seconds of each transaction."""
    commit_failures: int = 0
    lag: Histogram = field(default_factory=Histogram)
    """Seconds by which a task that slept a second was late: what every socket waits for."""
    healthy: bool = True
    """The last transaction succeeded."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds at the moment of asking."""

    started: Instant
    now: Instant
    durability: str
    sockets: int
    free: int | None
    """Bytes left on the store's disk; None without one."""
    not_ready: NotReady | None


def health(core: RelayCore, shell: ShellCounters, standing: Standing) -> bytes:
    """The body of ``/health``; the first six keys are upstream's."""
    frames, size, agents = core.kept
    counters = core.counters
    return _json(
        {
            "status": "healthy" if shell.healthy else "degraded",
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
            "server_time": timestamp(standing.now.utc),
            "uptime_seconds": round(standing.now.monotonic - standing.started.monotonic, 3),
            "inbox": {"frames": frames, "bytes": size, "recipients": agents},
            "durability": standing.durability,
            **readiness(standing),
        }
    )


def readiness(standing: Standing) -> dict[str, object]:
    """Whether agents should be sent here, and if not, why."""
    return {"ready": standing.not_ready is None, "reason": standing.not_ready}


def ready(standing: Standing) -> bytes:
    """The body of ``/health/ready``."""
    return _json(readiness(standing))


def alive() -> bytes:
    """The body of ``/health/live``: an answer at all is what matters."""
    return _json({"live": True})


def _json(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


_HELP = {
    "routed": "Frames accepted for another agent",
    "stored": "Frames committed to the inbox",
    "delivered": "Frames their recipient has acked",
    "expired": "Frames nobody fetched in time",
    "unread": "Frames their recipient has acked as unreadable",
    "abandoned": "Frames their recipient's client could not read",
    "retransmitted": "Frames not taken again because the same bytes were known",
    "connects": "Sockets bound to an agent",
    "replaced": "Sockets closed for a newer one of the same agent",
    "idle": "Sockets closed for their silence",
    "spilled": "Times a slow reader was switched to its inbox",
    "throttled": "Times a sender was read more slowly",
    "turned_away": "Sockets refused by a limit per address",
    "deaf": "Times a socket was not read from because it reads nothing",
    "accepts_delayed": "Times new sockets had to wait for the rate of admission",
    "overcrowded": "Sockets refused because there are too many",
    "tls_failed": "TLS connections that failed, most of them in their handshake",
}


def prometheus(core: RelayCore, shell: ShellCounters, standing: Standing) -> bytes:
    """The body of ``/metrics``."""
    page = Page("mesh_relay")
    page.gauge("build_info", "The version that runs", {metadata.version("agent-meshlib"): 1}, "version")
    _show_traffic(page, core, shell)
    counters = dataclasses.asdict(core.counters)
    for name, text in _HELP.items():
        page.counter(f"{name}_total", text, counters[name])
    page.gauge("agents", "Agents connected", core.connected)
    page.gauge("verified_agents", "Agents connected that proved a key", core.verified)
    page.gauge("sockets", "Sockets open, agents' and others", standing.sockets)
    page.gauge("unproven_sockets", "Sockets that have proved nothing yet", core.unproven)
    _show_storage(page, core, shell, standing)
    page.histogram("loop_lag_seconds", "How late a task ran that slept a second", shell.lag)
    page.gauge("ready", "Whether /health/ready says so", int(standing.not_ready is None))
    page.gauge("uptime_seconds", "Since the start", round(standing.now.monotonic - standing.started.monotonic, 3))
    process.show(page, standing.started.utc)
    return page.text().encode()


def _show_traffic(page: Page, core: RelayCore, shell: ShellCounters) -> None:
    counters = core.counters
    page.counter(
        "frames_total",
        "Frames of and to agents, by type: heartbeat, ping and control keep a connection alive",
        {
            **{("in", kind): count for kind, count in counters.frames_received.items()},
            ("in", "control"): shell.control,
            **{("out", kind): count for kind, count in counters.frames_sent.items()},
        },
        "direction",
        "type",
    )
    page.counter("bytes_total", "Bytes of sockets", {"in": shell.bytes_in, "out": shell.bytes_out}, "direction")
    receipts = {state.decode(): count for state, count in counters.receipts.items()}
    page.counter("receipts_total", "Receipts sent, by what became of the frame", receipts, "state")
    page.counter("refused_frames_total", "Frames answered with an error", counters.refused_frames, "reason")
    page.counter("refused_connects_total", "Sockets refused, by close code", counters.refused_connects, "code")
    text = "Sockets ended for breaking HTTP or WebSocket, by status or close code"
    page.counter("rule_breaks_total", text, counters.rule_breaks, "code")
    page.counter("disconnects_total", "Agents' sockets that ended, by close code", counters.disconnects, "code")


def _show_storage(page: Page, core: RelayCore, shell: ShellCounters, standing: Standing) -> None:
    frames, size, agents = core.kept
    oldest = core.oldest
    page.gauge("inbox_frames", "Frames not acked yet", frames)
    page.gauge("inbox_bytes", "Their size", size)
    page.gauge("inbox_recipients", "Agents they wait for", agents)
    age = 0.0 if oldest is None else max(0.0, round(standing.now.utc - oldest, 3))
    page.gauge("inbox_oldest_seconds", "Since the oldest of them was accepted; 0 without any", age)
    page.gauge("uncommitted_bytes", "Accepted and not on disk", core.uncommitted)
    page.histogram("commit_seconds", "Time of a transaction", shell.commits)
    page.counter("commit_failures_total", "Transactions that failed", shell.commit_failures)
    if standing.free is not None:
        page.gauge("store_free_bytes", "Left on the disk of the store", standing.free)
