"""What is kept for whom, and of whom: frames on their way, counted against every bound on them."""

from typing import TYPE_CHECKING

import msgspec

from mesh_relay.config import Limits
from mesh_relay.counters import FrameReason
from meshlib.identity import Did

if TYPE_CHECKING:
    from mesh_relay.links import Binding


def fingerprint(raw: bytes) -> int:
    """Tells one encryption of a message from another. Both ends of a long frame differ: nonce and tag are there.

    Keyed per process by Python's string hashing; only its own sender could be hurt by a collision.
    """
    return hash(raw) if len(raw) <= 1024 else hash((raw[:512], raw[-512:], len(raw)))


class Sender:
    """What all mailboxes hold of one sender."""

    __slots__ = ("did", "frames", "recipients", "size")

    def __init__(self, did: Did) -> None:
        self.did = did
        self.frames = 0
        self.size = 0
        self.recipients = 0


class Pair:
    """What one mailbox holds of one sender."""

    __slots__ = ("frames", "sender", "size")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.frames = 0
        self.size = 0


class Entry(msgspec.Struct, eq=False):
    """A frame on its way: accepted, not yet removed."""

    seq: int
    mailbox: "Mailbox"
    sender: Did
    pair: Pair
    id: str
    control: bool
    accepted_at: float
    payload: bytes  # empty once committed
    size: int
    print: int = 0  # the fingerprint, taken when the payload goes
    committed: bool = False
    pushed_at: float = 0.0  # monotonic, of a control frame
    replaces: tuple[int, ...] = ()  # what leaves the inbox in the transaction that brings this one

    def fingerprint(self) -> int:
        """Tells this encryption of the message from another."""
        return self.print if self.committed else fingerprint(self.payload)


class Mailbox:
    """One recipient: connected, or with frames waiting, or both."""

    __slots__ = ("awaiting", "binding", "did", "frames", "pairs", "rivals", "size")

    def __init__(self, did: Did) -> None:
        self.did = did
        self.binding: Binding | None = None
        self.frames = 0
        self.size = 0
        self.pairs: dict[Did, Pair] = {}
        # Pushed to a socket of this recipient and not acked, by id. It outlives the socket: an ack that was lost with
        # it may come on the next one. Only what is in here can be acked, so nobody's frame is removed through the id
        # of another's. Further senders' frames with the same id are in `rivals`.
        self.awaiting: dict[str, Entry] = {}
        self.rivals: dict[str, list[Entry]] = {}

    def find(self, frame_id: str, sender: str) -> Entry | None:
        """The frame of this sender and id among those awaiting their ack."""
        entry = self.awaiting.get(frame_id)
        if entry is None or entry.sender == sender:
            return entry
        return next((rival for rival in self.rivals.get(frame_id, ()) if rival.sender == sender), None)

    def forget(self, entry: Entry) -> None:
        """Take an entry out of those awaiting their ack."""
        rivals = self.rivals.get(entry.id, [])
        if self.awaiting.get(entry.id) is entry:
            if rivals:
                self.awaiting[entry.id] = rivals.pop(0)
            else:
                del self.awaiting[entry.id]
        elif entry in rivals:
            rivals.remove(entry)
        if not rivals:
            self.rivals.pop(entry.id, None)


class Mailboxes:
    """Every recipient that is connected or has frames waiting, and what is kept in all."""

    __slots__ = ("_limits", "_of", "_senders", "frames", "recipients", "size")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[str, Mailbox] = {}
        self._senders: dict[Did, Sender] = {}
        self.frames = 0
        self.size = 0
        self.recipients = 0  # mailboxes that hold frames

    def get(self, did: str) -> Mailbox | None:
        """The mailbox of a recipient that is connected or has frames waiting."""
        return self._of.get(did)

    def of(self, did: Did) -> Mailbox:
        """The mailbox of a recipient, made if there is none."""
        mailbox = self._of.get(did)
        if mailbox is None:
            mailbox = self._of[did] = Mailbox(did)
        return mailbox

    def add(self, mailbox: Mailbox) -> None:
        """Remember a mailbox whose recipient is connected."""
        self._of[mailbox.did] = mailbox

    def drop_if_idle(self, mailbox: Mailbox) -> None:
        """Forget a mailbox that holds nothing and whose recipient is away."""
        if not mailbox.frames and mailbox.binding is None:
            self._of.pop(mailbox.did, None)

    def pair(self, mailbox: Mailbox, sender: Did) -> Pair:
        """What ``mailbox`` holds of ``sender``; remembered once there is something."""
        return mailbox.pairs.get(sender) or Pair(self._senders.get(sender) or Sender(sender))

    def count(self, mailbox: Mailbox, pair: Pair, frames: int, size: int) -> None:
        """Frames of a pair are kept from now on; ``size`` is their bytes."""
        sender = pair.sender
        if not pair.frames:
            if not sender.frames:
                self._senders[sender.did] = sender
            if not mailbox.frames:
                self._of[mailbox.did] = mailbox
                self.recipients += 1
            mailbox.pairs[sender.did] = pair
            sender.recipients += 1
        pair.frames += frames
        pair.size += size
        sender.frames += frames
        sender.size += size
        mailbox.frames += frames
        mailbox.size += size
        self.frames += frames
        self.size += size

    def uncount(self, mailbox: Mailbox, pair: Pair, frames: int, size: int) -> None:
        """They are not kept any more."""
        sender = pair.sender
        pair.frames -= frames
        pair.size -= size
        sender.frames -= frames
        sender.size -= size
        mailbox.frames -= frames
        mailbox.size -= size
        self.frames -= frames
        self.size -= size
        if pair.frames:
            return
        mailbox.pairs.pop(sender.did, None)
        sender.recipients -= 1
        if not sender.frames:
            self._senders.pop(sender.did, None)
        if not mailbox.frames:
            self.recipients -= 1
            if mailbox.binding is None:
                self._of.pop(mailbox.did, None)

    def over_quota(self, mailbox: Mailbox, pair: Pair, size: int, earlier: Entry | None) -> FrameReason | None:
        """Why there is no room for a frame of this size, in place of ``earlier``."""
        limits, more = self._limits, 1
        if earlier is not None:
            more, size = 0, size - earlier.size
        if pair.frames + more > limits.pair_frames or pair.size + size > limits.pair_bytes:
            return "pair_full"
        if mailbox.frames + more > limits.recipient_frames or mailbox.size + size > limits.recipient_bytes:
            return "recipient_full"
        receiver = mailbox.binding
        if (
            receiver is not None
            and not receiver.behind
            and mailbox.frames + more <= limits.live_frames
            and mailbox.size + size <= limits.live_bytes
        ):
            return None  # it goes straight through: what others left lying about is no reason to refuse it
        sender = pair.sender
        if (
            sender.frames + more > limits.sender_frames
            or sender.size + size > limits.sender_bytes
            or (not pair.frames and sender.recipients >= limits.sender_recipients)
        ):
            return "sender_full"
        if self.frames + more > limits.total_frames or self.size + size > limits.total_bytes:
            return "relay_full"
        return None
