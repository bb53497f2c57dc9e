"""What a client logs of its messages and its connection: an event per step, with the message's id.

A message can be followed by its id through the logs of sender, relay and recipient: ``queued``, ``encrypted``,
``relayed``, ``stored`` and ``delivered`` here, ``received``, ``handed_over`` and ``acked`` there. What is logged names
peers and ids, and never what they say.
"""

import logging
from collections.abc import Iterable

from meshlib.client.events import (
    Connected,
    DeliveryChanged,
    DeliveryState,
    Disconnected,
    Event,
    FaultFound,
    FileReceived,
    KnockAccepted,
    KnockReceived,
    KnockRejected,
    PeerVerified,
    SessionLost,
)
from meshlib.identity import Did
from meshlib.logs import LogEvent
from meshlib.store.protocol import Changes
from meshlib.wire.encoding import MessageId

log = logging.getLogger("meshlib.client")

_SELDOM = frozenset((Connected, Disconnected, FaultFound, SessionLost))
"""Events that are worth a line where single messages are not."""


def asked_for() -> bool:
    """Whether steps of single messages are logged: nobody shall pay for them otherwise."""
    return log.isEnabledFor(logging.DEBUG)


def queued(message: MessageId, peer: Did) -> None:
    """The application has given us a message; it is in the outbox, and about to be saved."""
    if asked_for():
        log.debug(LogEvent("queued", id=message, peer=peer))


def saved(changes: Changes) -> None:
    """What the core has changed is saved."""
    if not asked_for():
        return
    for message, outgoing in changes.outbox.items():
        if outgoing is not None and outgoing.frame is not None and outgoing.state is DeliveryState.RELAYED:
            log.debug(LogEvent("encrypted", id=message, peer=outgoing.peer, bytes=len(outgoing.frame)))
    for sender, message in changes.seen:
        log.debug(LogEvent("received", id=message, peer=sender))
    for (sender, message), incoming in changes.inbox.items():
        if incoming is None:
            log.debug(LogEvent("acked", id=message, peer=sender))
        elif incoming.handed_over:
            log.debug(LogEvent("handed_over", id=message, peer=sender))


def told(events: Iterable[Event]) -> None:
    """Listeners are told something."""
    if not log.isEnabledFor(logging.INFO):
        return
    for event in events:
        level = logging.INFO if type(event) in _SELDOM else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(level, _described(event))


def _described(event: Event) -> LogEvent:
    """An event without what peers say in it: no intent of a knock, no name of a file."""
    match event:
        case DeliveryChanged():
            name = "queued_again" if event.state is DeliveryState.QUEUED else event.state.value
            more = {"detail": event.detail} if event.detail else {}
            return LogEvent(name, id=event.id, peer=event.peer, **more)
        case Connected():
            return LogEvent("connected", features=sorted(event.features))
        case Disconnected():
            return LogEvent("disconnected", code=event.code, detail=event.reason, retrying=event.retrying)
        case PeerVerified():
            return LogEvent("peer_verified", peer=event.peer)
        case KnockReceived():
            return LogEvent("knock_received", id=event.knock_id, peer=event.peer)
        case KnockAccepted():
            return LogEvent("knock_accepted", peer=event.peer)
        case KnockRejected():
            return LogEvent("knock_rejected", peer=event.peer, reason=event.reason)
        case SessionLost():
            return LogEvent("session_lost", peer=event.peer, detail=event.reason)
        case FileReceived():
            return LogEvent("file_received", transfer=event.transfer_id, peer=event.peer, bytes=event.size)
        case FaultFound():
            return LogEvent(
                "fault", kind=event.kind, reason=event.reason, id=event.id, peer=event.peer, detail=event.detail
            )
