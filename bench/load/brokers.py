"""The same traffic through message brokers: one durable queue per recipient, every message acknowledged.

Publishers count what the broker has confirmed, recipients acknowledge each message, as with our relay. Payloads begin
with the lane (8 hex digits) and the number (12 digits) of the message.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bench.load.loop import Connection, LoadError, Loop
from bench.load.traffic import Flow, Traffic

_ID = 20


@dataclass(frozen=True)
class Lane:
    """Messages for one queue."""

    number: int
    before: bytes
    after: bytes

    def frames(self, first: int, count: int) -> bytes:
        """Consecutive messages, ready to be sent."""
        before, after = self.before, self.after
        return b"".join([b"%b%012d%b" % (before, number, after) for number in range(first, first + count)])


class Broker(Traffic):
    """Traffic in a broker's protocol: connect, publish, take."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.acks, self.flows = loop, True, {}
        self.received = self.delivered = self.refused = 0
        self._sending = False
        self._ready = 0

    @classmethod
    def with_pairs(cls, loop: Loop, pairs: int, payload: int, window: int, *, present: bool) -> Self:
        """Queues with a publisher each, and their recipients if they are ``present``.

        Raises:
            LoadError: the broker does not take them.
        """
        broker = cls(loop)
        broker.prepare(pairs)
        for number in range(pairs):
            lane = broker.lane(number, payload)
            broker.flows[number] = Flow(lane, broker.publisher(number), window)
        if present:
            broker.arrive()
        broker._settle(pairs)
        return broker

    def arrive(self) -> None:
        """The recipients connect."""
        for number in self.flows:
            self.recipient(number)

    def _settle(self, count: int) -> None:
        if not self.loop.spin(lambda: self._ready >= count, patience=5):
            raise LoadError(f"the broker took {self._ready} of {count} connections")

    def _got(self, payload: bytes) -> None:
        flow = self.flows[int(payload[:8], 16)]
        flow.judge(int(payload[8:_ID]))
        self.received += 1

    def _more(self, numbers: set[int]) -> None:
        if self._sending:
            for number in numbers:
                self.pump(self.flows[number])

    def prepare(self, pairs: int) -> None:
        """Make the queues."""
        raise NotImplementedError

    def lane(self, number: int, payload: int) -> Lane:
        """Messages for a queue."""
        raise NotImplementedError

    def publisher(self, number: int) -> Connection:
        """Who writes to a queue."""
        raise NotImplementedError

    def recipient(self, number: int) -> Connection:
        """Who reads a queue."""
        raise NotImplementedError


class JetStream(Broker):
    """NATS JetStream: a stream on disk, a durable push consumer per recipient, explicit acks."""

    _HELLO = b'CONNECT {"verbose":false,"pedantic":false}\r\n'

    def prepare(self, pairs: int) -> None:
        stream = {"name": "bench", "subjects": ["q.*"], "storage": "file", "retention": "workqueue"}
        requests: list[tuple[bytes, Mapping[str, object]]] = [(b"$JS.API.STREAM.CREATE.bench", stream)]
        for number in range(pairs):
            consumer = {
                **{"durable_name": f"c{number}", "deliver_subject": f"d.{number}", "filter_subject": f"q.{number}"},
                **{"ack_policy": "explicit", "max_ack_pending": -1},
            }
            wanted = {"stream_name": "bench", "config": consumer}
            requests.append((b"$JS.API.CONSUMER.DURABLE.CREATE.bench.c%d" % number, wanted))
        first = self._HELLO + b"SUB api 1\r\n"
        for subject, body in requests:
            text = json.dumps(body).encode()
            first += b"PUB %b api %d\r\n%b\r\n" % (subject, len(text), text)
        answers = 0

        def take(connection: Connection, data: bytes) -> None:
            nonlocal answers
            connection.rest += data
            answers = connection.rest.count(b"_create_response")
            if b'"error":' in connection.rest:
                raise LoadError(f"JetStream refused: {connection.rest[:400]!r}")

        self.loop.plain(take, first)
        if not self.loop.spin(lambda: answers >= len(requests), patience=10):
            raise LoadError("JetStream does not answer")

    def lane(self, number: int, payload: int) -> Lane:
        before = b"PUB q.%d r.%d %d\r\n%08x" % (number, number, payload, number)
        return Lane(number, before, os.urandom((payload - _ID) // 2).hex().encode() + b"\r\n")

    def publisher(self, number: int) -> Connection:
        def take(connection: Connection, data: bytes) -> None:
            self._ready += data.startswith(b"INFO")
            if b"PING\r\n" in data:
                connection.send(b"PONG\r\n")
            self.delivered += data.count(b'"stream"')
            self.refused += data.count(b'"error"')

        return self.loop.plain(take, self._HELLO + b"SUB r.%d 1\r\n" % number)

    def recipient(self, number: int) -> Connection:
        return self.loop.plain(self._take, self._HELLO + b"SUB d.%d 1\r\n" % number)

    def _take(self, connection: Connection, data: bytes) -> None:
        data, position, acks, touched = connection.rest + data, 0, [], set()
        while (end := data.find(b"\r\n", position)) >= 0:
            if not data.startswith(b"MSG", position):
                if data.startswith(b"PING", position):
                    acks.append(b"PONG\r\n")
                position = end + 2
                continue
            words = data[position:end].split()
            size = int(words[-1])
            if len(data) < end + 2 + size + 2:
                break
            payload = data[end + 2 : end + 2 + _ID]
            self._got(payload)
            touched.add(int(payload[:8], 16))
            acks.append(b"PUB %b 0\r\n\r\n" % words[3])
            position = end + 4 + size
        connection.rest = data[position:]
        if acks:
            connection.send(b"".join(acks))
        self._more(touched)


class Mqtt(Broker):
    """MQTT 3.1.1, QoS 1, persistent sessions. Keeps everything in memory until it ends."""

    def prepare(self, pairs: int) -> None:
        """Recipients subscribe once and leave: from then on the broker keeps their messages."""
        subscribed = 0

        def take(_: Connection, data: bytes) -> None:
            nonlocal subscribed
            subscribed += data.count(b"\x90\x03\x00\x01\x01")

        visitors = []
        for number in range(pairs):
            topic = b"q/%d" % number
            wish = _packet(0x82, b"\0\1" + _text(topic) + b"\1")
            visitors.append(self.loop.plain(take, self._hello(b"r%d" % number, clean=False) + wish))
        if not self.loop.spin(lambda: subscribed >= pairs, patience=5):
            raise LoadError(f"mosquitto took {subscribed} of {pairs} subscriptions")
        for visitor in visitors:
            self.loop.close(visitor)

    def _hello(self, name: bytes, *, clean: bool) -> bytes:
        return _packet(0x10, _text(b"MQTT") + bytes((4, 2 if clean else 0)) + b"\0\0" + _text(name))

    def lane(self, number: int, payload: int) -> Lane:
        # Every message has packet id 1: the broker answers in order, and the window counts what arrived.
        start = _text(b"q/%d" % number) + b"\0\1" + b"%08x" % number
        rest = os.urandom((payload - _ID) // 2).hex().encode()
        head = _packet(0x32, start + bytes(12) + rest)
        return Lane(number, head[: head.index(start) + len(start)], rest)

    def publisher(self, number: int) -> Connection:
        def take(_: Connection, data: bytes) -> None:
            self.delivered += data.count(b"\x40\x02\x00\x01")
            self._ready += data.count(b"\x20\x02")

        return self.loop.plain(take, self._hello(b"p%d" % number, clean=True))

    def recipient(self, number: int) -> Connection:
        return self.loop.plain(self._take, self._hello(b"r%d" % number, clean=False))

    def _take(self, connection: Connection, data: bytes) -> None:
        data, position, acks, touched = connection.rest + data, 0, [], set()
        while len(data) - position >= 5:
            size, start = data[position + 1], position + 2
            if size & 128:
                size, start = size & 127 | data[position + 2] << 7, position + 3
            if len(data) < start + size:
                break
            if data[position] & 0xF0 == 0x30:
                at = start + 2 + struct.unpack_from("!H", data, start)[0]
                payload = data[at + 2 : at + 2 + _ID]
                self._got(payload)
                touched.add(int(payload[:8], 16))
                acks.append(b"\x40\x02" + data[at : at + 2])
            position = start + size
        if data[position : position + 2] == b"\x20\x02" and len(data) - position == 4:
            position += 4
        connection.rest = data[position:]
        if acks:
            connection.send(b"".join(acks))
        self._more(touched)


def _text(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def _packet(kind: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
    return bytes((kind,)) + length + body
