"""What a client can be told: frozen values in small groups. Nothing here reads the environment or the disk."""

import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from meshlib.client.events import KnockReceived
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import InvalidValue
from meshlib.identity import Did, Identity, parse_did
from meshlib.proxies import Proxy
from meshlib.wire.encoding import unix_path

KnockPolicy = Callable[[KnockReceived], bool | Awaitable[bool]]
"""Decides whether a peer who knocks may talk to us. A coroutine function may take its time: the knock waits."""


def accept_everyone(knock: KnockReceived) -> bool:
    """Talk to whoever knows our name."""
    return True


def refuse_everyone(knock: KnockReceived) -> bool:
    """Talk only to those we knock at ourselves."""
    return False


def accept_only(*peers: str) -> KnockPolicy:
    """Talk to the named DIDs and nobody else."""
    if not all(isinstance(peer, str) for peer in peers):
        raise InvalidValue("accept_only takes DIDs one by one: accept_only(*peers), not accept_only(peers)")
    allowed = frozenset(parse_did(peer) for peer in peers)
    return lambda knock: knock.peer in allowed


FilePolicy = Callable[[Did], bool]
"""Decides whether a peer may put files into our folder; asked once per file."""


def files_from_everyone(peer: Did) -> bool:
    """Take files of whoever may talk to us."""
    return True


def files_from(*peers: str) -> FilePolicy:
    """Take files of the named DIDs and nobody else."""
    if not all(isinstance(peer, str) for peer in peers):
        raise InvalidValue("files_from takes DIDs one by one: files_from(*peers), not files_from(peers)")
    allowed = frozenset(parse_did(peer) for peer in peers)
    return lambda peer: peer in allowed


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait before giving up on one step."""

    connect: float = 10.0
    """TCP, TLS, proxy and WebSocket handshake together."""
    proof: float = 10.0
    """The relay's verdict on our proof, where it gives one."""
    silent_relay: float = 1.0
    """How long a relay that announces no features may stay silent before its silence counts as consent."""
    registry: float = 10.0
    """One registry request."""
    policy: float = 30.0
    """A knock policy's answer; silence counts as no."""
    silence: float = 15.0
    """A sign of life of a relay that was pinged after ``heartbeat`` seconds without one."""
    close: float = 5.0
    """An orderly goodbye."""


@dataclass(frozen=True)
class Limits:
    """Bounds of everything a peer or a caller can make grow."""

    sessions_per_peer: int = 4
    """One in use, one crossing it, and two to read stragglers of sessions a restart left behind."""
    candidates_per_peer: int = 4
    """Knocks not yet settled by a message. The newest wins: an honest peer needs one."""
    held_frames_per_peer: int = 5
    """Messages that overtook their knock, as many as the SDK holds."""
    held_peers: int = 100
    """Peers whose messages may overtake their knock at the same time, as in the SDK."""
    held_seconds: float = 3.0
    """How long a message waits for its knock, as in the SDK."""
    missing_seconds: float = 30.0
    """How long a message waits for the one its sender wrote before it, while that may be encrypted anew: after a
    message that was not read, another knock, or a start. Otherwise it is a second, and after a wait in vain nothing."""
    asked_frames_per_peer: int = 256
    """Messages that wait for the answer of a knock policy which takes its time, or for earlier ones."""
    held_bytes: int = 8 * 1024 * 1024
    """What peers chose of frames held over all peers; who holds most makes room. Else 100 could leave 25 GiB."""
    questions_per_peer: int = 2
    """Knocks of one peer a policy is asked about at a time: one, and one of a peer that was restarted meanwhile."""
    strangers: int = 1_000
    """Peers that knocked and have said nothing yet; the oldest are forgotten first."""
    peers: int = 100_000
    """Peers with sessions, some KiB each; those used longest ago are forgotten first, and opened to anew if need be."""
    outbox: int = 10_000
    """Messages that wait for delivery, over all peers. With 1 KiB each about 10 MiB."""
    inbox: int = 1_000
    """Messages taken but not yet confirmed by the application; as many again for each route. Beyond it the relay keeps
    them."""
    seen: int = 100_000
    """Message ids remembered to drop duplicates, over all peers: a day at one message a second."""
    spent_ephemerals: int = 10_000
    """Ephemeral keys of past knocks remembered, so that a knock without one-time key is not replayed."""
    spent_per_peer: int = 200
    """The part of them one peer may fill. Beyond ``spent_ephemerals`` whoever fills most forgets first."""
    knock_burst: int = 20
    """Knocks one peer may send at once. An honest one sends one per restart, and a few more to heal a session."""
    knock_every: float = 10.0
    """Seconds until it may send one more. What is beyond is dropped before it costs an agreement."""
    newcomers_burst: int = 2_000
    """Knocks of peers that have not knocked lately, over all of them: identities are free."""
    newcomers_every: float = 0.01
    """Seconds until one more newcomer is looked at. What is beyond is dropped. An honest one knocks again when the
    relay says that its message came back unread."""
    payload: int = 512 * 1024
    """Bytes of one payload as JSON. Base64 and envelope bring it below the relay's frame limit of 1 MiB."""
    events: int = 1_000
    """Facts nobody has read yet; the oldest are dropped."""

    def __post_init__(self) -> None:
        """Refuse boxes that nothing fits into."""
        for option in ("outbox", "inbox", "payload", "events"):
            if getattr(self, option) < 1:
                raise InvalidValue(f"limits.{option} must be at least 1, not {getattr(self, option)}")


@dataclass(frozen=True)
class Backoff:
    """Reconnecting: full jitter between zero and a ceiling that doubles from ``first`` to ``last`` seconds."""

    first: float = 1.0
    last: float = 60.0
    stable_after: float = 60.0
    """A connection must live this long before the ceiling falls back to ``first``."""


@dataclass(frozen=True)
class Prekeys:
    """How many prekeys are published, and how long they live (seconds)."""

    one_time: int = 50
    top_up_below: int = 10
    rotate_after: float = 7 * 86_400.0
    usable_after_rotation: float = 14 * 86_400.0
    check_every: float = 600.0
    """How often the registry is asked how many one-time keys are left."""
    held: int = 500
    """One-time private keys kept; the oldest go first when peers fetch keys and never knock."""


def _check_url(option: str, url: str, schemes: tuple[str, str]) -> None:
    """Refuse an address that cannot work. No message shows what stands before an ``@``: it may be a password.

    Raises:
        InvalidValue: what is wrong with it, in one sentence.
    """
    if (path := unix_path(url)) is not None and url.startswith(schemes[0]):
        if not path.startswith("/") or path.endswith("/"):
            raise InvalidValue(
                f"{option} is {schemes[0]}+unix:// and an absolute path, as in {schemes[0]}+unix:///run/x"
            )
        return
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidValue(f"{option} is no URL: {error}") from None
    if parts.scheme not in schemes or not url.startswith(f"{parts.scheme}://"):
        first, second = schemes
        shown = url.rpartition("@")[2]
        raise InvalidValue(f"{option} must start with {first}:// or {second}://, which {shown!r} does not")
    if parts.username is not None or parts.password is not None:
        raise InvalidValue(f"{option} holds a user name or password, which would be shown in errors: leave it out")
    if not parts.hostname:
        raise InvalidValue(f"{option} names no host: {url!r}")
    if parts.fragment:
        raise InvalidValue(f"{option} has a fragment, which no server would see: {url!r}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise InvalidValue(f"the port of {option} must be a number from 1 to 65535: {url!r}")


def _check_texts(option: str, value: object) -> None:
    usable = isinstance(value, Collection) and not isinstance(value, str | bytes)
    if not usable or not all(isinstance(one, str) for one in value):  # type: ignore[attr-defined]
        raise InvalidValue(f"{option} must be several texts, as in {option}=('one', 'two'), not {value!r}")


@dataclass(frozen=True)
class ClientConfig:
    """Everything a :class:`meshlib.MeshClient` needs to know.

    Two clients with two configurations live side by side in one process; nothing is shared and nothing is global.
    """

    name: str | None = None
    """Display name: published as first capability, so that peers find the agent by ``discover(name)``."""
    relay_url: str = "ws://127.0.0.1:8083"
    """``ws://`` or ``wss://``; the path ``/ws`` is appended. Or ``ws+unix:///`` with the path of a Unix socket."""
    registry_url: str = "http://127.0.0.1:8082"
    """``http://`` or ``https://``, or ``http+unix:///`` with the path of a Unix socket."""
    store: Path | str | None = None
    """Folder that keeps identity, prekeys, sessions and messages (mode 0700). ``None``: all in memory, gone at exit."""
    passphrase: str | None = field(default=None, repr=False)
    """Seals keys, sessions and messages in the store. Lost, nobody can open it again."""
    identity: Identity | None = None
    """Use this key instead of the store's. ``None``: the store's, or a new one."""
    did: str | None = None
    """Only for agents of the agt-4 dialect, whose DID is chosen freely. ``None``: the DID derived from the key."""
    dialect: Dialect = Dialect.AGT5
    """How we register and prove ourselves. ``AGT4`` talks to a registry and relay that know no proofs."""
    capabilities: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    register: bool = True
    """Register and publish prekeys on connecting. Without it nobody can knock at us."""
    knock_policy: KnockPolicy = accept_everyone
    """Who may open a session with us. The choice is the operator's; a knock of a forged sender never reaches it."""
    incoming: Path | str | None = None
    """Folder for files of peers, made if it is not there. ``None``: files are refused."""
    incoming_quota: int = 8 * 1024**3
    """Bytes that folder may hold; what lies in it counts, whoever put it there."""
    incoming_files: int = 10_000
    """The same, in files."""
    files_from: FilePolicy = files_from_everyone
    """Whose files are taken, if there is a folder: of everyone who may talk to us, or of ``files_from(*dids)``."""
    plaintext_peers: frozenset[str] = frozenset()
    """Peers we exchange unencrypted frames with. Never again once a peer has been verified."""
    peer_dialects: Mapping[str, Dialect] = field(default_factory=lambda: MappingProxyType({}))
    """Overrides how a session with a peer is opened."""
    token: str | None = field(default=None, repr=False)
    """Sent as ``token`` in connect, for relays behind an OAuth gateway."""
    tls: ssl.SSLContext | None = None
    """Own certificate authority or client certificate. ``None``: the system's trust store."""
    proxy: str | None = field(default=None, repr=False)
    """``http://``, ``https://``, ``socks5://`` or ``socks5h://`` URL, with ``user:password@`` if it asks.
    ``None``: what the environment says; ``""``: no proxy at all."""
    heartbeat: float = 30.0
    """Seconds between heartbeats; the relay drops a socket that is silent for 90. The relay's own silence is noticed
    after as long, see ``timeouts.silence``."""
    extensions: bool = True
    """Offer what only our relay and registry know. Both ignore it if they do not."""
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    backoff: Backoff = Backoff()
    prekeys: Prekeys = Prekeys()

    def __post_init__(self) -> None:
        """Refuse at once what cannot work."""
        for option, kind, words in _KINDS:
            if not isinstance(getattr(self, option), kind):
                raise InvalidValue(f"{option} must be {words}, not {type(getattr(self, option)).__name__}")
        for option in ("capabilities", "plaintext_peers"):
            _check_texts(option, getattr(self, option))
        for peer in self.plaintext_peers:
            parse_did(peer)
        if not callable(self.knock_policy):
            raise InvalidValue("knock_policy must be callable: accept_everyone, accept_only(...) or your own function")
        if not callable(self.files_from):
            raise InvalidValue("files_from must be callable: files_from_everyone, files_from(...) or your own function")
        for quota in ("incoming_quota", "incoming_files"):
            if getattr(self, quota) < 0:
                raise InvalidValue(f"{quota} must not be negative")
        _check_url("relay_url", self.relay_url, ("ws", "wss"))
        _check_url("registry_url", self.registry_url, ("http", "https"))
        if self.proxy:
            Proxy.parse(self.proxy)
        if self.did is not None:
            parse_did(self.did)
            if self.dialect is not Dialect.AGT4:
                raise InvalidValue("did can be chosen only with dialect AGT4; others are derived from the key")
        elif self.dialect is Dialect.AGT4:
            raise InvalidValue("dialect AGT4 needs a did outside did:mesh:, for example did:agentmesh:alice")
        if not 0 < self.heartbeat < 90:
            raise InvalidValue("heartbeat must lie between 0 and the relay's limit of 90 seconds")


_KINDS: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("name", (str, type(None)), "text or None"),
    ("relay_url", str, "text"),
    ("registry_url", str, "text"),
    ("store", (str, Path, type(None)), "the path of a folder or None"),
    ("passphrase", (str, type(None)), "text or None"),
    ("incoming", (str, Path, type(None)), "the path of a folder or None"),
    ("incoming_quota", int, "a number of bytes"),
    ("incoming_files", int, "a number of files"),
    ("identity", (Identity, type(None)), "an Identity or None"),
    ("did", (str, type(None)), "text or None"),
    ("dialect", Dialect, "a Dialect"),
    ("metadata", Mapping, "a mapping"),
    ("peer_dialects", Mapping, "a mapping of DIDs to dialects"),
    ("token", (str, type(None)), "text or None"),
    ("tls", (ssl.SSLContext, type(None)), "an ssl.SSLContext or None"),
    ("proxy", (str, type(None)), "text or None"),
    ("heartbeat", (int, float), "a number of seconds"),
    ("timeouts", Timeouts, "a Timeouts"),
    ("limits", Limits, "a Limits"),
    ("backoff", Backoff, "a Backoff"),
    ("prekeys", Prekeys, "a Prekeys"),
)
"""What an option must be. None of these messages shows the value: it may be a secret."""
