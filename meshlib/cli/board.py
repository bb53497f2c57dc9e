"""What ``mesh top`` shows of a server: which numbers, their history, and how they are drawn. No I/O.

A number that a server does not tell, an older one or upstream's, is left out.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.cli.metrics import Between
from meshlib.cli.output import Style, visible
from meshlib.cli.servers import Health

HISTORY = 60
"""Values kept for a sparkline: a minute, at one a second."""
TYPES_SHOWN = 6
"""Types of frames, or endpoints, on one line; the busiest."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*#@"
_NAMES, _NUMBERS = 16, 10


class Piece(NamedTuple):
    """A piece of a line, and how it looks."""

    text: str
    style: Style = Style.PLAIN


Line = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number worth a line."""

    name: str
    """Its member in JSON."""
    label: str
    read: Callable[[Between], float | None]
    shown: Callable[[float], str]
    bad: bool = False
    """Whether anything above zero is worth a look."""


# --- how numbers are read and spelled --------------------------------------------------------------------------------


def _level(name: str) -> Callable[[Between], float | None]:
    """A gauge."""
    return lambda pages: pages.new.value(name)


def _rate(name: str, **labels: str) -> Callable[[Between], float | None]:
    """The rise of a counter per second."""
    return lambda pages: pages.rate(name, **labels)


def _mean(histogram: str) -> Callable[[Between], float | None]:
    """The mean of what a histogram took up; 0 when that was nothing."""

    def read(pages: Between) -> float | None:
        rise, times = pages.rate(f"{histogram}_sum"), pages.rate(f"{histogram}_count")
        if rise is None or times is None:
            return None
        return rise / times if times else 0.0

    return read


def _number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _per_second(value: float) -> str:
    return f"{_number(value)}/s"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def _bytes_per_second(value: float) -> str:
    return f"{_bytes(value)}/s"


def _seconds(value: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if value >= size:
            return f"{value / size:.0f} {unit}"
    return f"{1000 * value:.1f} ms" if value else "0 s"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


_PROCESS = (
    Measure("cpu", "cpu", _rate("process_cpu_seconds_total"), _percent),
    Measure("memory_bytes", "memory", _level("process_resident_memory_bytes"), _bytes),
)

RELAY = (
    Measure("agents", "agents", _level("mesh_relay_agents"), _number),
    Measure("connects_per_second", "connects", _rate("mesh_relay_connects_total"), _per_second),
    Measure("routed_per_second", "routed", _rate("mesh_relay_routed_total"), _per_second),
    Measure("stored_per_second", "stored", _rate("mesh_relay_stored_total"), _per_second),
    Measure("delivered_per_second", "delivered", _rate("mesh_relay_delivered_total"), _per_second),
    Measure("bytes_in_per_second", "bytes in", _rate("mesh_relay_bytes_total", direction="in"), _bytes_per_second),
    Measure("bytes_out_per_second", "bytes out", _rate("mesh_relay_bytes_total", direction="out"), _bytes_per_second),
    Measure("inbox_frames", "backlog", _level("mesh_relay_inbox_frames"), _number),
    Measure("inbox_bytes", "  its size", _level("mesh_relay_inbox_bytes"), _bytes),
    Measure("inbox_recipients", "  waits for", _level("mesh_relay_inbox_recipients"), _number),
    Measure("inbox_oldest_seconds", "  the oldest", _level("mesh_relay_inbox_oldest_seconds"), _seconds),
    Measure("commits_per_second", "commits", _rate("mesh_relay_commit_seconds_count"), _per_second),
    Measure("seconds_per_commit", "  each takes", _mean("mesh_relay_commit_seconds"), _seconds),
    Measure("refused_per_second", "refused", _rate("mesh_relay_refused_frames_total"), _per_second, bad=True),
    Measure(
        "refused_connects_per_second",
        "turned away",
        _rate("mesh_relay_refused_connects_total"),
        _per_second,
        bad=True,
    ),
    Measure("throttled_per_second", "throttled", _rate("mesh_relay_throttled_total"), _per_second, bad=True),
    *_PROCESS,
)
REGISTRY = (
    Measure("agents", "agents", _level("mesh_registry_agents"), _number),
    Measure("requests_per_second", "requests", _rate("mesh_registry_requests_total"), _per_second),
    Measure("keys_taken_per_second", "keys taken", _rate("mesh_registry_one_time_keys_taken_total"), _per_second),
    Measure(
        "bundles_without_key_per_second",
        "without a key",
        _rate("mesh_registry_bundles_without_one_time_key_total"),
        _per_second,
        bad=True,
    ),
    Measure("commits_per_second", "commits", _rate("mesh_registry_commit_seconds_count"), _per_second),
    *_PROCESS,
)
BREAKDOWNS: Mapping[str, tuple[tuple[str, str, str, Mapping[str, str]], ...]] = {
    "relay": (
        ("frames in", "mesh_relay_frames_total", "type", {"direction": "in"}),
        ("frames out", "mesh_relay_frames_total", "type", {"direction": "out"}),
    ),
    "registry": (
        ("by endpoint", "mesh_registry_requests_total", "endpoint", {}),
        ("by status", "mesh_registry_requests_total", "status", {}),
    ),
}
"""Counters shown by a label: title, metric, label, and which of its samples."""


# --- one server ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Board:
    """One server, as it was a moment ago and before."""

    role: str
    url: str
    measures: Sequence[Measure]
    health: Health = field(default_factory=lambda: Health(False, "not asked yet"))
    values: dict[str, float] = field(default_factory=dict)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per second, by title of the breakdown and value of its label."""
    history: dict[str, deque[float]] = field(default_factory=dict)

    def update(self, health: Health, pages: Between | None) -> None:
        """Take what the server said now; ``None``: not its numbers."""
        self.health = health
        self.values, self.rates = {}, {}
        if pages is None:
            return
        for measure in self.measures:
            value = measure.read(pages)
            if value is not None:
                self.values[measure.name] = value
                self.history.setdefault(measure.name, deque(maxlen=HISTORY)).append(value)
        for title, name, label, labels in BREAKDOWNS[self.role]:
            rates = pages.rates(name, label, **labels)
            if rates or pages.new.value(name) is not None:
                self.rates[title] = rates

    def members(self) -> dict[str, object]:
        """All of it for machines."""
        return {
            "url": self.url,
            "up": self.health.up,
            "detail": self.health.detail,
            "health": self.health.body,
            "values": dict(self.values),
            "rates": {title.replace(" ", "_"): dict(rates) for title, rates in self.rates.items()},
        }

    def lines(self, width: int, *, ascii_only: bool) -> Iterator[Line]:
        """All of it for people, in lines of at most ``width`` characters."""
        up = Piece("up", Style.GOOD) if self.health.up else Piece("down", Style.BAD)
        yield Piece(f"{self.role:<9} ", Style.BOLD), up, Piece(f"   {self.url}"), *self._state()
        if not self.health.up:
            yield (Piece(f"  {self.health.detail}", Style.WARN),)
        elif not self.values:
            yield (Piece("  it tells no numbers: is it upstream's?", Style.DIM),)
        for measure in self.measures:
            value = self.values.get(measure.name)
            if value is not None:
                style = Style.BAD if measure.bad and value else Style.PLAIN
                room = max(0, width - _NAMES - _NUMBERS - 4)
                line = sparkline(tuple(self.history[measure.name]), min(HISTORY, room), ascii_only=ascii_only)
                yield (
                    Piece(f"  {measure.label:<{_NAMES - 2}}", Style.DIM),
                    Piece(f"{measure.shown(value):>{_NUMBERS}}", style),
                    Piece(f"  {line}", Style.NAME),
                )
        for title, rates in self.rates.items():
            shown = ", ".join(f"{name} {_per_second(rate)}" for name, rate in list(rates.items())[:TYPES_SHOWN])
            yield Piece(f"  {title:<{_NAMES - 2}}", Style.DIM), Piece(f"  {shown or 'none'}")

    def _state(self) -> Iterator[Piece]:
        body = self.health.body
        status, version, ready = body.get("status"), body.get("version"), body.get("ready")
        if isinstance(version, str):
            yield Piece(f"   {version}", Style.DIM)
        if isinstance(status, str) and status != "healthy":
            yield Piece(f"   {status}", Style.BAD)
        if ready is False:
            yield Piece(f"   not ready: {body.get('reason') or 'it does not say why'}", Style.BAD)


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The last ``width`` values as a row of bars, the highest of them as high as a line."""
    marks = _ASCII if ascii_only else _BLOCKS
    shown = values[-width:] if width > 0 else ()
    top = max(shown, default=0.0)
    if top <= 0:
        return marks[0] * len(shown)
    return "".join(marks[round((len(marks) - 1) * max(0.0, value) / top)] for value in shown)


def cut(line: Line, width: int) -> Line:
    """A line of at most ``width`` characters, none of which moves the cursor."""
    kept: list[Piece] = []
    for text, style in line:
        text = visible(text)
        kept.append(Piece(text[:width], style))
        width = max(0, width - len(text))
    return tuple(kept)
