"""What agents put into messages when one works for another: tasks, their progress, their answers.

Owns the JSON of these envelopes, as runtimes in the field write them (docs/wire.md), and reading it. Whatever is read
here is a peer's word: ids, names and numbers are bounded, and nothing is believed. Files have envelopes of their own
in :mod:`meshlib.wire.transfers`.
"""

from collections.abc import Callable

from msgspec import Struct

from meshlib.errors import MalformedFrame
from meshlib.wire.encoding import parse_json
from meshlib.wire.members import Members, count_of

MAX_HOPS = 1_000
"""Larger counts say nothing more than this one."""
_OURS = frozenset(("hops", "timeout_seconds"))
"""Members of a task that nobody in the field writes."""
_WRAPPED = frozenset(
    (
        "task_request",
        "task_received",
        "task_progress",
        "task_response",
        "task_cancel",
        "file_transfer",
        "file_transfer_ack",
        "peers_update",
    )
)
"""What agents in the field put into a task; besides it everything that begins with ``mesh:``."""
MAX_ARTIFACTS = 100
"""Files an answer may name: as many as a person would look through."""


class TaskRequest(Struct, frozen=True, kw_only=True):
    """A peer wants something done."""

    request_id: str
    content: str
    from_agent: str = ""
    """The name the sender gives itself. Who it is, is the message's sender."""
    timestamp: str = ""
    hops: int = 0
    """How many agents have passed work on before this one. Ours; absent counts as 0."""
    timeout_seconds: float | None = None
    """After this time nobody waits for the answer any more. Ours."""


class TaskReceived(Struct, frozen=True, kw_only=True):
    """The peer has the task on its disk."""

    request_id: str
    from_agent: str = ""
    accepted_at: str = ""


class TaskProgress(Struct, frozen=True, kw_only=True):
    """The peer is at it."""

    request_id: str
    stage: str = "executing"
    """``started`` or ``executing``."""
    tick: int = 0
    elapsed_seconds: float = 0.0
    from_agent: str = ""
    timestamp: str = ""


class Artifact(Struct, frozen=True):
    """A file an answer speaks of; it travels in messages of its own."""

    name: str
    path: str = ""
    size_bytes: int = 0


class Telemetry(Struct, frozen=True):
    """What an answer cost, by the word of who gave it. Zero: not known."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    rounds: int = 0
    tool_calls: int = 0


class TaskResponse(Struct, frozen=True, kw_only=True):
    """The answer. With ``ok`` false, ``content`` says in one sentence why there is none."""

    request_id: str
    content: str
    ok: bool = True
    error: str | None = None
    """Why not, for programs: ``refused``, ``busy``, ``timeout``, ``cancelled``, ``failed`` or ``lost``. Ours."""
    artifacts: tuple[Artifact, ...] = ()
    telemetry: Telemetry = Telemetry()
    from_agent: str = ""
    timestamp: str = ""


class TaskCancel(Struct, frozen=True, kw_only=True):
    """The requester does not wait any more. Ours; others ignore it."""

    request_id: str
    from_agent: str = ""
    timestamp: str = ""


class Ping(Struct, frozen=True, kw_only=True):
    """Is anybody there?"""

    nonce: str
    from_agent: str = ""
    timestamp: str = ""


class Pong(Struct, frozen=True, kw_only=True):
    """Yes."""

    nonce: str
    from_agent: str = ""
    timestamp: str = ""


Envelope = TaskRequest | TaskReceived | TaskProgress | TaskResponse | TaskCancel | Ping | Pong


# --- writing ---------------------------------------------------------------------------------------------------------


def write_envelope(envelope: Envelope) -> dict[str, object]:
    """The JSON object of an envelope, ready to be sent as a payload."""
    match envelope:
        case TaskRequest():
            members: dict[str, object] = {
                "type": "task_request",
                "message_id": envelope.request_id,
                "request_id": envelope.request_id,
                "content": envelope.content,
                "from_agent": envelope.from_agent,
                "timestamp": envelope.timestamp,
            }
            if envelope.hops:
                members["hops"] = envelope.hops
            if envelope.timeout_seconds is not None:
                members["timeout_seconds"] = envelope.timeout_seconds
            return members
        case TaskReceived():
            return {
                "type": "task_received",
                "request_id": envelope.request_id,
                "from_agent": envelope.from_agent,
                "accepted_at": envelope.accepted_at,
            }
        case TaskProgress():
            return {
                "type": "task_progress",
                "message_id": f"progress-{envelope.request_id}-{envelope.tick}",
                "in_reply_to_id": envelope.request_id,
                "task_id": envelope.request_id,
                "stage": envelope.stage,
                "tick": envelope.tick,
                "elapsed_seconds": round(envelope.elapsed_seconds, 3),
                "from_agent": envelope.from_agent,
                "timestamp": envelope.timestamp,
            }
        case TaskResponse():
            answer: dict[str, object] = {
                "type": "task_response",
                "content": envelope.content,
                "ok": envelope.ok,
                "in_reply_to": envelope.request_id,
                "in_reply_to_id": envelope.request_id,
                "artifacts": [_members(artifact) for artifact in envelope.artifacts],
                "trace": [],
                "telemetry": _members(envelope.telemetry),
                "from_agent": envelope.from_agent,
                "timestamp": envelope.timestamp,
            }
            if envelope.error is not None:
                answer["error"] = envelope.error
            return answer
        case TaskCancel():
            return {"type": "task_cancel", **_members(envelope)}
        case Ping():
            return {"type": "mesh:ping", **_members(envelope)}
        case Pong():
            return {"type": "mesh:pong", **_members(envelope)}


def _members(value: Struct) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


# --- reading ---------------------------------------------------------------------------------------------------------


def unwrapped(payload: object) -> object:
    """A payload without the wrapping that runtimes in the field put around it.

    Python peers JSON-encode a text that is itself JSON, so an object may arrive as a string; and what OpenClaw's model
    sends arrives as the ``content`` of a ``task_request``. One level of each is taken off; the rest stays as it is.

    A task may be about JSON that has a ``type`` of its own. So only what agents in the field wrap is unwrapped; never
    what has members of ours: whoever writes them wraps nothing, and its hops must count.
    """
    payload = _parsed_object(payload)
    if isinstance(payload, dict) and payload.get("type") == "task_request" and not _OURS & payload.keys():
        inner = _parsed_object(payload.get("content"))
        kind = inner.get("type") if isinstance(inner, dict) else None
        if isinstance(kind, str) and (kind in _WRAPPED or kind.startswith("mesh:")):
            return inner
    return payload


def _parsed_object(payload: object) -> object:
    if not isinstance(payload, str) or not payload.lstrip().startswith("{"):
        return payload
    try:
        value = parse_json(payload)
    except MalformedFrame:
        return payload
    return value if isinstance(value, dict) else payload


def envelope_type(payload: object) -> str | None:
    """The ``type`` of a payload that is an envelope of whatever kind, or ``None``."""
    payload = unwrapped(payload)
    if not isinstance(payload, dict):
        return None
    kind = payload.get("type")
    return kind if isinstance(kind, str) else None


def read_envelope(payload: object, message_id: str = "") -> Envelope | None:
    """Read a payload as one of the envelopes above.

    Args:
        payload: as it was received, wrapped or not.
        message_id: names the task if the envelope does not.
    Returns:
        ``None`` for anything else: text, foreign envelopes, other JSON.
    Raises:
        MalformedFrame: it says it is one of ours and has impossible members. ``id`` is the task's id, if readable.
    """
    members = unwrapped(payload)
    if not isinstance(members, dict):
        return None
    kind = members.get("type")
    read = _READERS.get(kind) if isinstance(kind, str) else None
    return read(Members(members, kind, message_id)) if read is not None and isinstance(kind, str) else None


def _read_request(members: Members) -> TaskRequest:
    return TaskRequest(
        request_id=members.task_id("request_id", "message_id"),
        content=members.text("content"),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
        hops=members.count("hops", MAX_HOPS),
        timeout_seconds=members.seconds("timeout_seconds"),
    )


def _read_received(members: Members) -> TaskReceived:
    return TaskReceived(
        request_id=members.task_id("request_id"),
        from_agent=members.name("from_agent"),
        accepted_at=members.name("accepted_at"),
    )


def _read_progress(members: Members) -> TaskProgress:
    return TaskProgress(
        request_id=members.task_id("in_reply_to_id", "task_id"),
        stage=members.name("stage", 20) or "executing",
        tick=members.count("tick"),
        elapsed_seconds=members.seconds("elapsed_seconds") or 0.0,
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_response(members: Members) -> TaskResponse:
    telemetry = members.mapping("telemetry")
    artifacts = [one for one in members.several("artifacts")[:MAX_ARTIFACTS] if isinstance(one, dict)]
    return TaskResponse(
        request_id=members.task_id("in_reply_to_id", "in_reply_to"),
        content=members.text("content"),
        ok=members.flag("ok", True),
        error=members.name("error", 40) or None,
        artifacts=tuple(_read_artifact(Members(one, "artifact", "")) for one in artifacts),
        telemetry=Telemetry(*(count_of(telemetry.get(name)) for name in Telemetry.__struct_fields__)),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_artifact(members: Members) -> Artifact:
    return Artifact(members.name("name"), members.name("path", 4096), members.count("size_bytes"))


def _read_cancel(members: Members) -> TaskCancel:
    return TaskCancel(
        request_id=members.task_id("request_id"),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_ping(members: Members) -> Ping:
    return Ping(
        nonce=members.task_id("nonce"), from_agent=members.name("from_agent"), timestamp=members.name("timestamp")
    )


def _read_pong(members: Members) -> Pong:
    return Pong(
        nonce=members.task_id("nonce"), from_agent=members.name("from_agent"), timestamp=members.name("timestamp")
    )


_READERS: dict[str, Callable[[Members], Envelope]] = {
    "task_request": _read_request,
    "task_received": _read_received,
    "task_progress": _read_progress,
    "task_response": _read_response,
    "task_cancel": _read_cancel,
    "mesh:ping": _read_ping,
    "mesh:pong": _read_pong,
}
