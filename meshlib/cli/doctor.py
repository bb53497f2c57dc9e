"""``mesh doctor``: walk the way to registry and relay step by step and say what fails where, and what to do next.

Proofs are made with a throw-away identity: a second connection of the agent's own would throw the running one out.
"""

import os
import ssl
import stat
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import anyio
from anyio.abc import SocketStream
from anyio.streams.tls import TLSAttribute, TLSStream

from meshlib.cli.exits import Exit
from meshlib.cli.options import Settings, settings_from
from meshlib.cli.output import Console, Style, visible
from meshlib.cli.servers import health, http_form
from meshlib.cli.stored import stored_identity
from meshlib.client.mesh import MeshClient
from meshlib.client.registry import SKEW_WORTH_CORRECTING, RegistryClient, RegistryOptions
from meshlib.client.transport import WebSocket, proxy_for
from meshlib.config import Timeouts
from meshlib.errors import AgentNotFound, IdentityInUse, MeshError, RelayRefused, StoreError
from meshlib.identity import Identity
from meshlib.store.database import DATABASE_FILE
from meshlib.wire.encoding import unix_path

PROOF_LIFETIME = 300.0
"""Seconds. A proof signed by a clock that is wrong by more is refused everywhere."""
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_START = "start it (mesh up), or check address, port and firewall"


class Outcome(StrEnum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Step:
    """One step of the way."""

    where: str
    what: str
    outcome: Outcome
    detail: str
    advice: str = ""


class StepFailed(Exception):
    """A step after which the next ones of the same server make no sense."""


_STYLES = {Outcome.OK: Style.GOOD, Outcome.WARNING: Style.WARN, Outcome.FAILED: Style.BAD}


def doctor(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Check everything between this agent and its peers."""
    settings = settings_from(arguments, environment)
    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if not console.json:
            mark = console.paint(f"{step.outcome:<7}", _STYLES[step.outcome])
            console.say(f"  {step.where:<9} {step.what:<13} {mark}  {visible(step.detail)}")
            if step.advice:
                console.say(f"  {'':<32} {console.paint(visible(step.advice), Style.BOLD)}")

    anyio.run(_Examination(settings, arguments.timeout, report).run)
    failed = [step for step in steps if step.outcome is Outcome.FAILED]
    if console.json:
        console.emit(ok=not failed, steps=[asdict(step) for step in steps])
    else:
        first = f"\nfix this first: {failed[0].where}, {failed[0].what}" if failed else "\nall is well"
        console.say(console.paint(first, Style.BAD if failed else Style.GOOD))
    return Exit.FAILED if failed else Exit.OK


class _Examination:
    """The steps, in order; each either goes well or says why not."""

    def __init__(self, settings: Settings, patience: float, report: Callable[[Step], None]) -> None:
        self.settings = settings
        self.patience = patience
        self._report = report

    async def run(self) -> None:
        identity = self._store()
        for steps in (self._registry, self._relay):
            try:
                await steps(identity)
            except StepFailed:
                continue

    def _tell(self, where: str, what: str, detail: str, outcome: Outcome = Outcome.OK, advice: str = "") -> None:
        self._report(Step(where, what, outcome, detail, advice))

    def _fail(self, where: str, what: str, detail: str, advice: str) -> StepFailed:
        self._tell(where, what, detail, Outcome.FAILED, advice)
        return StepFailed(detail)

    # --- this machine ------------------------------------------------------------------------------------------------

    def _store(self) -> Identity | None:
        folder = self.settings.store
        if not (folder / DATABASE_FILE).exists():
            self._tell("store", "identity", f"none in {folder} yet", Outcome.WARNING, "make one: mesh identity create")
            return None
        open_to_others = [str(path) for path in (folder, *folder.iterdir()) if _open_to_others(path)]
        if open_to_others:
            advice = f"chmod -R go= {folder}"
            self._tell("store", "permissions", f"others can read {open_to_others[0]}", Outcome.FAILED, advice)
        else:
            self._tell("store", "permissions", f"{folder} is private")
        try:
            identity = stored_identity(self.settings)
        except IdentityInUse as error:
            self._tell("store", "identity", str(error).partition(":")[0])
            return None
        except StoreError as error:
            self._tell("store", "identity", str(error), Outcome.FAILED, "then run mesh doctor again")
            return None
        if identity is not None:
            self._tell("store", "identity", identity.did)
        return identity

    # --- any server --------------------------------------------------------------------------------------------------

    async def _reach(self, where: str, url: str) -> None:
        """Name, connection and TLS; of the proxy, if there is one, because it does the rest."""
        if (path := unix_path(url)) is not None:
            await self._reach_unix(where, path)
            return
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
        except ValueError:
            host, port = None, 0
        if host is None:
            raise self._fail(where, "address", f"{url} names no host or no possible port", f"correct --{where}")
        proxy = proxy_for(url, self.settings.proxy)
        if proxy is not None:
            host, port = proxy.host, proxy.port
            self._tell(where, "proxy", f"{proxy}, set by --proxy or the environment")
        target = "the proxy" if proxy else f"the {where}"
        await self._resolve(where, host, port, target)
        async with await self._connect(where, host, port, "check the proxy's address" if proxy else _START) as stream:
            if proxy is None and parts.scheme in ("https", "wss"):
                await self._tls(where, stream, parts)

    async def _resolve(self, where: str, host: str, port: int, target: str) -> None:
        try:
            with anyio.fail_after(self.patience):
                found = await anyio.getaddrinfo(host, port)
        except (OSError, TimeoutError, UnicodeError) as error:
            advice = f"check the name of {target}, and this machine's DNS"
            raise self._fail(where, "name", f"{host} cannot be resolved: {_reason(error)}", advice) from error
        self._tell(where, "name", f"{host} is {', '.join(sorted({str(one[4][0]) for one in found}))}")

    async def _reach_unix(self, where: str, path: str) -> None:
        try:
            with anyio.fail_after(self.patience):
                async with await anyio.connect_unix(path):
                    pass
        except (OSError, TimeoutError) as error:
            advice = "start it with --unix, or check the path and who may open it"
            raise self._fail(where, "connection", f"{path}: {_reason(error)}", advice) from error
        self._tell(where, "connection", f"{path} answers")

    async def _connect(self, where: str, host: str, port: int, advice: str) -> SocketStream:
        try:
            with anyio.fail_after(self.patience):
                stream = await anyio.connect_tcp(host, port)
        except (OSError, TimeoutError) as error:
            raise self._fail(where, "connection", f"{host}:{port}: {_reason(error)}", advice) from error
        self._tell(where, "connection", f"{host}:{port} answers")
        return stream

    async def _tls(self, where: str, stream: SocketStream, parts: SplitResult) -> None:
        context = self.settings.tls or ssl.create_default_context()
        try:
            with anyio.fail_after(self.patience):
                secure = await TLSStream.wrap(
                    stream, hostname=parts.hostname, ssl_context=context, standard_compatible=False
                )
        except ssl.SSLCertVerificationError as error:
            advice = "trust its CA with --ca FILE, or have the certificate renewed"
            raise self._fail(where, "TLS", f"the certificate is not trusted: {error.verify_message}", advice) from error
        except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            advice = "does this port speak TLS at all? Without it the address starts with http:// or ws://"
            raise self._fail(where, "TLS", _reason(error), advice) from error
        version = secure.extra(TLSAttribute.tls_version)  # noqa: S610 - no Django
        # With TLS 1.3 a server judges our certificate when for us the handshake is over: its first answer shows it.
        try:
            with anyio.move_on_after(self.patience):
                await secure.send(f"GET /health HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                await secure.receive()
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            advice = "does it want a client certificate? Show one with --cert FILE and --key FILE"
            raise self._fail(where, "TLS", f"it ends the connection: {_reason(error)}", advice) from error
        self._tell(where, "TLS", str(version))

    # --- registry ----------------------------------------------------------------------------------------------------

    async def _registry(self, identity: Identity | None) -> None:
        settings = self.settings
        await self._reach("registry", settings.registry_url)
        said = await health(settings, settings.registry_url)
        if not said.up:
            raise self._fail("registry", "HTTP", said.detail, "check --registry: it is the address without a path")
        self._tell("registry", "HTTP", said.detail or "healthy")
        options = RegistryOptions(timeout=self.patience, max_retries=0, tls=settings.tls, proxy=settings.proxy)
        async with RegistryClient(settings.registry_url, options=options) as registry:
            await self._registration(registry, identity)
            self._clock(registry.clock_skew)

    async def _registration(self, registry: RegistryClient, identity: Identity | None) -> None:
        asked = identity.did if identity else Identity.generate(os.urandom).did
        try:
            agent = await registry.get_agent(asked)
        except AgentNotFound:
            if identity is not None:
                advice = "it registers when it connects: mesh listen"
                self._tell("registry", "registration", "this agent is not registered", Outcome.WARNING, advice)
        except MeshError as error:
            raise self._fail("registry", "registration", str(error), "is it a mesh registry?") from error
        else:
            left = agent.one_time_keys_left
            self._tell("registry", "registration", "known" if left is None else f"known, {left} one-time keys left")

    def _clock(self, skew: float | None) -> None:
        if skew is None:
            return
        detail = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the registry's"
        if abs(skew) >= PROOF_LIFETIME:
            advice = "set this computer's clock (NTP): proofs of a wrong clock are refused"
            self._tell("registry", "clock", detail, Outcome.FAILED, advice)
        elif abs(skew) >= SKEW_WORTH_CORRECTING:
            self._tell("registry", "clock", detail, Outcome.WARNING, "set this computer's clock (NTP)")
        else:
            self._tell("registry", "clock", f"within {SKEW_WORTH_CORRECTING:.0f} s of the registry's")

    # --- relay -------------------------------------------------------------------------------------------------------

    async def _relay(self, _: Identity | None) -> None:
        settings = self.settings
        await self._reach("relay", settings.relay_url)
        said = await health(settings, http_form(settings.relay_url))
        if said.up:
            self._tell("relay", "HTTP", said.detail or "healthy")
        else:
            advice = "WebSockets may work all the same"
            self._tell("relay", "HTTP", f"no /health: {said.detail}", Outcome.WARNING, advice)
        await self._handshake()
        await self._proof()

    async def _handshake(self) -> None:
        settings = self.settings
        try:
            with anyio.fail_after(self.patience):
                socket = await WebSocket.connect(settings.relay_url, tls=settings.tls, proxy=settings.proxy)
        except TimeoutError as error:
            advice = "something on the way holds WebSockets back: a proxy, a gateway?"
            raise self._fail("relay", "WebSocket", f"no answer within {self.patience:g} s", advice) from error
        except MeshError as error:
            advice = "check --relay; a proxy on the way must let WebSockets through (HTTP/1.1 Upgrade)"
            raise self._fail("relay", "WebSocket", str(error), advice) from error
        with anyio.move_on_after(self.patience):
            await socket.close()
        offers = "with a challenge" if socket.challenge else "without a challenge: a relay of another make"
        self._tell("relay", "WebSocket", f"opens, {offers}")

    async def _proof(self) -> None:
        timeouts = Timeouts(connect=self.patience, proof=self.patience)
        stranger = replace(self.settings.client(), store=None, passphrase=None, register=False, timeouts=timeouts)
        try:
            async with MeshClient(stranger) as client:
                features = ", ".join(sorted(client.features)) or "none"
        except RelayRefused as error:
            advice = "check clock and --token" if error.code == 4005 else "ask the relay's operator"
            raise self._fail("relay", "proof", str(error), advice) from error
        except MeshError as error:
            raise self._fail("relay", "proof", str(error), "run mesh doctor again") from error
        self._tell("relay", "proof", f"accepted; extensions: {features}")


def _open_to_others(path: Path) -> bool:
    return os.name == "posix" and bool(stat.S_IMODE(path.lstat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
