"""The registry's TLS attacked: handshakes cost a server far more than whoever asks for them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

import pytest

from tests.attacks.kit import Raw, Siege, siege, until
from tests.certificates import Authority
from tests.commands import PATIENCE

pytestmark = pytest.mark.slow

BURST, RATE, UNDER_WAY = 20, 5, 30
LIMITS = {"address_handshake_rate": RATE, "address_handshake_burst": BURST, "handshakes": UNDER_WAY}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("registry")
    with siege(folder, {}, LIMITS, authority=Authority(folder / "authority")) as running:
        yield running


def client_hello() -> bytes:
    """What starts a handshake. To answer it the server signs."""
    outgoing = ssl.MemoryBIO()
    greeter = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        greeter.do_handshake()
    return outgoing.read()


def refused(besieged: Siege, reason: str) -> float:
    """Asked on a new connection, whose handshake is an honest one."""
    return besieged.registry.counted(f'refused_connections_total{{reason="{reason}"}}')


def test_a_flood_of_handshakes_of_one_address_is_closed_before_they_cost_anything(besieged: Siege) -> None:
    registry, hello = besieged.registry, client_hello()
    answered = closed = 0
    with besieged.watch("lookup") as watch:
        while watch.going or closed < 5 * BURST:
            with Raw(registry, "127.11.0.1") as raw:
                raw.write(hello)
                if raw.read():
                    answered += 1
                    assert answered <= BURST + RATE * PATIENCE, "nothing stops it"
                else:
                    closed += 1
            if closed % 100 == 0:
                assert registry.counted("ready") == 1, "others connect meanwhile"
    assert BURST <= answered < closed
    assert refused(besieged, "handshake_rate") == closed


@pytest.mark.parametrize(
    "start", [b"", client_hello()[:50], client_hello()], ids=["silence", "half a hello", "a hello"]
)
def test_handshakes_that_do_not_end_make_room(besieged: Siege, start: bytes) -> None:
    registry, before = besieged.registry, refused(besieged, "handshakes")
    sockets, number = registry.descriptors(), 0
    with contextlib.ExitStack() as stack, besieged.watch("lookup") as watch:
        while watch.going or number < 5 * UNDER_WAY:
            number += 1
            raw = stack.enter_context(Raw(registry, f"127.12.{number % 250}.{len(start) % 250 + 1}"))
            raw.write(start)
            if number % 25 == 0:
                assert registry.counted("ready") == 1, "others connect meanwhile"
            watch.rest(0.005)
        until(lambda: registry.descriptors() <= sockets + UNDER_WAY + 1, "the registry lets go of the oldest")
    assert refused(besieged, "handshakes") >= before + number - 2 * UNDER_WAY
    until(lambda: registry.descriptors() <= sockets + 1, "it lets go of them all")


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 70_000, b"\0"])
def test_what_is_no_handshake_ends_it(besieged: Siege, junk: bytes) -> None:
    before = refused(besieged, "handshake")
    with Raw(besieged.registry, f"127.13.0.{len(junk) % 250 + 1}") as raw:
        raw.write(junk)
        raw.hang_up()
    until(lambda: refused(besieged, "handshake") > before, "it is counted")
