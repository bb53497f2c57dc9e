"""An inbox that lasts as long as its process. For tests, and for relays that may forget."""

from bisect import bisect_right
from itertools import islice, takewhile

from mesh_relay.records import Contents, Credential, Done, Load, Page, Proof, Removed, StoredFrame, Usage, Waiting, Work
from meshlib.identity import Did


class MemoryInbox:
    """Everything in dicts."""

    blocking = False

    def __init__(self) -> None:
        self._frames: dict[int, StoredFrame] = {}
        self._last_seq = 0  # a number that is in `_order` still must not mean another frame
        self._by_key: dict[tuple[Did, Did, str], int] = {}
        self._order: dict[Did, list[int]] = {}  # by recipient, ascending; may name frames that are gone
        self._holes: dict[Did, int] = {}  # how many are gone; never more than half
        self._credentials: dict[Did, Credential] = {}
        self._proofs: dict[tuple[Did, str], Proof] = {}

    def open(self) -> Contents:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        usage: dict[tuple[Did, Did], list[int]] = {}
        for stored in self._frames.values():
            pair = usage.setdefault((stored.recipient, stored.sender), [0, 0])
            pair[0] += 1
            pair[1] += len(stored.frame)
        return Contents(
            self._last_seq,
            [Usage(*pair, *counts) for pair, counts in usage.items()],
            list(self._credentials.values()),
            list(self._proofs.values()),
            self._oldest(),
        )

    def run(self, work: Work) -> Done:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`."""
        for seq in work.removals:
            self._remove(seq)
        duplicates = set()
        replaced = []
        for stored in work.frames:
            earlier = self._by_key.get((stored.recipient, stored.sender, stored.id))
            if earlier is not None and self._frames[earlier].frame == stored.frame:
                duplicates.add(stored.seq)
                continue
            if earlier is not None:
                replaced.append(self._remove(earlier))
            self._frames[stored.seq] = stored
            self._last_seq = max(self._last_seq, stored.seq)
            self._by_key[stored.recipient, stored.sender, stored.id] = stored.seq
            self._order.setdefault(stored.recipient, []).append(stored.seq)
        self._credentials |= {credential.did: credential for credential in work.credentials}
        self._proofs |= {(proof.did, proof.timestamp): proof for proof in work.proofs}
        expired = []
        if (sweep := work.sweep) is not None:
            self._proofs = {key: used for key, used in self._proofs.items() if used.expires_at >= sweep.proofs_before}
            stale = takewhile(lambda stored: stored.accepted_at < sweep.frames_before, self._frames.values())
            expired = [self._remove(stored.seq) for stored in list(islice(stale, sweep.limit))]
        pages = [self._load(load, work) for load in work.loads]
        gone = [r for r in replaced if r], [r for r in expired if r]
        return Done(frozenset(duplicates), *gone, pages, self._oldest())

    def _oldest(self) -> float | None:
        return next((stored.accepted_at for stored in self._frames.values()), None)

    def _remove(self, seq: int) -> Removed | None:
        stored = self._frames.pop(seq, None)
        if stored is None:
            return None
        del self._by_key[stored.recipient, stored.sender, stored.id]
        self._holes[stored.recipient] = self._holes.get(stored.recipient, 0) + 1
        order = self._order[stored.recipient]
        if 2 * self._holes[stored.recipient] > len(order):
            self._holes[stored.recipient] = 0
            order[:] = [kept for kept in order if kept in self._frames]
        if not order:
            del self._order[stored.recipient], self._holes[stored.recipient]
        return Removed(seq, stored.recipient, stored.sender, stored.id, len(stored.frame))

    def _load(self, load: Load, work: Work) -> Page:
        frames: list[Waiting] = []
        size = 0
        order = self._order.get(load.recipient, [])
        for position in range(bisect_right(order, load.after), len(order)):
            stored = self._frames.get(order[position])
            if stored is None:
                continue
            if frames and (len(frames) >= work.page_frames or size + len(stored.frame) > work.page_bytes):
                return Page(frames, True)
            frames.append((stored.seq, *stored[2:]))
            size += len(stored.frame)
        return Page(frames, False)

    def close(self) -> None:
        """See :class:`~mesh_relay.inbox.protocol.Inbox`. What was stored stays, for the next :meth:`open`."""
