"""What agents put into messages when a file travels: the file itself, or an offer, pieces and what became of it.

Owns the JSON of these envelopes, as runtimes in the field write them and with members of ours that they ignore
(docs/wire.md), and reading it. Whatever is read here is a peer's word: bounded, and not believed. Leaves deciding to
:mod:`meshlib.files`.
"""

import re
from collections.abc import Callable

from msgspec import Struct

from meshlib.errors import MalformedFrame
from meshlib.wire.encoding import b64, unb64
from meshlib.wire.envelopes import Pong, read_envelope, unwrapped
from meshlib.wire.members import Members

MAX_FILE_NAME = 1_024
"""Characters kept of a file's name as a peer writes it; what it is saved under is shorter."""
MAX_DESCRIPTION = 4_096
"""Characters kept of what a peer says about a file."""
MAX_PATH = 4_096
"""Characters kept of a path at the peer's."""
MAX_PIECES = 80
"""Pieces of a message that was cut up, as in the field."""
MAX_PIECE = 512 * 1024
"""Characters of a piece, as in the field."""
MAX_ASKED = 256
"""Chunks asked for in one envelope."""
MIN_CHUNK = 1_024
"""Bytes of the smallest chunk a file may be cut into: smaller ones would only cost messages."""
MAX_CHUNK = 512 * 1024
"""Bytes of the largest. What fits a message as base64 is less."""

_HASH = re.compile(r"[0-9a-f]{64}")


class FileTransfer(Struct, frozen=True, kw_only=True):
    """A file in one message; or, in the inbox of who got one, where it lies."""

    file_name: str
    file_data: bytes | None = None
    """What is in it; ``None`` in the notice of a file that was received."""
    file_path: str = ""
    """Where it lies at the sender's; its word, good for nothing."""
    size_bytes: int = 0
    description: str = ""
    from_agent: str = ""
    timestamp: str = ""
    transfer_id: str = ""
    """Ours."""
    sha256: str = ""
    """Of the file, 64 hex digits, or empty. Ours."""
    saved_to: str = ""
    """Only in notices: where it was saved, an absolute path. Ours."""


class FileTransferAck(Struct, frozen=True, kw_only=True):
    """What has become of a file at the recipient's."""

    file_name: str
    success: bool
    saved_to: str = ""
    size_bytes: int = 0
    error: str = ""
    """Why not, in one sentence."""
    from_agent: str = ""
    timestamp: str = ""
    transfer_id: str = ""
    """Ours; the field matches acks by the file's name."""
    reason: str = ""
    """Why not, for programs: ``refused``, ``quota``, ``mismatch``, ``cancelled``, ``failed`` or ``expired``. Ours."""


class FileOffer(Struct, frozen=True, kw_only=True):
    """A file is there to be fetched. Rides on a ``mesh:ping``, which peers in the field answer and forget. Ours."""

    transfer_id: str
    file_name: str
    size_bytes: int
    sha256: str
    chunk_bytes: int
    description: str = ""
    from_agent: str = ""
    timestamp: str = ""


class TransferManifest(Struct, frozen=True, kw_only=True):
    """A message follows in pieces: the JSON text of it, cut up."""

    transfer_id: str
    original_type: str
    total_chunks: int
    total_bytes: int
    chunk_hashes: tuple[str, ...]
    manifest_hash: str
    from_agent: str = ""
    timestamp: str = ""


class TransferChunk(Struct, frozen=True, kw_only=True):
    """A piece: text of the JSON that is cut up or, after an offer, bytes of the file in base64."""

    transfer_id: str
    chunk_index: int
    total_chunks: int
    data: str
    hash: str
    """SHA-256 of the piece, 64 hex digits."""
    from_agent: str = ""


class TransferChunkRequest(Struct, frozen=True, kw_only=True):
    """Send these pieces (again). After an offer it is also how a file is fetched in the first place."""

    transfer_id: str
    missing: tuple[int, ...]
    received_bytes: int = 0
    """What is there already. Ours."""
    from_agent: str = ""
    timestamp: str = ""


class TransferComplete(Struct, frozen=True, kw_only=True):
    """Every piece has arrived; from the recipient."""

    transfer_id: str
    from_agent: str = ""
    timestamp: str = ""


class TransferCancel(Struct, frozen=True, kw_only=True):
    """One side does not want to go on. Ours; others ignore it."""

    transfer_id: str
    error: str = ""
    from_agent: str = ""
    timestamp: str = ""


Transfer = (
    FileTransfer
    | FileTransferAck
    | FileOffer
    | TransferManifest
    | TransferChunk
    | TransferChunkRequest
    | TransferComplete
    | TransferCancel
    | Pong
)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_transfer(envelope: Transfer) -> dict[str, object]:
    """The JSON object of an envelope, ready to be sent as a payload."""
    members: dict[str, object] = {name: getattr(envelope, name) for name in envelope.__struct_fields__}
    match envelope:
        case FileTransfer():
            data = members.pop("file_data")
            ordered = {"type": "file_transfer", "file_name": members.pop("file_name"), "file_path": envelope.file_path}
            if isinstance(data, bytes):
                ordered["file_data"] = b64(data)
            return _without_empty({**ordered, **members}, "transfer_id", "sha256", "saved_to")
        case FileTransferAck():
            ordered = {"type": "file_transfer_ack", "from_agent": members.pop("from_agent"), **members}
            ordered["timestamp"] = ordered.pop("timestamp")
            return _without_empty(ordered, "error", "transfer_id", "reason")
        case FileOffer():
            offered = ("file_name", "size_bytes", "sha256", "chunk_bytes", "description")
            return {
                "type": "mesh:ping",
                "nonce": envelope.transfer_id,
                "from_agent": envelope.from_agent,
                "timestamp": envelope.timestamp,
                "file": {name: members[name] for name in offered},
            }
        case Pong():
            return {"type": "mesh:pong", **members}
        case TransferManifest():
            members["chunk_hashes"] = list(envelope.chunk_hashes)
            return {"type": "mesh:transfer_manifest", **members}
        case TransferChunk():
            return {"type": "mesh:transfer_chunk", **members}
        case TransferChunkRequest():
            members["missing"] = list(envelope.missing)
            return {"type": "mesh:transfer_chunk_request", **members}
        case TransferComplete():
            return {"type": "mesh:transfer_complete", **members}
        case TransferCancel():
            return {"type": "mesh:transfer_cancel", **members}


def _without_empty(members: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in members.items() if value != "" or name not in names}


# --- reading ---------------------------------------------------------------------------------------------------------


def is_transfer(payload: object) -> bool:
    """Whether a payload says that it is one of the envelopes above, well-formed or not; pongs are left out."""
    members = unwrapped(payload)
    if not isinstance(members, dict):
        return False
    kind = members.get("type")
    return (isinstance(kind, str) and kind in _READERS) or (kind == "mesh:ping" and "file" in members)


def read_transfer(payload: object, message_id: str = "") -> Transfer | None:
    """Read a payload as one of the envelopes above.

    Args:
        payload: as it was received, wrapped or not.
        message_id: names the transfer where a file in one message does not.
    Returns:
        ``None`` for anything else.
    Raises:
        MalformedFrame: it says it is one of ours and has impossible members.
    """
    members = unwrapped(payload)
    if not isinstance(members, dict):
        return None
    kind = members.get("type")
    if kind == "mesh:ping" and "file" in members:
        return _read_offer(Members(members, kind, message_id))
    if kind == "mesh:pong":
        pong = read_envelope(members, message_id)
        return pong if isinstance(pong, Pong) else None
    read = _READERS.get(kind) if isinstance(kind, str) else None
    return read(Members(members, kind, message_id)) if read is not None and isinstance(kind, str) else None


def _read_file(members: Members) -> FileTransfer:
    saved_to = members.name("saved_to", MAX_PATH)
    try:
        data = unb64(members.text("file_data"))
    except MalformedFrame:
        if not saved_to:
            raise
        data = None
    size = members.count("size_bytes")
    if data is not None and size not in (0, len(data)):
        raise MalformedFrame(f"a file of {size} bytes came with {len(data)}", frame_type="file_transfer")
    return FileTransfer(
        file_name=members.name("file_name", MAX_FILE_NAME),
        file_data=data,
        file_path=members.name("file_path", MAX_PATH),
        size_bytes=size if data is None else len(data),
        description=members.name("description", MAX_DESCRIPTION),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
        transfer_id=members.task_id("transfer_id"),
        sha256=_hash_or_empty(members.name("sha256")),
        saved_to=saved_to,
    )


def _read_ack(members: Members) -> FileTransferAck:
    error = members.name("error", MAX_DESCRIPTION)
    return FileTransferAck(
        file_name=members.name("file_name", MAX_FILE_NAME),
        success=members.flag("success", not error),  # some in the field leave it out
        saved_to=members.name("saved_to", MAX_PATH),
        size_bytes=members.count("size_bytes"),
        error=error,
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
        transfer_id=members.name("transfer_id"),
        reason=members.name("reason", 40),
    )


def _read_offer(members: Members) -> FileOffer:
    file = Members(members.mapping("file"), "file offer", "")
    digest = _hash_or_empty(file.name("sha256"))
    chunk = file.count("chunk_bytes")
    if not digest or not MIN_CHUNK <= chunk <= MAX_CHUNK:
        raise MalformedFrame(
            f"a file is offered with its SHA-256, in chunks of {MIN_CHUNK} to {MAX_CHUNK} bytes",
            frame_type="file offer",
        )
    return FileOffer(
        transfer_id=members.task_id("nonce"),
        file_name=file.name("file_name", MAX_FILE_NAME),
        size_bytes=file.count("size_bytes"),
        sha256=digest,
        chunk_bytes=chunk,
        description=file.name("description", MAX_DESCRIPTION),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_manifest(members: Members) -> TransferManifest:
    hashes = [_hash_or_empty(one) for one in members.several("chunk_hashes")[: MAX_PIECES + 1]]
    total = members.count("total_chunks")
    if not 1 <= total <= MAX_PIECES or total != len(hashes) or not all(hashes):
        raise MalformedFrame(
            f"a manifest lists the SHA-256 of each of 1 to {MAX_PIECES} pieces", frame_type="mesh:transfer_manifest"
        )
    return TransferManifest(
        transfer_id=members.task_id("transfer_id"),
        original_type=members.name("original_type"),
        total_chunks=total,
        total_bytes=members.count("total_bytes"),
        chunk_hashes=tuple(hashes),
        manifest_hash=_hash_or_empty(members.name("manifest_hash")),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_chunk(members: Members) -> TransferChunk:
    return TransferChunk(
        transfer_id=members.task_id("transfer_id"),
        chunk_index=members.count("chunk_index"),
        total_chunks=members.count("total_chunks"),
        data=members.text("data"),
        hash=_hash_or_empty(members.name("hash")),
        from_agent=members.name("from_agent"),
    )


def _read_chunk_request(members: Members) -> TransferChunkRequest:
    missing = members.several("missing")[:MAX_ASKED]
    return TransferChunkRequest(
        transfer_id=members.task_id("transfer_id"),
        missing=tuple(one for one in missing if isinstance(one, int) and not isinstance(one, bool) and one >= 0),
        received_bytes=members.count("received_bytes"),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_complete(members: Members) -> TransferComplete:
    return TransferComplete(
        transfer_id=members.task_id("transfer_id"),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _read_cancel(members: Members) -> TransferCancel:
    return TransferCancel(
        transfer_id=members.task_id("transfer_id"),
        error=members.name("error", MAX_DESCRIPTION),
        from_agent=members.name("from_agent"),
        timestamp=members.name("timestamp"),
    )


def _hash_or_empty(value: object) -> str:
    return value.lower() if isinstance(value, str) and _HASH.fullmatch(value.lower()) else ""


_READERS: dict[str, Callable[[Members], Transfer]] = {
    "file_transfer": _read_file,
    "file_transfer_ack": _read_ack,
    "mesh:transfer_manifest": _read_manifest,
    "mesh:transfer_chunk": _read_chunk,
    "mesh:transfer_chunk_request": _read_chunk_request,
    "mesh:transfer_complete": _read_complete,
    "mesh:transfer_cancel": _read_cancel,
}
