"""Checkers for what meshlib.wire owns: JavaScript's encodings, frames, and the frames of our own extensions."""

import ast
import hashlib
import struct
from collections.abc import Callable
from typing import Any

from meshlib.crypto import ratchet
from meshlib.crypto.keys import Ed25519Private, Ed25519Public
from meshlib.errors import InvalidValue, MalformedFrame, MeshError
from meshlib.identity import (
    Did,
    Identity,
    bound_request_statement,
    challenge_statement,
    check_did,
    sdk_did,
    timestamp_statement,
    verify_proof,
)
from meshlib.wire import encoding
from meshlib.wire.codec import (
    decode,
    decode_payload,
    decode_plaintext_payload,
    encode,
    encode_payload,
    encode_plaintext_payload,
)
from meshlib.wire.frames import (
    Ack,
    Connect,
    Connected,
    Disconnect,
    FetchPending,
    Frame,
    Heartbeat,
    KnockReject,
    Message,
    MessageHeader,
    PlaintextMessage,
    Receipt,
    ReceiptState,
)
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
from vectors.checkers.crypto import ScriptedEntropy, record_of, state_of

# --- JavaScript's encodings -----------------------------------------------------------------------------------------


def _json_number(_group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    bits = _hex(test["doubleBits"], 8)
    value: float = struct.unpack(">d", bits)[0]
    expect_equal("json", encoding.js_json(value), test["json"])
    if value == value and abs(value) != float("inf") and value != 0:
        expect_equal("doubleBits", struct.pack(">d", float(encoding.parse_json(test["json"]))), bits)


def _json_string(_group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    units = _hex(test["utf16CodeUnits"])
    printed = encoding.js_json(_utf16(units))
    expect_equal("json", printed, test["json"])
    expect_equal("utf8OfJson", printed.encode().hex(), test["utf8OfJson"])
    halves = "".join(chr(int.from_bytes(units[index : index + 2], "big")) for index in range(0, len(units), 2))
    expect_equal("json of separate halves", encoding.js_json(halves), test["json"])
    expect_equal("utf16CodeUnits", encoding.parse_json(printed).encode("utf-16-be", "surrogatepass"), units)


def _json_payload(_group: Group, test: Test, _profile: str) -> None:
    try:
        value = encoding.parse_json(_hex(test["bytes"]))
    except MalformedFrame as refusal:
        expect_invalid(test, refusal)
        expect_absent(test, "reserialized")
        return
    expect_valid(test)
    expect_equal("reserialized", encoding.js_json(value), test["reserialized"])


def _base64(decoder: Callable[[str], bytes]) -> Checker:
    def check(_group: Group, test: Test, _profile: str) -> None:
        try:
            data = decoder(test["text"])
        except MalformedFrame as refusal:
            expect_invalid(test, refusal)
            expect_absent(test, "bytes")
            return
        expect_valid(test)
        expect_equal("bytes", data.hex(), test["bytes"])

    return check


def _uri_component(_group: Group, test: Test, _profile: str) -> None:
    text = test["text"] if "text" in test else _utf16(_hex(test["utf16CodeUnits"]))
    try:
        encoded = encoding.encode_uri_component(text)
    except InvalidValue as refusal:
        expect_invalid(test, refusal)
        expect_absent(test, "encoded")
        return
    expect_valid(test)
    expect_equal("encoded", encoded, test["encoded"])


def _iso_timestamp(_group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    expect_equal("iso", encoding.timestamp(test["epochMs"] / 1000), test["iso"])
    expect_equal("epochMs", round(encoding.parse_timestamp(test["iso"]) * 1000), test["epochMs"])


# --- frames of the SDK ----------------------------------------------------------------------------------------------


def _client_frame(_group: Group, test: Test, profile: str) -> None:
    expect_valid(test)
    identity = _identity(test)
    option = test["agentDidOption"]
    expect_equal("did", option if profile == "agt-4" else sdk_did(identity.public_key, option), test["did"])
    _well_formed_time(test["now"])
    frame = _frame_of_client(test, identity, profile)
    _same_bytes(frame, test["frame"])
    if isinstance(frame, Connect) and frame.signature is not None:
        verify_proof(identity.public_key, timestamp_statement(test["now"]), frame.signature)
    closes = {"code": 1000, "reason": "client disconnect"} if isinstance(frame, Disconnect) else None
    expect_equal("socketClose", test.get("socketClose"), closes)


def _frame_of_client(test: Test, identity: Identity, profile: str) -> Frame:
    did, now = test["did"], test["now"]
    match test["frameType"]:
        case "connect" if profile == "agt-4":
            return Connect(did)
        case "connect":
            return Connect(did, bytes(identity.public_key), now, identity.sign(timestamp_statement(now)))
        case "fetch_pending":
            return FetchPending(did)
        case "heartbeat":
            return Heartbeat(did, now)
        case "disconnect":
            return Disconnect(did)
    raise CheckFailed(f"unknown frameType {test['frameType']!r}")


def _relay_url(_group: Group, test: Test, _profile: str) -> None:
    expect_valid(test)
    expect_equal("wsUrl", encoding.websocket_url(test["relayUrl"]), test["wsUrl"])


def _plaintext_message(_group: Group, test: Test, _profile: str) -> None:
    _well_formed_time(test["now"])
    (message_id,) = test["uuids"]
    _uuid_version_4(message_id)
    if test["result"] == "invalid":
        _refused_by_btoa(test)
        return
    if "UndefinedPayload" in test["flags"]:
        text = _undefined(test, b"undefined")
        _refuses(decode_plaintext_payload, text)
    else:
        text = encode_plaintext_payload(_payload(test["payload"]))
        expect_equal("payload.json", encoding.js_json(decode_plaintext_payload(text)), test["payload"]["json"])
    _same_plaintext(test, text)
    _same_bytes(PlaintextMessage(test["from"], test["to"], message_id, test["now"], text), test["frame"])


def _refused_by_btoa(test: Test) -> None:
    """Upstream fails on characters above U+00FF, and only on them. Ours sends what any reader can read."""
    expect_absent(test, "frame", "plaintext", "plaintextSha256")
    recorded = test["payload"]["json"]
    if "NotLatin1" not in test["flags"] or all(ord(character) <= 0xFF for character in recorded):
        raise CheckFailed("recorded as refused, and there is no reason to refuse it")
    text = encode_plaintext_payload(_payload(test["payload"]))
    if not text.isascii():
        raise CheckFailed("a text beyond Latin-1 is not written in ASCII")
    expect_equal("payload.json", encoding.js_json(decode_plaintext_payload(text)), recorded)


def _encrypted_message(_group: Group, test: Test, _profile: str) -> None:
    _well_formed_time(test["now"])
    (message_id,) = test["uuids"]
    _uuid_version_4(message_id)
    session = test["session"]
    state = state_of(session["stateBefore"])
    associated_data = _hex(session["associatedData"])
    if not associated_data.startswith(f"{test['from']}|{test['to']}".encode()):
        raise CheckFailed("associatedData does not start with the DIDs of initiator and responder")
    if test["result"] == "invalid":
        _not_serializable(test)
        return
    if "UndefinedPayload" in test["flags"]:
        plaintext = _undefined(test, b"")
    else:
        plaintext = encode_payload(_payload(test["payload"]))
    _same_plaintext(test, plaintext)
    entropy = ScriptedEntropy(test["random"], "nonce")
    state, header, ciphertext = ratchet.encrypt(state, plaintext, associated_data, entropy)
    entropy.finish()
    expect_equal("stateAfter", record_of(state), test["stateAfter"])
    placed = MessageHeader(header.dh, header.pn, header.n)
    message = Message(test["from"], test["to"], message_id, test["now"], placed, ciphertext)
    _same_bytes(message, test["frame"])
    _received(test, message, associated_data, plaintext)


def _received(test: Test, message: Message, associated_data: bytes, plaintext: bytes) -> None:
    """What the peer makes of the frame: payload, ack and next state."""
    receiver = test["receiver"]
    header = ratchet.Header(message.header.dh, message.header.pn, message.header.n)
    entropy = ScriptedEntropy(receiver["random"], *["ratchetPrivate"] * len(receiver["random"]))
    state, opened = ratchet.decrypt(
        state_of(receiver["stateBefore"]), header, message.ciphertext, associated_data, entropy
    )
    entropy.finish()
    expect_equal("plaintext read", opened, plaintext)
    expect_equal("receiver.stateAfter", record_of(state), receiver["stateAfter"])
    if "UndefinedPayload" in test["flags"]:
        _refuses(decode_payload, opened)
        expect_equal("receiver.delivered", receiver["delivered"], [])
        expect_equal("receiver.writes", receiver["writes"], [])
        return
    payload = encode_payload(decode_payload(opened)).decode()
    (delivered,) = receiver["delivered"]
    long = "payloadJsonSha256" in delivered
    shown = {"payloadJsonSha256": hashlib.sha256(payload.encode()).hexdigest()} if long else {"payloadJson": payload}
    expect_equal("receiver.delivered", {"from": message.sender, **shown, "isPlaintext": False}, delivered)
    ack = encode(Ack(message.id)).decode()
    expect_equal("receiver.writes", receiver["writes"], [{"type": "ack", "frame": ack}])


def _not_serializable(test: Test) -> None:
    """Upstream fails before it encrypts. The value is a JavaScript expression; a Python one of its kind is refused."""
    expect_absent(test, "frame", "plaintext", "plaintextSha256", "receiver")
    expect_equal("random", test["random"], [])
    expect_equal("stateAfter", test["stateAfter"], test["session"]["stateBefore"])
    expect_equal("payload.json", test["payload"]["json"], None)
    cycle: list[object] = []
    cycle.append(cycle)
    for value in (cycle, object(), 2**53 + 1):
        try:
            encode_payload(value)
        except InvalidValue as refusal:
            expect_invalid(test, refusal)
        else:
            raise CheckFailed("a value without JSON form was taken")


# --- payloads -------------------------------------------------------------------------------------------------------


def _payload(payload: dict[str, Any]) -> Any:
    """The Python value of a recorded payload, held against the JSON text that travels."""
    parsed = encoding.parse_json(payload["json"])
    value = ast.literal_eval(payload["python"]) if "python" in payload else parsed
    expect_equal("payload.json", encoding.js_json(value), payload["json"])
    expect_equal("payload.json parsed", encoding.js_json(parsed), payload["json"])
    return value


def _undefined(test: Test, recorded: bytes) -> bytes:
    """JavaScript's undefined has no Python value: what is left to check is its recorded text."""
    expect_equal("payload.json", test["payload"]["json"], None)
    return recorded


def _same_plaintext(test: Test, plaintext: bytes) -> None:
    if "plaintextSha256" in test:
        expect_equal("plaintextSha256", hashlib.sha256(plaintext).hexdigest(), test["plaintextSha256"])
        expect_absent(test, "plaintext")
    else:
        expect_equal("plaintext", plaintext.hex(), test["plaintext"])


# --- extensions of ours ---------------------------------------------------------------------------------------------


def _features_connect(_group: Group, test: Test, _profile: str) -> None:
    identity = _identity(test)
    expect_equal("did", identity.did, test["did"])
    _well_formed_time(test["now"])
    expect_equal("timestamp", encoding.parse_json(test["frame"])["timestamp"], test["now"])
    frame = _read_or_refuse(test)
    if frame is None:
        return
    signature = identity.sign(timestamp_statement(test["now"]))
    features = tuple(test["features"])
    ours = Connect(test["did"], bytes(identity.public_key), test["now"], signature, features, test.get("token"))
    _same_bytes(ours, test["frame"])
    expect_equal("frame read", frame, ours)


def _challenge_proof(_group: Group, test: Test, _profile: str) -> None:
    """What the relay decides about a connect frame when it has sent ``challenge``."""
    identity = _identity(test)
    expect_equal("did", identity.did, test["did"])
    frame = decode(test["frame"])
    expect_equal("frame", encode(frame).decode(), test["frame"])
    if not isinstance(frame, Connect) or None in (frame.public_key, frame.timestamp, frame.signature):
        raise CheckFailed("the frame is no connect with a proof")
    expect_equal("features", list(frame.features), test["features"])
    expect_equal("now", frame.timestamp, test["now"])
    statement = challenge_statement(Did(frame.sender), test["now"], test["challenge"])
    expect_equal("statement", statement.hex(), test["statement"])
    key = Ed25519Public(frame.public_key or b"")
    try:
        check_did(Did(frame.sender), key)
        verify_proof(key, statement, frame.signature or b"")
    except MeshError as refusal:
        expect_invalid(test, refusal)
        _signed_something_else(test, identity, frame.signature or b"")
        return
    expect_valid(test)
    expect_equal("signedStatement", test["signedStatement"], test["statement"])
    expect_equal("key", key, identity.public_key)
    expect_equal("challenge", len(encoding.unb64url(test["challenge"])), 32)
    ours = Connect(
        identity.did, bytes(key), test["now"], identity.sign(statement), tuple(test["features"]), test.get("token")
    )
    _same_bytes(ours, test["frame"])


def _connected_frame(_group: Group, test: Test, _profile: str) -> None:
    _decodes_to(test, lambda: Connected(tuple(test["features"]), test["serverTime"]))


def _receipt_frame(_group: Group, test: Test, _profile: str) -> None:
    _decodes_to(test, lambda: Receipt(test["id"], ReceiptState(test["state"])))


def _unread_ack(_group: Group, test: Test, _profile: str) -> None:
    _decodes_to(test, lambda: Ack(test["id"], test["unread"], test["from"]))


def _knock_reject_detail(_group: Group, test: Test, _profile: str) -> None:
    names = ("from", "to", "id", "knock_id", "reason", "ts", "detail")
    _decodes_to(test, lambda: KnockReject(*(test[name] for name in names)))


def _message_after(_group: Group, test: Test, _profile: str) -> None:
    def written() -> Message:
        header = test["header"]
        dh, ciphertext = encoding.unb64(header["dh"]), encoding.unb64(test["ciphertext"])
        envelope = (test[name] for name in ("from", "to", "id", "ts"))
        return Message(*envelope, MessageHeader(dh, header["pn"], header["n"]), ciphertext, test["after"])

    _decodes_to(test, written)


def _decodes_to(test: Test, expected: Callable[[], Frame]) -> None:
    frame = _read_or_refuse(test)
    if frame is not None:
        expect_equal("frame read", frame, expected())
        _same_bytes(expected(), test["frame"])


def _read_or_refuse(test: Test) -> Frame | None:
    try:
        frame = decode(test["frame"])
    except MalformedFrame as refusal:
        expect_invalid(test, refusal)
        expect_equal("error", str(refusal), test["error"])
        return None
    expect_valid(test)
    return frame


def _bound_request(_group: Group, test: Test, _profile: str) -> None:
    """What the registry decides about the header ``Mesh-Request-Signature`` of a request."""
    identity = _identity(test)
    did, now, body = Did(test["did"]), test["now"], _hex(test["body"])
    statement = bound_request_statement(did, now, test["method"], test["target"], body)
    expect_equal("statement", statement.hex(), test["statement"])
    signature = encoding.unb64url(test["signature"])
    expect_equal("signature text", encoding.b64url(signature), test["signature"])
    try:
        check_did(did, identity.public_key)
        verify_proof(identity.public_key, statement, signature)
    except MeshError as refusal:
        expect_invalid(test, refusal)
        _signed_something_else(test, identity, signature)
        return
    expect_valid(test)
    expect_equal("signedStatement", test["signedStatement"], test["statement"])
    expect_equal("signature", encoding.b64url(identity.sign(statement)), test["signature"])


def _signed_something_else(test: Test, identity: Identity, signature: bytes) -> None:
    """A refused signature is a genuine one over another statement, so that the record cannot rot unnoticed."""
    if test["signedStatement"] is not None:
        verify_proof(identity.public_key, _hex(test["signedStatement"]), signature)
    elif "BadSignature" not in test["flags"]:
        raise CheckFailed("recorded as refused, and there is no reason to refuse it")


# --- shared ---------------------------------------------------------------------------------------------------------


def _hex(text: str, size: int | None = None) -> bytes:
    """Hex as the format wants it: lower case, so that every byte has one spelling."""
    data = bytes.fromhex(text)
    if data.hex() != text or size not in (None, len(data)):
        raise CheckFailed("hex is not lower case, or of the wrong length")
    return data


def _utf16(units: bytes) -> str:
    return units.decode("utf-16-be", "surrogatepass")


def _identity(test: Test) -> Identity:
    identity = Identity(Ed25519Private(_hex(test["ed25519Private"])))
    expect_equal("ed25519Public", bytes(identity.public_key).hex(), test["ed25519Public"])
    return identity


def _well_formed_time(text: str) -> None:
    expect_equal("now", encoding.timestamp(encoding.parse_timestamp(text)), text)


def _uuid_version_4(text: str) -> None:
    entropy = bytes.fromhex(text.replace("-", ""))
    expect_equal("uuid", encoding.message_id(lambda size: entropy[:size]), text)


def _same_bytes(frame: Frame, recorded: str) -> None:
    expect_equal("frame", encode(frame).decode(), recorded)
    expect_equal("frame read", decode(recorded.encode()), frame)


def _refuses(decoder: Callable[[bytes], object], data: bytes) -> None:
    try:
        decoder(data)
    except MalformedFrame:
        return
    raise CheckFailed("a payload that is no JSON was read")


CHECKERS: dict[str, Checker] = {
    "JsonStringifyNumber": _json_number,
    "JsonStringifyString": _json_string,
    "JsonParsePayload": _json_payload,
    "Base64Decode": _base64(encoding.unb64),
    "Base64UrlDecode": _base64(encoding.unb64url),
    "AtobDecode": _base64(encoding.atob),
    "EncodeUriComponent": _uri_component,
    "IsoTimestamp": _iso_timestamp,
    "ClientFrame": _client_frame,
    "RelayUrl": _relay_url,
    "EncryptedMessage": _encrypted_message,
    "PlaintextMessage": _plaintext_message,
    "FeaturesConnect": _features_connect,
    "ChallengeProof": _challenge_proof,
    "ConnectedFrame": _connected_frame,
    "ReceiptFrame": _receipt_frame,
    "UnreadAck": _unread_ack,
    "KnockRejectDetail": _knock_reject_detail,
    "MessageAfter": _message_after,
    "BoundRequest": _bound_request,
}
