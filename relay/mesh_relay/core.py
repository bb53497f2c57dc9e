"""The relay's decisions: bind, route, store, ack, expire. No sockets, no database, no clock.

Owns who is connected, which frames are on their way to whom, and in which order. Sockets belong to
:mod:`mesh_relay.connection` and :mod:`mesh_relay.server`, proofs to :mod:`mesh_relay.admission`, quotas to
:mod:`mesh_relay.mailboxes`, disks to :mod:`mesh_relay.inbox`. Everything here happens in one task.

The life of a frame: it is *accepted* (numbered, counted against quotas, `pending`), forwarded at once when its
recipient is connected and up to date, *committed* with others a few milliseconds later, and *removed* upon the
recipient's ack. Acked while still pending, it never reaches the disk.

Order and duplicates. Per connection ``cursor`` is the number of the last frame pushed; only greater ones are pushed,
in ascending order. So each stored frame reaches a socket at most once, whatever ``fetch_pending`` asks, and no live
frame overtakes a stored one. A connection is either up to date (live frames go straight out) or ``behind`` (after
connecting with mail waiting, or when it reads too slowly): then frames go to the inbox only, and are read from there
page by page as its queue drains, until nothing is left.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, takewhile
from operator import attrgetter

import msgspec

from mesh_relay import envelope as envelopes
from mesh_relay.acked import Acked
from mesh_relay.addresses import Addresses, Bucket
from mesh_relay.admission import (
    IDLE,
    NO_SENDER,
    NOT_CONNECT,
    NOT_PROVEN,
    REPLACED,
    TRY_AGAIN_LATER,
    Admitted,
    Doorkeeper,
    Refused,
)
from mesh_relay.config import Durability, Limits
from mesh_relay.counters import ABNORMAL, OTHER, Counters, FrameReason
from mesh_relay.envelope import KNOCK, KNOCK_ANSWERS, MESSAGE, ROUTED, Envelope
from mesh_relay.links import Binding, Link
from mesh_relay.mailboxes import Entry, Mailbox, Mailboxes, Pair, fingerprint
from mesh_relay.records import Contents, Credential, Done, Load, Proof, Removed, StoredFrame, Sweep, Waiting, Work
from meshlib.clock import Instant
from meshlib.errors import InvalidValue, MalformedFrame
from meshlib.identity import parse_did
from meshlib.wire.encoding import timestamp

NORMAL, GOING_AWAY = 1000, 1001

_FULL: dict[FrameReason, str] = {
    "pair_full": "too much is waiting from you for this recipient",
    "recipient_full": "the recipient's inbox is full",
    "sender_full": "too much is waiting from you",
    "relay_full": "the relay's store is full",
}

_PAIR_OF = attrgetter("pair")

_CONGESTED_PAUSE = 0.05  # seconds a sender waits while the disk catches up


# --- effects ----------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True, gc=False):
    """Write these text messages to the link, in order."""

    link: "Link"
    payloads: list[bytes]


class Close(msgspec.Struct, frozen=True, gc=False):
    """Begin the closing handshake on the link; nothing more comes for it."""

    link: "Link"
    code: int
    reason: str


class Ping(msgspec.Struct, frozen=True, gc=False):
    """Send a WebSocket ping to the link."""

    link: "Link"


Effect = Send | Close | Ping


# --- state ------------------------------------------------------------------------------------------------------------


Trace = Callable[[str, Mapping[str, object]], None]
"""Told an event and its fields: who came and went, and what became of each frame. Never what is in one."""


class RelayCore:
    """All decisions of one relay.

    After any call the shell carries out :meth:`effects`; when :attr:`work_waiting` it runs :meth:`take_work` through
    the inbox and hands the result to :meth:`stored`.
    """

    # Without slots an object of more than 30 attributes loses CPython's quick way to them: a tenth of a frame's cost.
    __slots__ = (
        "_addresses",
        "_bindings",
        "_committing",
        "_credentials",
        "_doorkeeper",
        "_effects",
        "_handshakes",
        "_loading",
        "_loads",
        "_mailboxes",
        "_oldest_stored",
        "_pending",
        "_pending_size",
        "_proofs",
        "_removals",
        "_removed",
        "_ripe",
        "_rotate_at",
        "_seq",
        "_strict",
        "_sweep_at",
        "_sweep_due",
        "_trace",
        "_ttl",
        "_unproven",
        "acked",
        "counters",
        "limits",
    )

    def __init__(
        self,
        limits: Limits,
        contents: Contents,
        now: Instant,
        *,
        ttl: float,
        allow_legacy: bool = False,
        durability: Durability = "relaxed",
        trace: Trace | None = None,
    ) -> None:
        self.limits = limits
        self._trace = trace
        self.counters = Counters()
        self._ttl = ttl
        self._strict = durability == "strict"
        self._doorkeeper = Doorkeeper(
            limits, allow_legacy=allow_legacy, credentials=contents.credentials, proofs=contents.proofs
        )
        self._seq = contents.last_seq
        self._effects: list[Effect] = []
        self._unproven: dict[Link, None] = {}  # in order of arrival
        self._bindings: dict[Link, Binding] = {}
        self._mailboxes = Mailboxes(limits)
        for usage in contents.usage:
            mailbox = self._mailboxes.of(usage.recipient)
            self._mailboxes.count(mailbox, self._mailboxes.pair(mailbox, usage.sender), usage.frames, usage.size)
        self._oldest_stored = contents.oldest
        self._pending: dict[int, Entry] = {}  # accepted, in order; not in any transaction yet
        self._pending_size = 0
        self._ripe = 0  # pending frames up to this number are due
        self._committing: dict[int, Entry] = {}
        self._removals: list[int] = []
        self._removed: set[int] = set()  # removals that have not been committed
        self._credentials: list[Credential] = []
        self._proofs: list[Proof] = []
        self._loads: list[Binding] = []
        self._loading: list[Binding] = []
        self._sweep_at = self._rotate_at = now.monotonic
        self._sweep_due = False
        self.acked = Acked(limits.acked_each, limits.acked_memory)
        self._addresses = Addresses(limits)
        self._handshakes = Bucket(limits.tls_rate, limits.tls_burst, now)

    # --- what the shell asks ------------------------------------------------------------------------------------------

    def effects(self) -> Sequence[Effect]:
        """Take what is to be done, in order."""
        effects, self._effects = self._effects, []
        for effect in effects:
            effect.link.outgoing = None
        return effects

    def _send(self, link: Link, *payloads: bytes) -> None:
        """One effect per link holds all that is sent to it in a row: an effect costs as much as what is in it."""
        outgoing = link.outgoing
        if outgoing is None:
            outgoing = link.outgoing = []
            self._effects.append(Send(link, outgoing))
        outgoing.extend(payloads)

    @property
    def work_waiting(self) -> bool:
        """Whether :meth:`take_work` would have something."""
        return bool(
            self._pending or self._removals or self._loads or self._credentials or self._proofs or self._sweep_due
        )

    @property
    def work_urgent(self) -> bool:
        """Whether somebody waits for the work: it should not wait for company."""
        return bool(self._loads or (self._strict and self._pending))

    @property
    def connected(self) -> int:
        """Agents connected now."""
        return len(self._bindings)

    @property
    def verified(self) -> int:
        """Agents connected now that have proved a key."""
        return sum(binding.verified for binding in self._bindings.values())

    @property
    def unproven(self) -> int:
        """Sockets that have not proved anything yet."""
        return len(self._unproven)

    @property
    def kept(self) -> tuple[int, int, int]:
        """Frames kept, their bytes, and the agents they wait for."""
        return self._mailboxes.frames, self._mailboxes.size, self._mailboxes.recipients

    @property
    def oldest(self) -> float | None:
        """When the oldest frame kept was accepted, in UTC seconds, as of the last transaction; None without any."""
        if self._oldest_stored is not None:
            return self._oldest_stored
        waiting = self._committing or self._pending
        return next(iter(waiting.values())).accepted_at if waiting else None

    @property
    def uncommitted(self) -> int:
        """Bytes accepted and not on disk."""
        return self._pending_size

    # --- links --------------------------------------------------------------------------------------------------------

    def welcome(self, address: str, now: Instant) -> bool:
        """Whether a new socket from this address may come in: not when one of its buckets is empty."""
        origin = self._addresses.of(address, now)
        if origin is None:
            return True
        if origin.failures.take(0, now) or origin.connects.take(1, now):
            self.counters.turned_away += 1
            return False
        return True

    def open(self, address: str, nonce: str, now: Instant) -> Link:
        """A WebSocket has been opened; its 101 response carried ``nonce``."""
        if len(self._unproven) >= self.limits.unproven:
            self._count_refused(NOT_PROVEN)
            self._close(next(iter(self._unproven)), NOT_PROVEN, "too many sockets wait for their proof")
        link = Link(address, self._addresses.of(address, now), nonce, now)
        self._unproven[link] = None
        return link

    def begins_tls(self, now: Instant) -> float:
        """A socket wants its TLS handshake; returns for how many seconds it has to wait for it."""
        return self._handshakes.take(1, now)

    def tls_failed(self, link: Link, now: Instant) -> None:
        """The TLS of this socket has failed. It cost about as much as a bad proof, and its address pays as much."""
        self.counters.tls_failed += 1
        if link.binding is None:
            self._blame(link, now)
        self.lost(link)

    def lost(self, link: Link, code: int = ABNORMAL) -> None:
        """The socket has ended, for whatever reason. Idempotent: the first ``code`` counts."""
        link.open = False
        self._unproven.pop(link, None)
        binding = self._bindings.pop(link, None)
        if binding is not None:
            self.counters.disconnects[code if code in self.counters.disconnects else OTHER] += 1
            if self._trace is not None:
                self._trace("agent_disconnected", {"did": binding.did, "code": code})
            binding.mailbox.binding = None
            self._abandon(binding)
            self._mailboxes.drop_if_idle(binding.mailbox)

    def _close(self, link: Link, code: int, reason: str) -> None:
        if link.open:
            self.lost(link, code)
            link.outgoing = None
            self._effects.append(Close(link, code, reason))

    def heard(self, link: Link, frames: int, now: Instant) -> float:
        """Bytes have come, ``frames`` messages among them; returns for how many seconds not to read on.

        Slowing the sender loses nothing; dropping frames would.
        """
        link.heard_at = now.monotonic
        binding = link.binding
        if not frames or binding is None:
            return 0.0
        frames, binding.earned = frames - binding.earned, 0
        pause = binding.bucket.take(frames, now)
        if link.origin is not None:
            pause = max(pause, link.origin.frames.take(frames, now))
        if binding.knocks:
            pause = max(pause, self._count_knocks(binding, now))
        if self._pending_size > self.limits.uncommitted_bytes:
            pause = max(pause, _CONGESTED_PAUSE)
        if pause:
            self.counters.throttled += 1
        return pause

    def _count_knocks(self, binding: Binding, now: Instant) -> float:
        knocks, binding.knocks = binding.knocks, 0
        if binding.knocks_bucket is None:
            binding.knocks_bucket = Bucket(self.limits.knock_rate, self.limits.knock_burst, now)
        pause = binding.knocks_bucket.take(knocks, now)
        origin = binding.link.origin
        return pause if origin is None else max(pause, origin.knocks.take(knocks, now))

    def flushed(self, link: Link, queued: int) -> None:
        """The network has taken what it would; ``queued`` bytes are left."""
        link.queued = queued
        binding = link.binding
        if binding is not None and binding.behind and queued <= self.limits.outgoing_low:
            self._load(binding)

    def tick(self, now: Instant) -> None:
        """Once a second: deadlines."""
        overdue = now.monotonic - self.limits.proof_seconds
        for link in list(takewhile(lambda link: link.opened_at <= overdue, self._unproven)):
            self._turn_away(link, NOT_PROVEN, "no proof of possession in time", now)
        silent = now.monotonic - self.limits.idle_seconds
        for link, binding in list(self._bindings.items()):
            if link.heard_at <= silent:
                self.counters.idle += 1
                self._close(link, IDLE, f"silent for {self.limits.idle_seconds:.0f} s")
                continue
            if now.monotonic - max(link.heard_at, binding.pinged_at) >= self.limits.ping_seconds:
                binding.pinged_at = now.monotonic
                self.counters.sent["ping"] += 1
                link.outgoing = None
                self._effects.append(Ping(link))
            if binding.controls:
                self._settle(binding, link.heard_at - self.limits.handshake_seconds)
        if now.monotonic >= self._rotate_at:
            self._rotate_at = now.monotonic + self.limits.acked_seconds
            self.acked.rotate()
        if now.monotonic >= self._sweep_at:
            self._sweep_at = now.monotonic + self.limits.sweep_seconds
            self._sweep_due = True
            self._addresses.forget_unused(now)
            self._doorkeeper.forget_stale(now)

    def shut_down(self) -> None:
        """Close every link with 1001."""
        for link in [*self._unproven, *self._bindings]:
            self._close(link, GOING_AWAY, "the relay is shutting down")

    # --- frames -------------------------------------------------------------------------------------------------------

    def receive(self, link: Link, raw: bytes, now: Instant) -> None:
        """Take one message. Whatever it is, the connection stays, except when it should have been a valid connect."""
        self.receive_all(link, (raw,), now)

    def receive_all(self, link: Link, messages: Sequence[bytes], now: Instant) -> int:
        """Take messages that came together; returns how many, for the last ones find a closed link.

        What an ack brings about is done once for all acks in a row: half of what each costs by itself.
        """
        taken = 0
        acked: list[Entry] = []
        try:
            for raw in messages:
                if not link.open:
                    break
                taken += 1
                self._take(link, raw, now, acked)
        finally:
            if acked:
                self._complete(acked)
        return taken

    def _take(self, link: Link, raw: bytes, now: Instant, acked: list[Entry]) -> None:
        """Take one message; the frame it acks, if it is such, is left to the caller."""
        try:
            envelope = envelopes.read(raw)
        except MalformedFrame as error:
            self._complete(acked)
            self.counters.received[OTHER] += 1
            if link.binding is None:
                self._turn_away(link, NOT_CONNECT, f"the first frame must be connect: {error}", now)
            else:
                self._complain(link, "malformed", str(error))
            return
        binding, kind, counters = link.binding, envelope.type, self.counters
        if kind == MESSAGE:
            counters.messages_received += 1
        elif kind == "ack":
            counters.acks_received += 1
        else:
            counters.received[kind if kind in counters.received else OTHER] += 1
        if binding is None:
            self._introduce(link, envelope, raw, now)
            return
        if kind == "ack":
            self._acknowledge(binding, envelope, acked)
            return
        if acked:
            self._complete(acked)
        if envelope.sender is not msgspec.UNSET and envelope.sender != binding.did:
            self._complain(link, "wrong_sender", "from is not the DID of this connection", envelope.id)
        elif kind in ROUTED:
            self._route(binding, envelope, raw, now)
        elif kind == "heartbeat":
            pass
        elif kind == "fetch_pending":
            self._fetch(binding)
        elif kind == "disconnect":
            self._close(link, NORMAL, "disconnect")
        elif kind == "connect":
            self._complain(link, "bound_already", "this connection is bound already")
        else:
            self._complain(link, "unknown_type", f"unknown frame type {kind[:40]!r}")

    def broke_rules(self, link: Link, code: int, now: Instant) -> None:
        """The socket was ended for breaking the rules of HTTP or WebSocket; ``code`` is a status or a close code."""
        self.counters.rule_breaks[code] = self.counters.rule_breaks.get(code, 0) + 1
        if link.binding is None:
            self._blame(link, now)

    def oversized(self, link: Link, size: int) -> None:
        """A message of ``size`` bytes was too large to be read."""
        self.counters.received[OTHER] += 1
        self._complain(link, "too_large", f"a frame of {size} bytes; at most {self.limits.frame_size} are taken")

    def _complain(self, link: Link, reason: FrameReason, detail: str, frame_id: object = None) -> None:
        self.counters.refused_frames[reason] += 1
        self.counters.sent["error"] += 1
        if not isinstance(frame_id, str) or len(frame_id) > self.limits.id_length:
            frame_id = None
        self._send(link, envelopes.error(detail, id=frame_id))

    # --- connect ------------------------------------------------------------------------------------------------------

    def _introduce(self, link: Link, envelope: Envelope, raw: bytes, now: Instant) -> None:
        if envelope.type != "connect":
            self._turn_away(link, NOT_CONNECT, "the first frame must be connect", now)
            return
        if envelope.sender is msgspec.UNSET or not envelope.sender:
            self._turn_away(link, NO_SENDER, "connect names no from", now)
            return
        try:
            admitted = self._doorkeeper.admit(raw, link.nonce, now)
        except Refused as refused:
            self._turn_away(link, refused.code, refused.detail, now)
            return
        self._bind(link, admitted, now)

    def _turn_away(self, link: Link, code: int, detail: str, now: Instant) -> None:
        self._send(link, envelopes.error(detail, code=code, server_time=timestamp(now.utc)))
        self.counters.sent["error"] += 1
        self._count_refused(code)
        if self._trace is not None:
            self._trace("connect_refused", {"address": link.address, "code": code, "reason": detail})
        if code != TRY_AGAIN_LATER:
            self._blame(link, now)
        self._close(link, code, detail)

    def _blame(self, link: Link, now: Instant) -> None:
        """Nobody has proved to be behind the link: its address answers for it."""
        if link.origin is not None:
            link.origin.failures.take(1, now)

    def _count_refused(self, code: int) -> None:
        self.counters.refused_connects[code] = self.counters.refused_connects.get(code, 0) + 1

    def _bind(self, link: Link, admitted: Admitted, now: Instant) -> None:
        mailbox = self._mailboxes.of(admitted.did)
        before, knocks_bucket = mailbox.binding, None
        if before is not None:
            bucket, knocks_bucket = before.bucket, before.knocks_bucket
            self.counters.replaced += 1
            self._close(before.link, REPLACED, "replaced by a newer connection of this DID")
        else:
            bucket = Bucket(self.limits.frame_rate, self.limits.frame_burst, now)
        del self._unproven[link]
        binding = Binding(link, mailbox, admitted, bucket)
        binding.knocks_bucket = knocks_bucket
        self._mailboxes.add(mailbox)
        mailbox.binding = link.binding = self._bindings[link] = binding
        self.counters.connects += 1
        if self._trace is not None:
            fields = {"did": admitted.did, "verified": admitted.verified, "features": admitted.features}
            self._trace("agent_connected", fields)
        if admitted.credential is not None:
            self._credentials.append(admitted.credential)
        if admitted.proof is not None:
            self._proofs.append(admitted.proof)
        if admitted.features is not None:
            self.counters.sent["connected"] += 1
            self._send(link, envelopes.connected(admitted.features, timestamp(now.utc)))
        if binding.behind:
            self._load(binding)

    # --- route --------------------------------------------------------------------------------------------------------

    def _route(self, binding: Binding, envelope: Envelope, raw: bytes, now: Instant) -> None:
        link, frame_id, to = binding.link, envelope.id, envelope.recipient
        if frame_id is msgspec.UNSET or not 0 < len(frame_id) <= self.limits.id_length:
            self._complain(link, "no_id", f"id is a text of 1 to {self.limits.id_length} characters")
            return
        if to is msgspec.UNSET:
            self._complain(link, "wrong_recipient", "to is missing", frame_id)
            return
        if envelope.sender is msgspec.UNSET:
            raw = envelopes.stamp(raw, binding.did)
            if len(raw) > self.limits.frame_size:
                detail = f"the frame and its from exceed {self.limits.frame_size} bytes"
                self._complain(link, "too_large", detail, frame_id)
                return
        mailbox = self._mailboxes.get(to)
        if mailbox is None:
            try:
                mailbox = Mailbox(parse_did(to))
            except InvalidValue as error:
                self._complain(link, "wrong_recipient", f"to: {error}", frame_id)
                return
        earlier = mailbox.find(frame_id, binding.did) if mailbox.awaiting else None
        if (earlier or self.acked) and self._known(binding, mailbox, frame_id, earlier, raw):
            return
        pair = self._mailboxes.pair(mailbox, binding.did)
        size = len(raw)
        if refusal := self._mailboxes.over_quota(mailbox, pair, size, earlier):
            self._refuse(binding, to, frame_id, refusal)
            return
        kind = envelope.type
        if kind == KNOCK:
            binding.knocks += 1
        self._seq = seq = self._seq + 1
        entry = Entry(seq, mailbox, binding.did, pair, frame_id, kind != MESSAGE, now.utc, raw, size)
        if earlier is not None:
            self._replace(earlier, entry)
        self._mailboxes.count(mailbox, pair, 1, size)
        self._pending[seq] = entry
        self._pending_size += size
        self.counters.routed += 1
        if self._trace is not None:
            self._traced("message_routed", entry, type=kind, bytes=size)
        receiver = mailbox.binding
        if receiver is not None and not receiver.behind and not self._strict:
            self._push(receiver, entry, raw)
        if kind in KNOCK_ANSWERS and binding.controls and envelope.knock_id is not msgspec.UNSET:
            self._answered(binding, to, envelope.knock_id)

    def _known(self, binding: Binding, mailbox: Mailbox, frame_id: str, earlier: Entry | None, raw: bytes) -> bool:
        """Deal with a retransmission: the same bytes of the same sender and id are not delivered twice.

        An SDK ends its session over a duplicate. Other bytes under the same id are the message encrypted anew,
        for a recipient that could not read the first: they take its place.
        """
        if earlier is not None:
            if earlier.fingerprint() != fingerprint(raw):
                return False
            self.counters.retransmitted += 1
            if earlier.committed:
                self._receipt(binding, b"stored", frame_id)
            return True
        if self.acked.knows(mailbox.did, binding.did, frame_id, raw):
            self.counters.retransmitted += 1
            self._receipt(binding, b"delivered", frame_id)
            return True
        return False

    def _was_acked(self, entry: Entry) -> bool:
        return self.acked.knows(entry.mailbox.did, entry.sender, entry.id, entry.payload)

    def _refuse(self, binding: Binding, to: str, frame_id: str, reason: FrameReason) -> None:
        self._complain(binding.link, reason, _FULL[reason], frame_id)
        if self._trace is not None:
            self._trace("message_refused", {"id": frame_id, "from": binding.did, "to": to, "reason": reason})
        self._receipt(binding, b"refused", frame_id)

    def _push(self, receiver: Binding, entry: Entry, payload: bytes) -> None:
        link, mailbox = receiver.link, receiver.mailbox
        self._send(link, payload)
        if entry.control:
            self.counters.sent[envelopes.kind(payload)] += 1
        else:
            self.counters.messages_sent += 1
        if self._trace is not None:
            self._traced("message_pushed", entry)
        receiver.cursor = entry.seq
        link.queued += entry.size
        if link.queued > self.limits.outgoing_high and not receiver.behind:
            receiver.behind = True
            self.counters.spilled += 1
        if entry.control and not receiver.acks_everything:
            entry.pushed_at = link.heard_at
            receiver.controls[entry.seq] = entry
        earlier = mailbox.awaiting.setdefault(entry.id, entry)
        if earlier is not entry:
            if earlier.sender == entry.sender:
                self._supersede(earlier)
                mailbox.awaiting[entry.id] = entry
            else:
                rivals = mailbox.rivals.setdefault(entry.id, [])
                rivals[:] = [rival for rival in rivals if rival.sender != entry.sender]
                rivals.append(entry)

    # --- ack ----------------------------------------------------------------------------------------------------------

    def _acknowledge(self, binding: Binding, envelope: Envelope, acked: list[Entry]) -> None:
        """Find what the recipient has handled, and add it to ``acked``.

        Ids are the senders' choice, so ``from``, an extension, says whose frame is meant. An ack without it removes
        one frame, the oldest pushed: a third party that uses somebody else's id would otherwise have the recipient
        delete what it has not read. ``unread``, another extension, says that the frame is of no use to the recipient,
        which its sender should know.
        """
        frame_id, mailbox = envelope.id, binding.mailbox
        if frame_id is msgspec.UNSET:
            self._complain(binding.link, "no_id", "an ack has an id")
            return
        if binding.superseded and self._is_about_older_copy(binding, envelope):
            return
        entry = mailbox.awaiting.get(frame_id)
        if entry is None:
            return  # acked before, expired, replaced, or of somebody else
        sender = envelope.sender
        if mailbox.rivals or (sender != entry.sender and sender is not msgspec.UNSET):
            entry = self._meant(binding, entry, sender)
            if entry is None:
                return
            entry.mailbox.forget(entry)
        else:
            del mailbox.awaiting[frame_id]
        binding.earned += 1
        if envelope.unread is True:
            self._complete(acked)
            self._unread(entry)
        else:
            acked.append(entry)
        if not binding.acks_everything and not entry.control and entry.seq <= binding.cursor:
            if entry.seq > binding.acked.get(entry.sender, 0):
                binding.acked[entry.sender] = entry.seq
            if binding.controls:
                self._complete(acked)
                self._overtaken(binding, entry.seq)

    def _is_about_older_copy(self, binding: Binding, envelope: Envelope) -> bool:
        """Whether a complaint may be about a copy that has been replaced since it was pushed.

        The recipient answers each copy it gets, in whatever order. Until it has answered them all a complaint says
        nothing about the newest one: to delete that would put what follows it before it. A copy that was read settles
        all of them.
        """
        key = (str(envelope.sender), str(envelope.id))
        unanswered = binding.superseded.pop(key, 0)
        if not unanswered or envelope.unread is not True:
            return False
        if unanswered > 1:
            binding.superseded[key] = unanswered - 1
        return True

    def _supersede(self, earlier: Entry) -> None:
        """A newer copy takes the place of ``earlier``: an answer to that one may be on its way."""
        receiver = earlier.mailbox.binding
        if receiver is None or not receiver.acks_everything or earlier.seq > receiver.cursor:
            return
        if len(receiver.superseded) < self.limits.recipient_frames:
            key = (earlier.sender, earlier.id)
            receiver.superseded[key] = receiver.superseded.get(key, 0) + 1

    def _meant(self, binding: Binding, entry: Entry, sender: str | msgspec.UnsetType) -> Entry | None:
        """The frame an ack is about: ``entry`` or a rival."""
        mailbox = binding.mailbox
        if sender is not msgspec.UNSET:
            found = mailbox.find(entry.id, sender)
            if found is not None or sender != binding.did:
                return found
            # Some name themselves, as in every other frame: that says nothing about whose frame it was.
        rivals = mailbox.rivals.get(entry.id)
        if not rivals:
            return entry
        # Pushed in order of their numbers. Who acks messages alone does not mean a knock while there is a message.
        return min((entry, *rivals), key=lambda e: (e.control and not binding.acks_everything, e.seq))

    def _complete(self, acked: list[Entry]) -> None:
        """Nothing else may be done before what the acks so far bring about."""
        self._delivered(acked)
        acked.clear()

    def _delivered(self, entries: Sequence[Entry]) -> None:
        """Their recipients have them. Neighbours mostly are of the same pair."""
        self.counters.delivered += len(entries)
        for pair, run in groupby(entries, _PAIR_OF):
            same = list(run)
            mailbox, did = same[0].mailbox, pair.sender.did
            if self._trace is not None:
                for entry in same:
                    self._traced("message_delivered", entry)
            self.acked.add(mailbox.did, did, [(entry.id, entry.fingerprint()) for entry in same])
            self._remove(mailbox, pair, same)
            sender = self._mailboxes.get(did)
            if sender is not None and sender.binding is not None:
                self._receipt(sender.binding, b"delivered", *[entry.id for entry in same])

    def _unread(self, entry: Entry) -> None:
        # Not remembered as acked: the sender encrypts it anew under the same id, and that copy has to arrive.
        self.counters.unread += 1
        if self._trace is not None:
            self._traced("message_unread", entry)
        self._remove(entry.mailbox, entry.pair, (entry,))
        sender = self._mailboxes.get(entry.sender)
        if sender is not None and sender.binding is not None:
            self._receipt(sender.binding, b"unread", entry.id)

    def _traced(self, event: str, entry: Entry, **more: object) -> None:
        assert self._trace is not None
        self._trace(event, {"id": entry.id, "from": entry.sender, "to": entry.mailbox.did, **more})

    def _receipt(self, binding: Binding, state: bytes, *frame_ids: str) -> None:
        if binding.receipts:
            self.counters.receipts[state] += len(frame_ids)
            self._send(binding.link, *[envelopes.receipt(frame_id, state) for frame_id in frame_ids])

    # Knocks and their answers are acked by clients that negotiated features, and only so removed for them. The SDK acks
    # messages alone; unremoved, an old knock_reject would end a healthy session at every reconnect. Its sessions die
    # with its process, so for the SDK a control frame is handled as soon as the process that got it has shown to be
    # past it: it acked a message pushed later, answered the knock, or has sent anything a minute after. A socket that
    # dies before leaves the frame for the next one.

    def _overtaken(self, binding: Binding, seq: int) -> None:
        self._handled(binding, list(takewhile(lambda entry: entry.seq < seq, binding.controls.values())))

    def _settle(self, binding: Binding, pushed_before: float) -> None:
        self._handled(
            binding, list(takewhile(lambda entry: entry.pushed_at <= pushed_before, binding.controls.values()))
        )

    def _answered(self, binding: Binding, knocker: str, knock_id: str) -> None:
        entry = binding.mailbox.find(knock_id, knocker)
        if entry is not None and entry.seq in binding.controls:
            self._handled(binding, [entry])

    # What an SDK cannot decrypt it never acks, and a frame that broke one session breaks the next one at every replay.
    # It handles frames in order: one left unacked on a connection that acked a later frame of the same sender will not
    # be read, now or ever. It stays acknowledgeable while that connection lasts. Clients that negotiated features ack
    # hopeless frames themselves, and nothing is abandoned for them.

    def _abandon(self, binding: Binding) -> None:
        """The connection has ended: let go of what it could not read."""
        if not binding.acked:
            return
        mailbox, acked = binding.mailbox, binding.acked
        entries = [*mailbox.awaiting.values(), *(rival for rivals in mailbox.rivals.values() for rival in rivals)]
        for entry in entries:
            if entry.seq < acked.get(entry.sender, 0):
                entry.mailbox.forget(entry)
                self._remove(entry.mailbox, entry.pair, (entry,))
                self.counters.abandoned += 1
                if self._trace is not None:
                    self._traced("message_abandoned", entry)
                sender = self._mailboxes.get(entry.sender)
                if sender is not None and sender.binding is not None:
                    self._receipt(sender.binding, b"unread", entry.id)

    def _handled(self, binding: Binding, entries: Sequence[Entry]) -> None:
        for entry in entries:
            del binding.controls[entry.seq]
            if binding.mailbox.find(entry.id, entry.sender) is entry:  # else acked, expired or replaced before
                entry.mailbox.forget(entry)
                self._delivered((entry,))

    # --- mailboxes ----------------------------------------------------------------------------------------------------

    def _remove(self, mailbox: Mailbox, pair: Pair, entries: Sequence[Entry]) -> None:
        """Stop keeping entries of one pair, wherever they are."""
        self._mailboxes.uncount(mailbox, pair, len(entries), sum([entry.size for entry in entries]))
        pending, removals, removed = self._pending, self._removals, self._removed
        for entry in entries:
            seq = entry.seq
            if pending.pop(seq, None) is not None:
                self._pending_size -= entry.size
                removals.extend(entry.replaces)
            else:
                removals.append(seq)
                removed.add(seq)

    def _replace(self, earlier: Entry, entry: Entry) -> None:
        """Let ``entry`` take the place of ``earlier``, which stays in the inbox until this one is there."""
        self._supersede(earlier)
        earlier.mailbox.forget(earlier)
        self._mailboxes.uncount(earlier.mailbox, earlier.pair, 1, earlier.size)
        if self._pending.pop(earlier.seq, None) is not None:
            self._pending_size -= earlier.size
            entry.replaces = earlier.replaces
        else:
            self._removed.add(earlier.seq)
            entry.replaces = (earlier.seq,)

    def _redundant(self, entry: Entry, state: bytes | None) -> None:
        """Drop a pending frame that is a copy of one kept, or of one acked since it came."""
        self.counters.retransmitted += 1
        self._remove(entry.mailbox, entry.pair, (entry,))
        sender = self._mailboxes.get(entry.sender)
        if state is not None and sender is not None and sender.binding is not None:
            self._receipt(sender.binding, state, entry.id)

    # --- storage ------------------------------------------------------------------------------------------------------

    def _load(self, binding: Binding) -> None:
        if not binding.loading:
            binding.loading = True
            self._loads.append(binding)

    def _fetch(self, binding: Binding) -> None:
        if binding.behind:
            binding.fetching = True
        else:
            self._caught_up(binding.link)

    def _caught_up(self, link: Link) -> None:
        self.counters.sent["pending_messages"] += 1
        self._send(link, envelopes.CAUGHT_UP)

    def take_work(self, now: Instant, *, everything: bool = False) -> Work:
        """Take the next transaction. One at a time: :meth:`stored` or :meth:`failed` must follow.

        Frames that came since the last one are left for the next unless ``everything`` is wanted: most are acked until
        then, and cost no disk at all.
        """
        if self._strict or everything:
            self._committing, self._pending = self._pending, {}
        else:
            ripe, self._ripe = self._ripe, self._seq
            self._committing = {e.seq: e for e in takewhile(lambda e: e.seq <= ripe, self._pending.values())}
            for seq in self._committing:
                del self._pending[seq]
        if self.acked:
            # The copy of a stored frame may have come before a page brought that one to its recipient, who acked it.
            for entry in [entry for entry in self._committing.values() if self._was_acked(entry)]:
                self._pending[entry.seq] = self._committing.pop(entry.seq)
                self._redundant(entry, b"delivered")
        removals, self._removals = self._removals, []
        removals += [seq for entry in self._committing.values() for seq in entry.replaces]
        credentials, self._credentials = self._credentials, []
        proofs, self._proofs = self._proofs, []
        self._loading, self._loads = self._loads, []
        due, self._sweep_due = self._sweep_due, False
        sweep = Sweep(now.utc - self._ttl, now.utc, self.limits.sweep_frames) if due else None
        return Work(
            [
                StoredFrame(e.seq, e.mailbox.did, e.sender, e.id, e.control, e.accepted_at, e.payload)
                for e in self._committing.values()
            ],
            removals,
            credentials,
            proofs,
            sweep,
            [Load(binding.did, binding.cursor) for binding in self._loading],
            self.limits.page_frames,
            self.limits.page_bytes,
        )

    def failed(self, work: Work) -> None:
        """The transaction did not happen: its work is due again. Nothing was promised, so nothing is lost."""
        replaced = {seq for entry in self._committing.values() for seq in entry.replaces}
        self._removals = [*(seq for seq in work.removals if seq not in replaced), *self._removals]
        self._pending = self._committing | self._pending
        self._committing = {}
        heirs = {seq: entry for entry in self._pending.values() for seq in entry.replaces}
        for seq in self._removed & self._pending.keys():  # acked or replaced meanwhile: nothing to write after all
            entry = self._pending.pop(seq)
            self._pending_size -= entry.size
            if (heir := heirs.get(seq)) is not None:
                heir.replaces += entry.replaces
            else:
                self._removals.extend(entry.replaces)
        self._credentials = [*work.credentials, *self._credentials]
        self._proofs = [*work.proofs, *self._proofs]
        self._loads = [*self._loading, *self._loads]
        self._loading = []
        self._sweep_due = self._sweep_due or work.sweep is not None

    def stored(self, work: Work, done: Done, now: Instant) -> None:
        """The transaction is durable: tell senders, push what was read."""
        committing, self._committing = self._committing, {}
        if work.due:
            self._oldest_stored = done.oldest
        self._removed.difference_update(work.removals)
        for entry in committing.values():
            self._pending_size -= entry.size
            if entry.seq not in self._removed:
                self._committed(entry, duplicate=entry.seq in done.duplicates)
        for removed in done.replaced:
            self._gone(removed)
        for removed in done.expired:
            if self._gone(removed):
                self.counters.expired += 1
                if self._trace is not None:
                    fields = {"id": removed.id, "from": removed.sender, "to": removed.recipient}
                    self._trace("message_expired", fields)
                sender = self._mailboxes.get(removed.sender)
                if sender is not None and sender.binding is not None:
                    self._receipt(sender.binding, b"expired", removed.id)
        if work.sweep is not None and len(done.expired) == work.sweep.limit:
            self._sweep_due = True  # there may be more
        for binding, page in zip(self._loading, done.pages, strict=True):
            binding.loading = False
            if binding.link.open:
                self._push_page(binding, page.frames, page.more, now)
        self._loading = []

    def _committed(self, entry: Entry, *, duplicate: bool) -> None:
        mailbox = entry.mailbox
        if duplicate:  # the very same frame is stored already and keeps its place
            self._mailboxes.uncount(mailbox, entry.pair, 1, entry.size)
        else:
            self.counters.stored += 1
            if self._trace is not None:
                self._traced("message_stored", entry)
            receiver = mailbox.binding
            if self._strict and receiver is not None and not receiver.behind:
                self._push(receiver, entry, entry.payload)
            if mailbox.find(entry.id, entry.sender) is entry:
                entry.print = fingerprint(entry.payload)
        entry.committed = True
        entry.payload = b""
        sender = self._mailboxes.get(entry.sender)
        if sender is not None and sender.binding is not None:
            self._receipt(sender.binding, b"stored", entry.id)

    def _gone(self, removed: Removed) -> bool:
        """The store has dropped a frame by itself. False when its ack came at the same time and was counted."""
        if removed.seq in self._removed:
            return False
        mailbox = self._mailboxes.of(removed.recipient)
        entry = mailbox.find(removed.id, removed.sender)
        if entry is not None and entry.seq == removed.seq:
            entry.mailbox.forget(entry)
        self._mailboxes.uncount(mailbox, mailbox.pairs[removed.sender], 1, removed.size)
        return True

    def _push_page(self, binding: Binding, frames: Sequence[Waiting], more: bool, now: Instant) -> None:
        mailbox, removed, expired = binding.mailbox, self._removed, now.utc - self._ttl
        for seq, sender, frame_id, control, accepted_at, frame in frames:
            if seq in removed or accepted_at < expired:
                binding.cursor = seq
                continue
            entry = mailbox.find(frame_id, sender) if frame_id in mailbox.awaiting else None
            if entry is None or entry.seq != seq:
                pair = mailbox.pairs[sender]
                entry = Entry(
                    seq,
                    mailbox,
                    pair.sender.did,  # one object for all of its frames: hashed once
                    pair,
                    frame_id,
                    bool(control),
                    accepted_at,
                    b"",
                    len(frame),
                    fingerprint(frame),
                    committed=True,
                )
            self._push(binding, entry, frame)
        link, high = binding.link, self.limits.outgoing_high
        if not more and not self._strict:
            # What was accepted after the transaction began is in no page and still in memory, in order.
            for entry in [entry for entry in self._pending.values() if entry.mailbox is mailbox]:
                if link.queued > high:
                    more = True
                    break
                if entry.seq <= binding.cursor:
                    continue
                earlier = mailbox.find(entry.id, entry.sender)
                # It is itself the earlier one when it went to a socket that has ended since. Otherwise an earlier one
                # of the same bytes has been pushed. Left here, this copy would be new once that one is acked.
                if earlier is None and self._was_acked(entry):
                    self._redundant(entry, b"delivered")
                elif earlier is None or earlier is entry or earlier.fingerprint() != fingerprint(entry.payload):
                    self._push(binding, entry, entry.payload)
                else:
                    self._redundant(entry, b"stored" if earlier.committed else None)
        if more:
            if link.queued <= self.limits.outgoing_low:
                self._load(binding)
            return
        binding.behind = False
        if binding.fetching:
            binding.fetching = False
            self._caught_up(link)
