"""Transcripts of the SDK's client, replayed through our client core.

Every step's writes, deliveries, verified peers, faults and session states are compared. Ours differs from the SDK
in three ways that are decisions, and only these are let through:

* it acknowledges every frame that came by relay and will never be of use (knocks and their answers, messages that
  cannot be delivered), so extra ``ack`` frames of such ids are allowed;
* it has no "no session" error: a message without a session waits, so such a send must write nothing and is then
  cancelled;
* a bad frame costs it nothing. After a step in which the SDK lost its session, ours still has it: from there on that
  pair is run for safety only (nothing is delivered that was not sent, recorded deliveries still happen). The same
  holds after a step the vectors let an implementation refuse (``MayReject``), and for agt-4's trust in the plaintext
  flag, which nobody should copy.
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
from meshlib.wire.encoding import MessageId, b64, js_json, websocket_url
from vectors.checkers import CheckFailed, Group, Test, expect_equal
from vectors.checkers.crypto import record_of

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
        option = recorded["agentDidOption"]
        chosen = option if profile == "agt-4" or option.startswith("did:mesh:") else identity.did
        expect_equal("did", recorded["did"], chosen)
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
    for number, step in enumerate(test["steps"]):
        replay = _Replay(test, number, players[step["client"]], step, sent, profile)
        try:
            monotonic = replay.run(Instant(monotonic, _utc(step["now"])))
        except CheckFailed as failure:
            raise CheckFailed(f"step {number + 1} ({step['op']} by {step['client']}): {failure}") from failure


def _utc(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class _Replay:
    """One step, played and judged."""

    def __init__(self, test: Test, number: int, player: _Player, step: Step, sent: set[str], profile: str) -> None:
        self.flags = frozenset(test["flags"])
        self.player = player
        self.step = step
        self.sent = sent
        self.peer = _peer_of(step)
        earlier = {one.get("frame") for one in test["steps"][:number] if one["client"] == step["client"]}
        self.repeated = step["op"] == "receive" and step["frame"] in earlier
        self.may_refuse = self._may_refuse(test, number, profile)
        self.events: list[object] = []
        self.received: list[Received] = []
        self.writes: list[str] = []
        self.refused = False

    def _may_refuse(self, test: Test, number: int, profile: str) -> bool:
        """Whether this is the step that a MayReject flag speaks of."""
        if self.step["op"] != "receive":
            return False
        frame = self.step["frame"]
        if "MayReject" in self.flags:
            last = max(index for index, one in enumerate(test["steps"]) if one["op"] == "receive")
            return number == last or self.repeated or '"plaintext":true' in frame or '"knock_reject"' in frame
        return profile == "agt-4" and "PlaintextPeer" in self.flags

    def run(self, now: Instant) -> float:
        player, step = self.player, self.step
        lost = self.peer in player.lost
        player.entropy.load(step)
        player.entropy.filling = lost or self.may_refuse or "Glare" in self.flags
        monotonic = self._play(now)
        if lost:
            self._expect_safe(must_deliver=True)
        else:
            try:
                self._judge()
            except CheckFailed:
                if not self._refused_or_better():
                    raise
                self._expect_safe(must_deliver=False)
                if self.peer is not None:
                    player.lost.add(self.peer)
        self._note_losses()
        self._cancel_waiting()
        return monotonic

    def _play(self, now: Instant) -> float:
        player, step = self.player, self.step
        core = player.core
        if step["op"] in ("send", "encryptRaw"):
            text = step["payload"]["json"] if "payload" in step else bytes.fromhex(step["plaintext"]).decode("latin-1")
            self.sent.add(text)
        self.refused = _OPERATIONS[step["op"]](player, step, now)
        monotonic = now.monotonic
        if "waitMs" in step:
            monotonic += step["waitMs"] / 1000
            core.tick(Instant(monotonic, now.utc))
        asked = core.events()
        for event in asked:
            if isinstance(event, KnockReceived):
                _decide(player, event, now)
        self.events = [*asked, *core.events()]
        self.received = core.messages()
        self.writes = [frame.decode() for frame in core.writes()]
        core.sent()
        return monotonic

    # --- judging ---

    def _judge(self) -> None:
        step, player = self.step, self.player
        recorded = [one["frame"] for one in step["writes"]]
        expect_equal("writes", _without_extra_acks(self.writes, recorded), recorded)
        for one in step["writes"]:
            expect_equal("type of a write", json.loads(one["frame"])["type"], one["type"])
        if step["op"] != "receive":
            failed = self.refused or (step["op"] == "send" and not step["writes"])
            expect_equal("result", "invalid" if failed else "valid", step["result"])
        elif step["result"] not in ("valid", "invalid"):
            raise CheckFailed(f"an unknown result: {step['result']}")
        if "wsUrl" in step:
            expect_equal("wsUrl", websocket_url(step["wsUrl"].removesuffix("/ws")), step["wsUrl"])
        self._expect_delivered()
        if not step.get("mayAccept"):
            verified = [
                {"peer": one.peer, "isFirstPeer": one.first} for one in self.events if isinstance(one, PeerVerified)
            ]
            expect_equal("e2eVerified", verified, step.get("e2eVerified", []))
            self._expect_faults()
        if step["op"] == "socketClose":
            codes = [one.code for one in self.events if isinstance(one, Disconnected)]
            expect_equal("disconnects", codes, [one.get("code") or 1006 for one in step["disconnects"]])
        undone = self._sdk_lost_its_session() or step.get("mayAccept")
        if "sessionAfter" in step and not undone and not self._closed_by_an_invented_reject():
            _expect_session(player, step["sessionAfter"])
        if not step.get("mayAccept") and not self._sdk_lost_its_session():
            player.entropy.expect_used()

    def _expect_delivered(self) -> None:
        step = self.step
        recorded = [(one["from"], one["payloadJson"], one["isPlaintext"]) for one in step.get("delivered", ())]
        ours = [(one.sender, js_json(one.payload), not one.encrypted) for one in self.received]
        if step.get("mayAccept") and ours:
            expected = step.get("plaintextIfAccepted")
            if expected is not None and ours[0][1] != bytes.fromhex(expected).decode():
                raise CheckFailed("accepted, but with another payload than the one sent")
            self._expect_safe(must_deliver=False)
            return
        if step.get("warnings") and len(ours) > len(recorded):
            self._expect_safe(must_deliver=True)  # the SDK stumbled in the middle of a batch, ours did not
            ours = ours[: len(recorded)]
        expect_equal("delivered", ours, recorded)

    def _expect_faults(self) -> None:
        faults = [one for one in self.events if isinstance(one, FaultFound)]
        for error in self.step.get("errors", ()):
            kinds = _KINDS.get(error["kind"])
            if kinds is None:
                raise CheckFailed(f"an unknown kind of error: {error['kind']}")
            if self.repeated or not kinds:
                continue  # a repeated delivery is nothing to report; how a socket ended is an event of its own
            answer = next(
                (one for one in faults if one.kind in kinds and (one.peer or "") == (error["from"] or "")), None
            )
            if answer is None:
                raise CheckFailed(f"no fault answers to the recorded {error['kind']} of {error['from']}: {faults}")
            faults.remove(answer)
        spoke = self.step.get("delivered") or any(one["type"] != "ack" for one in self.step["writes"])
        if faults and spoke and not self.step.get("errors") and not self.step.get("warnings"):
            raise CheckFailed(f"a fault where the SDK found none: {faults[0]}")

    def _refused_or_better(self) -> bool:
        """Whether ours differs only in having refused what it may refuse, or having read what the SDK lost."""
        answers = [text for text in self.writes if not text.startswith(_ACK) and '"type":"knock_reject"' not in text]
        if self.may_refuse and not self.received and not answers:
            return True
        if self.may_refuse and '"type":"pending_messages"' in self.step["frame"]:
            return True  # a knock inside a batch is a knock to us
        if self.may_refuse and all(one.encrypted for one in self.received) and "PlaintextPeer" in self.flags:
            return True  # encrypted messages of a peer on the plaintext list are read as what they are
        return "Glare" in self.flags and self._sdk_lost_its_session() and bool(self.received)

    def _sdk_lost_its_session(self) -> bool:
        return any(error["kind"] == "session_desync" for error in self.step.get("errors", ()))

    def _expect_safe(self, *, must_deliver: bool) -> None:
        ours = [js_json(one.payload) for one in self.received]
        for payload in ours:
            if payload not in self.sent and not self._is_plaintext_delivery(payload):
                raise CheckFailed(f"a payload was delivered that nobody sent: {payload[:60]}")
        if must_deliver:
            for one in self.step.get("delivered", ()):
                if one["payloadJson"] not in ours and not self.repeated and not one["isPlaintext"]:
                    raise CheckFailed("a recorded delivery did not happen")

    def _is_plaintext_delivery(self, payload: str) -> bool:
        return any(one["isPlaintext"] and one["payloadJson"] == payload for one in self.step.get("delivered", ()))

    def _note_losses(self) -> None:
        """Remember with whom the SDK has lost its session through something that ours survives."""
        after = self.step.get("sessionAfter")
        if after is None or after["exists"] or self.step["op"] == "closeSession":
            return
        peer = self.player.core.peer(Did(after["peer"]))
        if (peer.strands or peer.candidates) and (self._sdk_lost_its_session() or self.may_refuse or self._rejected()):
            self.player.lost.add(after["peer"])

    def _closed_by_an_invented_reject(self) -> bool:
        return self._rejected() and not self.step["sessionAfter"]["exists"]

    def _rejected(self) -> bool:
        return '"type":"knock_reject"' in self.step.get("frame", "")

    def _cancel_waiting(self) -> None:
        for message in self.player.waiting:
            self.player.core.cancel(message)
        self.player.waiting.clear()
        self.player.core.fetches()


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
    for sender, knock in player.core.open_questions():
        player.core.answer_knock(sender, knock, accept=step["accepted"], now=now)
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
            player.core.answer_knock(knock.peer, knock.knock_id, accept=False, now=now)
        case "accept only intent.action = establish_session":
            accept = knock.intent.get("action") == "establish_session"
            player.core.answer_knock(knock.peer, knock.knock_id, accept=accept, now=now)
        case None | "handler throws" | "answers yes after the timeout" | "pending until resolved":
            pass
        case other:
            raise CheckFailed(f"an unknown knock policy: {other}")


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
                inner = messages if isinstance(messages, list) else []
                return next((one.get("from") for one in inner if isinstance(one, dict)), None)
            return frame.get("from")
    return None


_ACK = '{"v":1,"type":"ack"'


def _without_extra_acks(writes: list[str], recorded: list[str]) -> list[str]:
    return [text for text in writes if text in recorded or not text.startswith(_ACK)]


_KINDS = {
    "session_desync": {"decrypt", "replay", "duplicate"},
    "decrypt": {"decrypt"},
    "knock": {"knock"},
    "frame": {"frame"},
    "ws": set(),
}
"""Our kinds that answer to the SDK's."""


def _expect_session(player: _Player, recorded: dict[str, Any]) -> None:
    peer = player.core.peer(Did(recorded["peer"]))
    plaintext = player.core.speaks_plaintext_with(peer.did)
    session = _session_of(peer, player.dialect)
    if plaintext and session is None and not recorded["exists"]:
        return  # the SDK notes a plaintext peer only when it sends to it first
    expect_equal("session exists", session is not None or plaintext, recorded["exists"])
    if not recorded["exists"]:
        return
    expect_equal("isPlaintext", session is None and plaintext, recorded["isPlaintext"])
    if session is None:
        return
    expect_equal("associatedData", session.associated_data.hex(), recorded["associatedData"])
    expect_equal("state", record_of(session.state), recorded["state"])


def _session_of(peer: Peer, dialect: Dialect) -> Session | None:
    if peer.strands:
        return peer.strands[0].session
    for candidate in peer.candidates:
        for session in candidate.sessions:
            if session.dialect is dialect:
                return session
    return None


CHECKERS = {"SessionTranscript": check_transcript, "Receive": check_transcript}
