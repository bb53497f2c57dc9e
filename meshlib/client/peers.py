"""One peer's conversation: which sessions can read, which one sends, and where our own knock stands.

Pure values and functions; owns the rules for crossing knocks and for choosing the sending session. Leaves frames,
queues and timers to :mod:`meshlib.client.core`.

Sessions are ordered by promotion, the front one first. A session comes to the front when we open it and when a
message authenticates on it, with two exceptions that make crossing knocks converge:

* what we opened and have not heard yet is not pushed back by stragglers of sessions that are older than it;
* of two sessions that crossed each other (*rivals*), once both have been heard, the one opened by the
  lexicographically smaller DID stays in front. Both sides compute the same answer without another round trip. A peer
  that ignores our session (the SDK does) is only ever heard on its own, so we follow it.
"""

from collections.abc import Iterator
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from meshlib.crypto.keys import X25519Public
from meshlib.crypto.ratchet import Header
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.identity import Did
from meshlib.session import Session
from meshlib.wire.encoding import MessageId


class Strand(Struct, frozen=True):
    """One session with a peer and what we know about it."""

    session: Session
    opened: int
    """Position in the order in which sessions with this peer came up here."""
    heard: bool = False
    """Whether a message of the peer has authenticated on it."""
    rival: bytes | None = None
    """Id of the session of ours that a knock of the peer crossed."""
    mute: bool = False
    """The peer says that it cannot read it. We go on reading, and send on it again once the peer is heard on it."""


class Candidate(Struct, frozen=True):
    """A knock that was let in and that no message has confirmed yet.

    Holds one session for every signed prekey and dialect the knock may have meant; they are derived again from the
    opening when a client restarts.
    """

    knock_id: MessageId
    opening: Opening
    opened: int
    sessions: tuple[Session, ...]
    rival: bytes | None = None

    def falls_with(self, settled: "Candidate") -> bool:
        """Whether nothing can settle it once ``settled`` is: the same knock, or one for the same one-time key."""
        key = settled.opening.one_time_key_id
        return self is settled or (key is not None and key == self.opening.one_time_key_id)


class Wish(Enum):
    """What happens to our own way in."""

    NEEDED = "a session is needed"
    BUNDLE = "the bundle has arrived"
    FAILED = "the bundle cannot be had"
    ANSWERED = "the peer let us in, in words or by speaking on our session"
    REJECTED = "the peer refused"
    LOST = "the peer cannot read us"


class Entry(Enum):
    """Where our own way in stands."""

    IDLE = "idle"
    FETCHING = "fetching"
    KNOCKING = "knocking"


ENTRY_TABLE: dict[tuple[Entry, Wish], Entry] = {
    (Entry.IDLE, Wish.NEEDED): Entry.FETCHING,
    (Entry.IDLE, Wish.BUNDLE): Entry.KNOCKING,
    (Entry.IDLE, Wish.LOST): Entry.FETCHING,
    (Entry.FETCHING, Wish.NEEDED): Entry.FETCHING,
    (Entry.FETCHING, Wish.BUNDLE): Entry.KNOCKING,
    (Entry.FETCHING, Wish.FAILED): Entry.IDLE,
    (Entry.FETCHING, Wish.ANSWERED): Entry.FETCHING,
    (Entry.FETCHING, Wish.REJECTED): Entry.FETCHING,
    (Entry.FETCHING, Wish.LOST): Entry.FETCHING,
    (Entry.KNOCKING, Wish.NEEDED): Entry.KNOCKING,
    (Entry.KNOCKING, Wish.BUNDLE): Entry.KNOCKING,
    (Entry.KNOCKING, Wish.ANSWERED): Entry.IDLE,
    (Entry.KNOCKING, Wish.REJECTED): Entry.IDLE,
    (Entry.KNOCKING, Wish.LOST): Entry.FETCHING,
}
"""Every transition there is; a pair that is missing is a mistake of ours, never of a peer."""


class Peer(Struct, frozen=True):
    """Everything we know of one peer. A new value replaces the old one; nothing is changed in place."""

    did: Did
    strands: tuple[Strand, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    entry: Entry = Entry.IDLE
    knock_id: MessageId | None = None
    """The knock of ours that is out; only this one can be accepted or rejected."""
    knock_frame: bytes | None = None
    """That knock as it was written, to be written again on a new connection until it is answered."""
    counter: int = 0
    """Sessions and candidates seen so far, the source of ``opened``."""
    verified: bool = False
    """A message has authenticated once: plaintext is never taken again."""
    dialect: Dialect | None = None
    """The derivation the peer last authenticated with."""
    pinned: X25519Public | None = None
    """For a DID that commits to no key: the identity key first seen to authenticate."""

    def step(self, wish: Wish) -> "Peer":
        """The peer after ``wish`` happened to our own way in."""
        return replace(self, entry=ENTRY_TABLE[self.entry, wish])

    def sending(self) -> Strand | None:
        """The strand to send on, if one can."""
        for strand in self.strands:
            if strand.session.can_send and not strand.mute:
                return strand
        return None

    def strand(self, session_id: bytes) -> Strand | None:
        """The strand of a session, if it is still kept."""
        for strand in self.strands:
            if strand.session.id == session_id:
                return strand
        return None

    def opened_by_us(self, session: Session, knock_id: MessageId, knock_frame: bytes, limit: int) -> "Peer":
        """The peer after we knocked with ``session``."""
        strand = Strand(session, self.counter)
        return replace(
            self.step(Wish.BUNDLE),
            strands=(strand, *self.strands)[:limit],
            knock_id=knock_id,
            knock_frame=knock_frame,
            counter=self.counter + 1,
        )

    def knocked(self, knock_id: MessageId, opening: Opening, sessions: tuple[Session, ...], limit: int) -> "Peer":
        """The peer after its knock was let in."""
        crossed = None
        if self.knock_id is not None:  # who has let us in knew our session, and wants another
            crossed = next((strand.session.id for strand in self.strands if not strand.heard), None)
        candidate = Candidate(knock_id, opening, self.counter, sessions, crossed)
        return replace(self, candidates=(candidate, *self.candidates)[:limit], counter=self.counter + 1)

    def rejected(self) -> "Peer":
        """The peer after it refused the knock that is out: the session it would have opened is gone."""
        strands = tuple(strand for strand in self.strands if strand.heard)
        return replace(self.step(Wish.REJECTED), strands=strands, knock_id=None, knock_frame=None)

    def attempts(self, header: Header) -> Iterator[tuple[Session, Candidate | None]]:
        """Sessions that may read a message, the likeliest first. Each is tried on its own, verify then commit."""
        others = []
        for strand in self.strands:
            if strand.session.remote_key_matches(header):
                yield strand.session, None
            else:
                others.append(strand)
        for candidate in self.candidates:
            if self.pinned in (None, candidate.opening.ik):
                for session in candidate.sessions:
                    yield session, candidate
        for strand in others:
            yield strand.session, None

    def heard(self, session: Session, candidate: Candidate | None, limit: int) -> "Peer":
        """The peer after a message authenticated on ``session`` (its next state), maybe settling ``candidate``."""
        session_id = session.id
        known = self.strand(session_id)
        if candidate is not None:
            strand = Strand(session, candidate.opened, heard=True, rival=candidate.rival)
            candidates = tuple(other for other in self.candidates if not other.falls_with(candidate))
        else:
            assert known is not None, "attempts() offers only strands that are kept"
            strand = replace(known, session=session, heard=True, mute=False)
            candidates = self.candidates
        rest = tuple([other for other in self.strands if other is not known and other.session.id != session_id])
        answered = self.knock_id is not None and known is not None and not known.heard
        peer = replace(self.step(Wish.ANSWERED), knock_id=None, knock_frame=None) if answered else self
        return replace(
            peer,
            candidates=candidates,
            strands=_promote(strand, rest)[:limit],
            verified=True,
            dialect=session.dialect,
        )

    def pinned_to(self, key: X25519Public) -> "Peer":
        """The peer once its identity key is settled: knocks with another one are not its own."""
        candidates = tuple(candidate for candidate in self.candidates if candidate.opening.ik == key)
        return replace(self, pinned=key, candidates=candidates)

    def accepted(self) -> "Peer":
        """The peer after it answered the knock that is out with an accept."""
        return replace(self.step(Wish.ANSWERED), knock_id=None, knock_frame=None)

    def advanced(self, session: Session) -> "Peer":
        """The peer after we sent on ``session`` (its next state)."""
        session_id = session.id
        strands = [
            replace(strand, session=session) if strand.session.id == session_id else strand for strand in self.strands
        ]
        return replace(self, strands=tuple(strands))

    def unread(self) -> "Peer":
        """The peer after it said that it cannot read what we send: every session of now is for reading only.

        The knock that is out, if one is, would open one of them: no answer to it matters any more.
        """
        mute = tuple(replace(strand, mute=True) for strand in self.strands)
        return replace(self.step(Wish.LOST), strands=mute, knock_id=None, knock_frame=None)

    def without_sessions(self) -> "Peer":
        """The peer after its sessions were dropped on purpose."""
        return replace(self, strands=(), candidates=(), entry=Entry.IDLE, knock_id=None, knock_frame=None)


def _promote(strand: Strand, rest: tuple[Strand, ...]) -> tuple[Strand, ...]:
    """Put a strand that was just heard where it belongs."""
    if not rest:
        return (strand,)
    front = rest[0]
    if not front.heard and front.opened > strand.opened:
        return (front, strand, *rest[1:])
    if (front.heard and front.session.id == strand.rival) or strand.session.id == front.rival:
        winner = min((strand, front), key=lambda one: one.session.initiator)
        loser = front if winner is strand else strand
        return (winner, loser, *rest[1:])
    return (strand, *rest)
