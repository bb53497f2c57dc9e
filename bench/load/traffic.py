"""Messages along lanes: sent through a window or by the clock, counted, and judged."""

from __future__ import annotations

import gc
import re
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bench import machine
from bench.load.loop import Connection, Loop
from bench.load.wire import ACK_AFTER, ACK_BEFORE, ID_LENGTH, PONG, Shape, client_frame, cut
from bench.measures import Run, percentile

_ID = re.compile(rb'"id":"([0-9a-f]{8})-0000-4000-8000-(\d{12})"')
_DELIVERED = b'"state":"delivered"'
_ERROR = b'"type":"error"'


class Frames(Protocol):
    """What makes the bytes of a lane's messages."""

    @property
    def number(self) -> int:
        """Which lane it is."""

    def frames(self, first: int, count: int) -> bytes:
        """Consecutive messages, ready to be sent."""


class Flow:
    """One lane in use: what was sent, what has arrived, and what was wrong with it."""

    __slots__ = (
        "doubled",
        "due",
        "expected",
        "lane",
        "late",
        "missing",
        "received",
        "reordered",
        "sender",
        "sent",
        "window",
    )

    def __init__(self, lane: Frames, sender: Connection, window: int) -> None:
        self.lane, self.sender, self.window = lane, sender, window
        self.sent = self.received = self.expected = self.doubled = self.reordered = 0
        self.missing: set[int] = set()
        self.due: deque[float] = deque()

    def judge(self, number: int) -> None:
        """One message has arrived."""
        self.received += 1
        if number == self.expected:
            self.expected += 1
        elif number > self.expected:
            self.missing.update(range(self.expected, number))
            self.expected = number + 1
        elif number in self.missing:
            self.missing.remove(number)
            self.reordered += 1
        else:
            self.doubled += 1
            self.received -= 1

    @property
    def lost(self) -> int:
        """Messages that have not arrived."""
        return len(self.missing) + self.sent - self.expected


class Traffic:
    """The flows of a run.

    Args:
        acks: recipients acknowledge, as every client does.
    """

    def __init__(self, loop: Loop, shape: Shape, *, acks: bool = True) -> None:
        self.loop, self.shape, self.acks = loop, shape, acks
        self.flows: dict[int, Flow] = {}
        self.received = self.delivered = self.refused = 0
        self.latencies = array("d")
        self.lateness = array("d")
        self._sending = False

    # --- roles --------------------------------------------------------------------------------------------------------

    def add(self, lane: Frames, sender: Connection, recipient: Connection | None, window: int) -> Flow:
        """A flow along a lane. A recipient of None is not there yet."""
        flow = self.flows[lane.number] = Flow(lane, sender, window)
        sender.take = lambda data: self._told(sender, data)
        if recipient is not None:
            self.receive_with(recipient, flow)
        return flow

    def receive_with(self, recipient: Connection, only: Flow | None = None) -> None:
        """Have a connection take messages, of any flow, or cheaper of one only."""
        seen = [flow for flow in self.flows.values() if only is flow]
        alone = seen[0] if seen and recipient.take == recipient.idle else None
        recipient.take = lambda data: self._arrived(recipient, data, alone)

    def _told(self, sender: Connection, data: bytes) -> None:
        """The relay talks to a sender: receipts are counted without reading them."""
        data = sender.rest + data
        self.delivered += data.count(_DELIVERED)
        if _ERROR in data:
            self.refused += data.count(_ERROR)
        tail = data[-len(_DELIVERED) + 1 :]
        sender.rest = b"" if _DELIVERED in tail else tail

    def _arrived(self, recipient: Connection, data: bytes, alone: Flow | None) -> None:
        if recipient.rest:
            data = recipient.rest + data
        size, head, at = self.shape.size, self.shape.head, self.shape.id_at
        starts = range(0, len(data) // size * size, size)
        length = len(head)
        if not starts and data[:length] == head[: len(data)]:
            recipient.rest = data
            return
        if any([data[start : start + length] != head for start in starts]) or not starts:  # noqa: C419  # a list is faster
            self._read_slowly(recipient, data)
            return
        recipient.rest = data[len(starts) * size :]
        numbers = [int(data[start + at + 24 : start + at + ID_LENGTH]) for start in starts]
        if alone is not None and numbers == list(range(alone.expected, alone.expected + len(numbers))):
            alone.expected += len(numbers)
            alone.received += len(numbers)
            self._timed(alone, len(numbers))
            flows: tuple[Flow, ...] = (alone,)
        else:
            touched: dict[Flow, None] = {}
            for start, number in zip(starts, numbers, strict=True):
                flow = self.flows[int(data[start + at : start + at + 8], 16)]
                flow.judge(number)
                self._timed(flow, 1)
                touched[flow] = None
            flows = tuple(touched)
        self.received += len(numbers)
        if self.acks:
            recipient.send(
                b"".join([b"%b%b%b" % (ACK_BEFORE, data[s + at : s + at + ID_LENGTH], ACK_AFTER) for s in starts])
            )
        if self._sending:
            for flow in flows:
                self.pump(flow)

    def _read_slowly(self, recipient: Connection, data: bytes) -> None:
        frames, recipient.rest = cut(data)
        for opcode, payload in frames:
            if opcode == 9:
                recipient.send(client_frame(payload, PONG))
            elif opcode == 8:
                recipient.closed = True
            elif b'"type":"message"' in payload and (found := _ID.search(payload)) is not None:
                flow = self.flows.get(int(found[1], 16))
                if flow is None:
                    continue  # the probe of a connection
                flow.judge(int(found[2]))
                self._timed(flow, 1)
                self.received += 1
                if self.acks:
                    recipient.send(ACK_BEFORE + payload[found.start(1) : found.start(1) + ID_LENGTH] + ACK_AFTER)
                if self._sending:
                    self.pump(flow)

    def _timed(self, flow: Flow, count: int) -> None:
        if flow.due:
            now = time.perf_counter()
            for _ in range(min(count, len(flow.due))):
                self.latencies.append(now - flow.due.popleft())

    # --- sending ------------------------------------------------------------------------------------------------------

    def pump(self, flow: Flow) -> None:
        """Fill a flow's window once half of it is free."""
        room = flow.window - (flow.sent - flow.received)
        if room * 2 >= flow.window and not flow.sender.unsent:
            flow.sender.send(flow.lane.frames(flow.sent, room))
            flow.sent += room

    def saturate(self, pid: int, seconds: float, *, warm_up: float = 0.3) -> Run:
        """Keep all windows full, and say how many messages a second arrived in the steady state."""
        self._sending = True
        for flow in self.flows.values():
            self.pump(flow)
        self._until(time.perf_counter() + min(warm_up, seconds))
        server, own, began, before = machine.cpu_seconds(pid), time.process_time(), time.perf_counter(), self.received
        self._until(began + seconds)
        spent, count = time.perf_counter() - began, self.received - before
        server, own = machine.cpu_seconds(pid) - server, time.process_time() - own
        self._sending = False
        self.drain()
        return Run(
            count / spent,
            {"server": server / spent, "load": own / spent, "us": server / max(1, count) * 1e6, **self.faults()},
        )

    def _until(self, end: float) -> None:
        while time.perf_counter() < end:
            self.loop.step(0.01)
            for flow in self.flows.values() if self._sending else ():
                if flow.sent == flow.received:
                    self.pump(flow)

    def at_rate(self, pid: int, rate: float, seconds: float) -> Run:
        """Send by the clock, whatever comes back, and time each message from when it was due: what waits because
        something before it waited is late, too. The value is the median in milliseconds."""
        flows = list(self.flows.values())
        clock, period, total = time.perf_counter, 1 / rate, int(rate * seconds)
        server, began, sent = machine.cpu_seconds(pid), clock() + 0.01, 0
        while sent < total:
            now = clock()
            while sent < total and (due := began + sent * period) <= now:
                flow = flows[sent % len(flows)]
                flow.due.append(due)
                self.lateness.append(clock() - due)
                flow.sender.send(flow.lane.frames(flow.sent, 1))
                flow.sent += 1
                sent += 1
            self.loop.step(0)
            if now - began > 3 * seconds:
                break
        self.drain()
        spent, server = clock() - began, machine.cpu_seconds(pid) - server
        ordered, late = sorted(self.latencies), sorted(self.lateness)
        return Run(
            percentile(ordered, 0.5) * 1000,
            {
                **{f"p{share}": percentile(ordered, share / 100) * 1000 for share in (50, 90, 99)},
                "late99": percentile(late, 0.99) * 1000,
                "server": server / spent,
                "us": server / max(1, sent) * 1e6,
                **self.faults(),
            },
        )

    def drain(self) -> None:
        """Wait for what is on its way."""
        self.loop.spin(lambda: all(flow.expected >= flow.sent for flow in self.flows.values()), patience=5)

    def faults(self) -> dict[str, float]:
        """Messages by what was wrong with them; all zero when the relay does its work."""
        flows = self.flows.values()
        return {
            "lost": sum(flow.lost for flow in flows),
            "doubled": sum(flow.doubled for flow in flows),
            "reordered": sum(flow.reordered for flow in flows),
            "refused": self.refused,
        }


@contextmanager
def without_collector() -> Iterator[None]:
    """No garbage collection in the load while it measures."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
