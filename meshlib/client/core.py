"""What a client decides: connection states, peers, queues and timers, without any I/O.

Bytes, time and wishes go in; frames to write, facts and changes to save come out. The shell saves ``changes()``
before it sends ``writes()``, so nothing leaves that is not saved. Hostile bytes never raise out of ``receive``:
they become a :class:`~meshlib.client.events.FaultFound` and change nothing.

Owns the order of steps. Leaves sessions to :mod:`meshlib.client.peers`, what waits to
:mod:`~meshlib.client.outbox`, :mod:`~meshlib.client.inbox` and :mod:`~meshlib.client.held`, prekeys to
:mod:`~meshlib.client.keyring`, bytes to :mod:`meshlib.wire`.
"""

import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from meshlib.client.epochs import next_epoch
from meshlib.client.events import (
    Connected,
    DeliveryChanged,
    DeliveryState,
    Disconnected,
    Event,
    FaultFound,
    KnockAccepted,
    KnockReceived,
    KnockRejected,
    PeerVerified,
    Received,
    SessionLost,
)
from meshlib.client.held import Held, HeldMessages, in_line
from meshlib.client.inbox import Inbox
from meshlib.client.keyring import Keyring, PrekeyUpload
from meshlib.client.knocks import KnockRate, SpentOpenings
from meshlib.client.outbox import Outbox
from meshlib.client.peers import Entry, Peer, Wish
from meshlib.clock import Instant
from meshlib.config import Limits, Prekeys, Timeouts
from meshlib.crypto.keys import Entropy
from meshlib.crypto.prekeys import PrekeyBundle
from meshlib.crypto.primitives import refuse_low_order, refuse_second_spelling
from meshlib.crypto.ratchet import MAX_SKIP, Header
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.errors import (
    InvalidValue,
    MalformedFrame,
    MeshError,
    NotAuthentic,
    PeerError,
    Replayed,
    UnknownPrekey,
)
from meshlib.identity import (
    Did,
    Identity,
    challenge_statement,
    commits_to_key,
    parse_did,
    timestamp_statement,
)
from meshlib.session import Session, candidates, check_opening, opening_ids
from meshlib.store.protocol import Changes, Incoming, Outcome, Outgoing, SavedState
from meshlib.wire import frames
from meshlib.wire.codec import (
    decode,
    decode_payload,
    decode_plaintext_payload,
    encode,
    encode_payload,
    encode_plaintext_payload,
)
from meshlib.wire.encoding import MessageId, message_id, timestamp

TERMINAL_CODES: Mapping[int, str] = {
    4001: "the relay expected a connect frame first: it speaks another protocol",
    4002: "the relay found no DID in our connect frame",
    4003: "the relay does not accept this DID: it needs a proof of possession, or does not know the old dialect",
    4005: "the relay did not accept our proof of possession: check the clock of this machine",
    4006: "another connection of this DID has taken over: one process per identity",
}
"""Close codes that a retry does not change."""
RETRY_BUNDLE_AFTER = 5.0
"""Seconds until a bundle that could not be fetched is asked for again."""
REOPEN_AFTER = (0.5, 2.0, 8.0, 30.0, 60.0)
"""Seconds before the first, second, ... new session for a peer that cannot read us. The first wait lets what was said
about messages in flight pass; the growing ones keep a relay that invents complaints from draining prekeys."""
SECOND_KNOCK_AFTER = 3.5
"""Seconds before a knock that was rejected without a reason is tried once more. The SDK keeps what it cannot read for
three seconds and feeds it to the next session, which does not survive that."""
ACCEPTED_WITHIN = 5.0
"""Seconds that messages for a peer which has complained wait for its answer to our new knock. The SDK opens a session
while the frames behind the knock are being read already, and reads the first of them with the old one."""
MISSED_FOR = 1.0
"""Seconds a message waits for the one before it while nothing says that its sender encrypts anew: that one is right
behind it then, or does not come."""
BELIEVED_FOR = 60.0
"""Seconds in which a second reject without a reason is taken as the peer's word."""
FORGIVEN_AFTER = 120.0
"""Seconds after which a peer's complaints count from the start again."""

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Link(Enum):
    """Where the connection to the relay stands."""

    DOWN = "down"
    PROVING = "proving"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Profile:
    """Who the client is on the wire. Fixed for the life of a core."""

    identity: Identity
    did: Did
    dialect: Dialect = Dialect.AGT5
    extensions: bool = True
    plaintext_peers: frozenset[str] = frozenset()
    peer_dialects: Mapping[str, Dialect] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)
    heartbeat: float = 30.0
    ask_before_accepting: bool = False
    """Let every knock wait for :meth:`ClientCore.answer_knock`."""
    ack_when_saved: bool = False
    """Acknowledge to the relay once a message is saved: only with a durable store."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A knock that waits for the policy's answer."""

    knock: frames.Knock
    opening: Opening | None
    sessions: tuple[Session, ...]
    until: float
    """Monotonic time at which silence counts as no."""


class ClientCore:
    """One client's decisions. Owned by one task; not thread-safe, and needs no locks.

    Args:
        profile: who we are.
        state: what the store held.
        entropy: source of randomness; drawn from in the order WIRE.md gives, so that vectors can replay us.
    """

    def __init__(
        self,
        profile: Profile,
        state: SavedState,
        entropy: Entropy,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        prekeys: Prekeys = Prekeys(),  # noqa: B008 - frozen
    ) -> None:
        self.profile = profile
        self.limits = limits
        self.epoch = state.epoch
        """How far the store has counted, see :mod:`meshlib.client.epochs`."""
        self.link = Link.DOWN
        self._connection = 0
        self.features: frozenset[str] = frozenset()
        self.keyring = Keyring(profile.identity, prekeys)
        self.keyring.restore(state.signed_prekeys, state.one_time_prekeys, state.next_prekey_id)
        self._signed_ids = self._ids_of_signed()
        self._timeouts = timeouts
        self._entropy = entropy
        # A bundle that was being fetched is asked for again: the answer went to the process that is gone.
        self._peers: dict[Did, Peer] = {did: self._idle(peer) for did, peer in state.peers.items()}
        self._strangers: OrderedDict[Did, None] = OrderedDict.fromkeys(
            did for did, peer in self._peers.items() if not peer.verified
        )
        self._verified_any = any(peer.verified for peer in self._peers.values())
        self.outbox = Outbox(state.outbox, limits.outbox, state.outcomes)
        self.inbox = Inbox(state.inbox, state.seen, limits.inbox, limits.seen)
        self._lane_of: Callable[[Did, object], int] = lambda sender, payload: 0
        self.held = HeldMessages(limits)
        self.overtaking = HeldMessages(limits)
        """Messages whose predecessor has not come."""
        self._patience: dict[Did, float] = dict.fromkeys(self._peers, limits.missing_seconds)
        """Seconds a message of a peer waits for the one before it, where that is not :data:`MISSED_FOR`: long while it
        may encrypt anew, since we called one unread or who was here before us did; none after a wait in vain."""
        self._spent = SpentOpenings(state.spent_ephemerals, limits)
        self._knock_rate = KnockRate(limits)
        self._asked: dict[tuple[Did, MessageId], _Asked] = {}
        self._fetches: list[Did] = []
        self._retry_fetch: dict[Did, float] = {}
        self._hints: dict[Did, Dialect] = {}
        self._complaints: OrderedDict[Did, tuple[int, float]] = OrderedDict()
        self._renewals: OrderedDict[Did, tuple[int, float]] = OrderedDict()
        self._anew_at: dict[Did, float] = {}
        self._accepted_by: dict[Did, float] = {}
        self._second_knocks: OrderedDict[Did, float] = OrderedDict()
        self._changes = Changes()
        self._writes: list[bytes] = []
        self._events: deque[Event] = deque()  # the shell drains it after every step
        self._relayed: list[MessageId] = []
        self._in_flight: list[MessageId] = []
        self._next_heartbeat = 0.0
        self._consent_at: float | None = None
        self._terminal = False
        self._closed_lanes: set[int] = set()
        self._passed_over: Counter[Did] = Counter()
        self.frames_received: Counter[type[frames.Frame]] = Counter()
        self.bytes_received = 0

    # --- what comes out ----------------------------------------------------------------------------------------------

    def changes(self) -> Changes:
        """What must be saved before anything else happens. Each change is returned once."""
        taken, self._changes = self._changes, Changes()
        taken.outbox = self.outbox.changes()
        taken.outcomes = self.outbox.ended()
        taken.inbox, taken.seen = self.inbox.changes()
        taken.spent_ephemerals = self._spent.changes()
        return taken

    def writes(self) -> list[bytes]:
        """Frames to send, in order, once the changes are saved."""
        taken, self._writes = self._writes, []
        self._in_flight.extend(self._relayed)
        self._relayed = []
        return taken

    def events(self) -> list[Event]:
        """Facts for the caller, oldest first."""
        taken = list(self._events)
        self._events.clear()
        return taken

    def messages(self, lane: int = 0) -> list[Received]:
        """Messages to hand over, in the order they arrived, after the changes are saved.

        Args:
            lane: of which lane; see :meth:`sort_by`. 0 is the application's.
        """
        return [
            Received(
                incoming.sender,
                incoming.id,
                decode_payload(incoming.payload),
                incoming.encrypted,
                redelivered=incoming.handed_over,
            )
            for incoming in self.inbox.hand_over(lane)
        ]

    def add_lane(self, lane_of: Callable[[Did, object], int]) -> int:
        """Have messages wait in one more lane: those that come, and those that wait for the application already.

        Args:
            lane_of: the lane of a message, by its sender and payload. Changes nothing and never raises.
        Returns:
            The new lane.
        """
        self._lane_of = lane_of
        return self.inbox.add_lane(lambda incoming: lane_of(incoming.sender, decode_payload(incoming.payload)))

    def fetches(self) -> list[Did]:
        """Peers whose prekey bundle is needed; answer with :meth:`bundle` or :meth:`no_bundle`."""
        taken, self._fetches = self._fetches, []
        return taken

    def next_deadline(self) -> float:
        """Monotonic time at which :meth:`tick` has something to do; infinity if never."""
        deadlines = [self.held.next_deadline(), self.overtaking.next_deadline()]
        deadlines += [*self._retry_fetch.values(), *self._anew_at.values(), *self._accepted_by.values()]
        deadlines.extend(asked.until for asked in self._asked.values())
        if self.link is not Link.DOWN:
            deadlines.append(self._next_heartbeat)
        if self._consent_at is not None:
            deadlines.append(self._consent_at)
        return min(deadlines, default=float("inf"))

    @property
    def terminal(self) -> bool:
        """Whether the relay has said no in a way that a retry does not change."""
        return self._terminal

    @property
    def inbox_full(self) -> bool:
        """Whether a lane is full. The shell stops reading where the relay would not offer again what is passed over."""
        return any(self.inbox.is_full(lane) for lane in self.inbox.lanes)

    @property
    def overflowed(self) -> bool:
        """Whether messages of this connection were passed over because there was no room for them."""
        return bool(self._closed_lanes)

    @property
    def inbox_has_room(self) -> bool:
        """Whether so much is free again in a lane from which messages were passed over that it pays to ask for them."""
        return any(self.inbox.is_half_empty(lane) for lane in self._closed_lanes)

    @property
    def outbox_size(self) -> int:
        """Messages of ours that are not delivered yet."""
        return len(self.outbox)

    def peer(self, did: Did) -> Peer:
        """What is known of a peer."""
        return self._peers.get(did) or Peer(did)

    def peers(self) -> list[Peer]:
        """Everybody known, the last used first."""
        return list(reversed(self._peers.values()))

    def open_questions(self) -> list[tuple[Did, MessageId]]:
        """Senders and ids of knocks that wait for :meth:`answer_knock`, oldest first."""
        return list(self._asked)

    def _is_asked(self, sender: Did) -> bool:
        return any(peer == sender for peer, _ in self._asked)

    def speaks_plaintext_with(self, did: Did) -> bool:
        """Whether frames to and from a peer are unencrypted: it is on our list and was never verified."""
        return self._is_plaintext(self.peer(did))

    def delivery(self, message: MessageId) -> Outgoing | Outcome | None:
        """How far a message of ours has come, or how it ended; ``None`` for one that is not known any more."""
        return self.outbox.get(message) or self.outbox.outcome(message)

    # --- the connection ----------------------------------------------------------------------------------------------

    def opened(self, now: Instant, challenge: str | None = None) -> None:
        """The socket is up. ``challenge`` is what the relay put into its handshake answer, if it did."""
        if self.link is not Link.DOWN:
            return
        self._connection += 1
        self.features = frozenset()
        self._terminal = False
        self._closed_lanes.clear()
        self._passed_over.clear()
        self._write(self._connect_frame(now, challenge))
        self._write(frames.FetchPending(self.profile.did))
        self._next_heartbeat = now.monotonic + self.profile.heartbeat
        if self.profile.extensions:
            self.link = Link.PROVING
            if not challenge:  # a relay that sends a challenge also says when it is content
                self._consent_at = now.monotonic + self._timeouts.silent_relay
        else:
            self._up(now)

    def _connect_frame(self, now: Instant, challenge: str | None) -> frames.Connect:
        profile = self.profile
        features: tuple[str, ...] = ("receipts", "challenge") if profile.extensions else ()
        if profile.dialect is Dialect.AGT4:
            return frames.Connect(profile.did, None, None, None, features, profile.token)
        stamp = timestamp(now.utc)
        if challenge and profile.extensions:
            # The bare timestamp is never signed for a relay that sends a challenge: nothing to replay elsewhere.
            statement = challenge_statement(profile.did, stamp, challenge)
        else:
            statement = timestamp_statement(stamp)
            features = tuple(feature for feature in features if feature != "challenge")
        signature = profile.identity.sign(statement)
        return frames.Connect(
            profile.did, bytes(profile.identity.public_key), stamp, signature, features, profile.token
        )

    def closed(self, code: int, reason: str) -> None:
        """The socket is gone."""
        if self.link is Link.DOWN:
            return
        self.link = Link.DOWN
        self._consent_at = None
        self._writes.clear()
        self._relayed.clear()
        self._in_flight.clear()
        self.overtaking.clear()  # the relay has kept them and offers them again
        self._terminal = code in TERMINAL_CODES or (code == 1000 and "replaced" in reason)
        detail = TERMINAL_CODES.get(code, reason)
        if reason and reason != detail:
            detail = f"{detail} ({reason})" if detail else reason
        self._events.append(Disconnected(code, detail, retrying=not self._terminal))

    def goodbye(self) -> None:
        """Announce that we leave; the shell closes the socket with code 1000 afterwards."""
        if self.link is not Link.DOWN:
            self._write(frames.Disconnect(self.profile.did))
            self.link = Link.DOWN
            self._consent_at = None
            self.overtaking.clear()

    def sent(self) -> None:
        """What :meth:`writes` returned is on the socket. Without receipts that is all we shall ever learn."""
        relayed, self._in_flight = self._in_flight, []
        if "receipts" in self.features:
            return
        for message in relayed:
            self.outbox.finish(message, DeliveryState.RELAYED)

    def tick(self, now: Instant) -> None:
        """Do what is due at ``now``."""
        if self.link is not Link.DOWN and now.monotonic >= self._next_heartbeat:
            self.heartbeat(now)
        if self._consent_at is not None and now.monotonic >= self._consent_at and self.link is Link.PROVING:
            self._up(now)
        for did in [did for did, due in self._retry_fetch.items() if due <= now.monotonic]:
            del self._retry_fetch[did]
            self._fetches.append(did)
        for did in [did for did, due in self._accepted_by.items() if due <= now.monotonic]:
            self._answered(did, now)
        for did in [did for did, due in self._anew_at.items() if due <= now.monotonic]:
            del self._anew_at[did]
            self._count(self._renewals, did, now)
            self.outbox.encrypt_anew(did)
            self._pump(did, now)
        for sender, knock in [key for key, asked in self._asked.items() if asked.until <= now.monotonic]:
            self.answer_knock(sender, knock, accept=False, now=now)
        self._expire_held(now)

    def heartbeat(self, now: Instant) -> None:
        """Tell the relay that we are alive."""
        if self.link is Link.DOWN:
            return
        self._write(frames.Heartbeat(self.profile.did, timestamp(now.utc)))
        self._next_heartbeat = now.monotonic + self.profile.heartbeat

    def _up(self, now: Instant, features: frozenset[str] = frozenset()) -> None:
        self.link = Link.UP
        self._consent_at = None
        self.features = features
        self._events.append(Connected(features))
        waiting = self.outbox.peers()
        if self.profile.extensions and "receipts" not in features:
            # The outbox has let go of what was written after a knock that may be lost. What follows needs it, too.
            knocking = (did for did, peer in self._peers.items() if peer.knock_frame is not None)
            waiting += [did for did in knocking if not self.outbox.waits_for(did)]
        for did in waiting:
            knock = self.peer(did).knock_frame
            if knock is not None:
                # It may have been saved and never written. Twice is harmless: the relay knows the id, and a peer that
                # has let it in answers as before.
                self._writes.append(knock)
            for outgoing in self.outbox.of(did):
                # Written before and not known to be delivered: the same bytes again. A relay that has them, or has
                # delivered them lately, answers with a receipt; a recipient drops the copy.
                if outgoing.frame is not None:
                    self._writes.append(outgoing.frame)
                    self._relayed.append(outgoing.id)
            self._pump(did, now)

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(
        self, peer: Did, payload: object, now: Instant, message: MessageId | None = None, *, answer: bool = False
    ) -> MessageId:
        """Queue a message; it leaves as soon as there is a session to send it on.

        Args:
            payload: str, bytes or any JSON value, at most ``limits.payload`` bytes as JSON. NaN and infinities, which
                JSON does not have, arrive as null, as with the SDK.
            message: the caller's own id for it. While the outbox holds a message with that id, or remembers that it
                was delivered, nothing is queued; otherwise the recipient knows the id and drops the copy.
            answer: the peer made us send it. Answers leave half of the outbox to what the application sends, so that
                strangers who ask and go away do not fill it.
        Returns:
            The message's id, the same over every retry.
        Raises:
            InvalidValue: not a JSON value, too large, or addressed to ourselves.
            QueueFull: the outbox has reached its bound.
        """
        if peer == self.profile.did:
            raise InvalidValue("a message to oneself needs no mesh")
        body = encode_payload(payload)
        if len(body) > self.limits.payload:
            raise InvalidValue(
                f"the payload has {len(body)} bytes as JSON, the limit is {self.limits.payload}: send it in parts"
            )
        if self._is_plaintext(self.peer(peer)):
            encode_plaintext_payload(payload)  # its escapes may take more room than it has
        known = self.outbox.get(message) if message is not None else None
        if known is not None:
            if (known.peer, known.payload) != (peer, body):
                raise InvalidValue(f"another message with the id {message} is waiting in the outbox")
            return known.id
        ended = self.outbox.outcome(message) if message is not None else None
        if ended is not None and ended.state is DeliveryState.DELIVERED:
            return ended.id
        message = message or message_id(self._entropy)
        self.outbox.add(Outgoing(message, peer, body, queued=now.utc), answer=answer)
        self._pump(peer, now)
        return message

    def cancel(self, message: MessageId) -> bool:
        """Take back a message that has not left yet. Returns whether it was still here."""
        outgoing = self.outbox.get(message)
        if outgoing is None or outgoing.state is not DeliveryState.QUEUED:
            return False
        return self.outbox.drop(message)

    def knock(self, did: Did, bundle: PrekeyBundle, now: Instant, hint: Dialect | None = None) -> None:
        """Open a session with a peer whose bundle is at hand. Nothing happens if there is a session to send on.

        Raises:
            NotAuthentic: the bundle is not the peer's: forged signature, or keys the DID does not commit to.
        """
        peer = self.peer(did)
        if self._is_plaintext(peer) or peer.sending() is not None:
            self._keep_peer(self._idle(peer))
            return
        if hint is not None:
            self._hints[did] = hint
        if peer.pinned is not None and bundle.identity_key != peer.pinned:
            raise NotAuthentic(f"{did} shows another identity key than the one first seen; ask its operator")
        knock = message_id(self._entropy)
        session, opening = Session.initiate(
            self.profile.identity, self.profile.did, did, bundle, self._dialect_for(peer), self._entropy
        )
        establishment = frames.Establishment(bytes(opening.ik), bytes(opening.ek), opening.one_time_key_id)
        frame = encode(frames.Knock(self.profile.did, did, knock, timestamp(now.utc), establishment))
        peer = peer.opened_by_us(session, knock, frame, self.limits.sessions_per_peer)
        if not commits_to_key(did):
            peer = peer.pinned_to(bundle.identity_key)
        self._keep_peer(peer)
        self._writes.append(frame)
        if did in self._complaints:
            self._accepted_by[did] = now.monotonic + ACCEPTED_WITHIN
        self._pump(did, now)

    def bundle(self, did: Did, bundle: PrekeyBundle, now: Instant, hint: Dialect | None = None) -> None:
        """The answer to :meth:`fetches`."""
        self._retry_fetch.pop(did, None)
        if self.link is Link.DOWN:
            self._keep_peer(self._idle(self.peer(did)))  # asked for again when the relay is back
            return
        try:
            self.knock(did, bundle, now, hint)
        except PeerError as error:
            self._events.append(FaultFound("registry", str(error), did))
            self._refuse_all(did, str(error))
            self._keep_peer(self._idle(self.peer(did)))

    def no_bundle(self, did: Did, error: MeshError, now: Instant, *, final: bool) -> None:
        """The bundle cannot be had: ask again later, or, if ``final``, give the peer's messages up."""
        self._events.append(FaultFound("registry", str(error), did))
        if final:
            self._refuse_all(did, str(error))
            self._keep_peer(self._idle(self.peer(did)))
        else:
            self._retry_fetch[did] = now.monotonic + RETRY_BUNDLE_AFTER

    def close_session(self, did: Did) -> None:
        """Forget every session with a peer; the next message opens a new one.

        What the peer has not confirmed goes before it, encrypted anew: nobody may be able to read the old frames now.
        """
        if did in self._peers:
            self._keep_peer(self.peer(did).without_sessions())
            self._anew_at.pop(did, None)
            self._accepted_by.pop(did, None)
            self.outbox.encrypt_anew(did)

    def _idle(self, peer: Peer) -> Peer:
        return peer.step(Wish.FAILED) if peer.entry is Entry.FETCHING else peer

    def _pump(self, did: Did, now: Instant) -> None:
        """Write what waits for a peer, as far as there is a session, in the order it was queued."""
        if did in self._anew_at or did in self._accepted_by:
            return  # what was queued before comes first; the peer says first that it has the session
        if self.link is not Link.UP:
            return  # before the verdict a frame would be lost with the connection; the outbox keeps it instead
        queued = self.outbox.queued(did)
        before = self.outbox.last_written(did) if queued else None
        for outgoing in queued:
            frame = self._frame_of(outgoing, before, now)
            if frame is None:
                return
            before = outgoing.id
            self.outbox.keep(replace(outgoing, state=DeliveryState.RELAYED, frame=frame))
            self._relayed.append(outgoing.id)
            self._writes.append(frame)
            self._events.append(DeliveryChanged(did, outgoing.id, DeliveryState.RELAYED))

    def _frame_of(self, outgoing: Outgoing, before: MessageId | None, now: Instant) -> bytes | None:
        """The frame of a message, or ``None`` while there is no session; then one is being asked for.

        Args:
            before: the message written before it, unless the peer has that.
        """
        peer = self.peer(outgoing.peer)
        stamp = timestamp(now.utc)
        if self._is_plaintext(peer):
            text = encode_plaintext_payload(decode_payload(outgoing.payload))
            return encode(frames.PlaintextMessage(self.profile.did, outgoing.peer, outgoing.id, stamp, text))
        strand = peer.sending()
        if strand is None:
            if peer.entry is Entry.IDLE:
                self._keep_peer(peer.step(Wish.NEEDED))
                if peer.candidates:
                    # The peer's own knock is about to be followed by a message that gives us a session. A peer that
                    # only knocks and stays silent is knocked at after the time a message may lag behind.
                    self._retry_fetch[peer.did] = now.monotonic + self.limits.held_seconds
                else:
                    self._fetches.append(outgoing.peer)
            return None
        session, header, ciphertext = strand.session.encrypt(outgoing.payload, self._entropy)
        self._keep_peer(peer.advanced(session))
        return encode(
            frames.Message(
                self.profile.did,
                outgoing.peer,
                outgoing.id,
                stamp,
                frames.MessageHeader(header.dh, header.pn, header.n),
                ciphertext,
                before if "receipts" in self.features else None,
            )
        )

    def _dialect_for(self, peer: Peer) -> Dialect:
        override = self.profile.peer_dialects.get(peer.did)
        if override is not None:
            return override
        if peer.dialect is not None:
            return peer.dialect
        if not commits_to_key(peer.did):
            return Dialect.AGT4
        return self._hints.get(peer.did, Dialect.AGT5)

    def _is_plaintext(self, peer: Peer) -> bool:
        return peer.did in self.profile.plaintext_peers and not peer.verified

    def _refuse_all(self, did: Did, detail: str) -> None:
        for outgoing in self.outbox.of(did):
            self.outbox.finish(outgoing.id, DeliveryState.REFUSED)
            self._events.append(DeliveryChanged(did, outgoing.id, DeliveryState.REFUSED, detail))

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive(self, raw: bytes | str, now: Instant) -> None:
        """Take one frame as it came from the socket. Never raises because of what is in it."""
        self.bytes_received += len(raw)
        try:
            frame = decode(raw)
        except MalformedFrame as error:
            self._malformed(error)
            return
        if self._consent_at is not None and not isinstance(frame, frames.Connected | frames.Error):
            self._up(now)  # a relay that announces nothing talks to us: it took our proof
        self._dispatch(frame, now)

    def _dispatch(self, frame: frames.Frame, now: Instant) -> None:
        self.frames_received[type(frame)] += 1
        match frame:  # the most frequent first
            case frames.Receipt():
                self._receipt(frame, now)
            case frames.Message() | frames.PlaintextMessage() if all(map(self._has_no_room, self.inbox.lanes)):
                self._closed_lanes.update(self.inbox.lanes)
            case frames.Message():
                self._message(frame, now)
            case frames.PlaintextMessage():
                self._plaintext(frame, now)
            case frames.Knock():
                self._knock(frame, now)
            case frames.KnockAccept():
                self._knock_accept(frame, now)
            case frames.KnockReject():
                self._knock_reject(frame, now)
            case frames.PendingMessages():
                for fault in frame.faults:
                    self._malformed(fault)
                for inner in frame.frames:
                    self._dispatch(inner, now)
            case frames.Connected():
                if self.link is Link.PROVING:
                    self._up(now, frozenset(frame.features))
            case frames.Error():
                self._events.append(FaultFound("relay", frame.detail))
            case _:
                pass  # connect, ack, heartbeat and kinds of a later day are not for a client

    def _malformed(self, error: MalformedFrame) -> None:
        kind = {"message": "decrypt", "knock": "knock"}.get(error.frame_type or "", "frame")
        sender = _did_or_none(error.sender)
        self._events.append(FaultFound(kind, str(error), sender, error.id, _reason(error)))
        if sender is not None and error.id and error.frame_type in ("message", "knock", "knock_accept", "knock_reject"):
            self._ack(error.id, sender, unread=True)

    def _message(self, frame: frames.Message, now: Instant) -> None:
        sender = _did_or_none(frame.sender)
        if sender is None:
            self._events.append(FaultFound("decrypt", "a message without a sender", None, frame.id, "no_sender"))
            return
        self._read_or_hold(sender, frame, now)
        self._follow(sender, now)

    def _read_or_hold(self, sender: Did, frame: frames.Message, now: Instant, *, in_turn: bool = False) -> None:
        if self._passed_over.get(sender, 0) > MAX_SKIP:
            return  # no session could skip that many; what is not even looked at costs nothing, and waits at the relay
        failure = self._read(sender, frame, now, in_turn=in_turn)
        if failure is None:
            return
        peer = self.peer(sender)
        asked = self._is_asked(sender)
        known = bool(peer.strands or peer.candidates)
        if known and not asked:
            self._events.append(FaultFound("decrypt", str(failure), sender, frame.id, _reason(failure)))
        if type(failure) is not NotAuthentic:
            self._ack(frame.id, sender, unread=True)
            return
        # No session reads it, but a knock that is on its way may explain it.
        self._heals(sender)  # or it is complained about, and comes encrypted anew
        reported = known and not asked
        for dropped in self.held.hold(
            sender, frame, now.monotonic, connection=self._connection, considered=asked, reported=reported
        ):
            self._give_up(dropped)

    def _read(self, sender: Did, frame: frames.Message, now: Instant, *, in_turn: bool = False) -> PeerError | None:
        """Take a message, unless it was taken before. Returns why it cannot be read, if it is missed.

        Args:
            in_turn: it need not wait for the one before it.
        """
        if not in_turn and self._is_early(sender, frame):
            older = self.overtaking.take(sender, lambda held: held.id == frame.id)
            if older is not None:
                self._complain(older, sender)  # the relay counts an answer to every copy it has pushed
            until = now.monotonic + self._patience.get(sender, MISSED_FOR)
            self._read_at_last(
                self.overtaking.hold(sender, frame, now.monotonic, connection=self._connection, early_until=until), now
            )
            return None
        duplicate = self._is_duplicate(sender, frame.id)
        failure = self._open(self._revived(sender), frame, now, duplicate=duplicate)
        return None if duplicate else failure

    def _open(self, peer: Peer, frame: frames.Message, now: Instant, *, duplicate: bool) -> PeerError | None:
        """Try a message on every session that may read it; the first that authenticates it wins.

        Args:
            duplicate: it was taken before, in another encryption. What its session learns of the peer counts all the
                same, and it is not missing there.
        Returns:
            Why no session reads it, or ``None`` when one did or the message needs no further attention.
        """
        header = Header(frame.header.dh, frame.header.pn, frame.header.n)
        failure: PeerError = NotAuthentic("no session of this peer reads the message")
        for session, candidate in peer.attempts(header):
            try:
                advanced, plaintext = session.decrypt(header, frame.ciphertext, self._entropy)
            except Replayed as error:
                if duplicate:
                    return None
                # Its number was used under another id: by a relay that relabels, or by a peer that was restored from a
                # backup and does not know. Only in the second case does somebody hear that it was not read.
                self._ack(frame.id, peer.did, unread=True)
                self._events.append(FaultFound("replay", str(error), peer.did, frame.id))
                return None
            except PeerError as error:
                if not isinstance(error, NotAuthentic) or type(failure) is NotAuthentic:
                    failure = error
                continue
            lane = None if duplicate else self._lane(peer.did, plaintext)
            if lane is not None and self._has_no_room(lane):
                self._pass_over(peer.did, lane)
                return None
            first_ever = not self._verified_any
            newly = not peer.verified
            settled = peer.heard(advanced, candidate, self.limits.sessions_per_peer)
            if candidate is not None and candidate.opening.one_time_key_id is not None:
                self.keyring.spend(candidate.opening.one_time_key_id)
                self._changes.one_time_prekeys[candidate.opening.one_time_key_id] = None
            if not commits_to_key(peer.did) and candidate is not None:
                settled = settled.pinned_to(candidate.opening.ik)
            self._keep_peer(settled)
            if newly:
                self._verified_any = True
                self._events.append(PeerVerified(peer.did, first_ever))
            if candidate is not None:
                # A peer that knocks has most likely lost the old session, and what waits for it there is unreadable.
                # Where it has read some of it, because two knocks crossed, it knows the ids and drops the copies.
                self._send_anew(peer.did, now)
            if not duplicate:
                self._take(Incoming(peer.did, MessageId(frame.id), plaintext), lane)
            if self._retry_fetch.pop(peer.did, None) is not None:
                self._keep_peer(self._idle(self.peer(peer.did)))
            self._accepted_by.pop(peer.did, None)
            self._pump(peer.did, now)
            return None
        return failure

    # A relay with receipts loses nothing and keeps the order of frames. That of messages is lost where one could not be
    # read, or its older copy is gone from the relay: it comes encrypted anew, while what its sender wrote after it is
    # still on its way in copies that can be read. So each message says which one was written before it, and waits for
    # that one: for long while its sender may be encrypting anew, else for a moment, in which a newer copy that is right
    # behind it comes; each newer copy takes the place of the older one. After a wait in vain nothing of that sender
    # waits any more until it heals again: what was refused or has expired never comes, and to wait for it with all that
    # follows would keep the very inbox full that it was refused for. What a frame says there is not authentic, as its
    # place among others is not: a relay can delay and reorder, and a peer delay itself.

    def _is_early(self, sender: Did, frame: frames.Message) -> bool:
        """Whether the message before this one has not come. Of strangers nothing waits here, nor behind a full lane."""
        if frame.after is None or "receipts" not in self.features or sender in self._passed_over:
            return False
        if not self._patience.get(sender, MISSED_FOR):
            return False
        if self.inbox.has_seen(sender, MessageId(frame.after)) or self.inbox.has_seen(sender, MessageId(frame.id)):
            return False
        peer = self.peer(sender)
        return bool(peer.strands or peer.candidates)

    def _heals(self, did: Did) -> None:
        """A peer encrypts messages anew, or soon will: what waits for one of them may have to wait for longer."""
        if did in self._peers and self._patience.get(did) != self.limits.missing_seconds:
            self._patience[did] = self.limits.missing_seconds
            self.overtaking.prolong(did, self.limits.missing_seconds)

    def _follow(self, sender: Did, now: Instant) -> None:
        """Take what has waited for a message that has come."""
        while (held := self.overtaking.take(sender, lambda frame: not self._is_early(sender, frame))) is not None:
            self._read_or_hold(sender, held.frame, now)

    def _read_at_last(self, dropped: Iterable[Held], now: Instant) -> None:
        """What is missing before these does not come: take them without, and what else waits of their peers."""
        waited: dict[Did, list[Held]] = {}
        for held in dropped:
            waited.setdefault(parse_did(held.frame.sender), []).append(held)
        for sender, messages in waited.items():
            if sender in self._peers:
                self._patience[sender] = 0.0
            for held in in_line((*messages, *self.overtaking.release(sender))):
                self._read_or_hold(sender, held.frame, now, in_turn=True)

    # A lane that is full keeps nobody who takes from another waiting. What is for it is not acknowledged and changes
    # nothing, nor does what follows it for the same lane, so that the order in each is kept: the relay offers all of
    # it again on the next connection. Where a relay would not, the shell stops reading instead.

    def _has_no_room(self, lane: int) -> bool:
        return "receipts" in self.features and (lane in self._closed_lanes or self.inbox.is_full(lane))

    def _pass_over(self, sender: Did, lane: int) -> None:
        self._closed_lanes.add(lane)
        self._passed_over[sender] += 1  # what else it sent does not wait for this

    def _lane(self, sender: Did, plaintext: bytes) -> int | None:
        """The lane an authentic message is for; ``None`` if it is no JSON and waits for nobody."""
        try:
            return self._lane_of(sender, decode_payload(plaintext))
        except MalformedFrame:
            return None

    def _take(self, incoming: Incoming, lane: int | None) -> None:
        """Keep an authentic message and offer it; one that is no JSON is acknowledged and reported."""
        self.inbox.mark_seen(incoming.sender, incoming.id)
        if lane is None:
            self._ack(incoming.id, incoming.sender)
            self._events.append(FaultFound("payload", "the payload is no JSON", incoming.sender, incoming.id))
            return
        self.inbox.put(incoming, lane)
        if self.profile.ack_when_saved:
            self._ack(incoming.id, incoming.sender)

    def confirm(self, sender: Did, message: MessageId) -> bool:
        """The application has dealt with a message. Returns whether it was waiting for that."""
        if not self.inbox.confirm(sender, message):
            return False
        if not self.profile.ack_when_saved:
            self._ack(message, sender)
        return True

    def leave_notice(self, sender: Did, message: MessageId, payload: object) -> None:
        """Put a message of our own making into the application's inbox, as if ``sender`` had sent it; once per id.

        It may exceed the inbox's bound: what it tells of has been taken already.
        """
        if not self.inbox.has_seen(sender, message):
            self.inbox.mark_seen(sender, message)
            self.inbox.put(Incoming(sender, message, encode_payload(payload)))

    def return_unconfirmed(self, sender: Did, message: MessageId) -> None:
        """The application failed on a message: offer it again, marked as redelivered."""
        self.inbox.offer_again(sender, message)

    def _is_duplicate(self, sender: Did, message: str) -> bool:
        """Drop a message seen before; acknowledge it again unless the application still has the first copy."""
        known = MessageId(message)
        if not self.inbox.has_seen(sender, known):
            return False
        if self.profile.ack_when_saved or not self.inbox.holds(sender, known):
            self._ack(message, sender)
        return True

    def _plaintext(self, frame: frames.PlaintextMessage, now: Instant) -> None:
        sender = _did_or_none(frame.sender)
        if sender is None or not self._is_plaintext(self.peer(sender)):
            # The flag in a frame selects nothing: only our own list does, and never for a verified peer.
            detail = "an unencrypted message of a peer that is not on the plaintext list, or has been verified"
            self._events.append(FaultFound("decrypt", detail, sender, frame.id, "not_encrypted"))
            return
        if self._is_duplicate(sender, frame.id):
            return
        try:
            payload = encode_payload(decode_plaintext_payload(frame.text))
        except (MalformedFrame, InvalidValue) as error:
            self._ack(frame.id, sender, unread=True)
            self._events.append(FaultFound("payload", str(error), sender, frame.id))
            return
        lane = self._lane(sender, payload)
        if lane is not None and self._has_no_room(lane):
            self._pass_over(sender, lane)
        else:
            self._take(Incoming(sender, MessageId(frame.id), payload, encrypted=False), lane)
        self._follow(sender, now)

    # --- knocks ------------------------------------------------------------------------------------------------------

    def _knock(self, frame: frames.Knock, now: Instant) -> None:
        if not self.profile.ask_before_accepting:
            self._ack(frame.id, frame.sender)
            self._look_at_knock(frame, now)
            return
        self._look_at_knock(frame, now)
        if (_did_or_none(frame.sender), MessageId(frame.id)) not in self._asked:
            self._ack(frame.id, frame.sender)  # else once it is answered: until then a restart asks anew

    def _look_at_knock(self, frame: frames.Knock, now: Instant) -> None:
        sender = _did_or_none(frame.sender)
        if sender is None or sender == self.profile.did:
            self._events.append(FaultFound("knock", "a knock without a usable sender", None, frame.id))
            return
        if (sender, MessageId(frame.id)) in self._asked:
            return  # the policy thinks about it
        if not self._knock_rate.take(sender, now.monotonic):
            # Each knock would cost agreements and an answer, and its sender nothing.
            if self._knock_rate.report(sender):
                self._events.append(FaultFound("knock", "the peer knocks too often: dropped unanswered", sender))
            return
        establishment = frame.establishment
        if isinstance(establishment, frames.Unusable):
            self._refuse_knock(frame, sender, establishment.reason, now)
            return
        opening: Opening | None = None
        sessions: tuple[Session, ...] = ()
        if establishment is not None:
            if (sender, establishment.ek) in self._spent:
                self._knock_again(frame, sender, establishment, now)
                return
            try:
                opening, sessions = self._candidate_sessions(sender, establishment)
            except NotForThisPeer as error:
                # Somebody knocks in another's name. A reject would reach the one whose name was taken.
                self._events.append(FaultFound("knock", str(error), sender, frame.id))
                return
            except UnknownPrekey as error:
                self._refuse_knock(frame, sender, str(error), now, frames.UNKNOWN_PREKEY)
                return
            except (PeerError, InvalidValue) as error:
                self._refuse_knock(frame, sender, str(error), now)
                return
        self._events.append(KnockReceived(sender, MessageId(frame.id), frame.intent))
        asked = _Asked(frame, opening, sessions, now.monotonic + self._timeouts.policy)
        if self.profile.ask_before_accepting:
            self._ask(asked, sender, now)
        else:
            self._accept_knock(asked, sender, now)

    def _knock_again(self, frame: frames.Knock, sender: Did, establishment: frames.Establishment, now: Instant) -> None:
        """Answer a knock that was let in before as it was then, while what it opened is alive; else reject it."""
        opening = Opening.from_bytes(establishment.ik, establishment.ek, establishment.otk)
        peer = self.peer(sender)
        opened = opening_ids(
            self.profile.identity, self.profile.did, sender, opening, self.keyring.prekeys(), tuple(Dialect)
        )
        alive = any(strand.session.id in opened for strand in peer.strands)
        waits = self._is_open(opening) and any(candidate.opening == opening for candidate in peer.candidates)
        if alive or waits:
            self._write(self._accept_frame(MessageId(frame.id), sender, now))
        else:
            detail = "a knock that was used before opens nothing twice"
            self._refuse_knock(frame, sender, detail, now, frames.UNKNOWN_PREKEY)

    def _candidate_sessions(
        self, sender: Did, establishment: frames.Establishment
    ) -> tuple[Opening, tuple[Session, ...]]:
        opening = Opening.from_bytes(establishment.ik, establishment.ek, establishment.otk)
        refuse_low_order(establishment.ik)
        refuse_second_spelling(establishment.ik)
        refuse_second_spelling(establishment.ek)  # else a used opening in other bytes would be a new one
        try:
            if commits_to_key(sender):
                check_opening(opening, sender)
            else:
                pinned = self.peer(sender).pinned
                if pinned is not None and pinned != opening.ik:
                    raise NotAuthentic(f"{sender} shows another identity key than the one first seen")
        except NotAuthentic as error:
            raise NotForThisPeer(str(error)) from error
        return opening, self._derive(sender, opening)

    def _is_open(self, opening: Opening) -> bool:
        """Whether the one-time key of an opening, if it names one, is unspent. One key opens one session."""
        return opening.one_time_key_id is None or opening.one_time_key_id in self.keyring.one_time

    def _derive(self, sender: Did, opening: Opening) -> tuple[Session, ...]:
        one_time = None
        if opening.one_time_key_id is not None:
            one_time = self.keyring.one_time.get(opening.one_time_key_id)
            if one_time is None:
                raise UnknownPrekey(opening.one_time_key_id)
        first = self._dialect_for(self.peer(sender))
        dialects = (first, *(dialect for dialect in Dialect if dialect is not first))
        prekeys = self.keyring.prekeys()
        return tuple(candidates(self.profile.identity, self.profile.did, sender, opening, prekeys, one_time, dialects))

    def _revived(self, sender: Did) -> Peer:
        """The peer with its candidates' sessions, which no store keeps, and without candidates nothing can settle.

        They are derived when the first message after a restart comes, not at once: knocks of peers that never say
        anything must not make every start slower.
        """
        peer = self.peer(sender)
        if not peer.candidates or all(one.sessions and self._is_open(one.opening) for one in peer.candidates):
            return peer
        kept = []
        for candidate in peer.candidates:
            with suppress(PeerError):
                sessions = candidate.sessions or self._derive(sender, candidate.opening)
                if sessions and self._is_open(candidate.opening):
                    kept.append(replace(candidate, sessions=sessions))
        self._keep_peer(replace(peer, candidates=tuple(kept)))
        return self._peers[sender]

    def _ask(self, asked: _Asked, sender: Did, now: Instant) -> None:
        """Let a knock wait for the policy. The oldest make room: of the same sender first, so that none uses it up."""
        # A sender chooses its ids freely; with the sender in the key none answers for another.
        self._asked[sender, MessageId(asked.knock.id)] = asked
        own = [key for key in self._asked if key[0] == sender]
        for key in own[: -self.limits.questions_per_peer]:
            self._unasked(key, now, frames.UNKNOWN_PREKEY)
        while len(self._asked) > self.limits.held_peers:
            self._unasked(next(iter(self._asked)), now, frames.UNKNOWN_PREKEY)

    def _unasked(self, key: tuple[Did, MessageId], now: Instant, why: str) -> None:
        """Reject a knock that waits, and let go of the messages that nothing can explain any more."""
        sender = key[0]
        knock = self._asked.pop(key).knock
        self._ack(knock.id, sender)
        self._write(self._reject_frame(knock, sender, now, why))
        if self._is_asked(sender):
            return
        for held in self.held.release(sender):
            # To one that was refused "unread" could arrive before the reject, and it would open a session for it.
            if why != frames.POLICY:
                self._complain(held, sender)

    def answer_knock(self, sender: Did, knock: MessageId, *, accept: bool, now: Instant) -> None:
        """The policy's decision about a :class:`~meshlib.client.events.KnockReceived`: its ``peer`` and ``knock_id``.

        Nothing happens if it does not wait any more.
        """
        asked = self._asked.get((sender, knock))
        if asked is None:
            return
        if accept:
            del self._asked[sender, knock]
            self._ack(knock, sender)
            self._accept_knock(asked, sender, now)
        else:
            self._unasked((sender, knock), now, frames.POLICY)

    def _accept_knock(self, asked: _Asked, sender: Did, now: Instant) -> None:
        if asked.opening is not None:
            self._spent.add(sender, bytes(asked.opening.ek))
            if self.peer(sender).strands:
                self._heals(sender)  # what was under way on the session it has left comes anew on this one
            peer = self.peer(sender).knocked(
                MessageId(asked.knock.id), asked.opening, asked.sessions, self.limits.candidates_per_peer
            )
            self._keep_peer(peer)
        self._write(self._accept_frame(MessageId(asked.knock.id), sender, now))
        for held in self.held.release(sender):
            failure = self._read(sender, held.frame, now)
            if failure is None:
                continue
            if asked.opening is not None and not self._is_asked(sender):
                self._give_up(held, str(failure))
                continue
            for dropped in self.held.hold(  # another knock may explain it
                sender, held.frame, now.monotonic, connection=held.connection, considered=self._is_asked(sender)
            ):
                self._give_up(dropped)
        self._follow(sender, now)

    def _refuse_knock(
        self, frame: frames.Knock, sender: Did, detail: str, now: Instant, remedy: str | None = None
    ) -> None:
        self._events.append(FaultFound("knock", detail, sender, frame.id))
        self._write(self._reject_frame(frame, sender, now, remedy))

    def _accept_frame(self, knock: MessageId, sender: Did, now: Instant) -> frames.KnockAccept:
        answer = message_id(self._entropy)
        return frames.KnockAccept(self.profile.did, sender, answer, knock, timestamp(now.utc))

    def _reject_frame(
        self, knock: frames.Knock, sender: Did, now: Instant, why: str | None = None
    ) -> frames.KnockReject:
        answer = message_id(self._entropy)
        stamp = timestamp(now.utc)
        detail = why if self.profile.extensions else None
        return frames.KnockReject(self.profile.did, sender, answer, knock.id, "policy_denied", stamp, detail)

    def _knock_accept(self, frame: frames.KnockAccept, now: Instant) -> None:
        self._ack(frame.id, frame.sender)
        sender = _did_or_none(frame.sender)
        if sender is None:
            return
        peer = self.peer(sender)
        if peer.knock_id is not None and peer.knock_id == frame.knock_id:
            self._keep_peer(peer.accepted())
            self._events.append(KnockAccepted(sender))
            self._answered(sender, now)

    def _answered(self, did: Did, now: Instant) -> None:
        """A peer that has complained has our new session, or takes too long to say so."""
        if self._accepted_by.pop(did, None) is not None:
            self._pump(did, now)

    def _knock_reject(self, frame: frames.KnockReject, now: Instant) -> None:
        self._ack(frame.id, frame.sender)
        sender = _did_or_none(frame.sender)
        if sender is None:
            return
        peer = self.peer(sender)
        if peer.knock_id is None or peer.knock_id != frame.knock_id:
            return  # only a knock that is out can be rejected; an invented id closes nothing
        rejected = peer.rejected()
        self._accepted_by.pop(sender, None)
        if frame.detail == frames.UNKNOWN_PREKEY:
            self._keep_peer(rejected)
            self._reopen(sender, "the peer does not hold the prekey of our knock any more", now)
            return
        if rejected.sending() is not None:
            self._keep_peer(rejected)
            self.outbox.encrypt_anew(sender)  # what went out on the refused session goes out on the peer's own
            self._pump(sender, now)
            return
        if frame.detail is None and self._may_knock_again(peer, now):
            self._keep_peer(rejected)
            self._reopen(sender, "the peer refused a knock that it may have no prekey for any more", now)
            self._retry_fetch[sender] = max(self._retry_fetch[sender], now.monotonic + SECOND_KNOCK_AFTER)
            return
        self._keep_peer(rejected)
        self._events.append(KnockRejected(sender, frame.reason))
        self._refuse_all(sender, f"{sender} refused the knock: {frame.reason}")

    def _may_knock_again(self, peer: Peer, now: Instant) -> bool:
        """Whether a reject without a reason may come of a one-time key that went with the peer's last process.

        The SDK says the same, ``policy_denied``, whether it does not want to or cannot; so it is asked once more.
        """
        knock = decode(peer.knock_frame) if peer.knock_frame is not None else None
        if not isinstance(knock, frames.Knock) or not isinstance(knock.establishment, frames.Establishment):
            return False
        if knock.establishment.otk is None:
            return False
        last = self._second_knocks.pop(peer.did, None)
        self._second_knocks[peer.did] = now.monotonic
        while len(self._second_knocks) > self.limits.strangers:
            self._second_knocks.popitem(last=False)
        return last is None or now.monotonic - last > BELIEVED_FOR

    def _expire_held(self, now: Instant) -> None:
        for waited in self.overtaking.expire(now.monotonic).values():
            self._read_at_last(waited, now)
        for sender, expired in self.held.expire(now.monotonic).items():
            # Of a message that was read since in another encryption nothing is missing.
            lost = [held for held in expired if not self.inbox.has_seen(sender, MessageId(held.frame.id))]
            if not lost:
                continue
            for held in lost:
                self._complain(held, sender)
            self._events.append(SessionLost(sender, f"{len(lost)} messages came that no session and no knock explains"))

    def _give_up(self, held: Held, detail: str = "no session reads the message") -> None:
        """A message nothing will ever read: say so, here and to its sender."""
        sender = parse_did(held.frame.sender)  # not always who wrote last: the oldest peer held makes room too
        if self.inbox.has_seen(sender, MessageId(held.frame.id)):
            return
        self._complain(held, sender)
        if not held.reported:
            self._events.append(FaultFound("decrypt", detail, sender, held.frame.id, "unexplained"))

    def _complain(self, held: Held, sender: Did) -> None:
        """Say that a message was not read, on the connection it came on.

        On a later one the complaint would meet a newer copy of the message. The relay offers all that was not
        acknowledged there anew, and that copy is judged for itself.
        """
        if held.connection == self._connection:
            self._ack(held.frame.id, sender, unread=True)

    # --- receipts ----------------------------------------------------------------------------------------------------

    def _receipt(self, frame: frames.Receipt, now: Instant) -> None:
        outgoing = self.outbox.get(MessageId(frame.id))
        if outgoing is None or outgoing.state is DeliveryState.QUEUED:
            return  # long done, or about a frame that is being encrypted anew
        match frame.state:
            case frames.ReceiptState.STORED:
                state = DeliveryState.STORED
                self.outbox.keep(replace(outgoing, state=state))
            case frames.ReceiptState.UNREAD:
                self._reopen(outgoing.peer, "the peer cannot read us", now)
                return
            case final:
                state = _ENDS[final]
                self.outbox.finish(outgoing.id, state)
                self._complaints.pop(outgoing.peer, None)
        self._events.append(DeliveryChanged(outgoing.peer, outgoing.id, state))

    def _reopen(self, did: Did, why: str, now: Instant) -> None:
        """Open a new session with a peer that cannot read us, and encrypt anew what waits for it."""
        waiting = [outgoing.id for outgoing in self.outbox.of(did) if outgoing.state is not DeliveryState.QUEUED]
        self.outbox.encrypt_anew(did)
        self._events.extend(DeliveryChanged(did, message, DeliveryState.QUEUED, why) for message in waiting)
        peer = self.peer(did)
        self._keep_peer(peer.unread())
        if peer.entry is Entry.FETCHING:
            return  # already on its way
        self._events.append(SessionLost(did, why))
        count = self._count(self._complaints, did, now)
        self._retry_fetch[did] = now.monotonic + REOPEN_AFTER[min(count, len(REOPEN_AFTER) - 1)]

    def _send_anew(self, did: Did, now: Instant) -> None:
        """Encrypt anew what waits for a peer that opened a session: at once, or later if it did so a moment ago.

        Two frames of the peer may cost us as many as our outbox holds, so it cannot have that as often as it likes.
        """
        if did in self._anew_at or not self.outbox.waits_for(did):
            return
        count, last = self._renewals.get(did, (0, 0.0))
        due = last + REOPEN_AFTER[min(count, len(REOPEN_AFTER)) - 1]
        if count == 0 or due <= now.monotonic:
            self._count(self._renewals, did, now)
            self.outbox.encrypt_anew(did)
        else:
            self._anew_at[did] = due

    def _count(self, counts: OrderedDict[Did, tuple[int, float]], did: Did, now: Instant) -> int:
        """Count what a peer caused. Returns how often it had before, of late."""
        count, last = counts.pop(did, (0, now.monotonic))
        count = 0 if now.monotonic - last > FORGIVEN_AFTER else count
        counts[did] = (count + 1, now.monotonic)
        while len(counts) > self.limits.strangers:
            counts.popitem(last=False)
        return count

    # --- epochs ------------------------------------------------------------------------------------------------------

    @property
    def has_history(self) -> bool:
        """Whether keys of this store may have been used: it has counted, or prekeys were made."""
        return bool(self.epoch or self.keyring.signed)

    def count_epoch(self, published: int) -> int:
        """Count on; save the changes, then publish what is returned.

        Args:
            published: how far the registry knows this store to have counted.
        Raises:
            StoreError: further than the store has, see :func:`~meshlib.client.epochs.next_epoch`.
        """
        self.epoch = self._changes.epoch = next_epoch(self.epoch, published, fresh=not self.has_history)
        return self.epoch

    # --- prekeys -----------------------------------------------------------------------------------------------------

    def replenish(self, published: int, now: Instant) -> PrekeyUpload:
        """Make missing prekeys; save the changes, then publish what is returned.

        Args:
            published: unused one-time keys the registry still has.
        """
        before = set(self.keyring.one_time)
        signed_before = self._signed_ids
        upload = self.keyring.replenish(published, now, self._entropy)
        after = self.keyring.one_time
        self._changes.one_time_prekeys.update({key_id: after[key_id] for key_id in after.keys() - before})
        self._changes.one_time_prekeys.update(dict.fromkeys(before - after.keys()))
        self._changes.signed_prekeys = tuple(self.keyring.signed)
        self._changes.next_prekey_id = self.keyring.next_id
        self._signed_ids = self._ids_of_signed()
        if signed_before - self._signed_ids:
            # Candidates live no longer than the signed prekeys they meant: what is left of them is derived again.
            for peer in self._peers.values():
                if peer.candidates:
                    kept = tuple(replace(candidate, sessions=()) for candidate in peer.candidates)
                    self._peers[peer.did] = replace(peer, candidates=kept)
        return upload

    def _ids_of_signed(self) -> frozenset[int]:
        return frozenset(prekey.key_id for prekey in self.keyring.prekeys())

    # --- small verbs -------------------------------------------------------------------------------------------------

    def _write(self, frame: frames.Frame) -> None:
        self._writes.append(encode(frame))

    def _ack(self, message: str, sender: str, *, unread: bool = False) -> None:
        if self.link is Link.DOWN or not message or _CONTROL.search(message):
            return  # what is no id names no stored frame, and no relay should have to find its way through one
        if unread:
            self._heals(Did(sender))
        # Ids are their senders' choice: ours says whose frame it means, where the relay understands.
        whose = sender if "receipts" in self.features else None
        self._write(frames.Ack(MessageId(message), unread, whose))

    def _keep_peer(self, peer: Peer) -> None:
        known = self._peers.pop(peer.did, None) is not None
        self._peers[peer.did] = peer  # the last used is the last in order
        self._changes.peers[peer.did] = peer
        if peer.verified:
            self._strangers.pop(peer.did, None)
        elif not known:
            self._strangers[peer.did] = None
            self._forget_strangers()
        if not known:
            self._forget_peers()

    def _forget_strangers(self) -> None:
        """Keep those who knock and never say anything from filling memory and disk; the oldest go first."""
        for did in list(self._strangers):
            if len(self._strangers) <= self.limits.strangers:
                return
            if not self.outbox.waits_for(did) and self._peers[did].knock_id is None and self._peers[did].pinned is None:
                self._forget(did)

    def _forget_peers(self) -> None:
        """Keep peers that said something once from filling memory and disk; the longest unused go first.

        Never one that something waits for, nor one on the plaintext list: it would be taken unencrypted again. Pinned
        keys go last: free identities shall not make room for another holder of a name.
        """
        surplus = len(self._peers) - self.limits.peers
        if surplus <= 0:
            return
        surplus += self.limits.peers // 100  # a few more, so that looking for them is rare
        newest = next(reversed(self._peers))
        idle = [
            did
            for did, peer in self._peers.items()
            if did != newest and peer.entry is Entry.IDLE and did not in self.profile.plaintext_peers
        ]
        idle.sort(key=lambda did: self._peers[did].pinned is not None)
        for did in [did for did in idle if not self.outbox.waits_for(did)][:surplus]:
            self._forget(did)

    def _forget(self, did: Did) -> None:
        del self._peers[did]
        self._accepted_by.pop(did, None)
        self._patience.pop(did, None)
        self._strangers.pop(did, None)
        self._hints.pop(did, None)
        self._changes.peers[did] = None


_ENDS: Mapping[frames.ReceiptState, DeliveryState] = {
    frames.ReceiptState.DELIVERED: DeliveryState.DELIVERED,
    frames.ReceiptState.EXPIRED: DeliveryState.EXPIRED,
    frames.ReceiptState.REFUSED: DeliveryState.REFUSED,
}


class NotForThisPeer(NotAuthentic):
    """An opening whose identity key is not the sender's."""


def _reason(error: PeerError) -> str:
    """The name of an error's type, in the words of :attr:`FaultFound.reason`."""
    return _CAPITAL.sub("_", type(error).__name__).lower()


def _did_or_none(text: str | None) -> Did | None:
    if not text:
        return None
    try:
        return parse_did(text)
    except InvalidValue:
        return None
