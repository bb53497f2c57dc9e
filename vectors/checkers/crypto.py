"""Checkers for identities, key agreement, the ratchet and whole channels.

Every recorded value is compared with what production code makes of the recorded inputs; what production code does
not compute (a step's ``stateChanged``, a test's ``result``) is checked against the rest of the record.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from meshlib.crypto import ratchet, x3dh
from meshlib.crypto.keys import Ed25519Private, Ed25519Public, Entropy, SecretBytes, X25519Private, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, PrekeyBundle, SignedPrekey, make_bundle
from meshlib.crypto.primitives import verify, x25519
from meshlib.crypto.ratchet import Chain, Established, Header, Opened, Turn, Waiting
from meshlib.crypto.x3dh import Agreement, Dialect, Opening
from meshlib.errors import (
    InvalidValue,
    MalformedFrame,
    MeshError,
    NotAuthentic,
    PeerError,
    Replayed,
    SessionNotReady,
    TooManySkipped,
    UnknownPrekey,
    WeakKey,
)
from meshlib.identity import Did, Identity, commits_to_key, did_of, sdk_did, to_x25519
from meshlib.session import Role, Session, Terms
from vectors.checkers import (
    Checker,
    CheckFailed,
    Group,
    Test,
    expect_absent,
    expect_equal,
    expect_invalid,
    expect_valid,
)

REFUSALS: Mapping[str, tuple[type[MeshError], ...]] = {
    "authentication-failed": (NotAuthentic, Replayed),
    "bad-length": (InvalidValue, MalformedFrame, NotAuthentic),
    "bad-signature": (NotAuthentic,),
    "ciphertext-too-short": (MalformedFrame,),
    "low-order-public-key": (WeakKey,),
    "no-send-chain": (SessionNotReady,),
    "one-time-key-not-found": (UnknownPrekey,),
    "other": (PeerError,),
    "too-many-skipped": (TooManySkipped,),
}
"""How production code may refuse what upstream refuses with an error of this class."""

PURPOSES = {
    "signedPreKeyPrivate": 32,
    "oneTimePreKeyPrivate": 32,
    "x3dhEphemeralPrivate": 32,
    "ratchetPrivate": 32,
    "nonce": 12,
}


class ScriptedEntropy:
    """Gives out recorded randomness in the recorded order, and complains when production code wants anything else."""

    def __init__(self, recorded: Sequence[Mapping[str, str]], *purposes: str) -> None:
        expect_equal("purposes of random", [one["purpose"] for one in recorded], list(purposes))
        self._values = [_hex(one["value"], PURPOSES[one["purpose"]]) for one in recorded]
        self.drawn = 0

    def __call__(self, size: int) -> bytes:
        if self.drawn == len(self._values):
            raise CheckFailed(f"ours draws {size} random bytes more than are recorded")
        value = self._values[self.drawn]
        expect_equal("size of a random value", size, len(value))
        self.drawn += 1
        return value

    def finish(self) -> None:
        """Every recorded value must have been drawn."""
        if self.drawn != len(self._values):
            raise CheckFailed(f"ours draws {self.drawn} of {len(self._values)} recorded random values")


def _no_entropy(size: int) -> bytes:
    raise CheckFailed(f"ours draws {size} random bytes where nothing may be drawn")


def _hex(text: str, size: int | None = None) -> bytes:
    raw = bytes.fromhex(text)
    expect_equal("hex notation", raw.hex(), text)
    if size is not None and len(raw) != size:
        raise CheckFailed(f"a recorded value has {len(raw)} bytes instead of {size}")
    return raw


def _expect_refusal(record: Test, error: MeshError) -> None:
    """Check that ``error`` is how ours says what the record says went wrong."""
    kind = record["errorClass"]
    if not isinstance(record["error"], str) or not record["error"]:
        raise CheckFailed("an error without a text is recorded")
    allowed = REFUSALS.get(kind)
    if allowed is None:
        raise CheckFailed(f"errorClass {kind!r} is recorded, and ours says {type(error).__name__}")
    weak_as_forged = isinstance(error, WeakKey) and kind == "authentication-failed"
    if not isinstance(error, allowed) or weak_as_forged:
        raise CheckFailed(f"errorClass {kind!r} is recorded, and ours says {type(error).__name__}: {error}")


# --- identities -----------------------------------------------------------------------------------------------------


def _ed25519_to_x25519(_group: Group, test: Test, _profile: str) -> None:
    try:
        identity = Identity.from_secret(_hex(test["ed25519Private"]), _hex(test["ed25519Public"]))
    except InvalidValue as refusal:
        expect_invalid(test, refusal)
        if test["result"] == "invalid":
            _expect_refusal(test, refusal)
            expect_absent(test, "x25519Private", "x25519Public")
        else:  # a pair that does not belong together: the conversion itself can still be compared
            identity = Identity(Ed25519Private(_hex(test["ed25519Private"])[:32]))
            _expect_conversion(identity, test)
        return
    expect_valid(test)
    expect_absent(test, "error", "errorClass")
    _expect_conversion(identity, test)


def _expect_conversion(identity: Identity, test: Test) -> None:
    expect_equal("x25519Private", bytes(identity.agreement_key).hex(), test["x25519Private"])
    expect_equal("x25519Public", bytes(identity.agreement_key.public).hex(), test["x25519Public"])
    expect_equal("x25519Public of the public key", bytes(to_x25519(identity.public_key)).hex(), test["x25519Public"])


def _did(_group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    public = Ed25519Public(_hex(test["ed25519Public"]))
    expect_equal("did", did_of(public), test["did"])
    if "ed25519Private" in test:
        identity = Identity(Ed25519Private(_hex(test["ed25519Private"])))
        expect_equal("ed25519Public", bytes(identity.public_key).hex(), test["ed25519Public"])
        expect_equal("did", identity.did, test["did"])


def _active_did(_group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    public = Ed25519Public(_hex(test["ed25519Public"]))
    active = sdk_did(public, test["agentDidOption"])
    expect_equal("activeDid", active, test["activeDid"])


# --- key derivation -------------------------------------------------------------------------------------------------


def _kdf_root(group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    expect_equal(
        "parameters",
        group["parameters"],
        {
            "hash": "SHA-256",
            "salt": "rootKey",
            "ikm": "dhOutput",
            "info": "AgentMesh_Ratchet_v1",
            "length": 64,
            "split": "newRootKey (32) || chainKey (32)",
        },
    )
    root, chain = ratchet.kdf_root(_secret(test["rootKey"]), _hex(test["dhOutput"], 32))
    expect_equal("newRootKey", bytes(root).hex(), test["newRootKey"])
    expect_equal("chainKey", bytes(chain).hex(), test["chainKey"])


def _kdf_chain(group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    expect_equal(
        "parameters",
        group["parameters"],
        {"messageKey": "HMAC-SHA256(chainKey, 0x01)", "nextChainKey": "HMAC-SHA256(chainKey, 0x02)"},
    )
    chain = _secret(test["chainKey"])
    if "iterations" not in test:
        key, chain = ratchet.kdf_chain(chain)
        expect_equal("messageKey", key.hex(), test["messageKey"])
        expect_equal("nextChainKey", bytes(chain).hex(), test["nextChainKey"])
        return
    expect_equal("iterations", len(test["messageKeys"]), test["iterations"])
    for number, recorded in enumerate(test["messageKeys"]):
        key, chain = ratchet.kdf_chain(chain)
        expect_equal(f"messageKeys[{number}]", key.hex(), recorded)
    expect_equal("finalChainKey", bytes(chain).hex(), test["finalChainKey"])


_X3DH_KDF = {
    "agt-5": {"salt": "00 x 32", "ikm": "ff x 32 || dhConcat"},
    "agt-4": {"salt": "ff x 32", "ikm": "dhConcat"},
}


def _x3dh_kdf(group: Group, test: Test, profile: str) -> None:
    expect_valid(test)
    fixed = {"hash": "SHA-256", "info": "AgentMesh_X3DH_v1", "length": 32}
    expect_equal("parameters", group["parameters"], fixed | _X3DH_KDF[profile])
    agreements = _hex(test["dhConcat"])
    if len(agreements) not in (96, 128):
        raise CheckFailed("X3DH has three or four agreements of 32 bytes")
    expect_equal("sharedSecret", bytes(x3dh.derive(Dialect(profile), agreements)).hex(), test["sharedSecret"])


def _secret(text: str) -> SecretBytes:
    return SecretBytes(_hex(text, 32))


# --- X3DH -----------------------------------------------------------------------------------------------------------


@dataclass
class _Owner:
    """A recorded party with everything that belongs to it checked against its identity."""

    identity: Identity
    signed: SignedPrekey | None = None
    one_time: dict[int, OneTimePrekey] = field(default_factory=dict)

    @property
    def one_time_ids(self) -> list[int]:
        return sorted(self.one_time)


def _owner(record: Test) -> _Owner:
    identity = Identity(Ed25519Private(_hex(record["ed25519Private"], 32)))
    if "ed25519Public" in record:
        expect_equal("ed25519Public", bytes(identity.public_key).hex(), record["ed25519Public"])
    if "identityPrivate" in record or "identityPublic" in record:
        expect_equal("identityPrivate", bytes(identity.agreement_key).hex(), record["identityPrivate"])
        expect_equal("identityPublic", bytes(identity.agreement_key.public).hex(), record["identityPublic"])
    owner = _Owner(identity)
    if "signedPreKeyPrivate" in record:
        private = _private(record["signedPreKeyPrivate"], record["signedPreKeyPublic"])
        signature = identity.sign(bytes(private.public))
        if "signedPreKeySignature" in record:
            expect_equal("signedPreKeySignature", signature.hex(), record["signedPreKeySignature"])
        owner.signed = SignedPrekey(record.get("signedPreKeyId", 0), private, signature)
    for one in record.get("oneTimePreKeys", ()):
        owner.one_time[one["id"]] = OneTimePrekey(one["id"], _private(one["private"], one["public"]))
    if "oneTimePreKeyId" in record:
        key_id = record["oneTimePreKeyId"]
        private = _private(record["oneTimePreKeyPrivate"], record["oneTimePreKeyPublic"])
        owner.one_time[key_id] = OneTimePrekey(key_id, private)
    return owner


def _private(private: str, public: str) -> X25519Private:
    key = X25519Private(_hex(private, 32))
    expect_equal("the public key of a private key", bytes(key.public).hex(), public)
    return key


def _x3dh_agreement(_group: Group, test: Test, profile: str) -> None:
    expect_valid(test)
    initiator, responder = _owner(test["initiator"]), _owner(test["responder"])
    used = test["usedOneTimeKeyId"]
    one_time = None if used is None else responder.one_time[used]
    expect_equal("one-time keys of the responder", responder.one_time_ids, [] if used is None else [used])
    signed = _signed(responder)
    entropy = ScriptedEntropy(
        [{"purpose": "x3dhEphemeralPrivate", "value": test["ephemeralPrivate"]}], "x3dhEphemeralPrivate"
    )
    bundle = make_bundle(responder.identity, signed, one_time)
    agreement, opening = x3dh.initiate(initiator.identity, responder.identity.did, bundle, Dialect(profile), entropy)
    entropy.finish()
    answer = x3dh.respond(responder.identity, opening, signed, one_time, Dialect(profile))
    ephemeral = _private(test["ephemeralPrivate"], test["ephemeralPublic"])
    expect_equal("ephemeralPublic", bytes(opening.ek).hex(), test["ephemeralPublic"])
    expect_equal("identity key of the opening", bytes(opening.ik).hex(), test["initiator"]["identityPublic"])
    expect_equal("usedOneTimeKeyId", opening.one_time_key_id, used)
    for side in (agreement, answer):
        _expect_agreement(side, test)
    _expect_outputs(test, initiator, responder, ephemeral, signed, one_time)


def _expect_outputs(
    test: Test,
    initiator: _Owner,
    responder: _Owner,
    ephemeral: X25519Private,
    signed: SignedPrekey,
    one_time: OneTimePrekey | None,
) -> None:
    """Compare dh1 to dh4, made from either side."""
    own, theirs = initiator.identity.agreement_key, responder.identity.agreement_key
    pairs: list[tuple[X25519Private, X25519Private] | None] = [
        (own, signed.private),
        (ephemeral, theirs),
        (ephemeral, signed.private),
        None if one_time is None else (ephemeral, one_time.private),
    ]
    for number, pair in enumerate(pairs, 1):
        name = f"dh{number}"
        if pair is None:
            expect_equal(name, None, test[name])
            continue
        ours, peer = pair
        expect_equal(name, x25519(ours, peer.public).hex(), test[name])
        expect_equal(f"{name} of the responder", x25519(peer, ours.public).hex(), test[name])


def _expect_agreement(agreement: Agreement, record: Test) -> None:
    expect_equal("sharedSecret", bytes(agreement.secret).hex(), record["sharedSecret"])
    expect_equal("associatedData", agreement.associated_data.hex(), record["associatedData"])


def _signed(owner: _Owner) -> SignedPrekey:
    if owner.signed is None:
        raise CheckFailed("no signed prekey is recorded")
    return owner.signed


def _x3dh_initiate(_group: Group, test: Test, profile: str) -> None:
    initiator = _owner(test["initiator"])
    recorded = test["bundle"]
    private = test.get("ephemeralPrivate")
    script = [] if private is None else [{"purpose": "x3dhEphemeralPrivate", "value": private}]
    entropy = ScriptedEntropy(script, *(["x3dhEphemeralPrivate"] if script else []))
    try:
        bundle = _bundle(recorded)
        peer = did_of(bundle.identity_key_ed)  # the test names none: everything but the hash is left to check
        agreement, opening = x3dh.initiate(initiator.identity, peer, bundle, Dialect(profile), entropy)
    except MeshError as refusal:
        expect_invalid(test, refusal)
        if test["result"] == "invalid":
            _expect_refusal(test, refusal)
            expect_absent(test, "sharedSecret", "associatedData", "usedOneTimeKeyId")
        else:
            _expect_agreement(_unverified(initiator.identity, test, Dialect(profile)), test)
        expect_equal("random values drawn before the bundle was verified", entropy.drawn, 0)
        return
    expect_valid(test)
    expect_absent(test, "error", "errorClass")
    entropy.finish()
    expect_equal("ephemeralPublic", bytes(opening.ek).hex(), test["ephemeralPublic"])
    expect_equal("usedOneTimeKeyId", opening.one_time_key_id, test["usedOneTimeKeyId"])
    expect_equal("identity key of the opening", bytes(opening.ik).hex(), test["initiator"]["identityPublic"])
    _expect_agreement(agreement, test)


def _unverified(identity: Identity, test: Test, dialect: Dialect) -> Agreement:
    """What comes out of a bundle that upstream takes and ours refuses, so that the record is compared all the same."""
    bundle = test["bundle"]
    ephemeral = _private(test["ephemeralPrivate"], test["ephemeralPublic"])
    peer, signed = X25519Public(_hex(bundle["identityKey"])), X25519Public(_hex(bundle["signedPreKey"]))
    if "Zip215Only" not in test["flags"]:
        verify(Ed25519Public(_hex(bundle["identityKeyEd"])), bytes(signed), _hex(bundle["signedPreKeySignature"]))
    agreements = x25519(identity.agreement_key, signed) + x25519(ephemeral, peer) + x25519(ephemeral, signed)
    if "oneTimePreKey" in bundle:
        agreements += x25519(ephemeral, X25519Public(_hex(bundle["oneTimePreKey"])))
    used = bundle.get("oneTimePreKeyId") if "oneTimePreKey" in bundle else None
    expect_equal("usedOneTimeKeyId", used, test["usedOneTimeKeyId"])
    return Agreement(x3dh.derive(dialect, agreements), bytes(identity.agreement_key.public) + bytes(peer))


def _bundle(recorded: Test) -> PrekeyBundle:
    one_time = recorded.get("oneTimePreKey")
    return PrekeyBundle(
        X25519Public(_hex(recorded["identityKey"])),
        Ed25519Public(_hex(recorded["identityKeyEd"])),
        recorded["signedPreKeyId"],
        X25519Public(_hex(recorded["signedPreKey"])),
        _hex(recorded["signedPreKeySignature"]),
        recorded.get("oneTimePreKeyId"),
        None if one_time is None else X25519Public(_hex(one_time)),
    )


def _x3dh_respond(_group: Group, test: Test, profile: str) -> None:
    responder = _owner(test["responder"])
    results = []
    for call in test["calls"]:
        keys = (call["peerIdentityKey"], call["ephemeralPublicKey"], call["usedOneTimeKeyId"])
        answer = _respond(responder, keys, call, test["flags"], profile)
        if answer is not None:
            _expect_agreement(answer, call)
        results.append(call["result"])
    _expect_result(test, results)


def _respond(
    owner: _Owner, keys: tuple[str, str, Any], call: Test, flags: Sequence[str], profile: str
) -> Agreement | None:
    """Answer one opening as a responder that spends its one-time keys at once, and judge whether it is taken."""
    ik, ek, used = keys
    judged = {"result": call["result"], "flags": flags}
    try:
        if owner.signed is None:
            # Ours tries the signed prekeys it holds; with none there is nothing to try and nothing comes out.
            expect_equal("result without a signed prekey", call["result"], "invalid")
            expect_equal("errorClass", call["errorClass"], "no-signed-pre-key")
            opening = Opening.from_bytes(_hex(ik), _hex(ek))
            expect_equal("answers", list(x3dh.respond_all(owner.identity, opening, (), None, Dialect)), [])
            answer = None
        else:
            opening = Opening.from_bytes(_hex(ik), _hex(ek), used)
            one_time = owner.one_time.get(used) if type(used) is int else None
            answer = x3dh.respond(owner.identity, opening, owner.signed, one_time, Dialect(profile))
            expect_valid(judged)
            expect_absent(call, "error", "errorClass")
            if one_time is not None:
                del owner.one_time[one_time.key_id]
    except MeshError as refusal:
        answer = None
        expect_invalid(judged, refusal)
        if call["result"] == "invalid":
            _expect_refusal(call, refusal)
            expect_absent(call, "sharedSecret", "associatedData", "stateAfter")
    expect_equal("oneTimePreKeyIdsAfter", owner.one_time_ids, call["oneTimePreKeyIdsAfter"])
    return answer


def _expect_result(test: Test, results: Sequence[str]) -> None:
    """A test is invalid when one of its steps is."""
    if not results or not set(results) <= {"valid", "invalid"}:
        raise CheckFailed("a test needs steps, each valid or invalid")
    expect_equal("result of the test", "invalid" if "invalid" in results else "valid", test["result"])


# --- ratchet states as recorded -------------------------------------------------------------------------------------


def state_of(record: Test) -> ratchet.State:
    """The ratchet state a record describes. Raises CheckFailed for one that cannot occur."""
    own = _private(record["dhSelfPrivate"], record["dhSelfPublic"])
    root = _secret(record["rootKey"])
    state: ratchet.State
    if record["chainKeySend"] is None:
        state = Waiting(own, root)
    else:
        turn = Turn(own, bytes(own.public), _hex(record["dhRemotePublic"], 32), root, record["previousSendChainLength"])
        sending = Chain(_secret(record["chainKeySend"]), record["sendMessageNumber"])
        if record["chainKeyRecv"] is None:
            state = Opened(turn, sending)
        else:
            receiving = Chain(_secret(record["chainKeyRecv"]), record["recvMessageNumber"])
            skipped = {}
            for place, key in record["skippedKeys"]:
                dh, _, number = place.partition(":")
                skipped[_hex(dh, 32), int(number)] = _secret(key)
            state = Established(turn, sending, receiving, ratchet.Backlog(skipped, ()))
    expect_equal("a state that can occur", record_of(state), record)
    return state


def record_of(state: ratchet.State) -> Test:
    """A state in the form in which vectors record it, members in order."""
    turn = None if isinstance(state, Waiting) else state.turn
    own = state.own if isinstance(state, Waiting) else state.turn.own
    root = state.root if isinstance(state, Waiting) else state.turn.root
    sending = None if isinstance(state, Waiting) else state.sending
    receiving = state.receiving if isinstance(state, Established) else None
    skipped = state.backlog.skipped if isinstance(state, Established) else {}
    return {
        "dhSelfPrivate": bytes(own).hex(),
        "dhSelfPublic": bytes(own.public).hex(),
        "dhRemotePublic": None if turn is None else turn.remote.hex(),
        "rootKey": bytes(root).hex(),
        "chainKeySend": None if sending is None else bytes(sending.key).hex(),
        "chainKeyRecv": None if receiving is None else bytes(receiving.key).hex(),
        "sendMessageNumber": 0 if sending is None else sending.n,
        "recvMessageNumber": 0 if receiving is None else receiving.n,
        "previousSendChainLength": 0 if turn is None else turn.previous,
        "skippedKeys": [[f"{dh.hex()}:{number}", bytes(key).hex()] for (dh, number), key in skipped.items()],
    }


def _as_recorded(state: ratchet.State, step: Test) -> tuple[object, object]:
    """Our state and the recorded one, in whichever of three forms the step records it."""
    ours = record_of(state)
    if "stateAfterSha256" in step:
        expect_absent(step, "stateAfter")
        compact = json.dumps(ours, separators=(",", ":"))
        return hashlib.sha256(compact.encode()).hexdigest(), step["stateAfterSha256"]
    recorded = step["stateAfter"]
    if "skippedKeysSha256" in recorded:
        skipped = ours.pop("skippedKeys")
        lines = "".join(f"{place}={key}\n" for place, key in skipped)
        ours |= {
            "skippedKeyCount": len(skipped),
            "skippedKeysSha256": hashlib.sha256(lines.encode()).hexdigest(),
        }
    return ours, recorded


# --- conversations --------------------------------------------------------------------------------------------------


@dataclass
class _Party:
    """One end of a recorded conversation, driven through production code."""

    session: Session | None
    """None once it was closed: closing a session is forgetting it."""
    last: ratchet.State
    """The state, kept beyond closing."""
    count: int = 0
    follows: bool = True
    """Whether upstream's state is still ours; no longer when it did not roll back after a failure."""


@dataclass
class _Conversation:
    """The steps of one test."""

    test: Test
    parties: dict[str, _Party]
    max_skip: int = ratchet.MAX_SKIP
    channel: bool = False
    resumed: bool = False
    """Whether messages were sent before the record begins."""
    sent: dict[str, Test] = field(default_factory=dict)

    def run(self) -> None:
        """Check every step, then the result of the test."""
        operations: dict[str, Callable[[_Party, Test], None]] = {
            "encrypt": self._encrypt,
            "decrypt": self._decrypt,
            "encryptAndDiscard": self._discard,
            "close": self._close,
        }
        results = []
        for number, step in enumerate(self.test["steps"]):
            try:
                operations[step["op"]](self.parties[step["party"]], step)
            except CheckFailed as failure:
                raise CheckFailed(f"step {number} ({step['op']} by {step['party']}): {failure}") from failure
            results.append(step.get("result", "valid"))
        _expect_result(self.test, results)

    def _encrypt(self, party: _Party, step: Test) -> None:
        plaintext = _hex(step["plaintext"])
        if party.session is None:
            self._closed(party, step)
            return
        entropy: Entropy = _no_entropy
        if step["result"] == "valid":
            entropy = ScriptedEntropy(step["random"], "nonce")
        session = self._with_data(party.session, step)
        before = session.state
        try:
            session, header, ciphertext = session.encrypt(plaintext, entropy)
        except MeshError as refusal:
            self._refused(party, step, refusal)
            return
        expect_valid(step)
        expect_absent(step, "error", "errorClass")
        if not isinstance(entropy, ScriptedEntropy) or isinstance(before, Waiting):
            raise CheckFailed("ours encrypts what cannot be encrypted")
        entropy.finish()
        _expect_header(header, step["header"])
        encoded = header.encode()
        expect_equal("headerBytes", encoded.hex(), step["headerBytes"])
        expect_equal("aad", (session.associated_data + encoded).hex(), step["aad"])
        expect_equal("messageKey", ratchet.kdf_chain(before.sending.key)[0].hex(), step["messageKey"])
        expect_equal("ciphertext", ciphertext.hex(), step["ciphertext"])
        if step["msgId"] in self.sent:
            raise CheckFailed("two messages have the same msgId")
        self.sent[step["msgId"]] = step
        self._commit(party, session, step)

    def _decrypt(self, party: _Party, step: Test) -> None:
        self._expect_provenance(step)
        if party.session is None:
            self._closed(party, step)
            return
        drawn = step.get("random", [])
        entropy = ScriptedEntropy(drawn, *(["ratchetPrivate"] if drawn else []))
        header = Header(_hex(step["header"]["dh"]), step["header"]["pn"], step["header"]["n"])
        session = self._with_data(party.session, step)
        try:
            session, plaintext = session.decrypt(header, _hex(step["ciphertext"]), entropy, max_skip=self.max_skip)
        except MeshError as refusal:
            expect_equal("random values drawn for a message that is refused", entropy.drawn, 0)
            self._refused(party, step, refusal)
            return
        if step["result"] == "invalid":
            self._accepted_after_error(party, session, plaintext, step)
            return
        expect_valid(step)
        expect_absent(step, "error", "errorClass", "mayAccept", "plaintextIfAccepted")
        entropy.finish()
        expect_equal("plaintext", plaintext.hex(), step["plaintext"])
        expect_equal("stateChanged", True, step["stateChanged"])
        self._commit(party, session, step)

    def _discard(self, party: _Party, step: Test) -> None:
        session = party.session
        if session is None or type(step["count"]) is not int or step["count"] < 1:
            raise CheckFailed("nothing to encrypt and throw away")
        for _ in range(step["count"]):
            session, _, _ = session.encrypt(b"", bytes)
        self._commit(party, session, step, counted=step["count"])

    def _close(self, party: _Party, step: Test) -> None:
        expect_valid(step)
        expect_equal("isClosed", step["isClosed"], True)
        party.session = None
        self._expect_unmoved(party, step)

    def _closed(self, party: _Party, step: Test) -> None:
        expect_equal("result after closing", step["result"], "invalid")
        expect_equal("errorClass after closing", step["errorClass"], "channel-closed")
        self._expect_unmoved(party, step)

    def _refused(self, party: _Party, step: Test, refusal: MeshError) -> None:
        expect_equal(f"result (ours refuses: {refusal})", "invalid", step["result"])
        _expect_refusal(step, refusal)
        expect_absent(step, "plaintext" if step["op"] == "decrypt" else "ciphertext")
        if step.get("mayAccept"):
            raise CheckFailed(f"ours rolls back and should read this: {refusal}")
        self._expect_unmoved(party, step)

    def _accepted_after_error(self, party: _Party, session: Session, plaintext: bytes, step: Test) -> None:
        """Ours reads what upstream lost to an error of its own before."""
        if not step.get("mayAccept") or "MayAcceptAfterError" not in self.test["flags"]:
            raise CheckFailed("recorded as invalid, and ours takes it")
        if party.follows or step["errorClass"] not in REFUSALS or not step["error"]:
            raise CheckFailed("mayAccept is recorded without an error before, or without upstream's error")
        expect_equal("plaintextIfAccepted", plaintext.hex(), step["plaintextIfAccepted"])
        party.session, party.last = session, session.state

    def _commit(self, party: _Party, session: Session, step: Test, counted: int = 1) -> None:
        before = party.last
        party.session, party.last = self._with_own_data(party, session), session.state
        party.count += counted
        if party.follows:
            expect_equal("stateAfter", *_as_recorded(session.state, step))
            if _as_recorded(before, step)[0] == _as_recorded(session.state, step)[0]:
                raise CheckFailed("the state did not move")
        self._expect_count(party, step)

    def _expect_unmoved(self, party: _Party, step: Test) -> None:
        """Ours did not move. Upstream may have, and then the record says so and ours is compared no more."""
        self._expect_count(party, step)
        if not party.follows:
            return
        ours, recorded = _as_recorded(party.last, step)
        if "stateChanged" in step:
            expect_equal("stateChanged", ours != recorded, step["stateChanged"])
        if step.get("stateChanged"):
            party.follows = False
            self._expect_left_behind(step)
        else:
            expect_equal("stateAfter", ours, recorded)

    def _expect_left_behind(self, step: Test) -> None:
        """What upstream left behind is not compared, but it must be a state, with the key that was drawn for it."""
        left = step.get("stateAfter")
        if left is None:
            return
        _private(left["dhSelfPrivate"], left["dhSelfPublic"])
        if step.get("random"):
            expect_equal("dhSelfPrivate after a turn", left["dhSelfPrivate"], step["random"][-1]["value"])

    def _expect_count(self, party: _Party, step: Test) -> None:
        if self.channel and party.follows:
            expect_equal("messageCount", party.count, step["messageCount"])

    def _expect_provenance(self, step: Test) -> None:
        """A message is what was sent under its id, unless it says that it was tampered with."""
        sent = self.sent.get(step["msgId"])
        if sent is None:
            if not self.resumed:
                raise CheckFailed("a message is received that nobody sent")
            return
        names = ("header", "ciphertext", "associatedData")
        same = all(step.get(name) == sent.get(name) for name in names)
        expect_equal("tampered", not same, step.get("tampered", False))
        for name in ("plaintext", "plaintextIfAccepted"):
            if name in step:
                expect_equal(f"{name} of what was sent", sent["plaintext"], step[name])

    def _with_data(self, session: Session, step: Test) -> Session:
        """A step's own associated data overrides the test's."""
        if "associatedData" not in step:
            return session
        return replace(session, associated_data=_hex(step["associatedData"]))

    def _with_own_data(self, party: _Party, session: Session) -> Session:
        assert party.session is not None
        return replace(session, associated_data=party.session.associated_data)


def _expect_header(header: Header, recorded: Test) -> None:
    expect_equal("header", {"dh": header.dh.hex(), "pn": header.pn, "n": header.n}, recorded)


def _bare(state: ratchet.State, associated_data: bytes) -> Session:
    """A session around a ratchet whose parties have no names or keys in the record."""
    nobody = X25519Public(bytes(32))
    terms = Terms(b"", Role.INITIATOR, Dialect.AGT5, Did(""), Did(""), nobody, nobody)
    return Session(terms, associated_data, state)


def _ratchet_conversation(_group: Group, test: Test, _profile: str) -> None:
    associated_data = _hex(test["associatedData"])
    parties = {}
    for name in ("A", "B"):
        record = test[name]
        state: ratchet.State
        if record["role"] == "sender":
            entropy = ScriptedEntropy(record["random"], "ratchetPrivate")
            remote = X25519Public(_hex(record["remoteDhPublic"]))
            state = ratchet.initiate(_secret(test["sharedSecret"]), remote, entropy)
            entropy.finish()
        else:
            expect_equal("role", record["role"], "receiver")
            own = _private(record["dhPrivate"], record["dhPublic"])
            state = ratchet.respond(_secret(test["sharedSecret"]), own)
        expect_equal(f"stateAfter of {name}", *_as_recorded(state, record))
        parties[name] = _Party(_bare(state, associated_data), state)
    expect_equal("remoteDhPublic", test["A"]["remoteDhPublic"], test["B"]["dhPublic"])
    _Conversation(test, parties, _max_skip(test)).run()


def _ratchet_resume(_group: Group, test: Test, _profile: str) -> None:
    expect_equal("role", test["B"]["role"], "restored")
    state = state_of(test["B"]["stateAfter"])
    party = _Party(_bare(state, _hex(test["associatedData"])), state)
    _Conversation(test, {"B": party}, _max_skip(test), resumed=True).run()


def _max_skip(test: Test) -> int:
    limit = test["maxSkip"]
    if type(limit) is not int or limit < 0:
        raise CheckFailed("maxSkip is a number of messages")
    return limit


# --- channels -------------------------------------------------------------------------------------------------------


def _channel_conversation(_group: Group, test: Test, profile: str) -> None:
    dialect = Dialect(profile)
    initiator, responder = _owner(test["initiator"]), _owner(test["responder"])
    signed = _signed(responder)
    used = test["establishment"]["usedOneTimeKeyId"]
    one_time = None if used is None else responder.one_time[used]
    entropy = ScriptedEntropy(test["random"], "x3dhEphemeralPrivate", "ratchetPrivate")
    bundle = make_bundle(responder.identity, signed, one_time)
    names = (Did(test["initiator"]["did"]), Did(test["responder"]["did"]))
    opened, opening = _open(initiator.identity, responder.identity, names, bundle, dialect, entropy)
    entropy.finish()
    _expect_establishment(opening, test["establishment"])
    answer = x3dh.respond(responder.identity, opening, signed, one_time, dialect)
    expect_equal("sharedSecret", bytes(answer.secret).hex(), test["sharedSecret"])
    answered = _answer(responder.identity, initiator.identity, names, opening, signed, one_time, dialect)
    if names == (initiator.identity.did, responder.identity.did):
        expect_equal("session ids of both sides", opened.id, answered.id)
    parties = {}
    proper, swapped = "|".join(names).encode(), "|".join(reversed(names)).encode()
    for name, session in (("initiator", opened), ("responder", answered)):
        prefix = _hex(test[f"{name}AdPrefix"])
        if prefix not in (proper, b"") and (name, prefix) != ("responder", swapped):
            raise CheckFailed(f"{name}AdPrefix is not made of the recorded DIDs")
        keys = bytes(session.terms.initiator_key) + bytes(session.terms.responder_key)
        expect_equal(f"{name}AssociatedData", (prefix + keys).hex(), test[f"{name}AssociatedData"])
        if prefix == proper:
            expect_equal(f"{name}AssociatedData of ours", session.associated_data, prefix + keys)
        expect_equal(f"{name}StateAfter", *_as_recorded(session.state, {"stateAfter": test[f"{name}StateAfter"]}))
        parties[name] = _Party(replace(session, associated_data=prefix + keys), session.state)
    _Conversation(test, parties, channel=True).run()


def _open(
    identity: Identity, peer: Identity, names: tuple[Did, Did], bundle: PrekeyBundle, dialect: Dialect, entropy: Entropy
) -> tuple[Session, Opening]:
    """Open a session; under names the keys cannot prove, which ours refuses, from the same parts."""
    if names[1] == peer.did or not commits_to_key(names[1]):
        return Session.initiate(identity, *names, bundle, dialect, entropy)
    try:
        Session.initiate(identity, *names, bundle, dialect, _no_entropy)
    except NotAuthentic:
        session, opening = Session.initiate(identity, identity.did, peer.did, bundle, dialect, entropy)
        return _renamed(session, names), opening
    raise CheckFailed("ours takes a bundle for a DID its keys do not prove")


def _answer(
    identity: Identity,
    peer: Identity,
    names: tuple[Did, Did],
    opening: Opening,
    signed: SignedPrekey,
    one_time: OneTimePrekey | None,
    dialect: Dialect,
) -> Session:
    if names[0] == peer.did or not commits_to_key(names[0]):
        return Session.respond(identity, names[1], names[0], opening, signed, one_time, dialect)
    try:
        Session.respond(identity, names[1], names[0], opening, signed, one_time, dialect)
    except NotAuthentic:
        session = Session.respond(identity, names[1], peer.did, opening, signed, one_time, dialect)
        return _renamed(session, names)
    raise CheckFailed("ours takes an opening from a DID its key does not prove")


def _renamed(session: Session, names: tuple[Did, Did]) -> Session:
    terms = replace(session.terms, initiator=names[0], responder=names[1])
    return Session(terms, terms.associated_data(), session.state)


def _expect_establishment(opening: Opening, recorded: Test) -> None:
    expect_equal(
        "establishment",
        {
            "initiatorIdentityKey": bytes(opening.ik).hex(),
            "ephemeralPublicKey": bytes(opening.ek).hex(),
            "usedOneTimeKeyId": opening.one_time_key_id,
        },
        recorded,
    )


def _channel_establish(_group: Group, test: Test, profile: str) -> None:
    responder = _owner(test["responder"])
    expect_equal("did", responder.identity.did, test["responder"]["did"])
    prefix = _hex(test["responderAdPrefix"])
    if not prefix.endswith(f"|{responder.identity.did}".encode()):
        raise CheckFailed("responderAdPrefix does not end in the responder's DID")
    results = []
    for call in test["calls"]:
        establishment = call["establishment"]
        keys = (
            establishment["initiatorIdentityKey"],
            establishment["ephemeralPublicKey"],
            establishment["usedOneTimeKeyId"],
        )
        answer = _respond(responder, keys, call, test["flags"], profile)
        if answer is not None:
            expect_equal("associatedData", (prefix + answer.associated_data).hex(), call["associatedData"])
            state = ratchet.respond(answer.secret, _signed(responder).private)
            expect_equal("stateAfter", *_as_recorded(state, call))
        results.append(call["result"])
    _expect_result(test, results)


def _channel_cross_profile(_group: Group, test: Test, _profile: str) -> None:
    initiator, responder = _owner(test["initiator"]), _owner(test["responder"])
    names = (Did(test["initiator"]["did"]), Did(test["responder"]["did"]))
    expect_equal("DIDs", names, (initiator.identity.did, responder.identity.did))
    theirs, ours = Dialect(test["initiatorProfile"]), Dialect(test["responderProfile"])
    signed = _signed(responder)
    used = test["establishment"]["usedOneTimeKeyId"]
    one_time = None if used is None else responder.one_time[used]
    expect_equal("one-time keys of the responder", responder.one_time_ids, [] if used is None else [used])
    entropy = ScriptedEntropy(test["random"], "x3dhEphemeralPrivate", "ratchetPrivate", "nonce")
    bundle = make_bundle(responder.identity, signed, one_time)
    opened, opening = Session.initiate(initiator.identity, *names, bundle, theirs, entropy)
    _expect_establishment(opening, test["establishment"])
    expect_equal("adPrefix", "|".join(names).encode().hex(), test["adPrefix"])
    plaintext = _hex(test["plaintext"])
    _, header, ciphertext = opened.encrypt(plaintext, entropy)
    entropy.finish()
    _expect_header(header, test["header"])
    expect_equal("ciphertext", ciphertext.hex(), test["ciphertext"])
    answer = x3dh.respond(responder.identity, opening, signed, one_time, ours)
    expect_equal("responderSharedSecret", bytes(answer.secret).hex(), test["responderSharedSecret"])
    answered = Session.respond(responder.identity, names[1], names[0], opening, signed, one_time, ours)
    try:
        _, opened_text = answered.decrypt(header, ciphertext, bytes)
    except MeshError as refusal:
        expect_equal("result", "invalid", test["result"])
        _expect_refusal(test, refusal)
        return
    expect_valid(test)
    expect_absent(test, "error", "errorClass")
    expect_equal("plaintext", opened_text, plaintext)


CHECKERS: dict[str, Checker] = {
    "Ed25519ToX25519KeyPair": _ed25519_to_x25519,
    "DidFromEd25519PublicKey": _did,
    "MeshClientActiveDid": _active_did,
    "KdfRoot": _kdf_root,
    "KdfChain": _kdf_chain,
    "X3dhKdf": _x3dh_kdf,
    "X3dhAgreement": _x3dh_agreement,
    "X3dhInitiate": _x3dh_initiate,
    "X3dhRespond": _x3dh_respond,
    "RatchetConversation": _ratchet_conversation,
    "RatchetResume": _ratchet_resume,
    "ChannelConversation": _channel_conversation,
    "ChannelEstablish": _channel_establish,
    "ChannelCrossProfile": _channel_cross_profile,
}
