"""TLS without sockets: the server's half against OpenSSL's client, byte for byte."""

import contextlib
import ssl
from collections.abc import Iterator

import pytest
import trustme
from mesh_relay.admission import NOT_PROVEN
from mesh_relay.tls import Tls, TlsFailed

from tests.unit.mesh_relay.kit import Relay


class Client:
    """The other side."""

    def __init__(self, authority: trustme.CA) -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def shake(self, server: Tls) -> None:
        while not server.established:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.object.do_handshake()
            if said := self.outgoing.read():
                assert server.receive(said) == b""
            self.incoming.write(server.seal([], last=False))

    def says(self, *texts: bytes) -> bytes:
        for text in texts:
            self.object.write(text)
        return self.outgoing.read()

    def hears(self, sealed: bytes) -> Iterator[bytes]:
        self.incoming.write(sealed)
        while self.incoming.pending:
            try:
                part = self.object.read(1 << 20)
            except ssl.SSLWantReadError:
                return
            if not part:
                return
            yield part


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    authority.issue_cert("localhost").configure_cert(context)
    return Tls(context)


@pytest.fixture
def client(authority: trustme.CA) -> Client:
    return Client(authority)


def test_what_is_sealed_is_heard_and_what_is_said_is_received(server: Tls, client: Client) -> None:
    client.shake(server)
    assert server.receive(client.says(b"hello")) == b"hello"
    large = bytes(range(256)) * 4096
    assert b"".join(client.hears(server.seal([b"a", large, b"b"], last=False))) == b"a" + large + b"b"
    assert server.receive(client.says(large)) == large


def test_bytes_that_drip_in_are_the_same_bytes(server: Tls, client: Client) -> None:
    client.shake(server)
    said = client.says(b"one", b"two" * 10_000, b"three")
    assert b"".join(server.receive(said[at : at + 1]) for at in range(len(said))) == b"one" + b"two" * 10_000 + b"three"


def test_nothing_is_sealed_before_the_handshake_is_done(server: Tls) -> None:
    assert server.seal([b"too early"], last=False) == b""
    assert server.seal([b"too early"], last=True) == b""


def test_the_goodbye_follows_the_last_words_once(server: Tls, client: Client) -> None:
    client.shake(server)
    assert list(client.hears(server.seal([b"bye"], last=True))) == [b"bye"]
    assert client.object.read(1) == b""
    assert server.seal([], last=True) == b""


def test_the_goodbye_of_a_client_ends_what_it_said(server: Tls, client: Client) -> None:
    client.shake(server)
    said = client.says(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        client.object.unwrap()
    assert server.receive(said + client.outgoing.read() + b"junk") == b"last"
    assert server.ended
    assert server.receive(b"more junk") == b""


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x00", b"\xff" * 100])
def test_who_speaks_no_tls_gets_an_answer_anybody_can_read(server: Tls, said: bytes) -> None:
    with pytest.raises(TlsFailed, match="no TLS"):
        server.receive(said)
    answer = server.seal([], last=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert server.receive(said) == b""
    assert server.seal([b"secret"], last=True) == b""


def test_a_broken_record_fails_with_an_alert(server: Tls, client: Client) -> None:
    client.shake(server)
    said = bytearray(client.says(b"hello"))
    said[-1] ^= 1
    with pytest.raises(TlsFailed):
        server.receive(bytes(said))
    alert = server.seal([b"secret"], last=True)
    client.incoming.write(alert)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.object.read(1)


@pytest.mark.parametrize("size", [0, 1, 2, 6])
def test_small_records_for_days_are_no_excess(server: Tls, client: Client, size: int) -> None:
    client.shake(server)
    for _ in range(10_000):
        assert server.receive(client.says(b"x" * max(1, size))) == b"x" * max(1, size)


# --- what the core makes of it ----------------------------------------------------------------------------------------


def test_failed_handshakes_turn_an_address_away_as_bad_proofs_do() -> None:
    relay = Relay(bad_proof_burst=3.0)
    for _ in range(4):
        assert relay.core.welcome("192.0.2.1", relay.now)
        relay.core.tls_failed(relay.open("192.0.2.1"), relay.now)
    assert not relay.core.welcome("192.0.2.1", relay.now)
    assert relay.core.welcome("192.0.2.2", relay.now)
    assert relay.core.counters.tls_failed == 4
    assert relay.core.unproven == 0


def test_handshakes_beyond_the_burst_wait_their_turn() -> None:
    relay = Relay(tls_rate=10.0, tls_burst=2.0)
    assert [round(relay.core.begins_tls(relay.now), 6) for _ in range(5)] == [0.0, 0.0, 0.1, 0.2, 0.3]


def test_a_socket_that_waits_for_its_handshake_has_the_time_of_any_other() -> None:
    relay = Relay(proof_seconds=10.0)
    link = relay.open()
    relay.wait(11.0)
    assert relay.closed[link][0] == NOT_PROVEN
