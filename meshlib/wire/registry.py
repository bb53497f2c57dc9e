"""Registry requests and answers as frozen values: built and parsed here, without an HTTP library.

Requests carry exactly the bytes the SDK's ``RegistryClient`` sends; answers are read as tolerantly as it reads them
(unknown members, any base64 dialect) and come out typed. A member of the wrong type reads as absent where nothing
depends on it, and refuses the answer where keys do.

What comes back is what the registry *says*. Nobody is believed here: :meth:`PublishedBundle.checked` gives the
prekey bundle only after signature and DID have been verified.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Self, TypeVar, cast

from meshlib.crypto.keys import Ed25519Public, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, PrekeyBundle, SignedPrekey, verify_bundle
from meshlib.errors import AgentNotFound, InvalidValue, MalformedFrame, RegistryRefused
from meshlib.identity import Did, Identity, bound_request_statement, did_of, registration_statement, timestamp_statement
from meshlib.wire.encoding import b64url, encode_uri_component, js_json, parse_json, parse_timestamp, unb64url

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer a client reads. The largest honest one, 200 discovered agents, has under 300 KiB."""

MAX_DETAIL = 500
"""Characters of a registry's explanation that reach an error message."""

MAX_KEY_ID = 2**32 - 1
"""Prekey ids travel as unsigned 32 bit numbers in a knock's ``otk``."""

DEFAULT_DISCOVER_LIMIT = 50
BOUND_HEADER = "mesh-request-signature"

PrekeyMode = Literal["replace", "merge"]
"""``replace`` is upstream's only mode; ``merge`` keeps the one-time keys that are still there."""

SessionOutcome = Literal["success", "failed", "timeout"]

T = TypeVar("T")

NO_METADATA: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, without authentication.

    ``target`` is path and query below the registry's base URL, percent-encoded, exactly as it is sent and signed.
    """

    method: str
    target: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, its body read completely."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is one of success (2xx)."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Signer:
    """Who authenticates requests: a key, and the DID it speaks for (its own, unless the agent is of agt-4)."""

    identity: Identity
    did: str

    @classmethod
    def of(cls, identity: Identity, did: str | None = None) -> Self:
        """The signer for ``identity``; for an agt-4 agent with the DID it chose."""
        return cls(identity, identity.did if did is None else did)


def headers(request: Request, signer: Signer | None, timestamp: str, *, bound: bool) -> list[tuple[str, str]]:
    """The headers of a request, in the SDK's order.

    Args:
        signer: None sends the request anonymously.
        timestamp: ISO text of the time the request is signed at.
        bound: also sign method, target and body. ``Authorization`` signs the bare timestamp, so whoever sees it can
            use it for another request within five minutes; the second signature ends that. Upstream ignores it.
    """
    pairs = [] if request.body is None else [("content-type", "application/json")]
    if signer is not None:
        proof = b64url(signer.identity.sign(timestamp_statement(timestamp)))
        pairs.append(("authorization", f"Ed25519-Timestamp {signer.did} {timestamp} {proof}"))
        if bound:
            statement = bound_request_statement(
                Did(signer.did), timestamp, request.method, request.target, request.body or b""
            )
            pairs.append((BOUND_HEADER, b64url(signer.identity.sign(statement))))
    return pairs


# --- requests -------------------------------------------------------------------------------------------------------


def register(
    identity: Identity,
    timestamp: str,
    capabilities: Sequence[str] = (),
    metadata: Mapping[str, object] = NO_METADATA,
    *,
    name_did: bool = False,
) -> Request:
    """Registration with proof of possession (agt-5).

    Args:
        name_did: put the DID in front. Upstream 3.7.0 demands it; newer registries derive it and ignore the member.
    """
    key = b64url(bytes(identity.public_key))
    proof = b64url(identity.sign(registration_statement(key, timestamp)))
    body: dict[str, object] = {"did": identity.did} if name_did else {}
    body |= {"public_key": key, "proof": proof, "proof_timestamp": timestamp}
    return Request("POST", "/v1/agents", _json(body | _profile(capabilities, metadata)))


def register_legacy(
    did: str, key: X25519Public, capabilities: Sequence[str] = (), metadata: Mapping[str, object] = NO_METADATA
) -> Request:
    """Registration of agt-4: a chosen DID and the X25519 key, no proof."""
    body: dict[str, object] = {"did": did, "public_key": b64url(bytes(key))}
    return Request("POST", "/v1/agents", _json(body | _profile(capabilities, metadata)))


def _profile(capabilities: Sequence[str], metadata: Mapping[str, object]) -> dict[str, object]:
    return {"capabilities": list(capabilities), "metadata": dict(metadata)}


def profile(
    name: str | None, capabilities: Iterable[str], metadata: Mapping[str, object]
) -> tuple[list[str], dict[str, object]]:
    """Capabilities and metadata as an agent publishes them.

    Peers find an agent by its display name because the name is its first capability; metadata says it once more,
    unless it already has a ``display_name``. Empty and repeated capabilities are dropped.
    """
    wanted = [name or "", *capabilities]
    published = dict(metadata)
    if name and "display_name" not in published:
        published["display_name"] = name
    return list(dict.fromkeys(capability for capability in wanted if capability)), published


def update(
    did: str, capabilities: Sequence[str] | None = None, metadata: Mapping[str, object] | None = None
) -> Request:
    """Change what an agent says about itself; None leaves a part as it is. Ours: upstream has no such request."""
    body: dict[str, object] = {}
    if capabilities is not None:
        body["capabilities"] = list(capabilities)
    if metadata is not None:
        body["metadata"] = dict(metadata)
    return Request("PUT", _agent(did), _json(body))


def get_agent(did: str) -> Request:
    """What the registry knows about an agent."""
    return Request("GET", _agent(did))


def delete_agent(did: str) -> Request:
    """Remove a registration and its prekeys."""
    return Request("DELETE", _agent(did))


@dataclass(frozen=True)
class PrekeyUpload:
    """Public prekeys on their way to the registry."""

    identity_key: X25519Public
    identity_key_ed: Ed25519Public
    signed_prekey_id: int
    signed_prekey: X25519Public
    signed_prekey_signature: bytes
    one_time_prekeys: tuple[tuple[int, X25519Public], ...] = ()

    @classmethod
    def of(cls, identity: Identity, signed: SignedPrekey, one_time: Iterable[OneTimePrekey]) -> Self:
        """The public halves of ``identity``'s prekeys."""
        return cls(
            identity.agreement_key.public,
            identity.public_key,
            signed.key_id,
            signed.private.public,
            signed.signature,
            tuple((key.key_id, key.private.public) for key in one_time),
        )


def upload_prekeys(did: str, upload: PrekeyUpload, mode: PrekeyMode = "replace") -> Request:
    """Publish prekeys. ``replace`` sends the SDK's bytes; ``merge`` adds a member upstream ignores."""
    body: dict[str, object] = {
        "identity_key": b64url(bytes(upload.identity_key)),
        "identity_key_ed": b64url(bytes(upload.identity_key_ed)),
        "signed_pre_key": {
            "key_id": upload.signed_prekey_id,
            "public_key": b64url(bytes(upload.signed_prekey)),
            "signature": b64url(upload.signed_prekey_signature),
        },
        "one_time_pre_keys": [
            {"key_id": key_id, "public_key": b64url(bytes(key))} for key_id, key in upload.one_time_prekeys
        ],
    }
    if mode != "replace":
        body["mode"] = mode
    return Request("PUT", f"{_agent(did)}/prekeys", _json(body))


def fetch_prekeys(did: str) -> Request:
    """A peer's bundle; the registry hands each one-time key out once."""
    return Request("GET", f"{_agent(did)}/prekeys")


def presence(did: str) -> Request:
    """When an agent was last seen."""
    return Request("GET", f"{_agent(did)}/presence")


def heartbeat(did: str) -> Request:
    """Say that we are there, at most once in ten seconds."""
    return Request("POST", f"{_agent(did)}/heartbeat")


def reputation(did: str, score: float, reason: str = "") -> Request:
    """Rate another agent.

    Raises:
        InvalidValue: ``score`` does not lie between 0 and 1.
    """
    if not 0 <= score <= 1:
        raise InvalidValue("a reputation score lies between 0 and 1")
    return Request("POST", f"{_agent(did)}/reputation", _json({"score": score, "reason": reason}))


@dataclass(frozen=True)
class SessionReport:
    """How a session ended, as one of its two participants saw it."""

    session_id: str
    initiator: str
    receiver: str
    outcome: SessionOutcome
    reporter: str
    intent: str = ""
    started_at: str = ""
    timestamp: str = ""
    signature: str = ""


def report_session(report: SessionReport) -> Request:
    """Report how a session ended."""
    body = {
        "session_id": report.session_id,
        "initiator_amid": report.initiator,
        "receiver_amid": report.receiver,
        "intent": report.intent,
        "outcome": report.outcome,
        "started_at": report.started_at,
        "reporter_amid": report.reporter,
        "timestamp": report.timestamp,
        "signature": report.signature,
    }
    return Request("POST", "/v1/registry/reputation/session", _json(body))


def verify_agent(did: str, token: str) -> Request:
    """Ask for the tier ``verified`` with a token of the registry's identity provider."""
    return Request("POST", "/v1/registry/verify", _json({"amid": did, "verification_token": token}))


def discover(capability: str, limit: int = DEFAULT_DISCOVER_LIMIT) -> Request:
    """Agents that have exactly this capability."""
    return Request("GET", f"/v1/discover?capability={encode_uri_component(capability)}&limit={int(limit)}")


def _agent(did: str) -> str:
    return f"/v1/agents/{encode_uri_component(did)}"


def _json(value: object) -> bytes:
    try:
        return js_json(value).encode()
    except UnicodeEncodeError as error:
        raise InvalidValue("the text holds half a surrogate pair") from error


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Registration:
    """A registration the registry confirmed. ``created`` is False when it had been there before.

    ``did`` is what the registry says; whoever holds the key compares it with the DID of that key.
    """

    did: str
    created: bool


@dataclass(frozen=True)
class AgentRecord:
    """What a registry says about an agent. Times are UTC seconds; None means it did not say, or said nothing usable."""

    did: str
    capabilities: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=lambda: NO_METADATA)
    registered_at: float | None = None
    last_seen: float | None = None
    reputation_score: float | None = None
    online: bool | None = None
    tier: str | None = None
    total_sessions: int | None = None
    successful_sessions: int | None = None
    failed_sessions: int | None = None
    timeout_sessions: int | None = None
    last_session_at: float | None = None
    completion_rate: float | None = None
    verified_app_id: str | None = None
    verified_tenant_id: str | None = None
    verified_at: float | None = None
    public_key: Ed25519Public | None = None
    """Only our registry tells. Believe it only if its DID matches."""
    one_time_keys_left: int | None = None
    registration: Literal["pop", "legacy"] | None = None
    """How the agent registered, which says in which dialect to knock. Only our registry tells."""


@dataclass(frozen=True)
class DiscoveredAgent:
    """One result of a discovery, with what the registry says about it."""

    did: str
    capabilities: tuple[str, ...] = ()
    reputation_score: float | None = None
    last_seen: float | None = None
    online: bool | None = None


@dataclass(frozen=True)
class Presence:
    """When an agent was last seen (UTC seconds), and whether the registry calls that online."""

    did: str
    last_seen: float | None
    online: bool


@dataclass(frozen=True)
class PublishedBundle:
    """A prekey bundle as the registry handed it out: decoded, not verified, lengths not checked."""

    identity_key: bytes
    identity_key_ed: bytes
    signed_prekey_id: int
    signed_prekey: bytes
    signed_prekey_signature: bytes
    one_time_prekey_id: int | None = None
    one_time_prekey: bytes | None = None

    def checked(self, did: Did) -> PrekeyBundle:
        """The bundle to open a session with, proven to be ``did``'s own.

        Raises:
            MalformedFrame: a key or signature has the wrong length.
            NotAuthentic: the signature does not verify, or the keys are not those of ``did``. The registry, or
                somebody between, has substituted them.
            WeakKey: a key is of low order.
        """
        one_time = self.one_time_prekey
        try:
            bundle = PrekeyBundle(
                X25519Public(self.identity_key),
                Ed25519Public(self.identity_key_ed),
                self.signed_prekey_id,
                X25519Public(self.signed_prekey),
                self.signed_prekey_signature,
                self.one_time_prekey_id,
                None if one_time is None else X25519Public(one_time),
            )
        except InvalidValue as error:
            raise MalformedFrame(f"the prekey bundle of {did} is malformed: {error}") from error
        verify_bundle(bundle, did)
        return bundle


def refusal(answer: Answer) -> RegistryRefused:
    """The error an answer stands for, with the registry's own explanation."""
    return RegistryRefused(answer.status, detail(answer))


def detail(answer: Answer) -> str:
    """The explanation in an answer: its ``detail`` member if it has one, else its text; one line, bounded."""
    try:
        value = parse_json(answer.body)
        text = value["detail"] if isinstance(value, dict) and "detail" in value else value
        shown = text if isinstance(text, str) else js_json(text)
    except (MalformedFrame, InvalidValue):
        shown = answer.body.decode("utf-8", "replace")
    shown = "".join(character if character.isprintable() else " " for character in shown[:MAX_DETAIL])
    return shown.strip() or "no explanation given"


def wants_did(answer: Answer) -> bool:
    """Whether a registration was refused only for the missing member ``did`` (upstream 3.7.0)."""
    if answer.status != 422:
        return False
    try:
        problems = parse_json(answer.body)["detail"]
        return any(problem["loc"] == ["body", "did"] and problem["type"] == "missing" for problem in problems)
    except (MalformedFrame, LookupError, TypeError):
        return False


def read_registration(answer: Answer, did: str, *, key: Ed25519Public | None = None) -> Registration:
    """The outcome of a registration; 409 means that it exists already and is fine.

    Args:
        did: what to call the agent when the registry does not say.
        key: the registered key when it came with a proof. Without a proof the registry derives nothing, and what
            it answers does not count.
    Raises:
        RegistryRefused: any other answer.
    """
    if answer.status == 409:
        return Registration(did if key is None else did_of(key), created=False)
    if answer.status not in (200, 201):
        raise refusal(answer)
    if key is None:
        return Registration(did, created=True)
    try:
        said = _object(parse_json(answer.body)).get("did")
    except MalformedFrame:
        said = None
    return Registration(said if isinstance(said, str) and said else did, created=True)


def read_agent(answer: Answer, did: str) -> AgentRecord:
    """What the registry says about the agent.

    Raises:
        AgentNotFound: it knows no such agent.
        RegistryRefused: it refuses, or its answer is no record.
    """
    members = _members(answer, did)
    return AgentRecord(
        did=_text(members, "did", answer),
        capabilities=_strings(members.get("capabilities")),
        metadata=MappingProxyType(value if isinstance(value := members.get("metadata"), dict) else {}),
        registered_at=_time(members.get("registered_at")),
        last_seen=_time(members.get("last_seen")),
        reputation_score=_number(members.get("reputation_score")),
        online=_typed(members.get("online"), bool),
        tier=_typed(members.get("tier"), str),
        total_sessions=_count(members.get("total_sessions")),
        successful_sessions=_count(members.get("successful_sessions")),
        failed_sessions=_count(members.get("failed_sessions")),
        timeout_sessions=_count(members.get("timeout_sessions")),
        last_session_at=_time(members.get("last_session_at")),
        completion_rate=_number(members.get("completion_rate")),
        verified_app_id=_typed(members.get("verified_app_id"), str),
        verified_tenant_id=_typed(members.get("verified_tenant_id"), str),
        verified_at=_time(members.get("verified_at")),
        public_key=_public_key(members.get("public_key")),
        one_time_keys_left=_count(members.get("one_time_keys_left")),
        registration=_registration(members.get("registration")),
    )


def read_done(answer: Answer, did: str, *, absent_is_fine: bool = False) -> None:
    """An answer of which only success counts.

    Raises:
        AgentNotFound: 404, unless ``absent_is_fine``.
        RegistryRefused: any other failure.
    """
    if answer.status == 404:
        if absent_is_fine:
            return
        raise AgentNotFound(did)
    if not answer.ok:
        raise refusal(answer)


def read_upload(answer: Answer) -> int | None:
    """How many one-time keys the registry now has, if it says.

    Raises:
        RegistryRefused: it took none of them.
    """
    if not answer.ok:
        raise refusal(answer)
    try:
        return _count(_object(parse_json(answer.body)).get("otk_count"))
    except MalformedFrame:
        return None


def read_bundle(answer: Answer, did: str) -> PublishedBundle:
    """A peer's prekeys.

    Raises:
        AgentNotFound: the peer has published none.
        RegistryRefused: the registry refuses, or its answer is no bundle with both identity keys.
    """
    members = _members(answer, did)
    if not members.get("identity_key_ed"):
        raise RegistryRefused(answer.status, f"{did} has published no identity_key_ed: its client must be upgraded")
    signed = members.get("signed_pre_key")
    one_time = members.get("one_time_pre_key")
    try:
        return PublishedBundle(
            identity_key=_bytes(members, "identity_key"),
            identity_key_ed=_bytes(members, "identity_key_ed"),
            signed_prekey_id=_key_id(_object(signed)),
            signed_prekey=_bytes(_object(signed), "public_key"),
            signed_prekey_signature=_bytes(_object(signed), "signature"),
            one_time_prekey_id=_key_id(_object(one_time)) if one_time else None,
            one_time_prekey=_bytes(_object(one_time), "public_key") if one_time else None,
        )
    except MalformedFrame as error:
        raise RegistryRefused(answer.status, f"the answer is no prekey bundle: {error}") from error


def read_discovered(answer: Answer) -> tuple[DiscoveredAgent, ...]:
    """The agents found, in the registry's order.

    Raises:
        RegistryRefused: the registry refuses, or its answer is no list of agents.
    """
    results = _members(answer, None).get("results")
    if not isinstance(results, list):
        raise RegistryRefused(answer.status, "the answer has no results")
    return tuple(
        DiscoveredAgent(
            did=_text(result, "did", answer),
            capabilities=_strings(result.get("capabilities")),
            reputation_score=_number(result.get("reputation_score")),
            last_seen=_time(result.get("last_seen")),
            online=_typed(result.get("online"), bool),
        )
        for result in map(_result(answer), results)
    )


def read_presence(answer: Answer, did: str) -> Presence:
    """When the agent was last seen.

    Raises:
        AgentNotFound: the registry knows no such agent.
        RegistryRefused: it refuses, or its answer is none.
    """
    members = _members(answer, did)
    return Presence(_text(members, "did", answer), _time(members.get("last_seen")), members.get("online") is True)


def read_reputation(answer: Answer, did: str) -> float | None:
    """The agent's reputation after a rating.

    Raises:
        AgentNotFound: the registry knows no such agent.
        RegistryRefused: it refuses.
    """
    return _number(_members(answer, did).get("reputation_score"))


def _members(answer: Answer, did: str | None) -> dict[str, object]:
    if answer.status == 404 and did is not None:
        raise AgentNotFound(did)
    if not answer.ok:
        raise refusal(answer)
    try:
        return _object(parse_json(answer.body))
    except MalformedFrame as error:
        raise RegistryRefused(answer.status, f"the answer cannot be read: {error}") from error


def _result(answer: Answer) -> Callable[[object], dict[str, object]]:
    def read(value: object) -> dict[str, object]:
        try:
            return _object(value)
        except MalformedFrame as error:
            raise RegistryRefused(answer.status, "a result is no object") from error

    return read


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise MalformedFrame("an object is missing")
    return cast("dict[str, object]", value)


def _text(members: Mapping[str, object], name: str, answer: Answer) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise RegistryRefused(answer.status, f"the answer has no {name}")
    return value


def _bytes(members: Mapping[str, object], name: str) -> bytes:
    value = members.get(name)
    if not isinstance(value, str):
        raise MalformedFrame(f"{name} is missing")
    return unb64url(value)


def _key_id(members: Mapping[str, object]) -> int:
    value = members.get("key_id")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)  # some clients number their keys with text
    if type(value) is not int or not 0 <= value <= MAX_KEY_ID:
        raise MalformedFrame("key_id is no unsigned 32 bit number")
    return value


def _strings(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _number(value: object) -> float | None:
    if type(value) not in (int, float) or not math.isfinite(number := float(cast("float", value))):
        return None
    return number


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _typed(value: object, kind: type[T]) -> T | None:
    return value if isinstance(value, kind) else None


def _time(value: object) -> float | None:
    try:
        return parse_timestamp(value) if isinstance(value, str) else None
    except InvalidValue:
        return None


def _public_key(value: object) -> Ed25519Public | None:
    try:
        return Ed25519Public(unb64url(value)) if isinstance(value, str) else None
    except InvalidValue:
        return None


def _registration(value: object) -> Literal["pop", "legacy"] | None:
    return value if value in ("pop", "legacy") else None
