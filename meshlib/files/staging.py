"""Where files of peers lie until they are whole, and how they get to their place. Blocks: for a thread.

Owns the order of steps on the disk. A file has another name until it is in place; its record is written before it
moves and names the place, so a process that is killed in between goes on with the next step. An envelope that comes in
pieces is put together here.
"""

import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from msgspec.structs import replace

from meshlib.errors import MalformedFrame, StoreError, TransferFailed
from meshlib.files.folder import Folder, Usage, safe_name
from meshlib.files.incoming import SLOT
from meshlib.files.journal import Journal
from meshlib.files.records import Received, Receiving, journal_key
from meshlib.identity import Did
from meshlib.wire.encoding import parse_json
from meshlib.wire.transfers import FileTransfer, read_transfer


class Staging:
    """Unfinished files of one agent.

    Args:
        owner: its DID; keeps unfinished files of several agents with one folder apart.
        folder: where they lie, and their places are.
        journal: where they are noted.
    """

    def __init__(self, owner: Did, folder: Folder, journal: Journal) -> None:
        self._owner = sha256(owner.encode()).hexdigest()[:8]
        self._folder = folder
        self._journal = journal

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    def check_room(self, size: int, promised: int) -> None:
        """See whether ``size`` bytes more fit, besides what is promised to others.

        Raises:
            TransferFailed: no.
        """
        self._folder.check_room(size, Usage(promised, 0))

    # --- while it arrives --------------------------------------------------------------------------------------------

    def begin(self, record: Receiving) -> None:
        """Make a file for what comes, and note it.

        Raises:
            TransferFailed: one of both cannot be; the other is not there then.
        """
        self._folder.make_part(self._stage(record))
        try:
            self._journal.put(journal_key(record), record)
        except StoreError as error:
            self.forget(record)
            raise not_saved(error) from error

    def has(self, record: Receiving) -> bool:
        """Whether there is anything of a file."""
        return self._folder.has_part(self._stage(record))

    def write(self, record: Receiving, offset: int, data: bytes) -> None:
        """Put bytes where they belong.

        Raises:
            TransferFailed: the disk is full or broken.
        """
        self._folder.write(self._stage(record), offset, data)

    def save(self, record: Receiving) -> None:
        """Note how far a file has come, once that is on the disk.

        Raises:
            TransferFailed, StoreError: the disk is full or broken.
        """
        self._folder.sync(self._stage(record))
        self._journal.put(journal_key(record), record)

    def forget(self, record: Receiving) -> None:
        """Remove what there is of a file."""
        self._discard(record)
        self._journal.drop(journal_key(record))

    def sweep(self, known: Iterable[Receiving]) -> None:
        """Remove unfinished files of this agent that belong to none of these records."""
        parts = {self._part(record) for record in known}
        parts |= {self._text(part) for part in parts}
        for part in self._folder.parts():
            if part.startswith(f"{self._owner}-") and part not in parts:
                self._folder.discard(part)

    # --- when it is whole --------------------------------------------------------------------------------------------

    def digest(self, record: Receiving) -> tuple[int, str]:
        """Size and SHA-256 of a file as it lies on the disk, where all of it is."""
        part = self._part(record)
        self._folder.sync(part)
        return self._folder.digest(part)

    def put_together(self, record: Receiving) -> Receiving:
        """Take the file out of an envelope that came in pieces. Its text has at most 40 Mi characters.

        Raises:
            TransferFailed: there is none in it.
        """
        stage = self._stage(record)
        pieces = [self._folder.read(stage, index * SLOT, length) for index, length in enumerate(record.lengths)]
        try:
            # Not every piece is text: one that fits its hash may have been base64 of anything.
            text = b"".join(pieces).decode("utf-8", "surrogatepass")
            del pieces
            envelope = read_transfer(parse_json(text), record.id)
        except (UnicodeDecodeError, MalformedFrame) as error:
            raise TransferFailed("mismatch", "the pieces are no file_transfer") from error
        del text
        if not isinstance(envelope, FileTransfer) or envelope.file_data is None:
            raise TransferFailed("mismatch", "the pieces are no file_transfer")
        whole = replace(
            record,
            name=envelope.file_name,
            description=envelope.description,
            size=len(envelope.file_data),
            sha256=digest_of(envelope),
        )
        self._write_whole(whole, envelope.file_data)
        return whole

    def place_whole(self, record: Receiving, data: bytes) -> Received:
        """Put a file that came in one message into its place.

        Raises:
            TransferFailed: it cannot be; nothing of it is there then.
        """
        try:
            self._write_whole(record, data)
            return self.place(record)
        except (TransferFailed, StoreError) as error:
            self.forget(record)
            raise not_saved(error) from error

    def place(self, record: Receiving) -> Received:
        """Move a whole file into its place. May be repeated after a crash.

        Raises:
            TransferFailed, StoreError: it cannot be moved there, or not noted before. It is not there then.
        """
        part = self._part(record)
        if self._folder.has_part(part):
            self._folder.sync(part)
        placed = bool(record.place) and self._folder.place(part, record.place)
        while not placed:
            record = replace(record, place=self._folder.free_name(safe_name(record.name)))
            self._journal.put(journal_key(record), record)
            placed = self._folder.place(part, record.place)
        self._discard(record)
        return Received(
            id=record.id,
            peer=record.peer,
            name=record.name,
            size=record.size,
            sha256=record.sha256,
            saved_to=str(self._folder.path / record.place),
            description=record.description,
            style=record.style,
            at=time.time(),
        )

    def _write_whole(self, record: Receiving, data: bytes) -> None:
        part = self._part(record)
        self._folder.make_part(part)
        self._folder.write(part, 0, data)

    def _discard(self, record: Receiving) -> None:
        part = self._part(record)
        self._folder.discard(part)
        self._folder.discard(self._text(part))

    # --- names -------------------------------------------------------------------------------------------------------

    def _part(self, record: Receiving) -> str:
        digest = sha256(journal_key(record).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{self._owner}-{digest}"

    def _stage(self, record: Receiving) -> str:
        """What is written to while it arrives: the file itself, or the text of an envelope it comes in."""
        part = self._part(record)
        return self._text(part) if record.style == "pieces" else part

    @staticmethod
    def _text(part: str) -> str:
        return part + ".json"


def digest_of(envelope: FileTransfer) -> str:
    """SHA-256 of a file that came in one envelope.

    Raises:
        TransferFailed: it is not what the envelope says.
    """
    digest = sha256(envelope.file_data or b"").hexdigest()
    if envelope.sha256 not in ("", digest):
        raise TransferFailed("mismatch", "what arrived is not what was sent; nothing of it was kept")
    return digest


def not_saved(error: TransferFailed | StoreError) -> TransferFailed:
    """What the peer is told; why is for our log."""
    if isinstance(error, TransferFailed):
        return error
    return TransferFailed("failed", "the recipient cannot save the file")
