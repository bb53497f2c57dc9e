"""``mesh_inbox`` and ``mesh_await``: messages in results that fit, and reading on in what did not.

Owns which message counts as handed over, and when. Leaves confirming to whoever hands the result over.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshlib.errors import InvalidValue
from meshlib.tools.arguments import Arguments
from meshlib.tools.desk import Desk, Rest
from meshlib.tools.results import RESERVED, RESULT, UNTRUSTED, Piece, short, size, text_of, visible

if TYPE_CHECKING:
    from meshlib.client.verbs import AnyMessage
    from meshlib.identity import Did

MESSAGES = 20
"""Messages of one result at most; with less than some hundred characters each a model keeps none apart."""
GLANCE = 1.0
"""Seconds the inbox is given to say that it is empty: a round trip to the daemon, on a busy machine."""
PATIENCE = 60.0
"""Seconds that ``mesh_await`` waits unless it is told otherwise: less than most runtimes give a tool."""
LONGEST_WAIT = 600.0
"""Seconds that ``mesh_await`` waits at most; it can be called again."""

_KINDS = frozenset({"task_request", "task_received", "task_progress", "task_response", "task_cancel", "peers_update"})
"""Envelopes worth telling apart; any other type is a peer's word."""


@dataclass(slots=True)
class Outcome:
    """What a tool has to say, and the messages that count as handed over once it was said."""

    members: dict[str, object] = field(default_factory=dict)
    next: str = ""
    handed_over: "list[AnyMessage]" = field(default_factory=list)
    kept: "list[AnyMessage]" = field(default_factory=list)
    """Shown in part: confirmed once they were read to their ends."""
    taken: "list[AnyMessage]" = field(default_factory=list)
    """Taken from the inbox for this call; what is not handed over in the end goes back."""


async def read_inbox(desk: Desk, arguments: Arguments, outcome: Outcome) -> None:
    rest = arguments.maybe("rest_of")
    if rest:
        await _read_on(desk, rest, arguments.count("offset", 0, 2**31, least=0), outcome)
        return
    most = arguments.count("limit", MESSAGES, MESSAGES)
    pages = Pages(desk, outcome)
    while pages.count < most and (message := await pages.take(None, GLANCE)) is not None:
        if not await pages.add(message):
            break
    pages.finish()
    outcome.next = (
        UNTRUSTED + pages.advice + " Answer with mesh_send, giving the 'from' of a message as to_agent."
        if pages.count
        else "The inbox is empty. Do something else, or wait for somebody with mesh_await."
    )


async def wait_for_messages(desk: Desk, arguments: Arguments, outcome: Outcome) -> None:
    names = arguments.peers("senders")
    patience = arguments.seconds(PATIENCE, LONGEST_WAIT)
    left = {await desk.did_of(name): name for name in names}
    pages = Pages(desk, outcome)
    until = time.monotonic() + patience
    while pages.count < MESSAGES:
        message = await pages.take(list(left) or None, until - time.monotonic())
        if message is None or not await pages.add(message):
            break
        left.pop(message.sender, None)
        if not left:
            break
    pages.finish()
    if names:
        outcome.members["still_waiting_for"] = [short(name, 60) for name in left.values()]
    if not pages.count:
        outcome.next = (
            f"Nothing came within {patience:g} seconds. Call mesh_await again, check mesh_peers, or go on without."
        )
        return
    outcome.next = UNTRUSTED + pages.advice
    if left:
        outcome.next += " Some have not been heard: call mesh_await again with them, or go on without."


class Pages:
    """Messages that together fit one result."""

    def __init__(self, desk: Desk, outcome: Outcome) -> None:
        self._desk = desk
        self._outcome = outcome
        self._fence = desk.fence
        self._room = RESULT - RESERVED
        self._entries: list[dict[str, object]] = []
        self.advice = ""

    @property
    def count(self) -> int:
        """Messages in the result so far."""
        return len(self._entries)

    async def take(self, senders: "list[Did] | None", patience: float) -> "AnyMessage | None":
        """The next message. It goes back unless it is added."""
        message = await self._desk.next_message(senders, patience)
        if message is not None:
            self._outcome.taken.append(message)
        return message

    async def add(self, message: "AnyMessage") -> bool:
        """Add a message, the first even if only a part of it fits. Returns whether it was added."""
        entry = _about(self._desk, message)
        text = visible(text_of(message.payload))
        piece = self._fence.around(text, message.sender, self._room - size(entry) - len(', "content": '))
        if not piece.complete and self._entries:
            self.advice += " More messages wait: call mesh_inbox again."
            return False
        entry["content"] = piece.fenced
        if piece.complete:
            self._outcome.handed_over.append(message)
        else:
            self.advice += await cut(self._desk, entry, str(message.id), Rest(text, message.sender, message), piece)
            # Read to the end it is confirmed; left lying, it comes again once. Not more often: a peer must not be able
            # to fill the context of every run with the same beginning.
            (self._outcome.handed_over if message.redelivered else self._outcome.kept).append(message)
        self._entries.append(entry)
        self._room -= size(entry) + 2
        return True

    def finish(self) -> None:
        """Put what there is into the result."""
        self._outcome.members["messages"] = self._entries


def _about(desk: Desk, message: "AnyMessage") -> dict[str, object]:
    """Facts about a message; who sent it has been proven."""
    entry: dict[str, object] = {"from": short(message.sender), "id": short(message.id)}
    name = desk.name_of(message.sender)
    if name is not None:
        entry["name"] = name
    kind = message.payload.get("type") if isinstance(message.payload, dict) else None
    if kind in _KINDS:
        entry["kind"] = kind
    if message.redelivered:
        entry["shown_before"] = True
    if not message.encrypted:
        entry["encrypted"] = False
    return entry


async def cut(desk: Desk, members: dict[str, object], key: str, rest: Rest, piece: Piece) -> str:
    """Keep what did not fit. Returns how to get at it."""
    await desk.keep(key, rest)
    members["cut"] = {"shown": piece.end, "of": piece.total}
    return f" A text was cut: read on with mesh_inbox(rest_of={short(key)!r}, offset={piece.end})."


async def _read_on(desk: Desk, key: str, offset: int, outcome: Outcome) -> None:
    rest = desk.rest(key)
    if offset >= len(rest.text):
        raise InvalidValue(f"offset must be below {len(rest.text)}, the characters there are")
    piece = desk.fence.around(rest.text, rest.source, RESULT - RESERVED, offset)
    outcome.members = {"id": short(key), "from": short(rest.source), "offset": offset, "content": piece.fenced}
    outcome.next = UNTRUSTED
    if piece.complete:
        message = desk.finish(key)
        if message is not None:
            outcome.handed_over.append(message)
        return
    outcome.members["cut"] = {"shown": piece.end, "of": piece.total}
    outcome.next += f" Read on with mesh_inbox(rest_of={short(key)!r}, offset={piece.end})."
