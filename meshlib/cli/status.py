"""``mesh status``: registry, relay, identity, store, and how this agent is, at a glance."""

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import anyio

from meshlib.cli.exits import Exit
from meshlib.cli.messages import duration
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console, Style, visible
from meshlib.cli.servers import Health, health, http_form
from meshlib.cli.stored import stored_core, stored_stats
from meshlib.client.core import ClientCore
from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.client.stats import ClientStats, Trouble
from meshlib.daemon.address import socket_path
from meshlib.daemon.client import DaemonClient
from meshlib.daemon.values import Standing
from meshlib.errors import AgentNotFound, DaemonNotRunning, IdentityInUse, InvalidValue, MeshError, StoreError
from meshlib.identity import Did

_PATIENCE = 5.0
_SHOWN_TROUBLES = 3


def status(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Ask everyone once and show what they said."""
    settings = settings_from(arguments, environment)
    core, holder, trouble = _stored(settings)

    async def main() -> tuple[Health, Health, str, Standing | None, ClientStats | None]:
        daemon, stats = await _daemon(settings)
        registry = await health(settings, settings.registry_url)
        relay = await health(settings, http_form(settings.relay_url))
        known = Did(daemon.did) if daemon else core.profile.did if core else None
        registered = await _registered(settings, known) if known and registry.up else ""
        return registry, relay, registered, daemon, stats

    registry, relay, registered, daemon, stats = anyio.run(main)
    did = daemon.did if daemon else str(core.profile.did) if core else None
    stats = stats or (stored_stats(core) if core else None)
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
            stats=None if stats is None else asdict(stats),
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
            [["         " + (holder or trouble or ("free" if core else "no identity yet: mesh identity create"))]]
        )
        if daemon is not None:
            link = console.paint("connected", Style.GOOD) if daemon.connected else console.paint("offline", Style.BAD)
            console.say(f"  {'daemon':<9} {link}   {daemon.relay}")
            console.table([["", "      ", f"{daemon.connections} connections, {daemon.undelivered} undelivered"]])
        if stats is not None:
            _show(console, stats, running=daemon is not None)
    return Exit.OK if registry.up and relay.up and not trouble else Exit.FAILED


def _show(console: Console, stats: ClientStats, *, running: bool) -> None:
    facts = [(name, text, Style.DIM) for name, text in (*_standing(stats), *(_counted(stats) if running else ()))]
    facts += [("trouble", _told(one), Style.WARN) for one in stats.troubles[-_SHOWN_TROUBLES:]]
    for number, (name, text, style) in enumerate(facts):
        console.say(f"  {'' if number else 'agent':<9} {console.paint(name.ljust(9), style)} {visible(text)}")


def _standing(stats: ClientStats) -> Iterator[tuple[str, str]]:
    """How it stands, whether or not a client runs."""
    age = "" if stats.oldest_undelivered is None else f", the oldest for {duration(stats.oldest_undelivered)}"
    yield "backlog", f"{stats.outbox} undelivered{age}; {stats.inbox} not confirmed, {stats.held} not readable yet"
    yield "sessions", _listed(stats.peers) or "no peers yet"
    published = stats.one_time_keys_published
    yield "keys", f"{stats.one_time_keys} unused" + ("" if published is None else f", {published} at the registry")


def _counted(stats: ClientStats) -> Iterator[tuple[str, str]]:
    """What has passed since the client was entered."""
    ends = f"; ended {_listed(stats.disconnects)}" if stats.disconnects else ""
    failed = f"; {stats.connect_failures} attempts failed" if stats.connect_failures else ""
    yield "link", f"up for {duration(stats.uptime)}, connected {stats.connects} times{ends}{failed}"
    yield "sent", f"{_size(stats.bytes_sent)}: {_listed(stats.frames_sent)}"
    yield "received", f"{_size(stats.bytes_received)}: {_listed(stats.frames_received)}"
    if stats.receipts:
        yield "receipts", _listed(stats.receipts)
    if stats.saves:
        yield "saves", f"{stats.saves}, {1000 * stats.save_seconds / stats.saves:.1f} ms each"
    for name, counts in (("refused", stats.refusals), ("unread", stats.decrypt_failures), ("faults", stats.faults)):
        if counts:
            yield name, _listed(counts)
    if stats.sessions_lost:
        yield "lost", f"{stats.sessions_lost} sessions"


def _told(one: Trouble) -> str:
    return f"{duration(time.time() - one.at)} ago, {one.kind}: {one.detail}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


async def _daemon(settings: Settings) -> tuple[Standing | None, ClientStats | None]:
    """How the daemon of the store is, if one runs, and its client's numbers, if it is of a version that has them."""
    try:
        async with DaemonClient(socket_path(settings.store)) as mesh:
            standing = await mesh.status()
            try:
                return standing, await mesh.stats()
            except InvalidValue:
                return standing, None
    except DaemonNotRunning:
        return None, None


def _stored(settings: Settings) -> tuple[ClientCore | None, str, str]:
    """What the store holds, who uses it, and what is wrong with it."""
    try:
        return stored_core(settings), "", ""
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
