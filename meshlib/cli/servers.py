"""What relay and registry say about themselves on ``/health`` and ``/metrics``, for every command that asks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx

from meshlib.cli.options import Settings
from meshlib.client.registry import RegistryOptions, http_base, http_client

PATIENCE = 5.0
"""Seconds a server has to answer."""
LARGEST_HEALTH = 64 * 1024
LARGEST_METRICS = 1024 * 1024
"""Bytes; ours have some 10,000."""
_SHOWN = {
    "connected_agents": "{} connected",
    "agents": "{} agents",
    "registered_agents": "{} agents",
    "messages_routed": "{} routed",
    "messages_stored": "{} stored",
}


@dataclass(frozen=True)
class Health:
    """What a server says about itself."""

    up: bool
    detail: str
    body: dict[str, object] = field(default_factory=dict)


class NoAnswer(Exception):
    """What a server did instead of answering, for people."""


def http_form(relay_url: str) -> str:
    """The relay's address for plain HTTP, where its ``/health`` is."""
    return "http" + relay_url.removeprefix("http").removeprefix("ws")


@asynccontextmanager
async def asking(settings: Settings, url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that reaches the server at ``url`` as the settings say, for one question or many."""
    async with http_client(RegistryOptions(timeout=PATIENCE, tls=settings.tls, proxy=settings.proxy), url) as http:
        yield http


async def fetch(http: httpx.AsyncClient, url: str, page: str, limit: int) -> bytes:
    """The body of a page of the server at ``url``, of at most ``limit`` bytes.

    Raises:
        NoAnswer: there is none.
    """
    raw = b""
    try:
        with anyio.fail_after(PATIENCE):
            async with http.stream("GET", f"{http_base(url).rstrip('/')}{page}") as answer:
                async for chunk in answer.aiter_bytes():
                    raw += chunk
                    if len(raw) > limit:
                        raise NoAnswer("its answer is too long to be one: is this the right address?")
    except TimeoutError as error:
        raise NoAnswer(f"no answer within {PATIENCE:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        detail = f"{str(error) or type(error).__name__}; start it with 'mesh up', or check with 'mesh doctor'"
        raise NoAnswer(detail) from error
    if answer.status_code != 200:
        raise NoAnswer(f"HTTP {answer.status_code}: is this the right address?")
    return raw


async def health(settings: Settings, url: str) -> Health:
    """``GET /health`` of a server. Whatever goes wrong becomes the detail."""
    async with asking(settings, url) as http:
        return await health_of(http, url)


async def health_of(http: httpx.AsyncClient, url: str) -> Health:
    """The same, as one of many questions."""
    try:
        body = _object(await fetch(http, url, "/health", LARGEST_HEALTH))
    except NoAnswer as error:
        return Health(False, str(error))
    return Health(True, _summary(body), body)


def _object(raw: bytes) -> dict[str, object]:
    try:
        body = httpx.Response(200, content=raw).json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _summary(body: dict[str, object]) -> str:
    stats = body.get("stats")
    known = {**body, **(stats if isinstance(stats, dict) else {})}
    return ", ".join(text.format(known[name]) for name, text in _SHOWN.items() if isinstance(known.get(name), int))
