"""What must be true: the bookkeeper of a run, who sees everything and whom no process can reach.

Checked at every step: nothing is handed over twice, in order, nothing is called delivered that is not, nothing leaves
the outbox in silence, nothing is refused or called unreadable without a cause, a message key seals one message, a
one-time key opens one session and goes with it, a knock is let in once, plaintext ends with the first authentic
message, bounds hold.

Checked at the end: every accepted message was delivered or reported, both sides send on the same session, all queues
are empty.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshlib.client.core import ClientCore
from meshlib.client.epochs import published_epoch
from meshlib.client.events import DeliveryChanged, DeliveryState, Event, Received
from meshlib.crypto.x3dh import Opening
from meshlib.identity import Did
from meshlib.session import Role
from meshlib.store.protocol import Changes
from meshlib.wire.codec import decode
from meshlib.wire.encoding import MessageId
from meshlib.wire.frames import Ack, Message

if TYPE_CHECKING:
    from tests.simulation.agents import Agent
    from tests.simulation.servers import Relay

_GIVEN_UP = (DeliveryState.EXPIRED, DeliveryState.REFUSED)


@dataclass
class Violation(Exception):
    """A promise was broken. ``rule`` names which; ``detail`` says how."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def lane_of(text: str) -> int:
    """The lane of a message, where there are two."""
    return int(text.endswith(tuple("13579")))


@dataclass
class Offer:
    """A message somebody wanted to send."""

    sender: Did
    recipient: Did
    id: MessageId
    payload: str
    number: int
    """Its place among all messages of the pair."""
    accepted: bool = False
    """It was saved: now it must arrive or be reported."""
    reported: DeliveryState | None = None
    handed: int = 0
    confirmed: bool = False
    said_delivered: bool = False
    unwatched: bool = False
    """Only ``relayed`` was promised: sender or relay knows no receipts."""
    excused: bool = False
    """A store that held it, or held that it had come, is gone."""


@dataclass
class Ledger:
    """Everything that happened, as an outsider sees it."""

    offers: dict[MessageId, Offer] = field(default_factory=dict)
    names: dict[Did, str] = field(default_factory=dict)
    agents: "dict[Did, Agent]" = field(default_factory=dict)
    tampered: set[tuple[Did, Did]] = field(default_factory=set)
    """Pairs whose frames were bent on the way: their order is not promised."""
    excused: set[tuple[Did, Did]] = field(default_factory=set)
    """Pairs that lost sessions on purpose: what was sent on them cannot be read."""
    refusable: bool = False
    """The registry was rolled back. It has forgotten agents: what is meant for them may be refused. It hands out
    one-time keys a second time: what is sealed for one cannot be read."""
    unwanted: set[tuple[Did, Did]] = field(default_factory=set)
    """Whose knocks whom does not want: what is sent that way may be refused."""
    redelivered: int = 0
    plaintexts: int = 0
    events: list[str] = field(default_factory=list)
    trace: bool = False
    lanes: bool = False
    """Messages wait in two lanes: in each of them they keep their order."""
    _verified: set[tuple[Did, Did]] = field(default_factory=set)
    _by_payload: dict[str, Offer] = field(default_factory=dict)
    _last: dict[tuple[Did, Did, int], int] = field(default_factory=dict)
    _count: dict[tuple[Did, Did], int] = field(default_factory=dict)
    _openings: dict[bytes, Opening] = field(default_factory=dict)
    _opened: dict[tuple[Did, int], set[bytes]] = field(default_factory=dict)
    _made: dict[tuple[Did, int], bytes] = field(default_factory=dict)
    _settled: set[tuple[Did, bytes]] = field(default_factory=set)
    _sealed: dict[tuple[Did, bytes, int], bytes] = field(default_factory=dict)
    _old: dict[Did, int] = field(default_factory=dict)

    # --- stores that are not what they were ---------------------------------------------------------------------------

    def store_lost(self, agent: "Agent") -> None:
        """All an agent had is gone but its identity. What it held, and what it knew to have come, is not promised."""
        for offer in self.offers.values():
            offer.excused = offer.excused or agent.did in (offer.sender, offer.recipient)
        for other in self.agents:
            self.excused |= {(agent.did, other), (other, agent.did)}
        self._verified -= {pair for pair in self._verified if pair[0] == agent.did}
        self._settled -= {mark for mark in self._settled if mark[0] == agent.did}
        self._old.pop(agent.did, None)

    def rolled_back(self, agent: "Agent") -> None:
        """An agent's store was replaced by a copy. One that has counted less than the registry knows is refused."""
        self.store_lost(agent)
        state, published = agent.disk.load(), published_epoch(agent.registry.metadata(agent.did))
        if (state.epoch or state.signed_prekeys) and state.epoch < published:
            self._old[agent.did] = published
            return
        # Too young a copy to be noticed at its start. Peers notice when a key has sealed another message before; what
        # comes after that one may be read before it is encrypted anew.
        self.tampered |= {pair for other in self.agents for pair in ((agent.did, other), (other, agent.did))}
        for known in (self._made, self._opened, self._sealed):
            for mark in [mark for mark in known if mark[0] == agent.did]:
                del known[mark]  # type: ignore[attr-defined]

    def opened(self, agent: "Agent") -> None:
        """A store counted its start and goes on."""
        if agent.did in self._old and not self.refusable:
            raise Violation("old store", f"{agent.name} goes on with a copy of its store")

    # --- at every step -----------------------------------------------------------------------------------------------

    def offered(self, sender: Did, recipient: Did, message: MessageId, payload: str) -> None:
        """The application wants to send; nothing is promised yet."""
        number = self._count[sender, recipient] = self._count.get((sender, recipient), 0) + 1
        offer = Offer(sender, recipient, message, payload, number)
        self.offers[message] = self._by_payload[payload] = offer

    def saved(self, agent: "Agent", core: ClientCore, changes: Changes, events: Iterable[Event]) -> None:
        """A step of an agent is on its disk."""
        events = list(events)
        for event in events:
            if self.trace:
                self.events.append(f"{agent.net.now:9.3f} {agent.name} {event}")
            if isinstance(event, DeliveryChanged):
                self._delivery(agent, event)
        for message, outgoing in changes.outbox.items():
            offer = self.offers[message]
            offer.accepted = True
            if outgoing is None and "receipts" not in core.features:
                offer.unwatched = True
            elif outgoing is None and offer.reported is None and not offer.said_delivered:
                raise Violation("lost silently", f"{offer.payload} left the outbox and nobody was told")
        for incoming in changes.inbox.values():
            unread = incoming is not None and not incoming.handed_over and not incoming.encrypted
            if unread and (agent.did, incoming.sender) in self._verified:
                raise Violation("plaintext", f"{agent.name} took plaintext of a verified peer")
        unexplained = False
        for did, peer in changes.peers.items():
            if peer is None:
                continue
            if peer.verified:
                self._verified.add((agent.did, did))
            for candidate in peer.candidates:
                self._openings.update((session.id, candidate.opening) for session in candidate.sessions)
                if (agent.did, bytes(candidate.opening.ek)) in self._settled:
                    raise Violation("knock let in twice", f"{agent.name} took a replayed knock of {self.names[did]}")
            for strand in peer.strands:
                if strand.session.role is Role.RESPONDER:
                    self._settle(agent, strand.session.id)
                    # A knock and the message that waited for it, in one step: nobody saw what the knock opened.
                    unexplained = unexplained or strand.session.id not in self._openings
            if (
                len(peer.strands) > core.limits.sessions_per_peer
                or len(peer.candidates) > core.limits.candidates_per_peer
            ):
                raise Violation("memory", f"{agent.name} keeps too many sessions")
        for key_id, key in changes.one_time_prekeys.items():
            if key is None and not unexplained:
                room = len(core.keyring.one_time) < core.keyring.policy.held - core.keyring.policy.one_time
                if room and (agent.did, key_id) not in self._opened:
                    raise Violation("one-time key", f"{agent.name} dropped one before a message authenticated with it")
            elif key is not None and self._made.setdefault((agent.did, key_id), bytes(key.public)) != bytes(key.public):
                raise Violation("one-time key", f"{agent.name} gave two keys the same id")
        self._bounds(agent, core)

    def _delivery(self, agent: "Agent", event: DeliveryChanged) -> None:
        offer = self.offers[event.id]
        if event.state in _GIVEN_UP:
            offer.reported = event.state
            pair = offer.sender, offer.recipient
            wanted = not self.refusable and pair not in self.tampered and pair not in self.unwanted
            if event.state is DeliveryState.REFUSED and wanted:
                raise Violation("refused", f"{offer.payload} was refused, which nobody wanted: {event.detail}")
        elif event.state is DeliveryState.DELIVERED:
            offer.said_delivered = True
            recipient = self.agents[offer.recipient]
            if not offer.excused and (agent.did, event.id) not in recipient.disk.load().seen:
                raise Violation("false receipt", f"{offer.payload} is called delivered and is not")

    def _settle(self, agent: "Agent", session: bytes) -> None:
        opening = self._openings.get(session)
        if opening is None:
            return
        self._settled.add((agent.did, bytes(opening.ek)))
        if opening.one_time_key_id is None:
            return
        used = self._opened.setdefault((agent.did, opening.one_time_key_id), set())
        used.add(session)
        if len(used) > 1:
            raise Violation("one-time key", f"{agent.name} opened {len(used)} sessions with one")

    def wrote(self, agent: "Agent", raw: bytes) -> None:
        """A frame is on an agent's socket."""
        if b'"ciphertext"' in raw:
            frame = decode(raw)
            if not isinstance(frame, Message):
                return
            key = agent.did, bytes(frame.header.dh), frame.header.n
            if self._sealed.setdefault(key, frame.ciphertext) != frame.ciphertext:
                raise Violation("key used twice", f"{agent.name} sealed two messages with the same key")
        elif b'"unread"' in raw:
            frame = decode(raw)
            assert isinstance(frame, Ack)
            offer = self.offers.get(frame.id)
            pair = (offer.sender, offer.recipient) if offer else None
            lost = self.refusable or pair in self.tampered or pair in self.excused or pair in self.unwanted
            deaf = offer is not None and (agent.relay.plain or self.agents[offer.sender].forgetful)
            if offer and frame.unread and not lost and not deaf:  # who hears nothing of a lost knock goes on without
                raise Violation("unreadable", f"{agent.name} cannot read {offer.payload}, though nothing was lost")

    def _bounds(self, agent: "Agent", core: ClientCore) -> None:
        limits = core.limits
        if (
            core.outbox_size > limits.outbox
            or len(core.held) > limits.held_peers * limits.asked_frames_per_peer
            or len(core.overtaking) > limits.held_peers * limits.asked_frames_per_peer
            or len(core.keyring.one_time) > core.keyring.policy.held
            or core.inbox.remembered > limits.seen
            or ("receipts" in core.features and len(core.inbox) > limits.inbox * len(core.inbox.lanes))
        ):
            raise Violation("memory", f"{agent.name} keeps more than its limits say")

    def handed(self, agent: "Agent", message: Received) -> None:
        """The application of ``agent`` gets a message."""
        text = str(message.payload)
        if self.trace:
            self.events.append(
                f"{agent.net.now:9.3f} {agent.name} gets {text}{' again' if message.redelivered else ''}"
            )
        if not message.encrypted:
            self.plaintexts += 1
            return
        offer = self._by_payload.get(text)
        if offer is None or offer.sender != message.sender or offer.recipient != agent.did:
            raise Violation("forged", f"{agent.name} was handed {text!r}, which nobody sent")
        pair = offer.sender, offer.recipient
        if pair in self.unwanted and pair[::-1] not in self._count:
            raise Violation("unwanted", f"{agent.name} was handed {text}, whose sender it does not want")
        if offer.excused:
            offer.handed += 1
            return
        if offer.confirmed:
            raise Violation("handed over twice", f"{text} comes after it was confirmed")
        if offer.handed and not message.redelivered:
            raise Violation("handed over twice", f"{text} comes again, unmarked")
        offer.handed += 1
        if message.redelivered:
            self.redelivered += 1
        if offer.handed == 1:
            # Without receipts nothing is encrypted anew: what waits for a policy is overtaken on a session of its own.
            considered = agent.relay.plain and agent.kind.name == "ASKING"
            line = *pair, lane_of(text) if self.lanes else 0
            if offer.number < self._last.get(line, 0) and pair not in self.tampered and not considered:
                raise Violation("order", f"{text} comes after message {self._last[line]}")
            self._last[line] = max(offer.number, self._last.get(line, 0))

    def confirmed(self, recipient: Did, sender: Did, message: MessageId) -> None:
        """An application is done with a message, and that is on disk."""
        offer = self.offers.get(message)
        if offer is not None and offer.sender == sender:
            offer.confirmed = True

    # --- at the end --------------------------------------------------------------------------------------------------

    def at_rest(self, relay: "Relay") -> None:
        """Faults are over and time enough has passed.

        Raises:
            Violation: something is missing, or does not come to rest.
        """
        for offer in self.offers.values():
            if offer.excused or offer.unwatched:
                continue
            if offer.accepted and not offer.handed and offer.reported is None:
                said = ", though it was called delivered" if offer.said_delivered else ""
                raise Violation("lost", f"{offer.payload} was accepted and never arrived{said}")
        for agent in self.agents.values():
            if agent.process is None:
                raise Violation("rest", f"{agent.name} is down")
            core = agent.process.core
            if core.outbox_size:
                waiting = [
                    f"{self.offers[one.id].payload} ({one.state})"
                    for did in core.outbox.peers()
                    for one in core.outbox.of(did)
                ]
                raise Violation("rest", f"{agent.name} still has {', '.join(waiting)} in its outbox")
            if len(core.held) or len(core.overtaking):
                raise Violation("rest", f"{agent.name} still holds unread messages")
        for sender, recipient in self._count:
            both = {(sender, recipient), (recipient, sender)}
            if both & self.unwanted:
                continue  # they may have none
            if any(self.agents[one].forgetful for one in (sender, recipient)):
                continue  # it does not hear that its knock was lost
            if relay.plain and both & (self.excused | self.tampered):
                continue  # without receipts nobody hears that a session was lost
            ours = self.agents[sender].process.core.peer(recipient).sending()
            theirs = self.agents[recipient].process.core.peer(sender).sending()
            if ours is None or theirs is None or ours.session.id != theirs.session.id:
                one, other = self.names[sender], self.names[recipient]
                raise Violation("two sessions", f"{one} and {other} do not send on the same one")
        # What was refused is neither read nor called unread; it goes at the next connection, or with its time.
        if relay.process is not None and relay.process.core.kept[0] and not self.unwanted:
            raise Violation("rest", f"the relay still keeps {relay.process.core.kept[0]} frames")
