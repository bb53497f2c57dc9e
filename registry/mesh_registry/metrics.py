"""Counters in Prometheus text format."""

from collections import Counter


class Metrics:
    """What has been counted since the start. Owned by the event loop."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.one_time_keys_taken = 0
        self.bundles_without_key = 0
        self.refused_connections: Counter[str] = Counter()
        """By reason: what never became a request that an endpoint counts."""

    def text(self, agents: int, commits: int, proofs: int) -> str:
        """The page ``/metrics`` shows."""
        lines = ["# TYPE mesh_registry_requests_total counter"]
        lines += [
            f'mesh_registry_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}'
            for (endpoint, status), count in sorted(self.requests.items())
        ]
        lines.append("# TYPE mesh_registry_refused_connections_total counter")
        lines += [
            f'mesh_registry_refused_connections_total{{reason="{reason}"}} {count}'
            for reason, count in sorted(self.refused_connections.items())
        ]
        for name, kind, value in (
            ("one_time_keys_taken_total", "counter", self.one_time_keys_taken),
            ("bundles_without_one_time_key_total", "counter", self.bundles_without_key),
            ("commits_total", "counter", commits),
            ("agents", "gauge", agents),
            ("proofs_remembered", "gauge", proofs),
        ):
            lines += [f"# TYPE mesh_registry_{name} {kind}", f"mesh_registry_{name} {value}"]
        return "\n".join(lines) + "\n"
