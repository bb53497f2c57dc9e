"""How a registry is set up: command line first, then environment, then defaults. Reads nothing by itself.

Every option ``--some-name`` has the environment variable ``MESH_REGISTRY_SOME_NAME``.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from mesh_registry.core import Policy
from mesh_registry.oidc import Issuer
from meshlib.buckets import Rate
from meshlib.serving.certificates import TlsFiles

ENVIRONMENT_PREFIX = "MESH_REGISTRY_"
MEMORY = ":memory:"
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one HTTP connection. Sizes in bytes, times in seconds. ``head_size`` is ``MESH_REGISTRY_HEAD_SIZE``.

    What a request may hold is bounded in :mod:`mesh_registry.bodies`, how often it may be made by :class:`Config`.
    """

    head_size: int = 32 * 1024
    """Request line and headers. Ours have under 1 KiB; proxies and browsers add some more."""
    head_seconds: float = 20.0
    """From the connection, or the first byte of a later request, to the end of its headers."""
    body_seconds: float = 15.0
    """A client may take to send a body."""
    unread_seconds: float = 20.0
    """A client may leave more than the transport's 64 KiB of answers unread."""
    pipelined: int = 8
    """Requests that may wait for the answer to an earlier one on the same connection. HTTP clients wait themselves."""
    address_connections: int = 500
    """Connections at a time of one address (IPv6: /64 network), so that no single one uses up ``max_connections``.
    Trusted proxies are exempt, and so is loopback unless ``--no-exempt-loopback``."""
    address_handshake_rate: float = 50.0
    """TLS handshakes a second of one address, with the same exemptions; connections beyond it are closed before theirs.
    Each takes half a millisecond, so that an address can take a fortieth of our core."""
    address_handshake_burst: float = 500.0
    """Of these at once: as many as an address may have connections."""
    handshakes: int = 200
    """Handshakes under way at a time, a quarter of a MiB each. One more, and the oldest is given up."""


@dataclass(frozen=True)
class Config:
    """Everything ``mesh-registry serve`` can be told."""

    host: str
    port: int | None
    """0 lets the system choose; the line on stdout says which. None: no TCP at all."""
    unix: Path | None
    """Listen on a Unix socket at this path, without TLS."""
    unix_mode: int
    """Who may connect to it."""
    tls: TlsFiles | None
    """What TLS is spoken with on TCP. None: none."""
    store: Path | None
    """The SQLite file. None keeps everything in memory, gone at exit."""
    policy: Policy
    issuer: Issuer | None
    """Whose tokens earn the tier ``verified``."""
    max_agents: int
    max_connections: int
    """Connections at a time; beyond it answers are 503."""
    exempt_loopback: bool
    """Whether loopback is exempt from limits per address: a reverse proxy there is one address for all."""
    trusted_proxies: str
    """Addresses whose ``X-Forwarded-For`` is believed, comma-separated; ``*`` for all. Empty: none."""
    drain_seconds: float
    """Seconds between a signal to stop and the end, during which the registry is not ready and works on: a load
    balancer needs them to send requests elsewhere."""
    log_level: LogLevel
    log_format: LogFormat
    limits: Limits = field(default_factory=Limits)


def default_store(environment: Mapping[str, str]) -> Path:
    """Where the store lives if nobody says: the user's state folder, so that it does not depend on where one stands."""
    state = environment.get("XDG_STATE_HOME") or ""
    base = Path(state) if state.startswith("/") else Path(environment.get("HOME") or ".") / ".local" / "state"
    return base / "mesh-registry" / "registry.db"


def parse(arguments: Sequence[str], environment: Mapping[str, str], version: str) -> Config:
    """The configuration; a wrong one ends the program with status 2 and a sentence, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="mesh-registry",
        description="The registry agents find each other by.",
        epilog=f"Each option can also be set by an environment variable: --log-level is {ENVIRONMENT_PREFIX}LOG_LEVEL.",
    )
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve")
    serve = commands.add_parser("serve", help="serve until SIGTERM or SIGINT")
    _add_options(serve, environment)
    chosen = parser.parse_args(arguments)
    if bool(chosen.oidc_issuer) != bool(chosen.oidc_audience):
        serve.error("--oidc-issuer and --oidc-audience belong together")
    if bool(chosen.tls_cert) != bool(chosen.tls_key):
        serve.error("--tls-cert and --tls-key belong together")
    if chosen.tls_client_ca and not chosen.tls_cert:
        serve.error("--tls-client-ca needs --tls-cert and --tls-key")
    somewhere = chosen.host is not None or chosen.port is not None
    return Config(
        host=chosen.host or "127.0.0.1",
        port=None if chosen.unix and not somewhere else 8082 if chosen.port is None else chosen.port,
        unix=Path(chosen.unix) if chosen.unix else None,
        unix_mode=chosen.unix_mode,
        tls=_tls(chosen.tls_cert, chosen.tls_key, chosen.tls_client_ca),
        store=None if chosen.store == MEMORY else Path(chosen.store) if chosen.store else default_store(environment),
        policy=Policy(
            allow_legacy=chosen.allow_legacy,
            verify_tokens=bool(chosen.oidc_issuer),
            discoverable_for=chosen.discoverable_days * 86_400.0,
            expire_after=chosen.expire_days * 86_400.0,
            registrations=chosen.registrations_per_address,
            keys_per_target=chosen.keys_per_target,
            keys_per_requester=chosen.keys_per_requester,
            lookups=chosen.lookups_per_requester,
        ),
        issuer=Issuer(chosen.oidc_issuer, chosen.oidc_audience) if chosen.oidc_issuer else None,
        max_agents=chosen.max_agents,
        max_connections=chosen.max_connections,
        exempt_loopback=chosen.exempt_loopback,
        trusted_proxies=chosen.trusted_proxies,
        drain_seconds=chosen.drain_seconds,
        log_level=chosen.log_level,
        log_format=chosen.log_format,
        limits=_limits(serve, environment),
    )


def _limits(serve: argparse.ArgumentParser, environment: Mapping[str, str]) -> Limits:
    chosen: dict[str, float] = {}
    for limit in fields(Limits):
        name = ENVIRONMENT_PREFIX + limit.name.upper()
        if (text := environment.get(name)) is not None:
            try:
                chosen[limit.name] = _count(text) if limit.type is int else _number(text)
            except argparse.ArgumentTypeError as error:
                serve.error(f"{name}: {error}")
    return Limits(**chosen)  # type: ignore[arg-type]  # whole numbers where they must be


def _add_options(serve: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    def preset(name: str, default: str) -> str:
        return environment.get(ENVIRONMENT_PREFIX + name.upper().replace("-", "_"), default)

    # argparse passes text defaults through the option's type, so what the environment says is checked as well.
    serve.add_argument("--host", default=preset("host", "") or None, help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=_port, default=preset("port", "") or None, help="(8082) 0: any free one")
    serve.add_argument(
        "--unix", default=preset("unix", ""), metavar="PATH", help="a Unix socket; with --host or --port beside TCP"
    )
    serve.add_argument("--unix-mode", type=_mode, default=preset("unix-mode", "660"), help="who may connect to it")
    serve.add_argument(
        "--tls-cert",
        default=preset("tls-cert", ""),
        metavar="FILE",
        help="speak TLS with this certificate chain, read anew on SIGHUP",
    )
    serve.add_argument("--tls-key", default=preset("tls-key", ""), metavar="FILE", help="its key")
    serve.add_argument(
        "--tls-client-ca",
        default=preset("tls-client-ca", ""),
        metavar="FILE",
        help="require client certificates signed by these",
    )
    serve.add_argument(
        "--store",
        default=preset("store", ""),
        help=f"SQLite file; {MEMORY} keeps nothing (default: in the state folder)",
    )
    serve.add_argument(
        "--allow-legacy",
        action=argparse.BooleanOptionalAction,
        default=_flag(preset("allow-legacy", "")),
        help="admit agt-4 agents, which prove nothing, outside did:mesh:",
    )
    serve.add_argument("--discoverable-days", type=_number, default=preset("discoverable-days", "30"))
    serve.add_argument(
        "--expire-days", type=_number, default=preset("expire-days", "90"), help="silent agents are forgotten then"
    )
    serve.add_argument(
        "--registrations-per-address",
        type=_rate,
        default=preset("registrations-per-address", "1000/10"),
        metavar="BURST/PER_SECOND",
        help="behind a reverse proxy all have its address, unless --trusted-proxies names it",
    )
    serve.add_argument(
        "--keys-per-target",
        type=_rate,
        default=preset("keys-per-target", "100/2"),
        metavar="BURST/PER_SECOND",
        help="one-time keys handed out per agent",
    )
    serve.add_argument(
        "--keys-per-requester", type=_rate, default=preset("keys-per-requester", "2000/50"), metavar="BURST/PER_SECOND"
    )
    serve.add_argument(
        "--lookups-per-requester",
        type=_rate,
        default=preset("lookups-per-requester", "5000/200"),
        metavar="BURST/PER_SECOND",
        help="discovery, agents and presence asked for by one address or agent",
    )
    serve.add_argument("--oidc-issuer", default=preset("oidc-issuer", ""), help="identity provider for verification")
    serve.add_argument("--oidc-audience", default=preset("oidc-audience", ""))
    serve.add_argument("--max-agents", type=_count, default=preset("max-agents", "1000000"))
    serve.add_argument("--max-connections", type=_count, default=preset("max-connections", "10000"))
    serve.add_argument(
        "--exempt-loopback",
        action=argparse.BooleanOptionalAction,
        default=_flag(preset("exempt-loopback", "true")),
        help="whether bounds on connections per address leave out loopback, as a reverse proxy needs (they do)",
    )
    serve.add_argument("--trusted-proxies", default=preset("trusted-proxies", ""), help="believed for X-Forwarded-For")
    serve.add_argument(
        "--drain-seconds",
        type=_seconds,
        default=preset("drain-seconds", "0"),
        help="after a signal, be not ready for as long before closing",
    )
    serve.add_argument(
        "--log-level", type=_one_of("debug", "info", "warning", "error"), default=preset("log-level", "info")
    )
    serve.add_argument("--log-format", type=_one_of("text", "json"), default=preset("log-format", "text"))


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port")


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if 0 < mode <= 0o777:
        return mode
    raise argparse.ArgumentTypeError(f"{text!r} is no octal number such as 660")


def _tls(certificate: str, key: str, client_ca: str) -> TlsFiles | None:
    if not certificate:
        return None
    return TlsFiles(Path(certificate), Path(key), Path(client_ca) if client_ca else None)


def _count(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 2**31:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no positive number")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if 0 < number < 1e6:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is no positive number")


def _seconds(text: str) -> float:
    return 0.0 if text == "0" else _number(text)


def _rate(text: str) -> Rate:
    burst, _, per_second = text.partition("/")
    return Rate(_number(burst), _number(per_second))


def _flag(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


def _one_of(*choices: str) -> "type[str]":
    def check(text: str) -> str:
        if text.lower() in choices:
            return text.lower()
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")

    return check  # type: ignore[return-value]
