"""RegistryClient: :mod:`meshlib.wire.registry` over ``httpx``, on asyncio and on trio.

Owns retries, deadlines, authentication headers and the registry's clock. Leaves bytes and their meaning to the wire
module, and whether to believe an answer to its caller.
"""

import logging
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self, cast

import anyio
import httpx

from meshlib.client.transport import PROXY_ADVICE, proxy_for
from meshlib.crypto.keys import X25519Public
from meshlib.errors import RegistryRefused, TransportError
from meshlib.identity import Identity
from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp, unix_path

Prepare = Callable[[str], wire.Request]
"""Builds a request for the ISO timestamp it is signed at."""

SKEW_WORTH_CORRECTING = 30.0
"""Seconds. Proofs are valid for five minutes either way, and ``Date`` has a resolution of one second."""

LARGEST_CORRECTION = 3600.0
"""Seconds. A registry that lies about the time obtains signatures over another time, usable then: so the correction
reaches a forgotten time-zone setting and no further."""


@dataclass(frozen=True)
class RegistryOptions:
    """How to talk to a registry."""

    timeout: float = 10.0
    """Seconds for one attempt, answer included."""
    max_retries: int = 2
    """Further attempts after no answer or a 5xx."""
    retry_delay: float = 0.25
    """Seconds before the first retry; doubled before each further one."""
    bound_requests: bool = True
    """Also sign method, target and body of each request. Upstream ignores the header."""
    tls: ssl.SSLContext | None = None
    """Own certificate authority or client certificate. None: the system's trust store."""
    proxy: str | None = None
    """``http://``, ``https://``, ``socks5://`` or ``socks5h://`` URL. None: what the environment says; ``""``: none."""


def http_client(options: RegistryOptions, url: str) -> httpx.AsyncClient:
    """The HTTP client the options describe, for the server at ``url``. It trusts what the system trusts, as our
    WebSocket does, and takes the same proxy. Its requests start with :func:`http_base`.

    Raises:
        InvalidValue: the proxy's URL cannot work.
    """
    context = ssl.create_default_context() if options.tls is None else options.tls
    proxy = proxy_for(url, options.proxy)
    through = None
    if proxy is not None:
        secure = context if proxy.scheme == "https" else None
        logging.getLogger("httpcore.socks").addFilter(_without_password)
        through = httpx.Proxy(str(proxy), auth=proxy.credentials, ssl_context=secure)
    path = unix_path(url)
    return httpx.AsyncClient(
        verify=context,
        proxy=through,
        transport=None if path is None else httpx.AsyncHTTPTransport(uds=path),
        trust_env=False,  # what the environment says of proxies is in, and passwords of .netrc are for nobody here
        timeout=options.timeout,
        follow_redirects=False,  # a signature is for the registry it was made for
        headers={"accept-encoding": "identity"},  # a few compressed bytes may unfold into gigabytes
    )


def _without_password(record: logging.LogRecord) -> bool:
    """At DEBUG the library would log what it shows a SOCKS proxy."""
    return "setup_socks5_connection" not in record.getMessage()


def http_base(url: str) -> str:
    """What URLs of requests to the server at ``url`` start with."""
    return url if unix_path(url) is None else "http://localhost"


class RegistryClient:
    """The registry's requests as methods. Used inside ``async with``, or closed by :meth:`aclose`.

    Every method raises :class:`~meshlib.errors.TransportError` when no answer came, after the retries, and
    :class:`~meshlib.errors.RegistryRefused` when the registry said no.
    """

    def __init__(
        self,
        base_url: str,
        *,
        signer: wire.Signer | None = None,
        options: RegistryOptions = RegistryOptions(),
        http: httpx.AsyncClient | None = None,
        utc: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            base_url: the registry's address, a path prefix included; one slash at its end is dropped. Or
                ``http+unix:///`` with the path of a Unix socket.
            signer: who authenticates the requests. None: all are anonymous.
            http: used instead of a client of our own, and left open.
            utc: seconds since the Unix epoch.
            sleep: waits between retries.
        """
        self.base_url = base_url.removesuffix("/")
        self.signer = signer
        self.options = options
        self.clock_skew: float | None = None
        """Seconds the registry's clock is ahead of ours, as of its last answer; None before the first."""
        self._shown = self.base_url.rpartition("@")[2]  # what stands before an @ may be a password
        self._correction = 0.0
        self._proxy = None if http is not None else proxy_for(self.base_url, options.proxy)
        self._http = http_client(options, self.base_url) if http is None else http
        self._owns_http = http is None
        self._utc = utc
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections that are kept for reuse."""
        if self._owns_http:
            await self._http.aclose()

    # --- about oneself ----------------------------------------------------------------------------------------------

    async def register(
        self,
        identity: Identity,
        capabilities: Sequence[str] = (),
        metadata: Mapping[str, object] = wire.NO_METADATA,
        *,
        did: str | None = None,
    ) -> wire.Registration:
        """Register with proof of possession. That the agent is registered already counts as success.

        Args:
            did: what to call the agent should the registry not say; the key's DID by default.
        """
        known_as = identity.did if did is None else did

        def prepare(name_did: bool) -> Prepare:
            return lambda now: wire.register(identity, now, capabilities, metadata, name_did=name_did)

        answer = await self._call(prepare(False), proves=True)
        if wire.wants_did(answer):
            answer = await self._call(prepare(True), proves=True)
        return wire.read_registration(answer, known_as, key=identity.public_key)

    async def register_legacy(
        self,
        did: str,
        key: X25519Public,
        capabilities: Sequence[str] = (),
        metadata: Mapping[str, object] = wire.NO_METADATA,
    ) -> wire.Registration:
        """Register as agt-4 does: a chosen DID and an X25519 key, no proof."""
        request = wire.register_legacy(did, key, capabilities, metadata)
        return wire.read_registration(await self._call(lambda _: request), did)

    async def update(
        self, did: str, capabilities: Sequence[str] | None = None, metadata: Mapping[str, object] | None = None
    ) -> wire.AgentRecord:
        """Change one's own capabilities or metadata. Only our registry can."""
        request = wire.update(did, capabilities, metadata)
        return wire.read_agent(await self._call(lambda _: request), did)

    async def upload_prekeys(
        self, did: str, upload: wire.PrekeyUpload, mode: wire.PrekeyMode = "replace"
    ) -> int | None:
        """Publish prekeys; gives the number of one-time keys now there, if the registry says."""
        request = wire.upload_prekeys(did, upload, mode)
        return wire.read_upload(await self._call(lambda _: request))

    async def delete_agent(self, did: str) -> None:
        """Remove one's registration. That there is none is fine."""
        wire.read_done(await self._call(lambda _: wire.delete_agent(did)), did, absent_is_fine=True)

    async def heartbeat(self, did: str) -> None:
        """Say that the agent is there; at most once in ten seconds."""
        wire.read_done(await self._call(lambda _: wire.heartbeat(did)), did)

    async def verify_agent(self, did: str, token: str) -> None:
        """Ask for the tier ``verified`` with a token of the registry's identity provider."""
        wire.read_done(await self._call(lambda _: wire.verify_agent(did, token)), did)

    # --- about others -----------------------------------------------------------------------------------------------

    async def get_agent(self, did: str) -> wire.AgentRecord:
        """What the registry says about an agent, or :class:`~meshlib.errors.AgentNotFound`."""
        return wire.read_agent(await self._call(lambda _: wire.get_agent(did)), did)

    async def fetch_prekeys(self, did: str) -> wire.PublishedBundle:
        """A peer's prekeys, not yet checked, or :class:`~meshlib.errors.AgentNotFound`."""
        return wire.read_bundle(await self._call(lambda _: wire.fetch_prekeys(did)), did)

    async def discover(
        self, capability: str, limit: int = wire.DEFAULT_DISCOVER_LIMIT
    ) -> tuple[wire.DiscoveredAgent, ...]:
        """Agents with exactly this capability; a display name is one."""
        return wire.read_discovered(await self._call(lambda _: wire.discover(capability, limit)))

    async def presence(self, did: str) -> wire.Presence:
        """When an agent was last seen, or :class:`~meshlib.errors.AgentNotFound`."""
        return wire.read_presence(await self._call(lambda _: wire.presence(did)), did)

    async def rate(self, did: str, score: float, reason: str = "") -> float | None:
        """Rate another agent from 0 to 1; gives its reputation afterwards."""
        request = wire.reputation(did, score, reason)
        return wire.read_reputation(await self._call(lambda _: request), did)

    async def report_session(self, report: wire.SessionReport) -> None:
        """Report how a session ended that we took part in."""
        answer = await self._call(lambda _: wire.report_session(report))
        wire.read_done(answer, report.receiver)

    # --- plumbing ---------------------------------------------------------------------------------------------------

    async def _call(self, prepare: Prepare, *, proves: bool = False) -> wire.Answer:
        """Send a request; should the registry call our proof stale, learn its time and send it once more."""
        answer = await self._attempts(prepare)
        if answer.status == 401 and (proves or self.signer is not None) and self._adopt_registry_time():
            answer = await self._attempts(prepare)
        return self._explained(answer)

    async def _attempts(self, prepare: Prepare) -> wire.Answer:
        # Every attempt sends the same bytes, so that a registry which has done the work already recognises the
        # repetition: a replaced set of prekeys is not replaced again by keys that peers have taken meanwhile.
        now = timestamp(self._utc() + self._correction)
        request = prepare(now)
        headers = wire.headers(request, self.signer, now, bound=self.options.bound_requests)
        for attempt in range(self.options.max_retries):
            try:
                answer = await self._attempt(request, headers)
                if answer.status < 500:
                    return answer
            except TransportError:
                pass
            await self._sleep(self.options.retry_delay * 2**attempt)
        return await self._attempt(request, headers)

    async def _attempt(self, request: wire.Request, headers: list[tuple[str, str]]) -> wire.Answer:
        url = http_base(self.base_url) + request.target
        started = self._utc()
        try:
            with anyio.fail_after(self.options.timeout):
                async with self._http.stream(request.method, url, headers=headers, content=request.body) as response:
                    if response.status_code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED and self._proxy is not None:
                        raise httpx.ProxyError("it wants another user or password")
                    self._measure_clock(response.headers.get("date"), started)
                    if response.headers.get("content-encoding", "identity") != "identity":
                        raise RegistryRefused(response.status_code, "the answer is compressed, which nobody asked for")
                    body = bytearray()
                    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as chunks:
                        async for chunk in chunks:
                            body += chunk
                            if len(body) > wire.MAX_ANSWER:
                                raise RegistryRefused(response.status_code, "the answer is too long to be one")
                    return wire.Answer(response.status_code, bytes(body))
        except TimeoutError as error:
            raise TransportError(
                f"the registry at {self._shown} gave no answer within {self.options.timeout:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise TransportError(
                f"the registry at {self._shown} cannot be reached: {str(error) or type(error).__name__}"
            ) from error

    def _unreachable(self, error: httpx.HTTPError) -> TransportError:
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) and self.base_url.startswith("https:"):
            reason += "; does it want a client certificate, passed in tls (--cert)?"
        if self._proxy is None:
            return TransportError(f"the registry at {self._shown} cannot be reached: {reason}")
        return TransportError(
            f"no way to the registry at {self._shown} through the proxy {self._proxy}: {reason}; {PROXY_ADVICE}"
        )

    def _measure_clock(self, date: str | None, started: float) -> None:
        if date is None:
            return
        try:
            moment = parsedate_to_datetime(date)
            theirs = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError):  # no date, one beyond the calendar, or nothing like it
            return
        ours = (started + self._utc()) / 2
        self.clock_skew = theirs + 0.5 - ours  # Date drops the fraction of its second

    def _adopt_registry_time(self) -> bool:
        skew = self.clock_skew
        if skew is None or abs(skew) > LARGEST_CORRECTION or abs(skew - self._correction) < SKEW_WORTH_CORRECTING:
            return False
        self._correction = skew
        return True

    def _explained(self, answer: wire.Answer) -> wire.Answer:
        """Say so when a 401 comes together with a wrong clock, because nothing else in the answer will."""
        skew = self.clock_skew
        if answer.status != 401 or skew is None or abs(skew) < SKEW_WORTH_CORRECTING:
            return answer
        direction = "behind" if skew > 0 else "ahead of"
        raise RegistryRefused(
            401,
            f"{wire.detail(answer)}; this computer's clock is {abs(skew):.0f} s {direction} the registry's: set it",
        )
