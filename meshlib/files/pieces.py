"""The JSON text of a file's envelope, piece by piece, without ever holding all of it.

In the field a message above 512 KiB travels as pieces of its JSON text. Where a piece lies in the text says which bytes
of the file it shows, so any of them can be made at any time.
"""

import base64
import json
from collections.abc import Callable, Mapping
from hashlib import sha256

from meshlib.files.records import Sending
from meshlib.wire.transfers import MAX_PIECES

Read = Callable[[int, int], bytes]
"""Bytes of a file: offset and size in, that many bytes out."""


class EnvelopeText:
    """The text of a ``file_transfer``, ASCII only: a piece has as many characters as bytes, in every language.

    Args:
        sending: ``chunk`` is the size of a piece.
        piece: characters in a piece.
    """

    def __init__(self, sending: Sending, piece: int) -> None:
        head = {"type": "file_transfer", "file_name": sending.name, "file_path": sending.name}
        tail = {
            "size_bytes": sending.size,
            "description": sending.description,
            "from_agent": sending.from_agent,
            "timestamp": sending.timestamp,
            "transfer_id": sending.id,
            "sha256": sending.sha256,
        }
        self._head = _text(head)[:-1] + ',"file_data":"'
        self._tail = '",' + _text(tail)[1:]
        self._piece = piece
        self._file_size = sending.size
        self._data_size = 4 * -(-sending.size // 3)
        self.size = len(self._head) + self._data_size + len(self._tail)

    @property
    def pieces(self) -> int:
        """How many there are."""
        return -(-self.size // self._piece)

    @property
    def fits(self) -> bool:
        """Whether peers in the field take as many."""
        return self.pieces <= MAX_PIECES

    def piece(self, index: int, read: Read) -> str:
        """One piece of the text."""
        start, end = index * self._piece, min((index + 1) * self._piece, self.size)
        data_at, tail_at = len(self._head), len(self._head) + self._data_size
        text = self._head[start:end]
        first, last = max(start, data_at) - data_at, min(end, tail_at) - data_at
        if first < last:
            offset = first // 4 * 3
            raw = read(offset, min(-(-last // 4) * 3, self._file_size) - offset)
            skipped = first // 4 * 4
            text += base64.b64encode(raw).decode("ascii")[first - skipped : last - skipped]
        return text + self._tail[max(start - tail_at, 0) : max(end - tail_at, 0)]

    def hashes(self, read: Read) -> tuple[str, ...]:
        """SHA-256 of each piece; reads the whole file."""
        return tuple(piece_hash(self.piece(index, read)) for index in range(self.pieces))


def piece_hash(text: str) -> str:
    """SHA-256 of a text as the field takes it: of its UTF-8, half a surrogate pair counting as U+FFFD."""
    return sha256(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()).hexdigest()


def manifest_hash(hashes: tuple[str, ...]) -> str:
    """What a manifest says about all hashes together."""
    return sha256(":".join(hashes).encode()).hexdigest()


def _text(members: Mapping[str, object]) -> str:
    return json.dumps(members, separators=(",", ":"))
