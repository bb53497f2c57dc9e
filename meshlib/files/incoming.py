"""A file of a peer on its way: what is asked for, what is kept, and when it is whole. No I/O: facts in, wishes out.

:class:`Fetch` fetches what was offered, chunk by chunk. :class:`Assembly` gathers the pieces of an envelope that a peer
in the field cut up. Neither hands anything over: whether the file is what was sent is decided by the hash of all of it,
over what lies on the disk.

Leaves files and messages to :mod:`meshlib.files.receiver`.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import inf

from meshlib.files.pieces import manifest_hash, piece_hash
from meshlib.files.records import Receiving
from meshlib.wire.encoding import unb64
from meshlib.wire.transfers import MAX_PIECE, TransferChunk

WINDOW = 16
"""Chunks asked for at a time; what has been asked for and not come yet fits into some 8 MiB."""
CHECKPOINT = 64
"""Chunks until what is there is synced and noted: a restart fetches at most as many again."""
ASK_AGAIN_AFTER = (30.0, 60.0, 300.0, 1800.0)
"""Seconds of silence until chunks are asked for again. The message with the question is not lost, so the first times
help a peer that was restarted, and the later ones cost little."""
KEEP = 72 * 3600.0
"""Seconds without a chunk after which a file is given up, as long as a relay keeps messages."""
FAULTS = 3
"""How often one chunk may come wrong."""
GAP_AFTER = 8.0
"""Seconds of silence until missing pieces are asked for, as in the field."""
GAPS = 5
"""How often they are."""
PIECES_FOR = 120.0
"""Seconds without a piece after which an envelope in pieces is given up, as in the field."""
SLOT = 3 * MAX_PIECE
"""Bytes set apart for a piece on the disk: of its characters, each has at most three as UTF-8."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the peer for these chunks."""

    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """Write a chunk to the disk, then report it :meth:`written`."""

    index: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Save:
    """Note how far it has come, once what was written is on the disk."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Everything is there: hash it as it lies on the disk. For pieces: put the envelope together."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """It is what was sent: move it into place. If that cannot be, report it with :meth:`fail`."""


@dataclass(frozen=True, slots=True)
class Fail:
    """It is over; nothing is delivered."""

    reason: str
    detail: str


Wish = Ask | Write | Save | Verify | Deliver | Fail


class Fetch:
    """One file that was offered.

    Args:
        record: what was offered, and how far it had come when it was noted.
        window: chunks to ask for at a time.
    """

    def __init__(self, record: Receiving, now: float, window: int = WINDOW) -> None:
        self._size = record.size
        self._chunk = record.chunk
        self._sha256 = record.sha256
        self._window = max(1, window)
        self.total = -(-record.size // record.chunk)
        self.have = min(record.have, self.total)
        """Chunks at the start that are on the disk."""
        self._noted = self.have
        self._beyond: set[int] = set()
        self._asked: dict[int, None] = {}
        self._faults: dict[int, int] = {}
        self._tries = 0
        self._again = False
        self._verifying = False
        self._over = False
        self.heard_at = now
        self._ask_at = inf

    @property
    def received_bytes(self) -> int:
        """What is there."""
        return min(self._size, (self.have + len(self._beyond)) * self._chunk)

    def start(self, now: float) -> list[Wish]:
        """Begin, or go on: what was asked for before counts as lost, and comes a second time if it was not."""
        if self._verifying or self._over:
            return []
        self._asked.clear()
        return self._go_on(now)

    def take(self, chunk: TransferChunk, now: float) -> list[Wish]:
        """A chunk has come."""
        index = chunk.chunk_index
        if self._verifying or self._over or index >= self.total or index < self.have or index in self._beyond:
            return []
        if index not in self._asked:
            return []  # nobody fills our disk ahead of what we ask for
        data = unb64(chunk.data)
        expected = min(self._chunk, self._size - index * self._chunk)
        if len(data) != expected or sha256(data).hexdigest() != chunk.hash:
            return self._faulty(index, now)
        self._heard(now)
        return [Write(index, index * self._chunk, data)]

    def written(self, index: int, now: float) -> list[Wish]:
        """A chunk is on the disk."""
        self._asked.pop(index, None)
        self._beyond.add(index)
        while self.have in self._beyond:
            self._beyond.remove(self.have)
            self.have += 1
        wishes: list[Wish] = []
        if self.have - self._noted >= CHECKPOINT:
            self._noted = self.have
            wishes.append(Save())
        return wishes + self._go_on(now)

    def verified(self, size: int, digest: str, now: float) -> list[Wish]:
        """What lies on the disk has been hashed."""
        if self._over:
            return []
        if (size, digest) == (self._size, self._sha256):
            return [Deliver()]  # nothing else happens until that is done, or fails
        self._verifying = False
        if self._again:
            return self.fail("mismatch", "what arrived is not what was sent; nothing of it was kept")
        # A power cut may have taken what was written but not synced. Once more, from the start.
        self._again = True
        self.have = self._noted = 0
        self._beyond.clear()
        return [Save(), *self.start(now)]

    def fail(self, reason: str, detail: str) -> list[Wish]:
        """It cannot go on."""
        if self._over:
            return []
        self._over = True
        return [Fail(reason, detail)]

    def next_deadline(self) -> float:
        """When :meth:`tick` has something to do."""
        return inf if self._verifying or self._over else min(self._ask_at, self.heard_at + KEEP)

    def tick(self, now: float) -> list[Wish]:
        """Time has passed."""
        if self._verifying or self._over:
            return []
        if now >= self.heard_at + KEEP:
            return self.fail("expired", f"nothing arrived for {KEEP / 3600:g} hours")
        if now < self._ask_at or not self._asked:
            return []
        self._tries += 1
        self._wait(now)
        return [Ask(tuple(self._asked))]

    def put_off(self, until: float) -> None:
        """What was to be asked found no room in the outbox."""
        self._ask_at = until
        self._tries = 0

    def _go_on(self, now: float) -> list[Wish]:
        if self.have == self.total:
            self._verifying = True
            return [Verify()]
        if len(self._asked) > self._window // 2:
            return []  # several chunks are asked for at a time, so that questions are few
        missing: list[int] = []
        index = self.have
        while len(self._asked) < self._window and index < self.total:
            if index not in self._beyond and index not in self._asked:
                self._asked[index] = None
                missing.append(index)
            index += 1
        self._wait(now)
        return [Ask(tuple(missing))] if missing else []

    def _faulty(self, index: int, now: float) -> list[Wish]:
        self._faults[index] = self._faults.get(index, 0) + 1
        if self._faults[index] >= FAULTS:
            return self.fail("mismatch", f"a part arrived damaged {FAULTS} times")
        self._heard(now)
        return [Ask((index,))]

    def _heard(self, now: float) -> None:
        self.heard_at = now
        self._tries = 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._ask_at = now + ASK_AGAIN_AFTER[min(self._tries, len(ASK_AGAIN_AFTER) - 1)]


class Assembly:
    """One envelope that comes in pieces, of a peer that sends them unasked."""

    def __init__(self, record: Receiving, now: float) -> None:
        self._hashes = record.hashes
        self._manifest = record.manifest
        self._limit = 3 * record.size  # it counts characters; each has at most three bytes
        self.lengths = list(record.lengths or (0,) * len(record.hashes))
        """Bytes of each piece, 0 for those that are missing."""
        self._gaps = 0
        self._verifying = False
        self._over = False
        self.heard_at = now
        self._ask_at = now + GAP_AFTER

    @property
    def received_bytes(self) -> int:
        """What is there."""
        return sum(self.lengths)

    def start(self, now: float) -> list[Wish]:
        """Begin, or go on."""
        if self._verifying or self._over:
            return []
        if manifest_hash(self._hashes) != self._manifest:
            return self.fail("mismatch", "the manifest does not fit its own hash")
        return self._go_on()

    def take(self, chunk: TransferChunk, now: float) -> list[Wish]:
        """A piece has come."""
        index = chunk.chunk_index
        if self._verifying or self._over or index >= len(self._hashes) or self.lengths[index]:
            return []
        if piece_hash(chunk.data) == self._hashes[index]:
            data = chunk.data.encode("utf-8", "surrogatepass")
        else:
            data = unb64(chunk.data)
            if sha256(data).hexdigest() != self._hashes[index]:
                return []  # missing still; it is asked for
        if not 0 < len(data) <= SLOT:
            return self.fail("mismatch", "a piece is empty or too large")
        self.heard_at = now
        self._ask_at = now + GAP_AFTER
        return [Write(index, index * SLOT, data)]

    def written(self, index: int, length: int) -> list[Wish]:
        """A piece is on the disk."""
        self.lengths[index] = length
        if self.received_bytes > self._limit:
            return self.fail("mismatch", "the pieces are larger than the manifest says")
        return [Save(), *self._go_on()]

    def verified(self, fault: str = "") -> list[Wish]:
        """The envelope has been put together; or, with ``fault``, is none."""
        if self._over:
            return []
        if fault:
            return self.fail("mismatch", fault)
        return [Deliver()]  # nothing else happens until that is done, or fails

    def fail(self, reason: str, detail: str) -> list[Wish]:
        """It cannot go on."""
        if self._over:
            return []
        self._over = True
        return [Fail(reason, detail)]

    def next_deadline(self) -> float:
        """When :meth:`tick` has something to do."""
        return inf if self._verifying or self._over else min(self._ask_at, self.heard_at + PIECES_FOR)

    def tick(self, now: float) -> list[Wish]:
        """Time has passed."""
        if self._verifying or self._over:
            return []
        if now >= self.heard_at + PIECES_FOR:
            return self.fail("expired", f"nothing arrived for {PIECES_FOR:g} seconds")
        if now < self._ask_at:
            return []
        self._gaps += 1
        self._ask_at = now + GAP_AFTER if self._gaps < GAPS else inf
        return [Ask(tuple(index for index, length in enumerate(self.lengths) if not length))]

    def put_off(self, until: float) -> None:
        """What was to be asked found no room in the outbox."""
        self._ask_at = until
        self._gaps -= 1

    def _go_on(self) -> list[Wish]:
        if not all(self.lengths):
            return []
        self._verifying = True
        return [Verify()]
