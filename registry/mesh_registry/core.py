"""Is this request genuine, fresh and well formed? The core decides, and names the one store verb to run.

No I/O, no clock, no store: a request, the account it speaks for and an :class:`~meshlib.clock.Instant` go in, a
decision comes out, and whatever is wrong with the request is a :class:`~mesh_registry.refusal.Refusal`.

    did = core.account_needed(request)             # whose account the decision depends on
    decision = core.decide(request, account, now)  # a verb to run, a token to check, or a reply to repeat
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from typing import TypeAlias
from urllib.parse import parse_qsl

from msgspec import Struct

from mesh_registry.bodies import (
    MAX_BODY,
    MAX_CAPABILITY,
    MAX_PREKEYS_BODY,
    PrekeysBody,
    RegisterBody,
    ReputationBody,
    SessionBody,
    UpdateBody,
    VerifyBody,
    capabilities_of,
    decode,
    key_of,
    metadata_of,
    parse,
)
from mesh_registry.proofs import (
    Credentials,
    Reply,
    UsedProofs,
    check_bound_signature,
    check_moment,
    check_signature,
    parse_credentials,
    request_proof,
)
from mesh_registry.refusal import Refusal, too_soon, unauthenticated
from mesh_registry.verbs import (
    Account,
    Caller,
    Delete,
    Discover,
    FindAgent,
    FindPresence,
    MarkVerified,
    Proof,
    PutPrekeys,
    Rate,
    RecordSession,
    Register,
    SignedPrekey,
    Sweep,
    TakePrekeys,
    Touch,
    Update,
)
from meshlib.buckets import Buckets
from meshlib.buckets import Rate as TokenRate
from meshlib.clock import Instant
from meshlib.crypto.keys import Ed25519Public
from meshlib.crypto.primitives import refuse_low_order
from meshlib.errors import InvalidValue, NotAuthentic, WeakKey
from meshlib.identity import (
    MAX_DID_LENGTH,
    MESH_METHOD,
    did_of,
    parse_did,
    registration_statement,
    to_x25519,
    verify_proof,
)
from meshlib.wire.encoding import parse_timestamp

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
HEARTBEAT_INTERVAL = 10.0
MAX_QUERY_FIELDS = 16

NETWORKS = 4096
"""Addresses whose network is remembered: each request asks, and finding out costs what all else of a decision does.
Some 500 bytes each."""


class Endpoint(StrEnum):
    """What can be asked of the registry. The values name the endpoints in logs, metrics and the OpenAPI document."""

    REGISTER = "register"
    GET_AGENT = "get_agent"
    UPDATE = "update"
    DELETE = "delete"
    PUT_PREKEYS = "put_prekeys"
    GET_PREKEYS = "get_prekeys"
    PRESENCE = "presence"
    HEARTBEAT = "heartbeat"
    REPUTATION = "reputation"
    SESSION = "session"
    VERIFY = "verify"
    DISCOVER = "discover"

    @property
    def max_body(self) -> int:
        """Bytes a request body may have; 0 for endpoints that take none."""
        return _MAX_BODIES.get(self, 0)


_MAX_BODIES = {
    Endpoint.REGISTER: MAX_BODY,
    Endpoint.UPDATE: MAX_BODY,
    Endpoint.PUT_PREKEYS: MAX_PREKEYS_BODY,
    Endpoint.REPUTATION: MAX_BODY,
    Endpoint.SESSION: MAX_BODY,
    Endpoint.VERIFY: MAX_BODY,
}


_CHANGES = frozenset(Endpoint) - {
    Endpoint.REGISTER,
    Endpoint.GET_AGENT,
    Endpoint.GET_PREKEYS,
    Endpoint.PRESENCE,
    Endpoint.DISCOVER,
}


class Request(Struct, frozen=True):
    """One HTTP request as the shell hands it over.

    ``target`` is path and query exactly as sent; ``did`` is the path's DID, decoded, or empty; ``requester`` tells
    one anonymous client from another (its address).
    """

    endpoint: Endpoint
    method: str
    target: str
    did: str
    query: str
    body: bytes
    authorization: str | None
    bound: str | None
    requester: str


class CheckToken(Struct, frozen=True):
    """Ask the identity provider's keys about a token, then run :meth:`Core.verified`."""

    caller: Caller
    token: str


Decision: TypeAlias = (
    FindAgent
    | FindPresence
    | Discover
    | Register
    | Update
    | Delete
    | PutPrekeys
    | TakePrekeys
    | Touch
    | Rate
    | RecordSession
    | CheckToken
    | Reply
)


@dataclass(frozen=True)
class Policy:
    """What an operator can choose. Times in seconds."""

    allow_legacy: bool = False
    """Admit agt-4 registrations without proof, for DIDs outside ``did:mesh:``."""
    verify_tokens: bool = False
    """Whether an identity provider is configured."""
    discoverable_for: float = 30 * 86_400.0
    """Agents silent for longer are not found by discovery any more."""
    online_for: float = 90.0
    """Agents seen within this time count as online; upstream's number."""
    expire_after: float = 90 * 86_400.0
    """Agents silent for longer are forgotten."""
    expire_unpublished_after: float = 3600.0
    """Agents that published no prekeys, and so cannot be talked to, are forgotten when silent for longer."""
    registrations: TokenRate = field(default_factory=lambda: TokenRate(1000, 10))
    """Registrations from one address; of IPv6, from one network of 64 bits, which is what one subscriber has."""
    keys_per_target: TokenRate = field(default_factory=lambda: TokenRate(100, 2))
    """One-time keys handed out per agent: a burst of new peers, then as fast as an agent can supply them."""
    keys_per_requester: TokenRate = field(default_factory=lambda: TokenRate(2000, 50))
    """One-time keys one anonymous address or one authenticated agent can take."""
    lookups: TokenRate = field(default_factory=lambda: TokenRate(5000, 200))
    """Questions of one address or agent that cost nothing else: discovery, agents, presence. Who scrapes is slowed."""


class Core:
    """Decides. Owned by one event loop; remembers used proofs and token buckets, nothing else."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.used = UsedProofs()
        self._targets = Buckets(policy.keys_per_target)
        self._targets_of_known = Buckets(policy.keys_per_target)
        self._registrations = Buckets(policy.registrations)
        self._requesters = Buckets(policy.keys_per_requester)
        self._lookups = Buckets(policy.lookups)
        self._deciders: dict[Endpoint, Callable[[Request, Account | None, Instant], Decision]] = {
            Endpoint.REGISTER: self._register,
            Endpoint.GET_AGENT: self._get_agent,
            Endpoint.UPDATE: self._update,
            Endpoint.DELETE: self._delete,
            Endpoint.PUT_PREKEYS: self._put_prekeys,
            Endpoint.GET_PREKEYS: self._get_prekeys,
            Endpoint.PRESENCE: self._presence,
            Endpoint.HEARTBEAT: self._heartbeat,
            Endpoint.REPUTATION: self._reputation,
            Endpoint.SESSION: self._session,
            Endpoint.VERIFY: self._verify,
            Endpoint.DISCOVER: self._discover,
        }

    def account_needed(self, request: Request) -> str | None:
        """The DID whose account :meth:`decide` needs, or None when it decides without."""
        if request.endpoint is Endpoint.REGISTER:
            return None
        if request.authorization is not None:
            # Only its place is read here: whether the header is one at all matters only where one is needed.
            parts = request.authorization.split(" ", 2)
            return parts[1] if len(parts) == 3 and len(parts[1]) <= MAX_DID_LENGTH else None
        return request.did if request.endpoint is Endpoint.PUT_PREKEYS and self.policy.allow_legacy else None

    def decide(self, request: Request, account: Account | None, now: Instant) -> Decision:
        """What to do about a request.

        Args:
            account: of the agent :meth:`account_needed` named; None when there is no such agent.
        Raises:
            Refusal: nothing.
        """
        return self._repeated(request) or self._deciders[request.endpoint](request, account, now)

    def _repeated(self, request: Request) -> Reply | None:
        """The answer to a request that has been carried out already, under the very same signature.

        It is looked up before anything else, because afterwards the account may be gone: the repetition of a deletion
        is not an unknown agent.
        """
        if request.endpoint not in _CHANGES or request.authorization is None:
            return None
        try:
            credentials = parse_credentials(request.authorization, request.bound)
        except Refusal:
            return None
        return self.used.repeated(request_proof(credentials, request.method, request.target, request.body))

    def verified(self, check: CheckToken, app_id: str | None, tenant_id: str | None, now: Instant) -> MarkVerified:
        """The verb for a token the identity provider stands by."""
        return MarkVerified(check.caller, app_id, tenant_id, now.utc)

    def restore(self, proofs: list[Proof]) -> None:
        """Remember proofs that were used before a restart."""
        for proof in proofs:
            self.used.restore(proof)

    def sweep(self, now: Instant) -> Sweep:
        """Forget what has expired, and say what the store is to forget."""
        self.used.expire(now.utc)
        return Sweep(now.utc, now.utc - self.policy.expire_unpublished_after, now.utc - self.policy.expire_after)

    # --- public reading ---------------------------------------------------------------------------------------------

    def _get_agent(self, request: Request, account: Account | None, now: Instant) -> Decision:
        self._look_up(request, account, now)
        return FindAgent(request.did)

    def _presence(self, request: Request, account: Account | None, now: Instant) -> Decision:
        self._look_up(request, account, now)
        return FindPresence(request.did)

    def _discover(self, request: Request, account: Account | None, now: Instant) -> Decision:
        self._look_up(request, account, now)
        fields = _query(request.query)
        capability = fields.get("capability")
        if capability is None:
            raise Refusal(422, "capability is missing in the query")
        if len(capability) > MAX_CAPABILITY:
            raise Refusal(422, f"capability has more than {MAX_CAPABILITY} characters")
        limit = fields.get("limit", str(DEFAULT_LIMIT))
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
            raise Refusal(422, f"limit must be a number from 1 to {MAX_LIMIT}")
        return Discover(capability, int(limit), now.utc - self.policy.discoverable_for)

    def _get_prekeys(self, request: Request, account: Account | None, now: Instant) -> Decision:
        """Fetching a bundle always works; what strangers can drain is only the supply of one-time keys.

        Each key costs a token of the requester and one of the target. Agents that prove who they are have a bucket of
        the target to themselves, which strangers cannot empty, and the last few keys. Without a token or key left the
        bundle comes without a one-time key, as X3DH foresees.
        """
        known = self._identify(request, account, now)
        requester = _asker(request, account if known else None)
        targets = self._targets_of_known if known else self._targets
        granted = self._requesters.take(requester, now.monotonic) and targets.take(request.did, now.monotonic)
        return TakePrekeys(request.did, one_time=granted, last_ones=known)

    def _look_up(self, request: Request, account: Account | None, now: Instant) -> None:
        """Count a question against whoever asks it."""
        known = self._identify(request, account, now)
        if not self._lookups.take(_asker(request, account if known else None), now.monotonic):
            raise too_soon("too many questions from this address or agent", 1 / self.policy.lookups.per_second)

    def _identify(self, request: Request, account: Account | None, now: Instant) -> bool:
        """Whether a public request proves who sent it. Nothing depends on it but the one-time keys.

        A signature over a bare timestamp is used up by it, so that whoever saw it passing by cannot go and delete the
        agent with it. An agent that signs whole requests is beyond that, and spares us the work.
        """
        if account is None or (account.bound and request.endpoint is not Endpoint.GET_PREKEYS):
            return False
        try:
            caller = self._signer(request, account, now)
        except Refusal:
            return False
        return self.used.spend(caller.did, caller.proof, bare=not caller.bound)

    # --- registration -----------------------------------------------------------------------------------------------

    def _register(self, request: Request, account: Account | None, now: Instant) -> Decision:
        body = parse(request.body, RegisterBody)
        legacy = body.proof is None and body.proof_timestamp is None
        register = self._register_legacy(body, now) if legacy else self._register_proven(request, body, now)
        if not self._registrations.take(network(request.requester), now.monotonic):
            wait = 1 / self.policy.registrations.per_second
            raise too_soon("too many registrations from this address", wait, "address_rate")
        return register

    def _register_proven(self, request: Request, body: RegisterBody, now: Instant) -> Register:
        if body.proof is None or body.proof_timestamp is None:
            raise Refusal(422, "proof and proof_timestamp belong together")
        raw = key_of(body.public_key, "public_key")
        proof = decode(body.proof, "proof", 64)
        try:
            moment = parse_timestamp(body.proof_timestamp)
        except InvalidValue as error:
            raise unauthenticated(f"proof_timestamp: {error}") from error
        check_moment(moment, now.utc)
        key = Ed25519Public(raw)
        try:
            verify_proof(key, registration_statement(body.public_key, body.proof_timestamp), proof)
        except NotAuthentic as error:
            raise unauthenticated("Invalid proof-of-possession", "bad_signature") from error
        did = did_of(key)
        if body.did is not None and body.did != did:
            raise Refusal(422, f"did is not that of public_key, which is {did}: leave it out")
        statement = Credentials(did, body.proof_timestamp, moment, proof, None)
        return Register(
            did=did,
            signing_key=raw,
            agreement_key=None,
            legacy=False,
            bound=self._registers_bound(request, did, raw, now),
            capabilities=capabilities_of(body.capabilities),
            metadata=metadata_of(body.metadata),
            now=now.utc,
            proof=request_proof(statement, request.method, request.target, request.body),
        )

    def _registers_bound(self, request: Request, did: str, key: bytes, now: Instant) -> bool:
        """Whether the new agent signs whole requests from the start.

        The registration itself rests on its own proof. A signature over a bare timestamp beside it is used up, except
        for the upload of prekeys that follows: the SDK may send both within a millisecond, with the same signature.
        """
        if request.authorization is None:
            return False
        try:
            credentials = parse_credentials(request.authorization, request.bound)
            if credentials.did != did:
                raise unauthenticated("Authorization names another agent than the registration")
            self._authenticate(request, credentials, key, False, now)
        except Refusal:
            if request.bound is not None:
                raise
            return False
        if credentials.bound is None:
            self.used.spend(
                did, request_proof(credentials, request.method, request.target, request.body), registering=True
            )
        return credentials.bound is not None

    def _register_legacy(self, body: RegisterBody, now: Instant) -> Register:
        if not self.policy.allow_legacy:
            raise unauthenticated(
                "a registration needs proof and proof_timestamp; this registry does not admit agt-4 agents, "
                "which have none (its operator can, with --allow-legacy)"
            )
        if body.did is None:
            raise Refusal(422, "did is missing: a registration without proof names its own")
        try:
            did = parse_did(body.did)
        except InvalidValue as error:
            raise Refusal(422, f"did: {error}") from error
        if did.lower().startswith(MESH_METHOD):
            # Such a DID is the hash of a key; without a proof anybody could take the name of somebody else.
            raise unauthenticated("a DID of did:mesh: is registered with a proof of its key; choose another method")
        agreement_key = key_of(body.public_key, "public_key")
        try:
            refuse_low_order(agreement_key)
        except WeakKey as error:
            raise Refusal(422, "public_key is no X25519 key that keeps a secret") from error
        return Register(
            did=did,
            signing_key=None,
            agreement_key=agreement_key,
            legacy=True,
            bound=False,
            capabilities=capabilities_of(body.capabilities),
            metadata=metadata_of(body.metadata),
            now=now.utc,
            proof=None,
        )

    # --- the owner's business ---------------------------------------------------------------------------------------

    def _update(self, request: Request, account: Account | None, now: Instant) -> Decision:
        caller = self._owner(request, account, now)
        body = parse(request.body, UpdateBody)
        capabilities = None if body.capabilities is None else capabilities_of(body.capabilities)
        metadata = None if body.metadata is None else metadata_of(body.metadata)
        if capabilities is None and metadata is None:
            raise Refusal(422, "capabilities or metadata: there is nothing to update")
        self.used.use(caller.proof)
        return Update(caller, capabilities, metadata, now.utc)

    def _delete(self, request: Request, account: Account | None, now: Instant) -> Decision:
        caller = self._owner(request, account, now)
        self.used.use(caller.proof)
        return Delete(caller)

    def _heartbeat(self, request: Request, account: Account | None, now: Instant) -> Decision:
        caller = self._owner(request, account, now)
        self.used.use(caller.proof)
        return Touch(caller, now.utc, HEARTBEAT_INTERVAL)

    def _put_prekeys(self, request: Request, account: Account | None, now: Instant) -> Decision:
        if request.authorization is None:
            return self._put_prekeys_unsigned(request, account, now)
        if account is not None and account.signing_key is None:
            # The first prekeys of a legacy agent tell its Ed25519 key; it must be the one behind its X25519 key.
            body = parse(request.body, PrekeysBody)
            key = _checked_identity(body, account)
            caller = self._owner(request, account, now, key)
        else:
            caller = self._owner(request, account, now)
            assert account is not None
            body = parse(request.body, PrekeysBody)
            key = _checked_identity(body, account)
        put = _checked_prekeys(request.did, caller, body, key, now)
        self.used.use(caller.proof)
        return put

    def _put_prekeys_unsigned(self, request: Request, account: Account | None, now: Instant) -> Decision:
        """SDK 4.0.0 signs no requests: its signed prekey is the proof, as long as the agent never had another."""
        if not self.policy.allow_legacy or account is None or not account.legacy:
            raise unauthenticated("Missing or invalid Authorization header")
        if account.signs:
            raise unauthenticated("this agent has signed its requests before and must go on doing so")
        body = parse(request.body, PrekeysBody)
        if body.signed_pre_key is None:
            raise unauthenticated("an unsigned request must bring a signed_pre_key")
        return _checked_prekeys(request.did, None, body, _checked_identity(body, account), now)

    # --- about others -----------------------------------------------------------------------------------------------

    def _reputation(self, request: Request, account: Account | None, now: Instant) -> Decision:
        caller = self._caller(request, account, now)
        if caller.did == request.did:
            raise Refusal(403, "an agent does not rate itself")
        body = parse(request.body, ReputationBody)
        self.used.use(caller.proof)
        return Rate(caller, request.did, body.score)

    def _session(self, request: Request, account: Account | None, now: Instant) -> Decision:
        caller = self._caller(request, account, now)
        body = parse(request.body, SessionBody)
        if body.reporter_amid != caller.did:
            raise Refusal(403, "reporter_amid is not the agent that signed the request")
        if caller.did not in (body.initiator_amid, body.receiver_amid):
            raise Refusal(403, "reporter_amid must be a session participant")
        if body.initiator_amid == body.receiver_amid:
            raise Refusal(422, "initiator_amid and receiver_amid are the same agent")
        self.used.use(caller.proof)
        return RecordSession(caller, body.session_id, body.initiator_amid, body.receiver_amid, body.outcome, now.utc)

    def _verify(self, request: Request, account: Account | None, now: Instant) -> Decision:
        caller = self._caller(request, account, now)
        if not self.policy.verify_tokens:
            raise Refusal(503, "this registry has no identity provider configured")
        body = parse(request.body, VerifyBody)
        if body.amid != caller.did:
            raise Refusal(403, "DID mismatch: amid is not the agent that signed the request")
        self.used.use(caller.proof)
        return CheckToken(caller, body.verification_token)

    # --- who is asking ----------------------------------------------------------------------------------------------

    def _owner(self, request: Request, account: Account | None, now: Instant, key: bytes | None = None) -> Caller:
        caller = self._caller(request, account, now, key)
        if caller.did != request.did:
            raise Refusal(403, "DID mismatch: the request is signed by another agent")
        return caller

    def _caller(self, request: Request, account: Account | None, now: Instant, key: bytes | None = None) -> Caller:
        """Who wants a change. The signature belongs to this request from here on, even if the request is refused."""
        caller = self._signer(request, account, now, key)
        self.used.claim(
            caller.did, caller.proof, bare=not caller.bound, after_registering=request.endpoint is Endpoint.PUT_PREKEYS
        )
        return caller

    def _signer(self, request: Request, account: Account | None, now: Instant, key: bytes | None = None) -> Caller:
        if request.authorization is None:
            raise unauthenticated("Missing or invalid Authorization header")
        credentials = parse_credentials(request.authorization, request.bound)
        if account is None or credentials.did != account.did:
            raise unauthenticated("Agent not registered")
        self._authenticate(request, credentials, key or _signing_key(account), account.bound, now)
        proof = request_proof(credentials, request.method, request.target, request.body)
        return Caller(account.did, credentials.bound is not None, proof)

    def _authenticate(
        self, request: Request, credentials: Credentials, key: bytes, must_be_bound: bool, now: Instant
    ) -> None:
        check_moment(credentials.moment, now.utc)
        if must_be_bound and credentials.bound is None:
            raise unauthenticated(
                "this agent signs whole requests: Mesh-Request-Signature is missing, and a bare Authorization header "
                "could have been captured elsewhere"
            )
        check_signature(key, credentials)
        check_bound_signature(key, credentials, request.method, request.target, request.body)


def _asker(request: Request, account: Account | None) -> str:
    """Whose account a question is counted on: an agent's that has proved itself, else its address's."""
    return f"at {network(request.requester)}" if account is None else f"did {account.did}"


@lru_cache(maxsize=NETWORKS)
def network(requester: str) -> str:
    """An address, or of IPv6 the network it is in: there a single subscriber has 2**64 addresses and more."""
    try:
        address = ip_address(requester.partition("%")[0])
    except ValueError:
        return requester
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()


def _signing_key(account: Account) -> bytes:
    if account.signing_key is None:
        raise unauthenticated("this agent's Ed25519 key is not known yet: it must publish its prekeys first")
    return account.signing_key


def _checked_identity(body: PrekeysBody, account: Account) -> bytes:
    """The Ed25519 key of a bundle that is the account's own. Foreign keys would hand the agent's peers to others."""
    signing_key = key_of(body.identity_key_ed, "identity_key_ed")
    agreement_key = key_of(body.identity_key, "identity_key")
    if account.signing_key is not None and signing_key != account.signing_key:
        raise Refusal(403, "identity_key_ed is not the key this agent is registered with")
    try:
        converted = bytes(to_x25519(Ed25519Public(signing_key)))
    except WeakKey as error:
        raise Refusal(422, "identity_key_ed is no Ed25519 key") from error
    if agreement_key != converted:
        raise Refusal(422, "identity_key is not the X25519 form of identity_key_ed")
    if account.agreement_key is not None and agreement_key != account.agreement_key:
        raise Refusal(403, "identity_key is not the key this agent is registered with")
    return signing_key


def _checked_prekeys(did: str, caller: Caller | None, body: PrekeysBody, key: bytes, now: Instant) -> PutPrekeys:
    signed = body.signed()
    if signed is None and body.mode == "replace":
        raise Refusal(422, "signed_pre_key is missing")
    one_time = body.one_time()
    if signed is not None:
        _check_signed_prekey(signed, key)
    try:
        for prekey in one_time:
            refuse_low_order(prekey.public_key)
        if signed is not None:
            refuse_low_order(signed.public_key)
    except WeakKey as error:
        raise Refusal(422, "a prekey is no X25519 key that keeps a secret") from error
    agreement_key = key_of(body.identity_key, "identity_key")
    return PutPrekeys(did, caller, body.mode == "merge", key, agreement_key, signed, one_time, now.utc)


def _check_signed_prekey(signed: SignedPrekey, key: bytes) -> None:
    try:
        verify_proof(Ed25519Public(key), signed.public_key, signed.signature)
    except NotAuthentic as error:
        raise Refusal(422, "signed_pre_key.signature does not verify under identity_key_ed") from error


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except ValueError as error:
        raise Refusal(422, "the query is not percent-encoded UTF-8 of a few fields") from error
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Refusal(422, "the query names a field twice")
    return fields
