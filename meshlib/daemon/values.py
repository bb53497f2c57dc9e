"""What is asked of a daemon, and what it answers, as values. Loads nothing besides the standard library.

Owns their members and checking them; leaves lines and frames to :mod:`meshlib.daemon.protocol`. A call names the type
of its answer, so that both sides read it by the same rules.
"""

import base64
import binascii
import math
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin

from meshlib.client.stats import ClientStats, Sighting
from meshlib.errors import InvalidValue, MalformedFrame

T_co = TypeVar("T_co", covariant=True)

MAX_DEPTH = 512
"""Arrays and objects of a payload inside each other, as on the wire between agents."""


# --- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """What has become of a message of ours; see :class:`meshlib.Receipt`."""

    id: str
    peer: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that was handed over to this connection, and is its to confirm."""

    sender: str
    id: str
    payload: object = field(repr=False)
    encrypted: bool = True
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """An agent as the registry lists it."""

    did: str
    capabilities: tuple[str, ...] = ()
    online: bool | None = None
    last_seen: float | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A file an answer speaks of; see :class:`meshlib.wire.envelopes.Artifact`."""

    name: str
    path: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost, by the word of who gave it; see :class:`meshlib.wire.envelopes.Telemetry`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    rounds: int = 0
    tool_calls: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What a peer answered; see :class:`meshlib.Answer`."""

    peer: str
    request_id: str
    content: str = field(repr=False)
    artifacts: tuple[File, ...] = ()
    telemetry: Cost = Cost()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progressed:
    """Where a task stands; see :class:`meshlib.Progress`."""

    peer: str
    request_id: str
    state: str
    elapsed: float = 0.0
    tick: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a file has come; see :class:`meshlib.FileReceipt`."""

    id: str
    peer: str
    name: str
    size: int
    state: str
    moved: int = 0
    detail: str = ""
    reason: str = ""
    saved_to: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """A peer at a glance; see :class:`meshlib.PeerSummary`."""

    did: str
    name: str | None = None
    verified: bool = False
    undelivered: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How the daemon is."""

    did: str
    name: str | None
    connected: bool
    """Whether the relay takes our frames right now."""
    features: tuple[str, ...]
    """Extensions the relay knows; without ``receipts`` no message gets beyond ``relayed``."""
    relay: str
    registry: str
    pid: int
    command: str
    """The program that runs the daemon."""
    connections: int
    """Processes that use it, the one that asks included."""
    undelivered: int


# --- calls -----------------------------------------------------------------------------------------------------------


class Call(Generic[T_co]):
    """Something asked of a daemon. The parameter is what it answers."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Send(Call[Sent]):
    """Put a message into the outbox, and wait until it has come as far as ``wait``."""

    peer: str
    payload: object = field(repr=False)
    wait: str | None = None
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Follow(Call[Sent]):
    """Wait until a message of ours has come as far as ``state``, or can come no further."""

    message: str
    state: str = "delivered"


@dataclass(frozen=True, slots=True)
class Receive(Call[Taken | None]):
    """Take the next message, of one of ``senders`` if they are given; nothing when none came for ``timeout`` s."""

    senders: tuple[str, ...] | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Confirm(Call[None]):
    """A message this connection holds has been dealt with."""

    sender: str
    message: str


@dataclass(frozen=True, slots=True)
class GiveBack(Call[None]):
    """A message this connection holds is somebody else's to deal with."""

    sender: str
    message: str


@dataclass(frozen=True, slots=True)
class Resolve(Call[str]):
    """The DID of a display name."""

    peer: str


@dataclass(frozen=True, slots=True)
class Discover(Call[tuple[Listed, ...]]):
    """Agents that publish a capability."""

    capability: str
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Request(Call[Answered]):
    """Have a peer do something, and wait for its answer. Progress is noted as :class:`Progressed`."""

    peer: str
    content: str = field(repr=False)
    timeout: float = 1500.0
    hops: int = 0


@dataclass(frozen=True, slots=True)
class SendFile(Call[Moved]):
    """Send a file, which the daemon reads by itself: ``path`` is absolute."""

    peer: str
    path: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class FollowFile(Call[Moved]):
    """Wait until a file is over. Progress is noted as :class:`Moved`."""

    file: str


@dataclass(frozen=True, slots=True)
class CancelFile(Call[None]):
    """Stop a file."""

    file: str


@dataclass(frozen=True, slots=True)
class Peers(Call[tuple[Known, ...]]):
    """Everybody we have talked to."""


@dataclass(frozen=True, slots=True)
class Stats(Call[ClientStats]):
    """The numbers of the client that owns the identity."""


@dataclass(frozen=True, slots=True)
class Trace(Call[tuple[Sighting, ...]]):
    """Where a message stands."""

    message: str


@dataclass(frozen=True, slots=True)
class Status(Call[Standing]):
    """How the daemon is."""


@dataclass(frozen=True, slots=True)
class Stop(Call[None]):
    """End the daemon in order."""


VERBS: dict[str, type[Call[object]]] = {
    "send": Send,
    "follow": Follow,
    "receive": Receive,
    "ack": Confirm,
    "give_back": GiveBack,
    "resolve": Resolve,
    "discover": Discover,
    "request": Request,
    "send_file": SendFile,
    "follow_file": FollowFile,
    "cancel_file": CancelFile,
    "peers": Peers,
    "stats": Stats,
    "trace": Trace,
    "status": Status,
    "stop": Stop,
}
"""Calls by their name on the socket."""
NAMES = {call: verb for verb, call in VERBS.items()}


def read_answer(call: Call[T_co], members: object) -> T_co:
    """The answer to a call, from JSON.

    Raises:
        MalformedFrame: it is none.
    """
    answer: T_co = read(get_args(type(call).__orig_bases__[0])[0], members)  # type: ignore[attr-defined]
    return answer


# --- values and JSON -------------------------------------------------------------------------------------------------


def write(value: object) -> Any:
    """A value as JSON. Members of type ``object`` are payloads.

    Raises:
        InvalidValue: a payload has no JSON form.
    """
    if isinstance(value, tuple):
        return [write(one) for one in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {
        one.name: _write_payload(getattr(value, one.name)) if one.type is object else write(getattr(value, one.name))
        for one in fields(value)
    }


def read(kind: Any, value: object) -> Any:
    """A value of type ``kind`` from JSON. Members that are not known are passed over.

    Raises:
        MalformedFrame: it is of another type, or lacks a member.
    """
    if kind is object:
        return _read_payload(value)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise MalformedFrame("an object is missing")
        missing = object()
        members = {one.name: (one.type, value.get(one.name, missing)) for one in fields(kind)}
        try:
            made: Any = kind
            return made(**{name: read(type_, got) for name, (type_, got) in members.items() if got is not missing})
        except TypeError as error:
            raise MalformedFrame("a member is missing") from error
    if get_origin(kind) is UnionType:
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
        return None if value is None else read(kind, value)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(read(get_args(kind)[0], one) for one in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {read(get_args(kind)[0], name): read(get_args(kind)[1], one) for name, one in value.items()}
    if kind is float and type(value) is int and abs(value) <= 2**53:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise MalformedFrame("a member is of the wrong type")
    return value


def _write_payload(value: object) -> object:
    """A payload as JSON: bytes as between agents; the rest is checked, since ``json`` changes what it should refuse."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"raw_b64": base64.b64encode(bytes(value)).decode()}
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return value
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                if not all(isinstance(key, str) for key in one):
                    raise InvalidValue("keys of JSON objects are text")
                below.extend(one.values())
            elif isinstance(one, list | tuple):
                below.extend(one)
            elif not isinstance(one, str | bool | int | float | NoneType):
                raise InvalidValue(f"a {type(one).__name__} has no JSON form")
        level = below
    raise InvalidValue(f"JSON nested deeper than {MAX_DEPTH} levels")


def _read_payload(value: object) -> object:
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("raw_b64"), str):
        try:
            return binascii.a2b_base64(value["raw_b64"], strict_mode=True)
        except ValueError:
            return value
    return value
