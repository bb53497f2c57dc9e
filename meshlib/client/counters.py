"""Counts what crosses a client's edges: frames, bytes, transactions, and what the core tells.

Owns that counting is cheap and bounded: an addition per frame, and labels that a peer or a relay may choose are kept
up to :data:`LABELS`. What stands in the core is read when somebody asks.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from meshlib.client.core import ClientCore, Link
from meshlib.client.events import (
    Connected,
    DeliveryChanged,
    DeliveryState,
    Disconnected,
    Event,
    FaultFound,
    KnockRejected,
    SessionLost,
)
from meshlib.client.peers import Entry, Peer
from meshlib.client.stats import ClientStats, Trouble
from meshlib.clock import Instant
from meshlib.wire.codec import written_type
from meshlib.wire.frames import TYPES

LABELS = 32
"""Different reasons, and different close codes, that are told apart: some twenty exist. The rest is ``other``."""
TROUBLES = 8
"""Troubles remembered: what fits beside the rest on a screen."""

_Key = TypeVar("_Key")

_UNTAKEN = ("decrypt", "replay", "payload")
"""Kinds of faults that are messages which could not be taken."""


class Counters:
    """What has been counted since it was made. Owned by the shell, in the task that owns the core.

    Args:
        clock: asked for the time of what goes wrong only, and of nothing that happens per message.
    """

    def __init__(self, clock: Callable[[], Instant]) -> None:
        self._clock = clock
        self._started = clock()
        self._frames: Counter[bytes] = Counter()
        self._bytes = 0
        self._saves = 0
        self._save_seconds = 0.0
        self._connects = 0
        self._connect_failures = 0
        self._deliveries: Counter[DeliveryState] = Counter()
        self._disconnects: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._untaken: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._sessions_lost = 0
        self._troubles: deque[Trouble] = deque(maxlen=TROUBLES)
        self.published: int | None = None
        """One-time keys the registry has, when it was last asked or given some."""

    # --- what happens ------------------------------------------------------------------------------------------------

    def sent(self, frames: Iterable[bytes]) -> None:
        """Frames of ours are on the socket."""
        for raw in frames:
            self._frames[written_type(raw)] += 1
            self._bytes += len(raw)

    def saved(self, seconds: float) -> None:
        """The store took a transaction."""
        self._saves += 1
        self._save_seconds += seconds

    def not_connected(self, detail: str) -> None:
        """There was no connection to be had."""
        self._connect_failures += 1
        self._note("connect", detail)

    def told(self, event: Event) -> None:
        """The core, or the shell, tells its listeners something."""
        if type(event) is DeliveryChanged:  # once or twice per message; the others are rare
            self._deliveries[event.state] += 1
            if event.state is DeliveryState.REFUSED and not event.detail:
                _add(self._refusals, "relay")
            return
        match event:
            case Connected():
                self._connects += 1
            case Disconnected():
                _add(self._disconnects, str(event.code))
                self._note("disconnected", f"{event.code} {event.reason}".rstrip())
            case KnockRejected():
                _add(self._refusals, event.reason)
            case SessionLost():
                self._sessions_lost += 1
                self._note("session_lost", f"{event.peer}: {event.reason}")
            case FaultFound():
                _add(self._faults, event.kind)
                if event.kind in _UNTAKEN:
                    _add(self._untaken, event.reason or event.kind)
                self._note(event.kind, event.detail)

    def _note(self, kind: str, detail: str) -> None:
        if self._troubles and (self._troubles[-1].kind, self._troubles[-1].detail) == (kind, detail):
            self._troubles.pop()  # an unreachable relay must not push out everything else
        self._troubles.append(Trouble(self._clock().utc, kind, detail))

    # --- what there is to tell ---------------------------------------------------------------------------------------

    def stats(self, core: ClientCore) -> ClientStats:
        """Everything, as it is now. Costs a look at every peer and every message that waits."""
        now = self._clock()
        oldest = min((one.queued for one in core.outbox.all() if one.queued is not None), default=None)
        return ClientStats(
            uptime=max(0.0, now.monotonic - self._started.monotonic),
            connected=core.link is Link.UP,
            connects=self._connects,
            connect_failures=self._connect_failures,
            disconnects=_sorted(self._disconnects),
            frames_sent=_sorted({kind.decode("ascii"): count for kind, count in self._frames.items()}),
            frames_received=_sorted(_by_name(core.frames_received)),
            bytes_sent=self._bytes,
            bytes_received=core.bytes_received,
            outbox=core.outbox_size,
            oldest_undelivered=None if oldest is None else max(0.0, now.utc - oldest),
            inbox=len(core.inbox),
            held=len(core.held) + len(core.overtaking),
            saves=self._saves,
            save_seconds=self._save_seconds,
            receipts={_STATES.get(state, state.value): self._deliveries[state] for state in sorted(self._deliveries)},
            refusals=_sorted(self._refusals),
            decrypt_failures=_sorted(self._untaken),
            faults=_sorted(self._faults),
            sessions_lost=self._sessions_lost,
            peers=_sorted(Counter(where(peer) for peer in core.peers())),
            one_time_keys=len(core.keyring.one_time),
            one_time_keys_published=self.published,
            troubles=tuple(self._troubles),
        )


_STATES = {DeliveryState.QUEUED: "unread"}
"""A message is told to be queued only when it is queued again."""


def where(peer: Peer) -> str:
    """Where the session with a peer stands, in one word of :attr:`ClientStats.peers`."""
    if peer.entry is not Entry.IDLE:
        return str(peer.entry.value)
    if peer.sending() is not None:
        return "open"
    if peer.candidates:
        return "knocked"
    return "mute" if peer.strands else "none"


def _add(counts: Counter[str], label: str) -> None:
    counts[label if label in counts or len(counts) < LABELS else "other"] += 1


def _by_name(counts: Mapping[type, int]) -> Counter[str]:
    """Two kinds of frames are one type on the wire: encrypted and unencrypted messages."""
    named: Counter[str] = Counter()
    for kind, count in counts.items():
        named[TYPES.get(kind, "other")] += count
    return named


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
