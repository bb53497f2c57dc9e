"""The routing fields of a frame, and the few frames the relay writes itself.

Owns what a relay must know about a frame before anyone else sees it: that all of it is JSON a receiver's parser takes,
that it is an object, and its ``type``, ``from``, ``to`` and ``id``. Everything else stays bytes.
"""

import msgspec

from meshlib.errors import MalformedFrame
from meshlib.wire.encoding import parse_json

MESSAGE, KNOCK = "message", "knock"
KNOCK_ANSWERS = frozenset(("knock_accept", "knock_reject"))
ROUTED = frozenset((MESSAGE, KNOCK)) | KNOCK_ANSWERS
"""Frame types that travel to another agent."""


_USUAL_OBJECTS = 3
"""Objects inside a frame of an honest client: header or establishment, and intent; one more is too many."""


class Envelope(msgspec.Struct, rename={"sender": "from", "recipient": "to"}, gc=False):
    """What is read of a frame. An absent member is UNSET; null is refused, because it is not the same as absent."""

    type: str
    sender: str | msgspec.UnsetType = msgspec.UNSET
    recipient: str | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    knock_id: str | msgspec.UnsetType = msgspec.UNSET
    unread: bool | msgspec.UnsetType = msgspec.UNSET


class _Kind(msgspec.Struct, gc=False):
    type: str


_decode = msgspec.json.Decoder(Envelope).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_encode = msgspec.json.Encoder().encode


def read(raw: bytes) -> Envelope:
    """Check the whole frame and read its routing fields.

    The last of equal keys counts, also when one is spelled with escapes, as in ``JSON.parse``: a frame cannot be
    routed by one ``to`` and read by another. What passes is valid JSON throughout and an object at the top: the text
    ``null`` ends an SDK's process, and invalid UTF-8 ends its connection at every replay.

    Raises:
        MalformedFrame: not UTF-8, not JSON, no object, nested too deeply, or a routing field that is no string.
    """
    try:
        envelope = _decode(raw)
        if not raw.isascii():
            str(raw, "utf-8")  # skipped strings are checked for escapes and control characters, not for UTF-8
    except msgspec.ValidationError as error:
        raise MalformedFrame(f"the frame does not fit: {error}") from error
    except msgspec.DecodeError as error:
        raise MalformedFrame(f"the frame is not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise MalformedFrame("the frame is not UTF-8") from error
    except RecursionError as error:
        raise MalformedFrame("the frame is nested too deeply") from error
    if envelope.type in ROUTED and _looks_deep(raw):
        parse_json(raw)  # the clients' own parser, with the clients' bound on depth
    return envelope


def kind(raw: bytes) -> str:
    """The type of a frame that :func:`read` has taken."""
    return _decode_kind(raw).type


def _looks_deep(raw: bytes) -> bool:
    """Whether it has an array, or more objects than any honest frame."""
    find = raw.find
    start = find(b"{") + 1
    for _ in range(_USUAL_OBJECTS):
        start = find(b"{", start) + 1
        if not start:
            return find(b"[") >= 0
    return True


def stamp(raw: bytes, sender: str) -> bytes:
    """Write ``from`` into a frame that has none, leaving every other byte as it was.

    Only for frames :func:`read` has taken: they are objects with at least one member.
    """
    start = raw.index(b"{") + 1
    return b"".join((raw[:start], b'"from":', _encode(sender), b",", raw[start:]))


def error(detail: str, **facts: object) -> bytes:
    """An error frame; ``facts`` are members for machines, None is left out."""
    given = {name: fact for name, fact in facts.items() if fact is not None}
    return _encode({"type": "error", "detail": detail, **given})


def receipt(message_id: str, state: bytes) -> bytes:
    """What became of a frame: ``stored``, ``delivered``, ``expired``, ``refused`` or ``unread``."""
    return b"".join((b'{"v":1,"type":"receipt","id":', _encode(message_id), b',"state":"', state, b'"}'))


def connected(features: tuple[str, ...], server_time: str) -> bytes:
    """The answer to a connect that named features."""
    return _encode({"v": 1, "type": "connected", "features": features, "server_time": server_time})


CAUGHT_UP = b'{"v":1,"type":"pending_messages","messages":[]}'
"""The answer to ``fetch_pending`` once everything stored has been pushed, each frame on its own."""
