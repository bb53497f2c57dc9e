"""The conversation between a daemon and those who use it: a JSON object per line, without any I/O.

    daemon                                                                    client
    {"hello":1,"did":"did:mesh:…"}                                    →
                                        ←  {"call":7,"verb":"request","with":{"peer":"bob",…}}
    {"note":7,"value":{"state":"running",…}}                          →
    {"return":7,"value":{"content":"4",…}}                            →
    {"raise":8,"type":"AgentNotFound","text":"…","facts":{…}}         →
                                                                      ←  {"cancel":9}

The daemon greets first. Each call is answered once, by ``return`` or ``raise``, a cancelled one too: with what came
first, its answer or the cancellation. Errors travel as type, text and facts, and are raised as the same type.
Loads nothing besides the standard library: plugins run in interpreters whose packages are not ours to choose.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import isclass
from typing import Any

from meshlib import errors
from meshlib.daemon.values import NAMES, VERBS, Call, read, write
from meshlib.errors import InvalidValue, MalformedFrame, MeshError

VERSION = 1
"""Raised when one side could misunderstand the other. Members may be added without."""
MAX_LINE = 4 * 1024 * 1024
"""Bytes of a line. A payload has at most 700 KiB; in letters outside ASCII it triples, because those are escaped."""
CANCELLED = "Cancelled"
"""The type that answers a call that was cancelled."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who is here. First on every connection."""

    version: int
    did: str


@dataclass(frozen=True, slots=True)
class Called:
    """Something is asked. ``id`` is new on its connection."""

    id: int
    call: Call[object]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the answer any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Noted:
    """News about a call that goes on."""

    id: int
    value: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Returned:
    """The answer, as JSON: who asked knows its type."""

    id: int
    value: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Raised:
    """Why there is no answer."""

    id: int
    type: str
    text: str
    facts: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, id: int, error: MeshError) -> "Raised":  # noqa: A002 - the name of the member
        """An error, ready to travel. Only types of :mod:`meshlib.errors` keep their name."""
        known = next(one.__name__ for one in type(error).__mro__ if one.__name__ in _ERRORS)
        facts = {name: _fact(value) for name, value in vars(error).items() if not name.startswith("_")}
        return cls(id, known, str(error), facts)

    @property
    def error(self) -> MeshError:
        """The exception that was raised at the other end."""
        kind = _ERRORS.get(self.type, MeshError)
        error = kind.__new__(kind, self.text)  # not by its own __init__: the text is there already
        for name, value in self.facts.items():
            if name.isidentifier() and not hasattr(error, name):
                setattr(error, name, tuple(value) if isinstance(value, list) else value)
        return error


Frame = Hello | Called | Cancel | Noted | Returned | Raised

_ERRORS: dict[str, type[MeshError]] = {
    name: value for name, value in vars(errors).items() if isclass(value) and issubclass(value, MeshError)
}


def _fact(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_fact(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


# --- frames and lines ------------------------------------------------------------------------------------------------


def encode(frame: Frame) -> bytes:
    """A frame as a line, ASCII only.

    Raises:
        InvalidValue: a payload has no JSON form, or the line would be longer than :data:`MAX_LINE`.
    """
    try:
        line = json.dumps(_members(frame), separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue("a payload has no JSON form") from error
    if len(line) > MAX_LINE:
        raise InvalidValue(f"a line to or from the daemon has at most {MAX_LINE} bytes, this one {len(line)}")
    return line


def _members(frame: Frame) -> dict[str, object]:
    match frame:
        case Hello():
            return {"hello": frame.version, "did": frame.did}
        case Called():
            return {"call": frame.id, "verb": NAMES[type(frame.call)], "with": write(frame.call)}
        case Cancel():
            return {"cancel": frame.id}
        case Noted():
            return {"note": frame.id, "value": write(frame.value)}
        case Returned():
            return {"return": frame.id, "value": write(frame.value)}
        case Raised():
            return {"raise": frame.id, "type": frame.type, "text": frame.text, "facts": frame.facts}


def decode(line: bytes) -> Frame:
    """The frame of a line.

    Raises:
        MalformedFrame: it is none. ``id`` is the call's id when that much could be read, so that it can be answered.
    """
    try:
        members = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame("a line is not JSON") from error
    if not isinstance(members, dict):
        raise MalformedFrame("a line is no JSON object")
    for name, reading in _READERS.items():
        number = members.get(name)
        if type(number) is int and 0 <= number < 2**53:
            try:
                return reading(number, members)
            except MalformedFrame as error:
                raise MalformedFrame(f"a frame {name!r} is impossible: {error}", id=str(number)) from error
    raise MalformedFrame("a line is no frame of this protocol")


def _read_call(number: int, members: dict[str, Any]) -> Frame:
    verb = members.get("verb")
    call = VERBS.get(verb) if isinstance(verb, str) else None
    if call is None:
        raise MalformedFrame("no such verb; are both of the same version of meshlib?")
    return Called(number, read(call, members.get("with")))


def _read_raise(number: int, members: dict[str, Any]) -> Frame:
    facts = members.get("facts", {})
    if not isinstance(facts, dict):
        raise MalformedFrame("facts are an object")
    return Raised(number, read(str, members.get("type")), read(str, members.get("text")), facts)


_READERS: dict[str, Callable[[int, dict[str, Any]], Frame]] = {
    "call": _read_call,
    "return": lambda number, members: Returned(number, members.get("value")),
    "raise": _read_raise,
    "note": lambda number, members: Noted(number, members.get("value")),
    "cancel": lambda number, _: Cancel(number),
    "hello": lambda number, members: Hello(number, read(str, members.get("did"))),
}


class Lines:
    """Cuts what arrives into lines."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends.

        Raises:
            MalformedFrame: a line is longer than the limit.
        """
        start = len(self._rest)
        self._rest += data
        lines = []
        taken = 0
        while (end := self._rest.find(b"\n", max(start, taken))) >= 0:
            lines.append(bytes(self._rest[taken:end]))
            taken = end + 1
        del self._rest[:taken]
        if len(self._rest) > self._limit or any(len(line) > self._limit for line in lines):
            raise MalformedFrame(f"a line has more than {self._limit} bytes")
        return lines
