"""Where a message stands, as far as one agent knows: looked up by id in what the core holds. Changes nothing."""

from collections.abc import Iterator

from meshlib.client.core import ClientCore
from meshlib.client.stats import Sighting
from meshlib.store.protocol import Outgoing
from meshlib.wire.encoding import MessageId


def look_up(core: ClientCore, message: MessageId) -> tuple[Sighting, ...]:
    """What is known of a message. Ids are their senders' choice: several peers may have used the same one.

    The ends of the last 10,000 sent messages are remembered, and the ids of the last 100,000 received ones.
    """
    return (*_sent(core, message), *_received(core, message))


def _sent(core: ClientCore, message: MessageId) -> Iterator[Sighting]:
    found = core.delivery(message)
    if isinstance(found, Outgoing):
        size = len(found.payload)
        yield Sighting("sent", found.peer, found.state.value, found.frame is not None, size, found.queued)
    elif found is not None:
        yield Sighting("sent", found.peer, found.state.value)


def _received(core: ClientCore, message: MessageId) -> Iterator[Sighting]:
    for sender in core.inbox.senders_of(message):
        kept = core.inbox.get(sender, message)
        if kept is None:
            yield Sighting("received", sender, "acked")
        else:
            state = "handed_over" if kept.handed_over else "received"
            yield Sighting("received", sender, state, kept.encrypted, len(kept.payload))
    for sender in (*core.held.senders_of(message), *core.overtaking.senders_of(message)):
        if not core.inbox.has_seen(sender, message):
            yield Sighting("received", sender, "held", encrypted=True)
