"""Messages taken from peers: which were seen, which wait for the application.

Owns that nothing is handed over twice by accident. Leaves decrypting and acknowledging to :mod:`meshlib.client.core`.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from meshlib.identity import Did
from meshlib.store.protocol import InboxKey, Incoming
from meshlib.wire.encoding import MessageId


class Inbox:
    """Everything that arrived, by sender and id.

    Args:
        limit: messages that may wait in each lane. Nobody who takes from one lane waits for who takes from another.
        remember: ids remembered to tell a duplicate.
    """

    def __init__(self, saved: Iterable[Incoming], seen: Iterable[InboxKey], limit: int, remember: int) -> None:
        self._limit = limit
        self._remember = remember
        self._entries: dict[InboxKey, Incoming] = {(one.sender, one.id): one for one in saved}
        self._ready: dict[int, deque[InboxKey]] = {0: deque(self._entries)}
        self._lanes: dict[InboxKey, int] = {}
        self._waiting: list[int] = [len(self._entries)]
        """How many wait in each lane, handed over or not."""
        self._seen: OrderedDict[InboxKey, None] = OrderedDict.fromkeys(seen)
        self._changed: dict[InboxKey, Incoming | None] = {}
        self._newly_seen: list[InboxKey] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lanes(self) -> range:
        """The lanes there are."""
        return range(len(self._waiting))

    def is_full(self, lane: int) -> bool:
        """Whether as many wait in a lane as may."""
        return self._waiting[lane] >= self._limit

    def is_half_empty(self, lane: int) -> bool:
        """Whether so many more may wait in a lane that it pays to ask for them."""
        return self._waiting[lane] <= self._limit // 2

    @property
    def remembered(self) -> int:
        """Ids remembered."""
        return len(self._seen)

    def has_seen(self, sender: Did, message: MessageId) -> bool:
        """Whether this message has been taken before."""
        return (sender, message) in self._seen

    def holds(self, sender: Did, message: MessageId) -> bool:
        """Whether the application has not confirmed it yet."""
        return (sender, message) in self._entries

    def get(self, sender: Did, message: MessageId) -> Incoming | None:
        """A message that the application has not confirmed yet."""
        return self._entries.get((sender, message))

    def senders_of(self, message: MessageId) -> list[Did]:
        """Peers of whom a message with this id was taken. Looks at everything that is remembered."""
        return [sender for sender, known in self._seen if known == message]

    def mark_seen(self, sender: Did, message: MessageId) -> None:
        """Remember a message; the longest known is forgotten beyond the bound."""
        self._seen[sender, message] = None
        self._newly_seen.append((sender, message))
        while len(self._seen) > self._remember:
            self._seen.popitem(last=False)

    def put(self, incoming: Incoming, lane: int = 0) -> None:
        """Keep a message for whoever takes from ``lane``; 0 is the application's."""
        key = (incoming.sender, incoming.id)
        self._entries[key] = self._changed[key] = incoming
        self._waiting[lane] += 1
        self._line_up(key, lane)

    def _line_up(self, key: InboxKey, lane: int) -> None:
        self._ready.setdefault(lane, deque()).append(key)
        if lane:
            self._lanes[key] = lane

    def add_lane(self, lane_of: Callable[[Incoming], int]) -> int:
        """Make another lane, and ask for the lane of everything that waits for the application. Returns the lane."""
        self._waiting.append(0)
        for key in self._ready.pop(0, deque()):
            incoming = self._entries.get(key)
            if incoming is not None:
                lane = lane_of(incoming)
                self._waiting[0] -= 1
                self._waiting[lane] += 1
                self._line_up(key, lane)
        return len(self._waiting) - 1

    def lanes_ready(self) -> list[int]:
        """Lanes in which something is ready to be handed over."""
        return [lane for lane, keys in self._ready.items() if keys]

    def hand_over(self, lane: int = 0) -> list[Incoming]:
        """What is ready, in order; each is marked, so that it shows should it have to be offered again."""
        taken = []
        for key in self._ready.pop(lane, ()):
            incoming = self._entries.get(key)
            if incoming is None:
                continue
            taken.append(incoming)
            if not incoming.handed_over:
                self._entries[key] = self._changed[key] = replace(incoming, handed_over=True)
        return taken

    def confirm(self, sender: Did, message: MessageId) -> bool:
        """The application is done with a message. Returns whether it was waiting for that."""
        if self._entries.pop((sender, message), None) is None:
            return False
        self._waiting[self._lanes.pop((sender, message), 0)] -= 1
        self._changed[sender, message] = None
        return True

    def offer_again(self, sender: Did, message: MessageId) -> None:
        """The application failed on a message."""
        if (sender, message) in self._entries:
            self._line_up((sender, message), self._lanes.get((sender, message), 0))

    def changes(self) -> tuple[dict[InboxKey, Incoming | None], list[InboxKey]]:
        """Records changed and ids newly seen since the last call."""
        taken = (self._changed, self._newly_seen)
        self._changed, self._newly_seen = {}, []
        return taken
