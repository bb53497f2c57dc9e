"""The WebSocket transport against real servers, real TLS and a real proxy, on both event loops."""

import select
import socket
import ssl
import threading
from contextlib import contextmanager

import anyio
import pytest
import trustme
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from meshlib.client.transport import CHALLENGE_HEADER, Closed, WebSocket, proxy_for
from meshlib.errors import InvalidValue, TransportError

pytestmark = pytest.mark.anyio


@contextmanager
def server(handler, **options):
    """A WebSocket server in a thread."""
    with serve(handler, "127.0.0.1", 0, compression=None, **options) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            scheme = "wss" if "ssl" in options else "ws"
            yield f"{scheme}://localhost:{running.socket.getsockname()[1]}"
        finally:
            running.shutdown()
            thread.join()


def echo(connection):
    for message in connection:
        connection.send(message)


@contextmanager
def connect_proxy():
    """An HTTP proxy that knows CONNECT and counts its tunnels."""
    listener = socket.create_server(("127.0.0.1", 0))
    tunnels = []

    def tunnel(client):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        host, port = head.split()[1].decode().rsplit(":", 1)
        tunnels.append(f"{host}:{port}")
        with socket.create_connection((host, int(port))) as upstream, client:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                for side, other in ((client, upstream), (upstream, client)):
                    if select.select([side], [], [], 0.005)[0]:
                        data = side.recv(65536)
                        if not data:
                            return
                        other.sendall(data)

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=tunnel, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", tunnels
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def certificate(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


async def test_many_frames_arrive_in_order():
    with server(echo) as url:
        web = await WebSocket.connect(url)
        sent = [f"message {number}".encode() for number in range(500)]
        await web.send(sent)
        received = []
        while len(received) < len(sent):
            received += await web.receive()
        assert received == sent
        await web.close()


async def test_a_fragmented_message_is_put_together():
    def fragments(connection):
        connection.send(iter(["one ", "two ", "three"]))
        connection.recv()

    with server(fragments) as url:
        web = await WebSocket.connect(url)
        assert await web.receive() == [b"one two three"]
        await web.close()


async def test_the_challenge_is_read_from_the_handshake():
    def challenge(connection, request, response):
        response.headers[CHALLENGE_HEADER] = "bm9uY2U"

    with server(echo, process_response=challenge) as url:
        web = await WebSocket.connect(url)
        assert web.challenge == "bm9uY2U"
        await web.close()


async def test_an_upstream_relay_sends_no_challenge():
    with server(echo) as url:
        web = await WebSocket.connect(url)
        assert web.challenge is None
        await web.close()


@pytest.mark.parametrize("code", [1000, 1001, 4003, 4006])
async def test_the_close_code_is_told(code):
    with server(lambda connection: connection.close(code, "because")) as url:
        web = await WebSocket.connect(url)
        with pytest.raises(Closed) as caught:
            await web.receive()
        assert (caught.value.code, caught.value.reason) == (code, "because")
        await web.close()


async def test_sending_on_an_ended_connection_says_so():
    with server(lambda connection: connection.close(4004, "idle")) as url:
        web = await WebSocket.connect(url)
        with pytest.raises(Closed):
            await web.receive()
        with pytest.raises(Closed, match="4004"):
            await web.send([b"{}"])
        await web.close()


async def test_a_message_over_the_limit_ends_the_connection_and_not_the_process():
    with server(lambda connection: connection.send("x" * (1024 * 1024 + 1))) as url:
        web = await WebSocket.connect(url)
        with pytest.raises(Closed):
            await web.receive()
        await web.close()


async def test_a_pong_answers_while_we_listen():
    answered = threading.Event()

    def ping(connection):
        if connection.ping().wait(5):
            answered.set()
        connection.send("done")
        connection.recv()

    with server(ping) as url:
        web = await WebSocket.connect(url)
        assert await web.receive() == [b"done"]
        assert answered.is_set()
        await web.close()


@contextmanager
def mute_server(*, first=(), step=65536):
    """A server that opens a WebSocket and then neither reads nor says anything, as behind a cut cable.

    Before, and in one breath with its answer, it says what is to come ``first``, in pieces of ``step`` bytes.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    protocol = ServerProtocol()

    def accept():
        client, _ = listener.accept()
        with client:
            protocol.receive_data(client.recv(65536))
            (request,) = protocol.events_received()
            protocol.send_response(protocol.accept(request))
            for message in first:
                protocol.send_text(message)
            said = b"".join(protocol.data_to_send())
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(said), step):
                client.sendall(said[start : start + step])
            done.wait()

    done = threading.Event()
    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        thread.join()
        listener.close()


@pytest.mark.parametrize("step", [1, 3, 150, 65536])
async def test_what_follows_the_handshake_at_once_is_received(step):
    first = [b"one", b"x" * 300, b"three"]
    with mute_server(first=first, step=step) as url, anyio.fail_after(10):
        web = await WebSocket.connect(url)
        received = []
        while len(received) < len(first):
            received += await web.receive()
        assert received == first
        await web.abort()


async def test_a_server_without_a_sign_of_life_is_gone():
    with mute_server() as url, anyio.fail_after(10):
        web = await WebSocket.connect(url)
        web.watch(quiet=0.05, patience=0.05)
        with pytest.raises(Closed, match="no sign of life") as caught:
            await web.receive()
        assert caught.value.code == 1006
        await web.abort()


async def test_a_quiet_server_that_answers_pings_stays():
    with server(echo) as url, anyio.fail_after(10):
        web = await WebSocket.connect(url)
        web.watch(quiet=0.01, patience=5)
        with anyio.move_on_after(0.2) as quiet_time:
            await web.receive()
        assert quiet_time.cancelled_caught
        await web.send([b"still there?"])
        assert await web.receive() == [b"still there?"]
        await web.close()


async def test_a_closed_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError, match=f"{port} cannot be reached"):
        await WebSocket.connect(f"ws://127.0.0.1:{port}")


async def test_an_http_server_that_is_no_relay_is_named():
    def refuse(connection, request):
        return connection.respond(404, "nothing here")

    with server(echo, process_request=refuse) as url, pytest.raises(TransportError, match="HTTP 404"):
        await WebSocket.connect(url)


async def test_a_server_that_speaks_no_http_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TransportError, match=r"speaks no WebSocket|closed the connection"):
            await WebSocket.connect(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


async def test_tls_with_a_trusted_certificate(trusting, certificate):
    with server(echo, ssl=certificate) as url:
        web = await WebSocket.connect(url, tls=trusting)
        await web.send([b"sealed twice"])
        assert await web.receive() == [b"sealed twice"]
        await web.close()


async def test_tls_with_an_unknown_authority_is_refused_and_explained(certificate):
    with server(echo, ssl=certificate) as url, pytest.raises(TransportError, match="not trusted"):
        await WebSocket.connect(url)


async def test_tls_for_another_name_is_refused(trusting, certificate):
    with server(echo, ssl=certificate) as url, pytest.raises(TransportError, match="not trusted"):
        await WebSocket.connect(url.replace("localhost", "127.0.0.1"), tls=trusting)


async def test_through_an_http_proxy():
    with server(echo) as url, connect_proxy() as (proxy, tunnels):
        web = await WebSocket.connect(url, proxy=proxy)
        await web.send([b"around the corner"])
        assert await web.receive() == [b"around the corner"]
        await web.close()
        assert tunnels == [url.removeprefix("ws://")]


async def test_tls_through_an_http_proxy(trusting, certificate):
    with server(echo, ssl=certificate) as url, connect_proxy() as (proxy, tunnels):
        web = await WebSocket.connect(url, tls=trusting, proxy=proxy)
        await web.send([b"sealed"])
        assert await web.receive() == [b"sealed"]
        await web.close()
        assert tunnels == [url.removeprefix("wss://")]


async def test_a_proxy_that_is_down_is_named_without_its_password():
    with pytest.raises(TransportError, match=r"proxy http://127\.0\.0\.1:9") as caught:
        await WebSocket.connect("ws://relay.example", proxy="http://user:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)


async def test_cancelling_a_connect_leaves_no_socket_behind():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with anyio.move_on_after(0.05) as scope:
            await WebSocket.connect(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        assert scope.cancelled_caught
        client, _ = listener.accept()
        with client:
            client.settimeout(5)
            while client.recv(4096):
                pass


async def test_closing_twice_is_as_good_as_once():
    with server(echo) as url:
        web = await WebSocket.connect(url)
        await web.close()
        await web.close()


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "ws://relay.example", None),
        ({"HTTP_PROXY": "http://p:1"}, "ws://relay.example", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:2"}, "wss://relay.example", "http://p:2"),
        ({"HTTPS_PROXY": "http://p:2"}, "ws://relay.example", None),
        ({"ALL_PROXY": "socks5://p:3"}, "wss://relay.example", "socks5://p:3"),
        ({"ALL_PROXY": "socks5h://p"}, "ws://relay.example", "socks5h://p:1080"),
        ({"ALL_PROXY": "socks5://p:3", "HTTPS_PROXY": "p:2"}, "wss://relay.example", "http://p:2"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "relay.example:81"}, "ws://relay.example:81", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": ".example"}, "ws://relay.example:81", None),
        ({"HTTP_PROXY": "http://p:1"}, "ws+unix:///run/relay.sock", None),
        ({"ALL_PROXY": "socks5://p:3", "NO_PROXY": "relay.example"}, "wss://relay.example", None),
    ],
)
def test_the_environment_names_the_proxy(monkeypatch, environment, url, expected):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(proxy_for(url, None)) == str(expected)
    assert proxy_for(url, "") is None
    if "unix" not in url:
        assert str(proxy_for(url, "http://own:4")) == "http://own:4"


async def test_a_url_without_host_is_a_usage_error():
    with pytest.raises((InvalidValue, TransportError)):
        await WebSocket.connect("ws://")
