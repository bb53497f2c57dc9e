"""The shell over real sockets: pitfalls 24 to 29 as a client sees them."""

import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import trio
import trio.testing
from mesh_relay import readiness
from mesh_relay.config import Limits, RelayConfig
from mesh_relay.inbox.memory import MemoryInbox
from mesh_relay.inbox.protocol import Inbox
from mesh_relay.inbox.sqlite import SqliteInbox
from mesh_relay.records import Done, Work
from mesh_relay.server import RelayServer, open_listeners, system_clock
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.uri import parse_uri

from meshlib.errors import StoreError
from meshlib.identity import Identity
from tests.unit.mesh_relay.kit import ALICE, BOB, CAROL, ack, connect_frame, dump, message

Ready = Callable[[trio.Nursery], readiness.Readiness]


class Client:
    """A WebSocket client on websockets' own protocol, frame by frame. :func:`running` closes what is open."""

    opened: ClassVar[list[trio.SocketStream]] = []

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = ClientProtocol(parse_uri("ws://relay/ws"), max_size=None)
        self.challenge = ""
        self._frames: list[Frame] = []

    @classmethod
    async def open(cls, port: int) -> Self:
        client = cls(await trio.open_tcp_stream("127.0.0.1", port))
        cls.opened.append(client.stream)
        client.protocol.send_request(client.protocol.connect())
        await client.flush()
        while not (events := client.protocol.events_received()):
            client.protocol.receive_data(await client.stream.receive_some())
        client.challenge = events[0].headers["Mesh-Challenge"]  # type: ignore[union-attr]
        client._frames = [event for event in events[1:] if isinstance(event, Frame)]
        return client

    @classmethod
    async def join(cls, port: int, who: Identity, features: list[str] | None = None) -> Self:
        client = await cls.open(port)
        nonce = client.challenge if features and "challenge" in features else None
        await client.say(connect_frame(who, system_clock().utc, nonce=nonce, features=features))
        return client

    async def flush(self) -> None:
        await self.stream.send_all(b"".join(self.protocol.data_to_send()))

    async def say(self, *frames: bytes, opcode: int = Opcode.TEXT) -> None:
        for frame in frames:
            self.protocol.send_frame(Frame(Opcode(opcode), frame))
        await self.flush()

    async def frame(self) -> Frame | None:
        """The next data frame; None at the end of the stream."""
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                    return frame
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.protocol.receive_data(data)
            self._frames += [event for event in self.protocol.events_received() if isinstance(event, Frame)]
            await self.flush()

    async def next(self) -> dict[str, Any]:
        frame = await self.frame()
        assert frame is not None, self.protocol.close_rcvd
        decoded = json.loads(bytes(frame.data))
        assert isinstance(decoded, dict)
        return decoded

    async def ids(self, count: int) -> list[str]:
        return [(await self.next())["id"] for _ in range(count)]

    async def closed(self) -> Close | None:
        """Read to the end; how the relay closed."""
        while await self.frame() is not None:
            pass
        return self.protocol.close_rcvd


@asynccontextmanager
async def running(
    inbox: Inbox | None = None,
    ready: Ready = readiness.best_readiness,
    *,
    allow_legacy: bool = False,
    durability: Any = "relaxed",
    drain_seconds: float = 0.0,
    **limits: Any,
) -> AsyncIterator[tuple[RelayServer, int]]:
    """A relay on a free port, and the port."""
    listeners = await open_listeners("127.0.0.1", 0)
    port = listeners[0].getsockname()[1]
    config = RelayConfig(
        allow_legacy=allow_legacy,
        durability=durability,
        limits=replace(Limits(), **limits),
        ttl=3600.0,
        drain_seconds=drain_seconds,
    )
    server = RelayServer(config, listeners, inbox or MemoryInbox(), readiness=ready)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        try:
            yield server, port
        finally:
            while Client.opened:
                await trio.aclose_forcefully(Client.opened.pop())
        server.drain()


@pytest.fixture(params=["best", "tasks"])
def ready(request: pytest.FixtureRequest) -> Ready:
    return readiness.best_readiness if request.param == "best" else readiness.TaskReadiness


@pytest.mark.trio
async def test_two_agents_talk(ready: Ready) -> None:
    async with running(ready=ready) as (_, port):
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        for number in range(100):
            await alice.say(message(BOB.did, str(number), body="é" * number))
        assert await bob.ids(100) == [str(number) for number in range(100)]


@pytest.mark.trio
async def test_receipts_on_a_durable_store(ready: Ready, tmp_path: Path) -> None:
    async with running(SqliteInbox(tmp_path / "relay.db"), ready) as (_, port):
        alice = await Client.join(port, ALICE, ["receipts", "challenge"])
        assert (await alice.next())["features"] == ["receipts", "challenge"]
        await alice.say(message(BOB.did, "1"))
        assert await alice.next() == {"v": 1, "type": "receipt", "id": "1", "state": "stored"}
        bob = await Client.join(port, BOB)
        assert await bob.ids(1) == ["1"]
        await bob.say(ack("1"))
        assert await alice.next() == {"v": 1, "type": "receipt", "id": "1", "state": "delivered"}


@pytest.mark.trio
async def test_connect_and_first_messages_in_one_packet() -> None:
    async with running() as (_, port):
        alice, bob = await Client.open(port), await Client.join(port, BOB)
        big = message(BOB.did, "2", body="x" * 500_000)
        await alice.say(connect_frame(ALICE, system_clock().utc), message(BOB.did, "1"), big)
        assert await bob.ids(2) == ["1", "2"]


@pytest.mark.trio
async def test_binary_frames_holding_json_are_taken_and_forwarded_as_text() -> None:
    async with running() as (_, port):
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        await alice.say(message(BOB.did, "1"), opcode=Opcode.BINARY)
        frame = await bob.frame()
        assert frame is not None
        assert frame.opcode is Opcode.TEXT


@pytest.mark.trio
@pytest.mark.parametrize(
    "bad",
    [b"[1,2]", b"null", b"1", b"\xff\xfe", b'{"type":"message","to":{}}', b"x" * (1024 * 1024 + 1), b"[" * 200_000],
)
async def test_a_bad_frame_gets_an_error_and_the_connection_stays(bad: bytes) -> None:
    async with running() as (_, port):
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        await alice.say(bad, message(BOB.did, "good"))
        assert (await alice.next())["type"] == "error"
        assert await bob.ids(1) == ["good"]


@pytest.mark.trio
async def test_a_frame_of_exactly_one_mebibyte_passes() -> None:
    async with running() as (_, port):
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        empty = message(BOB.did, "1", sender=ALICE.did, body="")
        await alice.say(message(BOB.did, "1", sender=ALICE.did, body="x" * (1024 * 1024 - len(empty))))
        frame = await bob.frame()
        assert frame is not None
        assert len(frame.data) == 1024 * 1024


@pytest.mark.trio
@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"null", 4001),
        (message(BOB.did, "1"), 4001),
        (dump({"v": 1, "type": "connect"}), 4002),
        (dump({"v": 1, "type": "connect", "from": "did:agentmesh:old"}), 4003),
        (connect_frame(ALICE, 0.0, did=BOB.did), 4003),
        (dump({"v": 1, "type": "connect", "from": ALICE.did}), 4005),
        (connect_frame(ALICE, 0.0), 4005),
    ],
)
async def test_the_first_frame_decides_with_an_error_and_a_close_code(first: bytes, code: int) -> None:
    async with running() as (_, port):
        client = await Client.open(port)
        await client.say(first)
        assert (await client.next())["code"] == code
        close = await client.closed()
        assert close is not None
        assert close.code == code


@pytest.mark.trio
async def test_the_replaced_connection_is_closed_4006() -> None:
    async with running() as (_, port):
        old = await Client.join(port, BOB)
        new = await Client.join(port, BOB, ["receipts", "challenge"])
        assert (await new.next())["type"] == "connected"
        assert await old.closed() == Close(4006, "replaced by a newer connection of this DID")


@pytest.mark.trio
async def test_disconnect_is_answered_with_1000() -> None:
    async with running() as (_, port):
        bob = await Client.join(port, BOB)
        await bob.say(dump({"v": 1, "type": "disconnect", "from": BOB.did}))
        close = await bob.closed()
        assert close is not None
        assert close.code == 1000


@pytest.mark.trio
async def test_silence_for_ninety_seconds_closes_4004(autojump_clock: trio.testing.MockClock) -> None:
    async with running(ping_seconds=math.inf) as (_, port):  # this client would answer pings
        bob = await Client.join(port, BOB, ["receipts"])
        await bob.next()
        began = trio.current_time()
        close = await bob.closed()
        assert close is not None
        assert close.code == 4004
        assert 89 <= trio.current_time() - began <= 95


@pytest.mark.trio
async def test_a_client_that_pings_is_alive(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (_, port):
        bob, alice = await Client.join(port, BOB), await Client.join(port, ALICE)
        for _ in range(10):
            await trio.sleep(45)
            await bob.say(b"", opcode=Opcode.PING)
            await alice.say(b"", opcode=Opcode.PONG)
        await alice.say(message(BOB.did, "1"))
        assert await bob.ids(1) == ["1"]


@pytest.mark.trio
async def test_a_listening_client_stays_when_the_relay_pings(autojump_clock: trio.testing.MockClock) -> None:
    async with running(ping_seconds=30.0) as (_, port):
        bob = await Client.join(port, BOB, ["receipts"])
        await bob.next()
        with trio.move_on_after(400):
            await bob.next()  # answers pings, as every WebSocket library does
        alice = await Client.join(port, ALICE)
        await alice.say(message(BOB.did, "1"))
        assert await bob.ids(1) == ["1"]


@pytest.mark.trio
@pytest.mark.parametrize("sends", [b"", b"GET /ws HT", b"GET /ws HTTP/1.1\r\nHost: x\r\n"])
async def test_a_socket_that_says_too_little_is_answered_408_after_ten_seconds(
    autojump_clock: trio.testing.MockClock, sends: bytes
) -> None:
    async with running() as (_, port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            if sends:
                await stream.send_all(sends)
            answer = b"".join([data async for data in stream])
            assert answer.startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() <= 12


@pytest.mark.trio
async def test_a_websocket_without_proof_is_closed_4005_after_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as (_, port):
        client = await Client.open(port)
        close = await client.closed()
        assert close is not None
        assert close.code == 4005
        assert trio.current_time() <= 12


@pytest.mark.trio
async def test_a_peer_that_ignores_our_close_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (_, port):
        deaf = await Client.join(port, BOB, ["receipts"])
        await deaf.next()
        newer = await Client.join(port, BOB, ["receipts"])
        await newer.next()
        await trio.sleep(10)
        while await deaf.stream.receive_some():  # never answers the close frame
            pass
        assert trio.current_time() < 85  # before silence would have closed it; virtual time may run ahead of sockets


@pytest.mark.trio
async def test_a_slow_reader_delays_nobody_and_catches_up(ready: Ready, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"outgoing_high": 200_000, "outgoing_low": 50_000, "page_bytes": 100_000}
    async with running(SqliteInbox(tmp_path / "relay.db"), ready, **limits) as (_, port):
        alice, slow, carol = [await Client.join(port, who) for who in (ALICE, BOB, CAROL)]
        total = 400
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(total):
                    body = "x" * 40_000  # 16 MB: more than the kernel's buffers take
                    await alice.say(message(BOB.did, str(number), body=body), message(CAROL.did, str(number)))

            nursery.start_soon(send)
            assert await carol.ids(total) == [str(number) for number in range(total)]
        assert await slow.ids(total) == [str(number) for number in range(total)]


@pytest.mark.trio
async def test_who_reads_nothing_is_not_read_from_and_costs_bounded_memory() -> None:
    async with running(outgoing_high=100_000) as (_, port):
        deaf = await Client.join(port, ALICE)
        junk = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 500
        with trio.move_on_after(1.0) as scope:
            for _ in range(2000):
                await deaf.stream.send_all(junk)  # answered by as many pongs
        assert scope.cancelled_caught


@pytest.mark.trio
async def test_a_throttled_sender_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with running(frame_rate=10, frame_burst=10) as (_, port):
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        for number in range(100):
            await alice.say(message(BOB.did, str(number)))
            await trio.sleep(0)
        assert await bob.ids(100) == [str(number) for number in range(100)]


# --- HTTP -------------------------------------------------------------------------------------------------------------


async def http(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(request)
    answer = b""
    async for chunk in stream:
        answer += chunk
    await stream.aclose()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head, body


async def get(port: int, target: str) -> tuple[int, bytes, bytes]:
    return await http(port, f"GET {target} HTTP/1.1\r\nHost: relay\r\n\r\n".encode())


@pytest.mark.trio
async def test_health_has_upstreams_keys_and_ours(ready: Ready) -> None:
    async with running(ready=ready, allow_legacy=True) as (_, port):
        alice = await Client.join(port, ALICE, ["receipts"])
        await alice.next()
        old = await Client.open(port)
        await old.say(dump({"v": 1, "type": "connect", "from": "did:agentmesh:old", "features": []}))
        await old.next()
        await alice.say(message(BOB.did, "1"))
        await alice.next()
        status, _, body = await get(port, "/health?verbose=1")
        health = json.loads(body)
        assert status == 200
        assert list(health)[:6] == [
            "status",
            "service",
            "connected_agents",
            "verified_agents",
            "entra_verify_enabled",
            "stats",
        ]
        assert (health["status"], health["connected_agents"], health["verified_agents"]) == ("healthy", 2, 1)
        assert health["entra_verify_enabled"] is False
        assert health["stats"] == {"messages_routed": 1, "messages_stored": 1, "messages_delivered": 0}
        assert health["inbox"]["frames"] == 1
        assert health["server_time"].endswith("Z")


@pytest.mark.trio
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (b"GET /wsx HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 404),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
    ],
)
async def test_other_requests_are_refused(request_: bytes, status: int) -> None:
    async with running() as (_, port):
        assert (await http(port, request_))[0] == status


# --- storage and shutdown ---------------------------------------------------------------------------------------------


class FlakyInbox(MemoryInbox):
    """Fails a number of times."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def run(self, work: Work) -> Done:
        if work.frames and self.failures:
            self.failures -= 1
            raise StoreError("disk full")
        return super().run(work)


@pytest.mark.trio
async def test_a_full_disk_delays_receipts_and_shows_in_health(autojump_clock: trio.testing.MockClock) -> None:
    inbox = FlakyInbox(3)
    async with running(inbox) as (_, port):
        alice = await Client.join(port, ALICE, ["receipts"])
        await alice.next()
        await alice.say(message(BOB.did, "1"))
        await trio.sleep(0.5)
        assert json.loads((await get(port, "/health"))[2])["status"] == "degraded"
        assert (await alice.next())["state"] == "stored"
        assert inbox.failures == 0
        assert json.loads((await get(port, "/health"))[2])["status"] == "healthy"
        assert (await get(port, "/health/ready"))[0] == 200


@pytest.mark.trio
async def test_a_failed_commit_makes_it_not_ready_and_stays_alive(autojump_clock: trio.testing.MockClock) -> None:
    async with running(FlakyInbox(3)) as (_, port):
        alice = await Client.join(port, ALICE, ["receipts"])
        await alice.next()
        assert json.loads((await get(port, "/health/ready"))[2]) == {"ready": True, "reason": None}
        await alice.say(message(BOB.did, "1"))
        await trio.sleep(0.5)
        status, _, body = await get(port, "/health/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "reason": "commit_failed"})
        assert (await get(port, "/health/live"))[0] == 200
        assert (await alice.next())["state"] == "stored"


@pytest.mark.trio
async def test_while_draining_it_works_on_and_is_not_ready(autojump_clock: trio.testing.MockClock) -> None:
    async with running(drain_seconds=30.0) as (server, port):
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        server.drain()
        status, _, body = await get(port, "/health/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "reason": "draining"})
        assert (await get(port, "/health/live"))[0] == 200
        assert (await get(port, "/health"))[0] == 200
        await alice.say(message(BOB.did, "1"))
        assert (await bob.next())["id"] == "1"
        server.drain()  # a second signal: at once
        for client in (alice, bob):
            closed = await client.closed()
            assert closed is not None
            assert closed.code == 1001


@pytest.mark.trio
async def test_an_unreadable_store_is_reported_and_the_port_is_free_again(tmp_path: Path) -> None:
    (tmp_path / "relay.db").write_bytes(b"no database" * 1000)
    listeners = await open_listeners("127.0.0.1", 0)
    port = listeners[0].getsockname()[1]
    server = RelayServer(RelayConfig(), listeners, SqliteInbox(tmp_path / "relay.db"))
    with pytest.raises(StoreError):
        await server.serve()
    (again,) = await open_listeners("127.0.0.1", port)
    again.close()


@pytest.mark.trio
async def test_draining_closes_1001_accepts_nobody_and_keeps_everything() -> None:
    inbox = MemoryInbox()
    async with running(inbox) as (server, port):
        alice, bob = await Client.join(port, ALICE, ["receipts"]), await Client.join(port, BOB, ["receipts"])
        await bob.next()
        await alice.next()
        await alice.say(message(BOB.did, "1"))
        await bob.next()
        server.drain()
        for client in (alice, bob):
            close = await client.closed()
            assert close is not None
            assert close.code == 1001
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", port)
    assert [usage.frames for usage in inbox.open().usage] == [1]


@pytest.mark.trio
async def test_cancelling_keeps_everything(tmp_path: Path) -> None:
    listeners = await open_listeners("127.0.0.1", 0)
    server = RelayServer(RelayConfig(), listeners, SqliteInbox(tmp_path / "relay.db"))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        port = listeners[0].getsockname()[1]
        alice, bob = await Client.join(port, ALICE), await Client.join(port, BOB)
        await alice.say(message(BOB.did, "1"))
        await bob.next()
        nursery.cancel_scope.cancel()
    while Client.opened:
        await trio.aclose_forcefully(Client.opened.pop())
    after = SqliteInbox(tmp_path / "relay.db")
    assert [usage.frames for usage in after.open().usage] == [1]
    after.close()


@pytest.mark.trio
async def test_new_sockets_wait_while_the_relay_admits_at_its_rate(autojump_clock: trio.testing.MockClock) -> None:
    async with running(accept_rate=1, accept_burst=1) as (_, port):
        first = await Client.join(port, ALICE, ["receipts"])
        await first.next()
        with trio.move_on_after(30) as scope:
            second = await Client.join(port, BOB, ["receipts"])
            await second.next()
            assert trio.current_time() >= 0.9
        assert not scope.cancelled_caught


@pytest.mark.trio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", ""])
async def test_every_address_of_a_host_gets_the_same_port(host: str) -> None:
    try:
        listeners = await open_listeners(host, 0)
    except OSError:
        pytest.skip("no such address here")
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        assert all(listener.type == socket.SOCK_STREAM for listener in listeners)
    finally:
        for listener in listeners:
            listener.close()
