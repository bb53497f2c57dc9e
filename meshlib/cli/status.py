"""``mesh status``: registry, relay, identity and store at a glance."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import anyio
import httpx

from meshlib.cli.exits import Exit
from meshlib.cli.identity import stored_identity
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console, Style
from meshlib.client.registry import RegistryClient, RegistryOptions, http_base, http_client
from meshlib.daemon.address import socket_path
from meshlib.daemon.client import DaemonClient
from meshlib.daemon.values import Standing
from meshlib.errors import AgentNotFound, DaemonNotRunning, IdentityInUse, MeshError, StoreError
from meshlib.identity import Did, Identity

_PATIENCE = 5.0
_LARGEST_HEALTH = 64 * 1024
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


def status(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Ask everyone once and show what they said."""
    settings = settings_from(arguments, environment)
    identity, holder, trouble = _identity(settings)

    async def main() -> tuple[Health, Health, str, Standing | None]:
        daemon = await _daemon(settings)
        registry = await health(settings, settings.registry_url)
        relay = await health(settings, http_form(settings.relay_url))
        known = Did(daemon.did) if daemon else identity.did if identity else None
        registered = await _registered(settings, known) if known and registry.up else ""
        return registry, relay, registered, daemon

    registry, relay, registered, daemon = anyio.run(main)
    did = daemon.did if daemon else str(identity.did) if identity else None
    if console.json:
        console.emit(
            registry={
                "url": settings.registry_url,
                "up": registry.up,
                "detail": registry.detail,
                "health": registry.body,
            },
            relay={"url": settings.relay_url, "up": relay.up, "detail": relay.detail, "health": relay.body},
            identity={"did": did, "name": settings.name, "registered": registered or None},
            store={"folder": str(settings.store), "in_use": holder, "trouble": trouble},
            daemon=None if daemon is None else asdict(daemon),
        )
    else:
        servers = [("registry", settings.registry_url, registry), ("relay", settings.relay_url, relay)]
        for role, url, one in servers:
            mark = console.paint("up  ", Style.GOOD) if one.up else console.paint("down", Style.BAD)
            console.say(f"  {role:<9} {mark}   {url}")
            console.table([["", "      ", one.detail]])
        console.say(f"  {'identity':<9} {did or '-'}" + (f"   {registered}" if registered else ""))
        console.say(f"  {'store':<9} {settings.store}")
        console.table(
            [["         " + (holder or trouble or ("free" if identity else "no identity yet: mesh identity create"))]]
        )
        if daemon is not None:
            link = console.paint("connected", Style.GOOD) if daemon.connected else console.paint("offline", Style.BAD)
            console.say(f"  {'daemon':<9} {link}   {daemon.relay}")
            console.table([["", "      ", f"{daemon.connections} connections, {daemon.undelivered} undelivered"]])
    return Exit.OK if registry.up and relay.up and not trouble else Exit.FAILED


async def _daemon(settings: Settings) -> Standing | None:
    """How the daemon of the store is, if one runs."""
    try:
        async with DaemonClient(socket_path(settings.store)) as mesh:
            return await mesh.status()
    except DaemonNotRunning:
        return None


def http_form(relay_url: str) -> str:
    """The relay's address for plain HTTP, where its ``/health`` is."""
    return "http" + relay_url.removeprefix("http").removeprefix("ws")


async def health(settings: Settings, url: str) -> Health:
    """``GET /health`` of a server. Whatever goes wrong becomes the detail."""
    options = RegistryOptions(timeout=_PATIENCE, tls=settings.tls, proxy=settings.proxy)
    try:
        with anyio.fail_after(_PATIENCE):
            async with (
                http_client(options, url) as http,
                http.stream("GET", f"{http_base(url).rstrip('/')}/health") as answer,
            ):
                raw = b""
                async for chunk in answer.aiter_bytes():
                    raw += chunk
                    if len(raw) > _LARGEST_HEALTH:
                        return Health(False, "its answer is too long to be one: is this the right address?")
    except TimeoutError:
        return Health(False, f"no answer within {_PATIENCE:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Health(
            False, f"{str(error) or type(error).__name__}; start it with 'mesh up', or check with 'mesh doctor'"
        )
    if answer.status_code != 200:
        return Health(False, f"HTTP {answer.status_code}: is this the right address?")
    body = _object(httpx.Response(200, content=raw))
    return Health(True, _summary(body), body)


def _object(answer: httpx.Response) -> dict[str, object]:
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _summary(body: dict[str, object]) -> str:
    stats = body.get("stats")
    known = {**body, **(stats if isinstance(stats, dict) else {})}
    return ", ".join(text.format(known[name]) for name, text in _SHOWN.items() if isinstance(known.get(name), int))


def _identity(settings: Settings) -> tuple[Identity | None, str, str]:
    """Identity, who uses it, and what is wrong with the store."""
    try:
        return stored_identity(settings), "", ""
    except IdentityInUse as error:
        return None, str(error).partition(":")[0], ""
    except StoreError as error:
        return None, "", str(error)


async def _registered(settings: Settings, did: Did) -> str:
    options = RegistryOptions(timeout=_PATIENCE, max_retries=0, tls=settings.tls, proxy=settings.proxy)
    async with RegistryClient(settings.registry_url, options=options) as registry:
        try:
            agent = await registry.get_agent(did)
        except AgentNotFound:
            return "not registered yet"
        except MeshError as error:
            return f"registration unknown: {error}"
    left = agent.one_time_keys_left
    return "registered" if left is None else f"registered, {left} one-time keys left"
