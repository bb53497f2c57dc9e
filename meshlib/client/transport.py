"""One WebSocket to the relay over an anyio byte stream: TLS, proxies, and many frames in one write.

Owns the socket. The protocol itself is websockets' Sans-I/O ``ClientProtocol``, with the shorter path of
:mod:`meshlib.client.websocket` beside it; proxies are python-socks'.
Foreign exceptions are translated here, once.
"""

import logging
import math
import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.anyio.v2 import Proxy as Tunnel
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from meshlib.client.websocket import MAX_FRAGMENTS, Frames
from meshlib.errors import InvalidValue, TransportError
from meshlib.proxies import Proxy
from meshlib.wire.codec import MAX_FRAME
from meshlib.wire.encoding import unix_path, websocket_url

CHALLENGE_HEADER = "Mesh-Challenge"
"""Where our relay puts its nonce: in the handshake's answer, so that proving it costs no round trip."""
PROXY_ADVICE = "check its address, user and password (--proxy, HTTPS_PROXY), or name exceptions in NO_PROXY"
"""What errors of proxies end with."""
_READ_SIZE = 256 * 1024
"""Bytes per read. A burst of small frames comes in one."""
_ABNORMAL = 1006
_CERTIFICATE_ALERTS = (
    "ALERT_CERTIFICATE_REQUIRED",
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_UNSUPPORTED_CERTIFICATE",
)
"""What a server says, in OpenSSL's words, about the certificate we showed or did not show."""
_HEAD_ENDS = b"\r\n\r\n"
_LONGEST_SAID = 200
"""Bytes of a refusal's text that an error shows."""
_MAX_CHALLENGE = 1024
"""Characters of a challenge; ours has 43."""
_BUSY = (408, 429, 503)
"""Statuses that will pass: the relay, or what stands in front of it, is full or turns our address away for a while."""
_SILENT = logging.Logger("meshlib.websocket", level=logging.CRITICAL)
"""The library logs whole frames, and connect carries a token."""


class Closed(TransportError):
    """The connection has ended."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the connection to the relay has ended ({code}) {reason}".rstrip())
        self.code = code
        self.reason = reason


def proxy_for(url: str, configured: str | None) -> Proxy | None:
    """The proxy to use for a URL: the configured one, else what the environment says. Never one for a Unix socket.

    Args:
        configured: a proxy URL, ``""`` for none at all, ``None`` to ask the environment: ``HTTPS_PROXY`` (``wss``,
            ``https``) or ``HTTP_PROXY`` (``ws``, ``http``), else ``ALL_PROXY``; ``NO_PROXY`` names exceptions.
    Raises:
        InvalidValue: the proxy's URL cannot work.
    """
    parts = urlsplit(url)
    if parts.hostname is None or unix_path(url) is not None:
        return None
    if configured is None:
        if proxy_bypass(parts.netloc.rpartition("@")[2]):
            return None
        proxies = getproxies()
        configured = proxies.get("https" if parts.scheme in ("wss", "https") else "http") or proxies.get("all")
    return Proxy.parse(configured) if configured else None


class WebSocket:
    """An open WebSocket. One task receives, one task sends."""

    def __init__(self, stream: ByteStream, protocol: ClientProtocol) -> None:
        self._stream = stream
        self._protocol = protocol
        self._frames = Frames(protocol, MAX_FRAME, os.urandom)
        self._head = b""
        self._arrived: list[bytes] = []
        self._sending = anyio.Lock()
        self._quiet = self._patience = math.inf
        self._asked = False
        self._silent = False
        self.challenge: str | None = None

    @classmethod
    async def connect(
        cls, relay_url: str, *, tls: ssl.SSLContext | None = None, proxy: str | None = None
    ) -> "WebSocket":
        """Open a WebSocket to a relay. The caller sets the deadline.

        Args:
            relay_url: ``ws://`` or ``wss://``, without the path, or ``ws+unix:///`` with that of a Unix socket.
            tls: context for ``wss``; the system's trust store when ``None``.
            proxy: as for :func:`proxy_for`.
        Raises:
            TransportError: it cannot be reached; the message says what failed where.
        """
        if (path := unix_path(relay_url)) is not None:
            url = websocket_url("ws://localhost")
            stream: ByteStream = await _open_unix(path)
        else:
            url = websocket_url(relay_url)
            stream = await _open_stream(url, tls, proxy_for(url, proxy))
        protocol = ClientProtocol(parse_uri(url), max_size=MAX_FRAME, logger=_SILENT)
        socket = cls(stream, protocol)
        try:
            await socket._handshake(relay_url)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return socket

    async def _handshake(self, relay_url: str) -> None:
        with _translated(relay_url):
            self._protocol.send_request(self._protocol.connect())
            await self._flush()
            more = True
            while more and self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
                more = await self._read()
                for event in self._protocol.events_received():
                    if isinstance(event, Response):
                        self._take_challenge(event)
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            said = bytes(error.response.body or b"")[:_LONGEST_SAID].decode("ascii", "replace").strip()
            words, status = f" ({said})" if said.isprintable() and said else "", error.response.status_code
            raise TransportError(
                f"{relay_url} answered HTTP {status}{words} instead of opening a WebSocket: "
                + ("it has no room for us at the moment" if status in _BUSY else "is it the relay's address, no path?")
            ) from error
        if isinstance(error, InvalidHandshake):
            raise TransportError(f"{relay_url} speaks no WebSocket: {error}") from error
        if error is not None or self._protocol.state is State.CONNECTING:
            raise TransportError(f"{relay_url} closed the connection during the handshake") from error

    def _take_challenge(self, response: Response) -> None:
        found = response.headers.get_all(CHALLENGE_HEADER)
        if len(found) > 1 or any(len(one) > _MAX_CHALLENGE for one in found):
            raise TransportError("the relay sent several challenges, or an endless one: it is none of ours")
        self.challenge = found[0] if found else None

    def watch(self, quiet: float, patience: float) -> None:
        """Notice a connection that is gone without a word: a cut cable, a stopped process, a router that forgot us.

        Only a task that receives notices; while nobody does, silence means nothing.

        Args:
            quiet: seconds without a byte after which the relay is sent a ping.
            patience: seconds it then has to send anything at all, before the connection counts as ended.
        """
        self._quiet, self._patience = quiet, patience

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send text frames, all in one write.

        Raises:
            Closed: the connection has ended; what was not written is lost with it.
        """
        async with self._sending:
            if self._protocol.state is not State.OPEN:
                raise self._closed()
            try:
                await self._flush()
                await self._stream.send(self._frames.write(messages))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                raise self._closed() from error

    async def receive(self) -> list[bytes]:
        """All text messages that have arrived, at least one.

        Raises:
            Closed: the connection has ended, with the peer's code or 1006.
        """
        while True:
            messages, self._arrived = self._arrived, []
            await self._answer()
            if messages:
                return messages
            if self._frames.in_pieces:
                raise Closed(_ABNORMAL, f"the relay cuts messages into more than {MAX_FRAGMENTS} pieces")
            if self._broken or self._protocol.close_rcvd is not None or self._protocol.state is State.CLOSED:
                raise self._closed()  # nothing follows a close frame; whether TCP lingers is the server's business
            if not await self._read():
                raise self._closed()

    async def _answer(self) -> None:
        """Send what the protocol wants to say by itself (pongs, the answer to a close)."""
        try:
            self._sending.acquire_nowait()
        except anyio.WouldBlock:
            return  # whoever is sending flushes ours too; waiting here could stop both directions
        try:
            await self._flush_quietly()
        finally:
            self._sending.release()

    async def say_goodbye(self, code: int = 1000) -> None:
        """Start an orderly close; whoever receives sees it end."""
        async with self._sending:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(code)
                await self._flush_quietly()

    async def abort(self) -> None:
        """Let go at once; whoever receives sees it end."""
        await anyio.aclose_forcefully(self._stream)

    async def close(self, code: int = 1000) -> None:
        """Say goodbye, wait for the answer, let go: for the task that receives, when it has stopped to.

        The caller sets the deadline; cancelling lets go at once.
        """
        try:
            await self.say_goodbye(code)
            while not self._broken and self._protocol.close_rcvd is None and await self._read():
                self._arrived.clear()
        finally:
            await anyio.aclose_forcefully(self._stream)

    async def _read(self) -> bool:
        """Take bytes from the socket. Returns whether there will be more."""
        data = b""
        try:
            with anyio.move_on_after(self._patience if self._asked else self._quiet):
                data = await self._stream.receive(_READ_SIZE)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._protocol.receive_eof()
            return False
        if data:
            self._asked = False
            self._take(data)
            return True
        if self._asked or self._protocol.state is not State.OPEN:
            self._silent = True
            return False
        self._asked = True
        self._protocol.send_ping(b"")
        await self._answer()
        return True

    def _take(self, data: bytes) -> None:
        if self._protocol.state is State.CONNECTING:
            # Frames may follow the handshake's answer at once: the protocol is to see the answer, and nothing more.
            end = (self._head + data).find(_HEAD_ENDS)
            answered = len(data) if end < 0 else end + len(_HEAD_ENDS) - len(self._head)
            self._head = (self._head + data)[-3:]
            self._protocol.receive_data(data[:answered])
            data = data[answered:]
            if not data:
                return
            if self._protocol.state is State.CONNECTING:
                self._protocol.receive_data(data)
                return
        self._arrived += self._frames.receive(data)

    async def _flush(self) -> None:
        while chunks := [chunk for chunk in self._protocol.data_to_send() if chunk]:
            await self._stream.send(b"".join(chunks))

    async def _flush_quietly(self) -> None:
        try:
            await self._flush()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._protocol.receive_eof()

    @property
    def _broken(self) -> bool:
        """Whether the relay has broken the rules: what it goes on sending, perhaps for ever, means nothing any more."""
        return self._protocol.parser_exc is not None and self._protocol.close_sent is not None

    def _closed(self) -> Closed:
        if self._silent:
            return Closed(_ABNORMAL, f"no sign of life for {self._quiet + self._patience:g} s")
        if self._broken and (told := self._protocol.close_sent) is not None:
            return Closed(_ABNORMAL, f"the relay broke the rules of WebSocket: {told.code} {told.reason}")
        code = self._protocol.close_rcvd.code if self._protocol.close_rcvd else _ABNORMAL
        reason = self._protocol.close_rcvd.reason if self._protocol.close_rcvd else ""
        return Closed(code, reason)


async def _open_unix(path: str) -> ByteStream:
    with _translated(f"the Unix socket {path}"):
        return await anyio.connect_unix(path)


async def _open_stream(url: str, tls: ssl.SSLContext | None, proxy: Proxy | None) -> ByteStream:
    parts = urlsplit(url)
    host = parts.hostname
    if host is None:
        raise InvalidValue(f"{url!r} names no host")
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    with _translated(f"{host}:{port}" + (f" through the proxy {proxy}" if proxy else ""), proxy):
        stream: ByteStream
        if proxy is None:
            stream = await anyio.connect_tcp(host, port)
        else:
            stream = (await _tunnel(proxy, tls).connect(host, port)).anyio_stream
        if parts.scheme == "wss":
            context = tls or ssl.create_default_context()
            try:
                return await TLSStream.wrap(stream, hostname=host, ssl_context=context, standard_compatible=False)
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise
    return stream


def _tunnel(proxy: Proxy, tls: ssl.SSLContext | None) -> Tunnel:
    username, password = proxy.credentials or (None, None)
    return Tunnel(
        ProxyType.SOCKS5 if proxy.scheme.startswith("socks") else ProxyType.HTTP,
        proxy.host,
        proxy.port,
        username,
        password,
        rdns=True,
        proxy_ssl=(tls or ssl.create_default_context()) if proxy.scheme == "https" else None,
    )


@contextmanager
def _translated(where: str, proxy: Proxy | None = None) -> Iterator[None]:
    """Turn what sockets, TLS and proxies raise into one error that says what failed where."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise TransportError(
            f"{where} shows a certificate that is not trusted ({error.verify_message}): pass the right CA as tls"
        ) from error
    except ssl.SSLError as error:
        if (error.reason or "").endswith(_CERTIFICATE_ALERTS):
            raise TransportError(
                f"{where} wants a client certificate, one that it trusts ({error.reason}): pass it in tls (--cert)"
            ) from error
        raise TransportError(f"{where} speaks no TLS we understand: {error.reason or error}") from error
    except anyio.EndOfStream as error:
        raise TransportError(
            f"{where} ends the connection instead of speaking TLS: is it ws:// and http://?"
        ) from error
    except (ProxyConnectionError, ProxyTimeoutError) as error:
        raise TransportError(f"the proxy {proxy} cannot be reached: {error}; {PROXY_ADVICE}") from error
    except ProxyError as error:
        raise TransportError(f"no way to {where}: the proxy says {str(error) or 'nothing'}; {PROXY_ADVICE}") from error
    except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise TransportError(f"{where} cannot be reached: {str(error) or type(error).__name__}") from error
