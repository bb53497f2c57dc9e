"""Deliberate bugs, built in by subclassing, to show that the simulation finds what it is there to find.

Each is a mistake somebody has made (PITFALLS) or could make tomorrow. ``within`` says how many seeds may pass until it
is found, ``rule`` which promise it is caught breaking.
"""

from dataclasses import dataclass
from dataclasses import replace as with_other
from typing import Any

from mesh_relay.core import RelayCore
from mesh_relay.counters import ABNORMAL
from mesh_relay.links import Link
from msgspec.structs import replace

from meshlib.client.core import ClientCore
from meshlib.client.events import DeliveryState, Event, Received
from meshlib.client.peers import Peer
from meshlib.clock import Instant
from meshlib.errors import PeerError
from meshlib.identity import Did
from meshlib.session import Session
from meshlib.store.protocol import Changes, SavedState
from meshlib.wire import frames
from meshlib.wire.encoding import MessageId
from tests.simulation.agents import ClientProcess, Disk
from tests.simulation.world import Parts


@dataclass(frozen=True)
class Bug:
    """A mistake and what becomes of it."""

    about: str
    parts: Parts
    rule: str
    within: int
    focus: tuple[str, ...] = ()
    """Kinds of faults the runs are made of; without, they are those of any seed."""
    second: str = ""
    """What the second agent is made of, if the bug takes that."""


class _AcksBeforeSaving(ClientProcess):
    def _save_and_send(self, changes: Changes, writes: list[bytes], events: list[Event]) -> None:
        acks = [raw for raw in writes if b'"type":"ack"' in raw]
        self._send(acks)
        self._save(changes, events)
        self.point("saved, not sent")
        self._send([raw for raw in writes if raw not in acks])


class _SendsBeforeSaving(ClientProcess):
    def _save_and_send(self, changes: Changes, writes: list[bytes], events: list[Event]) -> None:
        self._send(writes)
        self._save(changes, events)


class _HandsOverBeforeSaving(ClientProcess):
    def _application(self) -> None:
        self._app_due = False
        arrived = self.core.messages()
        for message in arrived:
            self._hand_over(message)
        self.point("handed over, not saved")
        if arrived:
            self._step()


class _SpendsTheKeyAtTheKnock(ClientCore):
    def _knock(self, frame: frames.Knock, now: Instant) -> None:
        super()._knock(frame, now)
        establishment = frame.establishment
        if isinstance(establishment, frames.Establishment) and establishment.otk is not None:
            self.keyring.spend(establishment.otk)
            self._changes.one_time_prekeys[establishment.otk] = None


class _EndsTheSessionOnGarbage(ClientCore):
    def _open(self, peer: Peer, frame: frames.Message, now: Instant, **more: Any) -> PeerError | None:
        failure = super()._open(peer, frame, now, **more)
        known = self.peer(peer.did)
        if failure is not None and known.strands:
            self._keep_peer(replace(known, strands=known.strands[1:]))
        return failure


class _MutatesBeforeVerifying(ClientCore):
    def _open(self, peer: Peer, frame: frames.Message, now: Instant, **more: Any) -> PeerError | None:
        failure = super()._open(peer, frame, now, **more)
        known = self.peer(peer.did)
        if failure is not None and known.strands:
            strand = known.strands[0]
            state = strand.session.state
            chain = getattr(state, "receiving", None)
            if chain is not None:  # what the forged number skipped is gone
                spoilt = replace(state, receiving=replace(chain, n=chain.n + 1))
                session = Session(strand.session.terms, strand.session.associated_data, spoilt)
                self._keep_peer(replace(known, strands=(replace(strand, session=session), *known.strands[1:])))
        return failure


class _PrefersItsOwnSession(ClientCore):
    def _keep_peer(self, peer: Peer) -> None:
        ours = [strand for strand in peer.strands if strand.session.initiator == self.profile.did and not strand.mute]
        if ours:
            rest = tuple(strand for strand in peer.strands if strand is not ours[0])
            peer = replace(peer, strands=(ours[0], *rest))
        super()._keep_peer(peer)


class _DropsTheOutboxWhenRelayed(ClientCore):
    def sent(self) -> None:
        super().sent()
        for did in self.outbox.peers():
            for outgoing in self.outbox.of(did):
                if outgoing.state is not DeliveryState.QUEUED:
                    self.outbox.drop(outgoing.id)


class _TakesAnyReject(ClientCore):
    def _knock_reject(self, frame: frames.KnockReject, now: Instant) -> None:
        for did in self.outbox.peers():
            if did == frame.sender:
                self._refuse_all(did, "somebody said no")


class _TakesPlaintext(ClientCore):
    def _is_plaintext(self, peer: Peer) -> bool:
        return peer.did in self.profile.plaintext_peers


class _HandsOverBackwards(ClientCore):
    def messages(self) -> list[Received]:
        return super().messages()[::-1]


class _IgnoresItsOutboxBound(ClientCore):
    def send(self, *arguments: object, **more: object) -> object:  # type: ignore[override]
        self.outbox._limit = 1 << 30
        return super().send(*arguments, **more)  # type: ignore[arg-type]


class _OpensOldStores(ClientCore):
    def count_epoch(self, published: int) -> int:
        return super().count_epoch(min(published, self.epoch))


class _WaitsForNothing(ClientCore):
    def _is_early(self, sender: Did, frame: frames.Message) -> bool:
        return False


class _LetsEverybodyIn(ClientCore):
    def answer_knock(self, sender: Did, knock: MessageId, *, accept: bool, now: Instant) -> None:
        super().answer_knock(sender, knock, accept=True, now=now)


class _ForgetsSeen(Disk):
    def boot(self) -> SavedState:
        return with_other(super().boot(), seen=(), inbox=())


class _ForgetsSpentEphemerals(Disk):
    def boot(self) -> SavedState:
        return with_other(super().boot(), spent_ephemerals=())


class _ForgetsWhoWasVerified(Disk):
    def boot(self) -> SavedState:
        state = super().boot()
        return with_other(state, peers={did: replace(peer, verified=False) for did, peer in state.peers.items()})


class _StartsKeyIdsAgain(Disk):
    def boot(self) -> SavedState:
        return with_other(super().boot(), next_prekey_id=1_000)


class _LosesSessions(Disk):
    def boot(self) -> SavedState:
        return with_other(super().boot(), peers={})


class _DropsWhatItPushed(RelayCore):
    def _push(self, receiver, entry, payload):  # type: ignore[no-untyped-def]
        super()._push(receiver, entry, payload)
        if entry.mailbox.find(entry.id, entry.sender) is entry:
            entry.mailbox.forget(entry)
            self._delivered([entry])


class _ForgetsOnTheWayOut(RelayCore):
    def lost(self, link: Link, code: int = ABNORMAL) -> None:
        mailbox = link.binding.mailbox if link.binding is not None else None
        super().lost(link, code)
        for entry in list(mailbox.awaiting.values()) if mailbox is not None else ():
            mailbox.forget(entry)
            self._remove(entry.mailbox, entry.pair, [entry])


BUGS: dict[str, Bug] = {
    "ack before save": Bug(
        "acks leave before the message is saved", Parts(shell=_AcksBeforeSaving), "false receipt", 150, ("kill",)
    ),
    "send before save": Bug(
        "frames leave before the ratchet is saved", Parts(shell=_SendsBeforeSaving), "key used twice", 80, ("kill",)
    ),
    "hand over before save": Bug(
        "the application gets what is not marked yet",
        Parts(shell=_HandsOverBeforeSaving),
        "handed over twice",
        80,
        ("kill",),
    ),
    "spend key at knock": Bug(
        "the one-time key dies with the knock", Parts(client=_SpendsTheKeyAtTheKnock), "one-time key", 20
    ),
    "garbage ends session": Bug(
        "a frame that cannot be read ends the session",
        Parts(client=_EndsTheSessionOnGarbage),
        "unreadable",
        40,
        ("message forged",),
    ),
    "mutate before verify": Bug(
        "the ratchet moves before the message authenticates",
        Parts(client=_MutatesBeforeVerifying),
        "unreadable",
        40,
        ("message forged",),
    ),
    "swapped tie-break": Bug(
        "of two crossing sessions each side prefers its own", Parts(client=_PrefersItsOwnSession), "two sessions", 20
    ),
    "drop when relayed": Bug(
        "the outbox lets go of what was written", Parts(client=_DropsTheOutboxWhenRelayed), "lost silently", 20
    ),
    "any reject": Bug(
        "a reject with an invented knock id is believed",
        Parts(client=_TakesAnyReject),
        "refused",
        100,
        ("reject forged",),
    ),
    "plaintext for ever": Bug(
        "plaintext of a verified peer is taken", Parts(client=_TakesPlaintext), "plaintext", 40, ("plaintext forged",)
    ),
    "backwards": Bug("what came together is handed over backwards", Parts(client=_HandsOverBackwards), "order", 20),
    "no outbox bound": Bug("the outbox grows without bound", Parts(client=_IgnoresItsOutboxBound), "memory", 60),
    "seen not saved": Bug(
        "ids seen are forgotten in a restart",
        Parts(disk=_ForgetsSeen),
        "unreadable",
        150,
        ("kill", "kill relay", "cut"),
    ),
    "spent not saved": Bug(
        "ephemeral keys of knocks are forgotten in a restart",
        Parts(disk=_ForgetsSpentEphemerals),
        "knock let in twice",
        150,
        ("kill", "knock replayed", "prekeys drained"),
    ),
    "verified not saved": Bug(
        "who was verified is forgotten in a restart",
        Parts(disk=_ForgetsWhoWasVerified),
        "plaintext",
        80,
        ("kill", "plaintext forged"),
    ),
    "key ids again": Bug(
        "ids of one-time keys start again in a restart", Parts(disk=_StartsKeyIdsAgain), "one-time key", 80
    ),
    "sessions not saved": Bug("sessions are forgotten in a restart", Parts(disk=_LosesSessions), "unreadable", 80),
    "relay drops pushed": Bug(
        "the relay takes pushed for delivered", Parts(relay=_DropsWhatItPushed), "false receipt", 20
    ),
    "relay drops on close": Bug(
        "the relay forgets what a closing socket did not ack", Parts(relay=_ForgetsOnTheWayOut), "lost", 60, ("cut",)
    ),
    "waits for nothing": Bug(
        "a message is taken at once although earlier ones are missing",
        Parts(client=_WaitsForNothing),
        "order",
        60,
        ("sessions lost", "kill relay"),
    ),
    "old store": Bug(
        "a store that has counted less than the registry knows is opened",
        Parts(client=_OpensOldStores),
        "old store",
        20,
        ("store rolled back",),
    ),
    "any answer": Bug(
        "a peer the policy refuses, or says nothing about, is let in",
        Parts(client=_LetsEverybodyIn),
        "unwanted",
        20,
        second="ASKING",
    ),
}
