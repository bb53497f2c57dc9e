"""Transcripts of the SDK's client, replayed through our client core.

Every step's writes, deliveries, verified peers, faults and session states are compared. Ours differs from the SDK
in three ways that are decisions, and only these are let through:

* it acknowledges every frame that came by relay and will never be of use (knocks and their answers, messages that
  cannot be delivered), so extra ``ack`` frames of such ids are allowed;
* it has no "no session" error: a message without a session waits, so such a send must write nothing and is then
  cancelled;
* a bad frame costs it nothing. After a step in which the SDK lost its session, ours still has it: from there on that
  pair is run for safety only (nothing is delivered that was not sent, recorded deliveries still happen).
"""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from meshlib.client.core import ClientCore, Link, Profile
from meshlib.client.events import (
    Disconnected,
    FaultFound,
    KnockReceived,
    PeerVerified,
    Received,
)
from meshlib.client.keyring import DatedPrekey
from meshlib.client.peers import Peer
from meshlib.clock import Instant
from meshlib.config import Limits, Timeouts
from meshlib.crypto.keys import Ed25519Private, Ed25519Public, X25519Private, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, PrekeyBundle, SignedPrekey
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import InvalidValue, PeerError
from meshlib.identity import Did, Identity
from meshlib.session import Session
from meshlib.store.protocol import SavedState
from meshlib.wire.encoding import MessageId, js_json
from vectors.checkers import CheckFailed, Group, Test, expect_equal
from vectors.checkers.crypto import state_record

Step = dict[str, Any]

_FILLER = 7
"""Byte of randomness where the SDK drew none because it had already lost its session."""


class _Entropy:
    """Recorded randomness of one step, by size: 16 is a uuid, 12 a nonce, 32 a key."""

    def __init__(self) -> None:
        self._uuids: list[bytes] = []
        self._drawn: list[tuple[str, bytes]] = []
        self.filling = False

    def load(self, step: Step) -> None:
        self._uuids = [bytes.fromhex(text.replace("-", "")) for text in step.get("uuids", ())]
        self._drawn = [(one["purpose"], bytes.fromhex(one["value"])) for one in step.get("random", ())]

    def __call__(self, size: int) -> bytes:
        if size == 16 and self._uuids:
            return self._uuids.pop(0)
        if size != 16 and self._drawn:
            purpose, value = self._drawn.pop(0)
            if len(value) != size:
                raise CheckFailed(f"{size} random bytes were drawn where {purpose} of {len(value)} was recorded")
            return value
        if self.filling:
            return bytes((_FILLER,)) * size
        raise CheckFailed(f"{size} random bytes were drawn where none are recorded")

    def expect_used(self) -> None:
        if self._uuids or self._drawn:
            raise CheckFailed(f"{len(self._uuids)} recorded uuids and {len(self._drawn)} random values were not drawn")


class _Player:
    """One client of a transcript, played by our core."""

    def __init__(self, recorded: dict[str, Any], profile: str) -> None:
        identity = Identity(Ed25519Private(bytes.fromhex(recorded["ed25519Private"])))
        expect_equal("ed25519Public", bytes(identity.public_key).hex(), recorded["ed25519Public"])
        expect_equal("identityPrivate", bytes(identity.agreement_key).hex(), recorded["identityPrivate"])
        expect_equal("identityPublic", bytes(identity.agreement_key.public).hex(), recorded["identityPublic"])
        signed = SignedPrekey(
            recorded["signedPreKeyId"],
            X25519Private(bytes.fromhex(recorded["signedPreKeyPrivate"])),
            bytes.fromhex(recorded["signedPreKeySignature"]),
        )
        expect_equal("signedPreKeyPublic", bytes(signed.public).hex(), recorded["signedPreKeyPublic"])
        expect_equal("signedPreKeySignature", identity.sign(bytes(signed.public)).hex(), signed.signature.hex())
        one_time = {}
        for one in recorded.get("oneTimePreKeys", ()):
            one_time[one["id"]] = OneTimePrekey(one["id"], X25519Private(bytes.fromhex(one["private"])))
            expect_equal("oneTimePreKeys.public", bytes(one_time[one["id"]].public).hex(), one["public"])
        options = recorded.get("options", {})
        limits = Limits()
        if "preKnockBufferSize" in options:
            limits = replace(limits, held_frames_per_peer=options["preKnockBufferSize"])
        if "preKnockBufferTtlMs" in options:
            limits = replace(limits, held_seconds=options["preKnockBufferTtlMs"] / 1000)
        timeouts = Timeouts()
        if "knockTimeout" in options:
            timeouts = replace(timeouts, policy=options["knockTimeout"] / 1000)
        self.policy: str | None = recorded.get("knockPolicy")
        self.dialect = Dialect(profile)
        self.did = Did(recorded["did"])
        self.entropy = _Entropy()
        self.waiting: list[MessageId] = []
        self.lost: set[str] = set()
        self.core = ClientCore(
            Profile(
                identity=identity,
                did=self.did,
                dialect=self.dialect,
                extensions=False,
                plaintext_peers=frozenset(options.get("plaintextPeers", ())),
                peer_dialects=_Always(self.dialect),
                ask_before_accepting=self.policy is not None,
                ack_when_saved=True,
            ),
            SavedState(signed_prekeys=(DatedPrekey(signed, 0.0),), one_time_prekeys=one_time),
            self.entropy,
            limits,
            timeouts,
        )


class _Always(dict[str, Dialect]):
    """Every peer speaks the transcript's dialect."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect

    def get(self, key: str, default: object = None) -> Dialect:  # type: ignore[override]
        return self._dialect


def check_transcript(group: Group, test: Test, profile: str) -> None:
    """Replay one transcript."""
    players = {name: _Player(recorded, profile) for name, recorded in test["clients"].items()}
    sent: set[str] = set()
    monotonic = 0.0
    quirk = "MayReject" in test["flags"]
    for number, step in enumerate(test["steps"]):
        player = players[step["client"]]
        now = Instant(monotonic, _utc(step["now"]))
        try:
            monotonic = _play(player, step, now, sent, quirk=quirk and number == _judged(test))
        except CheckFailed as failure:
            raise CheckFailed(f"step {number + 1} ({step['op']} by {step['client']}): {failure}") from failure


def _judged(test: Test) -> int:
    """The step a MayReject flag speaks of: the last one that receives."""
    return max(number for number, step in enumerate(test["steps"]) if step["op"] == "receive")


def _utc(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _play(player: _Player, step: Step, now: Instant, sent: set[str], *, quirk: bool) -> float:
    core = player.core
    peer = _peer_of(step)
    lost = peer in player.lost
    player.entropy.load(step)
    player.entropy.filling = lost or quirk
    refused = _OPERATIONS[step["op"]](player, step, now)
    monotonic = now.monotonic
    if "waitMs" in step:
        monotonic += step["waitMs"] / 1000
        core.tick(Instant(monotonic, now.utc))
    events = core.events()
    for event in events:
        if isinstance(event, KnockReceived):
            _decide(player, event, now)
    events += core.events()
    received = core.messages()
    writes = [frame.decode() for frame in core.writes()]
    core.sent()
    if step["op"] in ("send", "encryptRaw"):
        sent.add(step["payload"]["json"] if "payload" in step else bytes.fromhex(step["plaintext"]).decode("latin-1"))

    if lost or quirk:
        _expect_safe(step, received, sent, must_deliver=lost and not quirk)
        _note_losses(player, step)
        return monotonic
    expect_equal("writes", _without_extra_acks(writes, step), [one["frame"] for one in step["writes"]])
    if step["result"] == "invalid" and not refused and step["op"] not in ("receive", "send"):
        raise CheckFailed("the SDK refuses this, ours does not")
    _expect_delivered(step, received)
    _expect_verified(step, events)
    _expect_faults(step, events)
    _expect_disconnects(step, events)
    _note_losses(player, step)
    if step.get("mayAccept"):
        return monotonic
    if peer not in player.lost and "sessionAfter" in step:
        _expect_session(player, step["sessionAfter"])
    player.entropy.expect_used()
    _cancel_waiting(player)
    return monotonic


# --- operations ------------------------------------------------------------------------------------------------------


def _connect(player: _Player, step: Step, now: Instant) -> bool:
    player.core.opened(now)
    return False


def _reconnect(player: _Player, step: Step, now: Instant) -> bool:
    player.core.closed(1000, "")
    player.core.events()
    player.core.opened(now)
    return False


def _disconnect(player: _Player, step: Step, now: Instant) -> bool:
    player.core.goodbye()
    return False


def _establish(player: _Player, step: Step, now: Instant) -> bool:
    given = step["bundle"]
    if not given:
        player.core.knock(Did(step["peer"]), _NO_BUNDLE, now)
        return False
    one_time = given.get("oneTimePreKey")
    bundle = PrekeyBundle(
        X25519Public(bytes.fromhex(given["identityKey"])),
        Ed25519Public(bytes.fromhex(given["identityKeyEd"])),
        given["signedPreKeyId"],
        X25519Public(bytes.fromhex(given["signedPreKey"])),
        bytes.fromhex(given["signedPreKeySignature"]),
        given.get("oneTimePreKeyId"),
        X25519Public(bytes.fromhex(one_time)) if one_time else None,
    )
    try:
        player.core.knock(Did(step["peer"]), bundle, now)
    except PeerError:
        return True
    return False


_NO_BUNDLE = PrekeyBundle(
    X25519Public(bytes(32)), Ed25519Public(bytes(32)), 0, X25519Public(bytes(32)), b"", None, None
)


def _send(player: _Player, step: Step, now: Instant) -> bool:
    if player.core.link is Link.DOWN:
        player.entropy.filling = True  # the SDK raises before it draws an id; ours queues the message
    payload = step["payload"]
    value = json.loads(payload["json"])
    try:
        player.waiting.append(player.core.send(Did(step["peer"]), value, now))
    except InvalidValue:
        return True
    return False


def _encrypt_raw(player: _Player, step: Step, now: Instant) -> bool:
    """The SDK's test harness encrypts bytes that are no JSON; the session does, the client would not."""
    core = player.core
    peer = core.peer(Did(step["peer"]))
    strand = peer.sending()
    if strand is None:
        raise CheckFailed("no session to encrypt on")
    session, header, ciphertext = strand.session.encrypt(bytes.fromhex(step["plaintext"]), player.entropy)
    core._keep_peer(peer.advanced(session))
    frame = json.loads(step["frame"])
    from meshlib.wire.encoding import b64

    expect_equal("header", {"dh": b64(header.dh), "pn": header.pn, "n": header.n}, frame["header"])
    expect_equal("ciphertext", b64(ciphertext), frame["ciphertext"])
    return False


def _receive(player: _Player, step: Step, now: Instant) -> bool:
    player.core.receive(step["frame"], now)
    return False


def _heartbeat(player: _Player, step: Step, now: Instant) -> bool:
    player.core.heartbeat(now)
    return False


def _close_session(player: _Player, step: Step, now: Instant) -> bool:
    player.core.close_session(Did(step["peer"]))
    player.lost.discard(step["peer"])
    return False


def _socket_close(player: _Player, step: Step, now: Instant) -> bool:
    player.core.closed(step.get("code") or 1006, "")
    return False


def _knock_handler_resolves(player: _Player, step: Step, now: Instant) -> bool:
    for knock in list(player.core.open_questions()):
        player.core.answer_knock(knock, accept=step["accepted"], now=now)
    return False


_OPERATIONS = {
    "connect": _connect,
    "reconnect": _reconnect,
    "disconnect": _disconnect,
    "establishSession": _establish,
    "send": _send,
    "encryptRaw": _encrypt_raw,
    "receive": _receive,
    "heartbeat": _heartbeat,
    "closeSession": _close_session,
    "socketClose": _socket_close,
    "knockHandlerResolves": _knock_handler_resolves,
}


def _decide(player: _Player, knock: KnockReceived, now: Instant) -> None:
    match player.policy:
        case "reject every knock":
            player.core.answer_knock(knock.knock_id, accept=False, now=now)
        case "accept only intent.action = establish_session":
            accept = knock.intent.get("action") == "establish_session"
            player.core.answer_knock(knock.knock_id, accept=accept, now=now)
        case None | "handler throws" | "answers yes after the timeout" | "pending until resolved":
            pass
        case other:
            raise CheckFailed(f"an unknown knock policy: {other}")


# --- judging ---------------------------------------------------------------------------------------------------------


def _peer_of(step: Step) -> str | None:
    if "peer" in step:
        return str(step["peer"])
    if "frame" in step:
        try:
            frame = json.loads(step["frame"])
        except ValueError:
            return None
        if isinstance(frame, dict):
            if frame.get("type") == "pending_messages":
                messages = frame.get("messages")
                senders = [one.get("from") for one in messages if isinstance(one, dict)] if messages else []
                return senders[0] if senders else None
            return frame.get("from")
    return None


def _without_extra_acks(writes: list[str], step: Step) -> list[str]:
    recorded = [one["frame"] for one in step["writes"]]
    return [text for text in writes if text in recorded or not text.startswith('{"v":1,"type":"ack"')]


def _note_losses(player: _Player, step: Step) -> None:
    """Remember with whom the SDK has lost its session through something that ours survives."""
    after = step.get("sessionAfter")
    if after is None or after["exists"]:
        return
    peer = player.core.peer(Did(after["peer"]))
    if peer.strands or peer.candidates:
        desync = any(error["kind"] == "session_desync" for error in step.get("errors", ()))
        if desync or "knock_reject" in step.get("frame", ""):
            player.lost.add(after["peer"])


def _expect_safe(step: Step, received: list[Received], sent: set[str], *, must_deliver: bool) -> None:
    ours = [js_json(one.payload) for one in received]
    for payload in ours:
        if payload not in sent:
            raise CheckFailed(f"a payload was delivered that nobody sent: {payload[:60]}")
    if must_deliver:
        for one in step.get("delivered", ()):
            if one["payloadJson"] not in ours:
                raise CheckFailed("a recorded delivery did not happen")


def _expect_delivered(step: Step, received: list[Received]) -> None:
    recorded = [(one["from"], one["payloadJson"], one["isPlaintext"]) for one in step.get("delivered", ())]
    ours = [(one.sender, js_json(one.payload), not one.encrypted) for one in received]
    if step.get("mayAccept") and ours:
        expected = step.get("plaintextIfAccepted")
        if expected is not None and ours[0][1] != bytes.fromhex(expected).decode():
            raise CheckFailed("accepted, but with another payload than the one sent")
        return
    expect_equal("delivered", ours, recorded)


def _expect_verified(step: Step, events: list[object]) -> None:
    ours = [{"peer": one.peer, "isFirstPeer": one.first} for one in events if isinstance(one, PeerVerified)]
    if not step.get("mayAccept"):
        expect_equal("e2eVerified", ours, step.get("e2eVerified", []))


_KINDS = {
    "session_desync": {"decrypt", "replay", "duplicate"},
    "decrypt": {"decrypt"},
    "knock": {"knock"},
    "frame": {"frame"},
    "ws": set(),
}
"""Our kinds that answer to the SDK's."""


def _expect_faults(step: Step, events: list[object]) -> None:
    faults = [one for one in events if isinstance(one, FaultFound)]
    recorded = step.get("errors", [])
    if step.get("mayAccept"):
        return
    unmatched = list(faults)
    for error in recorded:
        kinds = _KINDS.get(error["kind"])
        if kinds is None:
            raise CheckFailed(f"an unknown kind of error: {error['kind']}")
        if not kinds:
            continue
        match = next(
            (one for one in unmatched if one.kind in kinds and (one.peer or "") == (error["from"] or "")), None
        )
        if match is None:
            raise CheckFailed(f"no fault answers to the recorded {error['kind']} of {error['from']}: {faults}")
        unmatched.remove(match)
    if unmatched and (step.get("delivered") or any(one["type"] != "ack" for one in step["writes"])) and not recorded:
        raise CheckFailed(f"a fault where the SDK found none: {unmatched[0]}")


def _expect_disconnects(step: Step, events: list[object]) -> None:
    ours = [one.code for one in events if isinstance(one, Disconnected)]
    recorded = [one.get("code") or 1006 for one in step.get("disconnects", ())]
    if step["op"] == "socketClose":
        expect_equal("disconnects", ours, recorded)


def _expect_session(player: _Player, recorded: dict[str, Any]) -> None:
    peer = player.core.peer(Did(recorded["peer"]))
    plaintext = player.core.speaks_plaintext_with(peer.did)
    session = _session_of(peer, player.dialect)
    expect_equal("session exists", session is not None or plaintext, recorded["exists"])
    if not recorded["exists"]:
        return
    expect_equal("isPlaintext", session is None and plaintext, recorded["isPlaintext"])
    if session is None:
        return
    expect_equal("associatedData", session.associated_data.hex(), recorded["associatedData"])
    expect_equal("state", state_record(session.state), recorded["state"])


def _session_of(peer: Peer, dialect: Dialect) -> Session | None:
    if peer.strands:
        return peer.strands[0].session
    for candidate in peer.candidates:
        for session in candidate.sessions:
            if session.dialect is dialect:
                return session
    return None


def _cancel_waiting(player: _Player) -> None:
    for message in player.waiting:
        player.core.cancel(message)
    player.waiting.clear()
    player.core.fetches()


CHECKERS = {"SessionTranscript": check_transcript, "Receive": check_transcript}
