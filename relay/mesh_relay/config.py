"""How a relay is set up: frozen values, read from a mapping. Reads no environment itself."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from meshlib.errors import InvalidValue
from meshlib.serving.certificates import TlsFiles
from meshlib.serving.unix import MODE

Durability = Literal["relaxed", "strict"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

ENV_PREFIX = "MESH_RELAY_"
MEMORY_STORE = ":memory:"


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of the relay. Sizes in bytes, times in seconds, rates per second.

    Each can be set by environment: ``frame_size`` is ``MESH_RELAY_FRAME_SIZE``, and so on.
    """

    frame_size: int = 1024 * 1024
    """One frame as it travels. A larger one is discarded while it arrives and answered with an error frame."""
    first_frame_size: int = 16 * 1024
    """The connect frame, which anybody may send: tokens reach a few KiB."""
    id_length: int = 128
    """Characters of a message id; UUIDs have 36."""

    proof_seconds: float = 10.0
    """From accepting a socket to its proof of possession."""
    idle_seconds: float = 90.0
    """Silence after which a socket is closed with 4004. Any WebSocket frame, pings and pongs included, ends silence."""
    ping_seconds: float = 30.0
    """Silence after which the relay pings, which a living client's library answers. Without it SDK clients that only
    listen would be closed every 90 s: they send nothing by themselves. ``inf``: never."""
    close_seconds: float = 3.0
    """How long a closing socket may take to finish."""
    skew_seconds: float = 300.0
    """How far a proof's timestamp may be from the relay's clock, either way."""

    unproven: int = 2048
    """Sockets that have not proved themselves. One more, and the one waiting longest is closed."""
    connections: int = 100_000
    """Sockets in all. Above it new ones are closed as soon as they are accepted."""
    accept_rate: float = 5000.0
    """New sockets for the whole relay; the rest wait in the kernel's backlog, so a restarted fleet comes in evenly."""
    accept_burst: float = 10_000.0
    address_rate: float = 50.0
    """New sockets per remote address (IPv6: /64 network). Above it sockets are answered 429 and closed."""
    address_burst: float = 500.0
    bad_proof_rate: float = 1.0
    """Refused proofs per remote address; above it new sockets of the address are answered 429 and closed."""
    bad_proof_burst: float = 60.0
    address_frame_rate: float = 5_000.0
    """Frames per remote address, over all its agents: identities are free, addresses are not, and one client looks at
    some 6,000 unwelcome frames a second. Above it the relay reads more slowly from there; nothing is dropped."""
    address_frame_burst: float = 20_000.0
    address_knock_rate: float = 200.0
    """Of these, knocks."""
    address_knock_burst: float = 5_000.0
    addresses: int = 100_000
    """Remote addresses whose use is remembered. One more, and the one that came longest ago starts anew."""
    tls_rate: float = 1000.0
    """TLS handshakes for the whole relay, about half a millisecond each; more wait for their turn."""
    tls_burst: float = 50.0
    """Of these at once: for as long, agents that are connected already wait."""
    frame_rate: float = 150_000.0
    """Frames per agent, acks of what it got left out: others have sent that. Above it the relay reads more slowly from
    that agent; nothing is dropped."""
    frame_burst: float = 300_000.0
    knock_rate: float = 100.0
    """Of these, knocks: each costs its recipient agreements and an answer. An honest agent knocks once per peer."""
    knock_burst: float = 2_000.0

    outgoing_high: int = 1024 * 1024
    """Bytes waiting for a slow reader before its frames go to the inbox only."""
    outgoing_low: int = 256 * 1024
    """Bytes still waiting when the inbox is read again for it."""
    page_frames: int = 2048
    """Frames read from the inbox at a time, per recipient; and at most ``page_bytes``, which usually are fewer. Small
    pages cost a transaction, and changes between two threads, for a few frames each."""
    page_bytes: int = 1024 * 1024
    uncommitted_bytes: int = 64 * 1024 * 1024
    """Accepted and not yet on disk. Above it the relay reads more slowly from senders."""

    pair_frames: int = 100_000
    """Stored from one sender for one recipient."""
    pair_bytes: int = 64 * 1024 * 1024
    recipient_frames: int = 200_000
    """Stored for one recipient."""
    recipient_bytes: int = 256 * 1024 * 1024
    sender_frames: int = 200_000
    """Stored from one sender for whomever, so that one agent does not fill the relay for all."""
    sender_bytes: int = 512 * 1024 * 1024
    sender_recipients: int = 10_000
    """Recipients for whom something of one sender is stored."""
    total_frames: int = 2_000_000
    """Stored in all."""
    total_bytes: int = 8 * 1024 * 1024 * 1024
    live_frames: int = 256
    """Unacked frames up to which a connected recipient that is up to date gets more, whatever its senders or the relay
    have stored."""
    live_bytes: int = 2 * 1024 * 1024

    acked_memory: int = 400_000
    """Frames remembered after their ack, so that a sender's retransmission is not delivered a second time."""
    acked_each: int = 10_000
    """Of these, of one recipient, so that nobody makes the relay forget what others have acked."""
    acked_seconds: float = 300.0
    """For how long, at least; under load the numbers above are used up sooner."""
    credentials: int = 1_000_000
    """DIDs whose key is pinned or that have proved themselves on a challenge. Who would be one more is told to try
    again later: admitted and not remembered, it could be impersonated."""
    proofs: int = 200_000
    """Bare-timestamp proofs remembered for as long as they would be fresh. One more, and who answers no challenge is
    told to try again later."""
    proofs_each: int = 64
    """Of these, of one DID: it may connect that often in five minutes."""

    commit_seconds: float = 0.003
    """How long an accepted frame may wait for others to share its commit."""
    free_bytes: int = 32 * 1024 * 1024
    """Left on the disk of the store; below it the relay is not ready. The write-ahead log alone takes 16 MiB."""
    sweep_seconds: float = 60.0
    """Between two searches for expired frames."""
    sweep_frames: int = 2000
    """Expired frames deleted in one transaction."""
    handshake_seconds: float = 60.0
    """A knock, accept or reject counts as handled when its socket, of a client that acks only messages, has shown
    life this long after it got the frame."""


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """What ``mesh-relay serve`` needs to know."""

    host: str = "127.0.0.1"
    port: int | None = 8083
    """0 lets the system choose; the listening line names it. None: no TCP at all."""
    unix: Path | None = None
    """Listen on a Unix socket at this path, too; without a host or port named, there only. Without TLS."""
    unix_mode: int = MODE
    """Who may connect to it."""
    tls_cert: Path | None = None
    """The certificate to show, and those between it and the root. None: no TLS."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Require certificates of whoever connects, signed by one of these."""
    store: str = MEMORY_STORE
    """Path of the SQLite database, or ``:memory:``: then nothing survives a restart."""
    allow_legacy: bool = False
    """Admit DIDs outside ``did:mesh:`` without proof, until they have shown a key once."""
    exempt_loopback: bool = True
    """Exempt loopback from the limits per address: a reverse proxy on this machine is one address for all clients."""
    durability: Durability = "relaxed"
    """``relaxed`` forwards at once and commits within milliseconds; ``strict`` commits, synced to disk, first."""
    ttl: float = 72 * 3600.0
    """Seconds a frame is kept for its recipient."""
    drain_seconds: float = 0.0
    """Seconds between a signal to stop and the first goodbye, during which the relay is not ready and works on: a load
    balancer needs them to send new agents elsewhere."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_mapping(cls, environment: Mapping[str, str], **given: object) -> "RelayConfig":
        """Read ``MESH_RELAY_*``; ``given`` values that are not None (the command line's) win.

        Raises:
            InvalidValue: a value is not of its type, out of range, or not one of the choices.
        """
        settings: dict[str, object] = {"store": default_store(environment)}
        for option in dataclasses.fields(cls):
            if (text := environment.get(ENV_PREFIX + option.name.upper())) is not None:
                settings[option.name] = text
        settings |= {name: value for name, value in given.items() if value is not None}
        settings["limits"] = Limits(
            **{
                limit.name: _number(limit.name, text, whole=limit.type is int)
                for limit in dataclasses.fields(Limits)
                if (text := environment.get(ENV_PREFIX + limit.name.upper())) is not None
            }
        )
        if "unix" in settings and not settings.keys() & {"host", "port"}:
            settings["port"] = None
        for name, read in _READERS.items():
            if settings.get(name) is not None:
                settings[name] = read(name, settings[name])
        if ("tls_cert" in settings) != ("tls_key" in settings):
            raise InvalidValue("tls_cert and tls_key belong together")
        if "tls_client_ca" in settings and "tls_cert" not in settings:
            raise InvalidValue("tls_client_ca needs tls_cert and tls_key")
        return cls(**settings)  # type: ignore[arg-type]  # every value has passed its reader

    @property
    def tls(self) -> TlsFiles | None:
        """What TLS is to be spoken with, if it is."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)


def default_store(environment: Mapping[str, str]) -> str:
    """Where the database goes when nobody says: the service manager's state directory, else the user's.

    ``$STATE_DIRECTORY/relay.db`` (systemd), ``$XDG_STATE_HOME/mesh/relay.db``, ``$HOME/.local/state/mesh/relay.db``,
    and ``mesh-relay.db`` here when there is no home.
    """
    if directory := environment.get("STATE_DIRECTORY"):
        return str(Path(directory.split(":")[0]) / "relay.db")
    if directory := environment.get("XDG_STATE_HOME"):
        return str(Path(directory) / "mesh" / "relay.db")
    if home := environment.get("HOME"):
        return str(Path(home) / ".local" / "state" / "mesh" / "relay.db")
    return "mesh-relay.db"


def _number(name: str, value: object, *, whole: bool = False) -> Any:
    try:
        number = int(str(value)) if whole else float(str(value))
    except ValueError:
        number = -1
    if not 0 < number < 1e18:
        raise InvalidValue(f"{name} is a positive {'whole number' if whole else 'number'}, not {value!r}")
    return number


def _seconds(name: str, value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise InvalidValue(f"{name} is a number of seconds, not {value!r}")
    return seconds


def _port(name: str, value: object) -> int:
    if not str(value).isdecimal() or not int(str(value)) < 65536:
        raise InvalidValue(f"{name} is a number from 0 to 65535, not {value!r}")
    return int(str(value))


def _path(name: str, value: object) -> Path:
    if not str(value):
        raise InvalidValue(f"{name} is a path, and not empty")
    return Path(str(value))


def _mode(name: str, value: object) -> int:
    try:
        mode = int(str(value), 8)
    except ValueError:
        mode = -1
    if not 0 < mode <= 0o777:
        raise InvalidValue(f"{name} is an octal number such as 660, not {value!r}")
    return mode


def _flag(name: str, value: object) -> bool:
    text = str(value).lower()
    if text not in _FLAGS:
        raise InvalidValue(f"{name} is true or false, not {value!r}")
    return _FLAGS[text]


def _choice(*choices: str) -> Callable[[str, object], str]:
    def read(name: str, value: object) -> str:
        if value not in choices:
            raise InvalidValue(f"{name} is one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return read


_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "": False,
}
_READERS: dict[str, Callable[[str, object], object]] = {
    "port": _port,
    "unix": _path,
    "unix_mode": _mode,
    "tls_cert": _path,
    "tls_key": _path,
    "tls_client_ca": _path,
    "allow_legacy": _flag,
    "exempt_loopback": _flag,
    "ttl": _number,
    "drain_seconds": _seconds,
    "durability": _choice(*get_args(Durability)),
    "log_level": _choice(*get_args(LogLevel)),
    "log_format": _choice(*get_args(LogFormat)),
}
