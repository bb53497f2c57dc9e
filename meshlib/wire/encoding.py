"""How values become text on this wire: base64 dialects, JavaScript's JSON, timestamps, ids, addresses.

This module is the only place they are spelled. It prints exactly what the TypeScript SDK prints and reads whatever
the SDK reads (Node.js 20; recorded in vectors/wire/js_encoding.json). It knows nothing about frames.

Reading raises :class:`~meshlib.errors.MalformedFrame`, writing :class:`~meshlib.errors.InvalidValue`, nothing else.
"""

import base64
import binascii
import json
import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, repeat
from json.encoder import encode_basestring as _quote
from typing import Any, NewType
from urllib.parse import quote, unquote

import msgspec

from meshlib.crypto.keys import Entropy
from meshlib.errors import InvalidValue, MalformedFrame

MessageId = NewType("MessageId", str)
"""What names a message, a knock or its answer: a UUID, kept over every retry."""

MAX_DEPTH = 512
"""Arrays and objects inside each other. JavaScript engines take thousands, real payloads have under 20; the bound
keeps a parser's recursion away from the interpreter's own limit, and the vectors go to 500."""

EXACT_INTEGER = 2**53
"""Up to here every integer is a JavaScript number of its own."""

# --- base64 ---------------------------------------------------------------------------------------------------------

_TO_STANDARD = str.maketrans("-_", "+/")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_ATOB_SPACE = re.compile(r"[\t\n\f\r ]")


def b64(data: bytes) -> str:
    """Standard base64 with padding, as frames carry it."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def unb64(text: str) -> bytes:
    """Decode base64 as ``Buffer.from(text, "base64")`` does.

    Either alphabet, padded or not, line breaks and foreign characters skipped, the first ``=`` ends it, a single
    character left over is dropped. So lenient because the SDK is: what the bytes are worth is decided by a length
    check, a signature or an authentication tag, never by their spelling.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)  # what honest peers send: twenty times faster
    except ValueError:
        return _lenient(text)


def _lenient(text: str) -> bytes:
    kept = _NOT_BASE64.sub("", text.partition("=")[0].translate(_TO_STANDARD))
    if len(kept) % 4 == 1:
        kept = kept[:-1]
    return binascii.a2b_base64(kept + "=" * (-len(kept) % 4))


def b64url(data: bytes) -> str:
    """URL-safe base64 without padding, as the registry carries it."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


unb64url = unb64
"""Decode the registry's base64: ``Buffer.from(text, "base64url")`` is as lenient as ``"base64"``."""


def atob(text: str) -> bytes:
    """Decode standard base64 as browsers' ``atob`` does; plaintext frames go through it.

    Raises:
        MalformedFrame: a foreign character (the URL-safe alphabet included), misplaced padding or a length no
            encoding has. ASCII white space and missing padding are fine.
    """
    compact = _ATOB_SPACE.sub("", text)
    if len(compact) % 4 == 0:
        compact = compact.removesuffix("=").removesuffix("=")
    if len(compact) % 4 == 1 or _NOT_BASE64.search(compact):
        raise MalformedFrame("not base64 of the standard alphabet")
    return binascii.a2b_base64(compact + "=" * (-len(compact) % 4))


# --- JSON, as JSON.stringify prints it ------------------------------------------------------------------------------

_ENCODER = msgspec.json.Encoder()
_MESSAGE_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ARRAY_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z", re.ASCII)
_LARGEST_INDEX = 2**32 - 2


def js_json(value: object) -> str:
    """The text ``JSON.stringify(value)`` gives.

    Integer-like keys come first in ascending order, other keys in insertion order; NaN and infinities print
    ``null``; half a surrogate pair prints as an escape, everything else outside ASCII stays as it is.

    Args:
        value: None, bool, int, float, str, and lists, tuples and dicts (with str keys) of these.
    Raises:
        InvalidValue: any other type, nesting deeper than :data:`MAX_DEPTH` (a cycle, say), or an integer no
            JavaScript number equals, because it would arrive as another one.
    """
    if _is_plain(value):
        try:
            return _ENCODER.encode(value).decode()
        except UnicodeEncodeError:
            pass  # half a surrogate pair
    parts: list[str] = []
    write = parts.append
    # A stack of our own instead of recursion: the depth of a payload must not depend on how deep its caller is.
    stack: list[tuple[Iterator[tuple[str, object]], str]] = [(iter([("", value)]), "")]
    while stack:
        entries, closer = stack[-1]
        for prefix, entry in entries:
            write(prefix)
            if not isinstance(entry, list | tuple | dict):
                write(_js_scalar(entry))
                continue
            if len(stack) > MAX_DEPTH:
                raise InvalidValue(f"JSON nested deeper than {MAX_DEPTH} levels")
            if isinstance(entry, dict):
                write("{")
                stack.append((_members(entry), "}"))
            else:
                write("[")
                stack.append((zip(chain([""], repeat(",")), entry, strict=False), "]"))
            break
        else:
            write(closer)
            stack.pop()
    return "".join(parts)


def _is_plain(value: object, levels: int = 4) -> bool:
    """Whether all encoders and decoders agree on a value and its text, as they do on most messages: no number that they
    may print or read otherwise, no key that goes first, nothing deep. Half a surrogate pair they find themselves."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -EXACT_INTEGER <= value <= EXACT_INTEGER  # type: ignore[operator]
    if not levels:
        return False
    if kind is dict:
        for key, entry in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or key[:1].isdigit() or not (type(entry) is str or _is_plain(entry, levels - 1)):
                return False
        return True
    return kind is list and all(_is_plain(entry, levels - 1) for entry in value)  # type: ignore[attr-defined]


def _members(value: dict[object, object]) -> Iterator[tuple[str, object]]:
    comma = ""
    for key in _js_key_order(value):
        yield f"{comma}{js_string(key)}:", value[key]
        comma = ","


def _js_scalar(value: object) -> str:
    if isinstance(value, str):
        return js_string(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _js_integer(value)
    if isinstance(value, float):
        return js_number(value)
    raise InvalidValue(f"a {type(value).__name__} has no JSON form")


def _js_key_order(members: dict[object, object]) -> list[str]:
    indexes: list[str] = []
    others: list[str] = []
    for key in members:
        if not isinstance(key, str):
            raise InvalidValue(f"a {type(key).__name__} is no JSON key: keys are text")
        (indexes if _ARRAY_INDEX.match(key) and int(key) <= _LARGEST_INDEX else others).append(key)
    return sorted(indexes, key=int) + others if indexes else others


def js_string(text: str) -> str:
    """``JSON.stringify`` of a string, quotes included."""
    try:
        return _ENCODER.encode(text).decode()  # the same escapes, five times faster on long texts
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair, or a subclass of str
        joined = _join_surrogates(text)
        return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", _quote(joined))


def _join_surrogates(text: str) -> str:
    """JavaScript strings are UTF-16: two halves next to each other are one character, however they got there."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _js_integer(value: int) -> str:
    if -EXACT_INTEGER <= value <= EXACT_INTEGER:
        return int.__repr__(value)
    try:
        double = float(value)
    except OverflowError:
        double = math.inf
    if double != value:
        raise InvalidValue("an integer beyond 2**53 would arrive as another one: send it as text")
    return js_number(double)


def js_number(value: float) -> str:
    """A double as JavaScript prints it in JSON (ECMA-262, Number::toString): the shortest digits that read back.

    Python agrees on the digits and differs on when to use an exponent.
    """
    if not math.isfinite(value):
        return "null"
    if value == 0:
        return "0"
    text = float.__repr__(value)
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text.removesuffix(".0")
    sign = "-" if value < 0 else ""
    whole, _, fraction = mantissa.removeprefix("-").partition(".")
    digits = whole + fraction
    point = len(whole) + int(exponent)  # the value is 0.digits times ten to this power
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"


# --- JSON, as JSON.parse reads it -----------------------------------------------------------------------------------


def _refuse_constant(name: str) -> float:
    raise MalformedFrame(f"{name} is not JSON")


def _parse_integer(text: str) -> int | float:
    if len(text) < 16:
        return int(text)
    double = float(text)  # JavaScript has doubles only; digits beyond them are lost there as well
    return int(double) if math.isfinite(double) else double


_QUICK_DECODER = msgspec.json.Decoder()
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_integer)


def parse_json(data: bytes | str) -> Any:
    """Read JSON as ``JSON.parse`` does; bytes first pass through ``new TextDecoder().decode``.

    The last of equal keys wins, integers beyond 2**53 round to doubles, ``1e400`` is infinite. From bytes one byte
    order mark is dropped and invalid UTF-8 becomes U+FFFD. Text may hold lone surrogates, as JavaScript's may.

    Raises:
        MalformedFrame: not JSON, or nested deeper than :data:`MAX_DEPTH`.
    """
    try:
        value = _QUICK_DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _parse_carefully(data)
    return value if _is_plain(value) else _parse_carefully(data)


def _parse_carefully(data: bytes | str) -> Any:
    """Read whatever the quick decoder refuses, or may read as another value than ``JSON.parse`` does."""
    text = data if isinstance(data, str) else data.decode("utf-8", "replace").removeprefix("\ufeff")
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise MalformedFrame(f"JSON nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise MalformedFrame("not JSON") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(value)
    return value


def check_depth(value: object) -> None:
    """Refuse a value whose arrays and objects lie deeper inside each other than :data:`MAX_DEPTH`.

    Raises:
        MalformedFrame: they do.
    """
    containers = [value] if isinstance(value, list | dict) else []
    for _ in range(MAX_DEPTH):
        containers = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, list | dict)
        ]
        if not containers:
            return
    raise MalformedFrame(f"JSON nested deeper than {MAX_DEPTH} levels")


# --- time, ids, addresses -------------------------------------------------------------------------------------------

_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})\Z", re.ASCII
)
_YEAR_10000 = 253_402_300_800


def timestamp(utc: float) -> str:
    """``new Date(utc * 1000).toISOString()``: UTC, three decimals, ``Z``.

    Args:
        utc: seconds since the Unix epoch, up to the year 9999; rounded to a millisecond.
    Raises:
        InvalidValue: before the epoch, after the year 9999, or not a number.
    """
    seconds, milliseconds = divmod(round(utc * 1000) if 0 <= utc <= _YEAR_10000 else -1, 1000)
    if not 0 <= seconds < _YEAR_10000:
        raise InvalidValue("a timestamp lies between the years 1970 and 9999")
    return f"{_whole_seconds(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=16)
def _whole_seconds(seconds: int) -> str:
    """Kept for the second in which they are asked for again and again: three quarters of what a timestamp costs."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def parse_timestamp(text: str) -> float:
    """Seconds since the Unix epoch of an ISO 8601 timestamp that names its offset.

    Raises:
        InvalidValue: another format, an impossible date, or no offset; a time without one means nothing elsewhere.
    """
    if not _TIMESTAMP.match(text):
        raise InvalidValue("a timestamp looks like 2026-01-31T12:00:00.000Z")
    try:
        moment = datetime.fromisoformat(text)
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    except (ValueError, OverflowError) as error:
        raise InvalidValue("the timestamp names no possible time") from error


def message_id(entropy: Entropy) -> MessageId:
    """A UUID version 4 from 16 bytes of ``entropy``."""
    raw = bytearray(entropy(16))
    if len(raw) != 16:
        raise InvalidValue(f"the entropy source gave {len(raw)} bytes for an id of 16")
    raw[6] = raw[6] & 0x0F | 0x40  # RFC 9562, section 5.4: the version
    raw[8] = raw[8] & 0x3F | 0x80  # the variant
    text = raw.hex()
    return MessageId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


def parse_message_id(text: str) -> MessageId:
    """A message id of an application's own: 1 to 128 of ``A-Z a-z 0-9 . _ ~ : -``, as every relay takes it.

    Raises:
        InvalidValue: anything else.
    """
    if not _MESSAGE_ID.fullmatch(text):
        raise InvalidValue("a message id has 1 to 128 characters out of A-Z a-z 0-9 . _ ~ : -")
    return MessageId(text)


def encode_uri_component(text: str) -> str:
    """``encodeURIComponent``: everything but ``A-Z a-z 0-9 - _ . ! ~ * ' ( )`` percent-encoded as UTF-8.

    Raises:
        InvalidValue: half a surrogate pair, which UTF-8 cannot carry.
    """
    try:
        return quote(_join_surrogates(text) if _SURROGATE.search(text) else text, safe="!~*'()")
    except UnicodeEncodeError as error:
        raise InvalidValue("half a surrogate pair cannot be part of a URL") from error


def websocket_url(relay_url: str) -> str:
    """The WebSocket address of a relay: ``http`` at the start becomes ``ws``, ``/ws`` is appended.

    Plain concatenation on purpose: the SDK does the same, and both must reach the same relay with one setting.
    """
    return ("ws" + relay_url[4:] if relay_url.startswith("http") else relay_url) + "/ws"


def unix_path(url: str) -> str | None:
    """The path in ``ws+unix:///path`` or ``http+unix:///path``, the address of a Unix socket; None for other addresses.

    Characters that a URL cannot hold are percent-encoded.
    """
    scheme, _, rest = url.partition("://")
    return unquote(rest) if scheme in ("ws+unix", "http+unix") else None
