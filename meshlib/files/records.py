"""What is remembered of files on their way, so that a process that is killed loses nothing of them: frozen values."""

from typing import Literal

from msgspec import Struct

Style = Literal["whole", "pulled", "pieces"]
"""How a file travels: in one message; offered and fetched in chunks; or as its envelope in pieces, as in the field."""

Key = tuple[str, str]
"""Peer and id of a file that is received: an id is its sender's choice, and counts together with whose it is."""


class Sending(Struct, frozen=True, kw_only=True, tag="sending"):
    """A file of ours on its way to a peer."""

    id: str
    peer: str
    path: bytes
    """Absolute. A name on a disk need not be text."""
    name: str
    size: int
    sha256: str
    stamp: tuple[int, int, int]
    """Device, inode and time of the last change (ns): another file at that path is another file."""
    description: str = ""
    chunk: int
    """Bytes (of the file, or of its envelope's JSON) in a message."""
    style: Style
    from_agent: str = ""
    timestamp: str = ""
    """Both of the envelope: pieces of it sent after a restart are pieces of the same text."""
    pieces: int = 0
    """Pieces that were sent, for ``pieces``."""


class Receiving(Struct, frozen=True, kw_only=True, tag="receiving"):
    """A file of a peer that has not arrived whole."""

    id: str
    peer: str
    name: str
    size: int
    """Bytes of the file or, for ``pieces``, at most as many of its JSON."""
    sha256: str = ""
    description: str = ""
    chunk: int = 0
    style: Style
    have: int = 0
    """Chunks at the start that are on the disk, for ``pulled``."""
    hashes: tuple[str, ...] = ()
    manifest: str = ""
    lengths: tuple[int, ...] = ()
    """Bytes of each piece that is there, 0 for the others, for ``pieces``."""
    place: str = ""
    """The name it is being moved to; it is whole then."""
    started: float = 0.0
    """UTC seconds."""

    @property
    def key(self) -> Key:
        """Its peer and id."""
        return (self.peer, self.id)


class Received(Struct, frozen=True, kw_only=True, tag="received"):
    """A file of a peer that is in place."""

    id: str
    peer: str
    name: str
    """As the peer called it."""
    size: int
    sha256: str
    saved_to: str
    """Absolute."""
    description: str = ""
    style: Style = "whole"
    at: float
    """UTC seconds."""
    told: bool = False
    """Application and peer know."""

    @property
    def key(self) -> Key:
        """Its peer and id."""
        return (self.peer, self.id)


def journal_key(record: Receiving | Received) -> str:
    """A record's name in the journal: the same for both, so that what has arrived replaces what was on its way."""
    return f"{record.peer}\n{record.id}"


Record = Sending | Receiving | Received
