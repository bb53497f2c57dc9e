"""What the registry keeps and what can be done to it: frozen values that core, store and shell pass to each other.

A verb is one whole transaction. Keys are raw bytes that the core has checked, times are UTC seconds, capabilities
and metadata are JSON text that the core has validated and nobody below it looks into.
"""

from enum import StrEnum
from typing import Literal, TypeAlias

from msgspec import Struct

INITIAL_REPUTATION = 0.5
MAX_ONE_TIME_KEYS = 200
"""One-time prekeys kept per agent: ten times what the SDK publishes, and a bundle of all still fits one request."""


class Outcome(StrEnum):
    """How a reported session ended."""

    SUCCESS = "success"
    FAILED = "failed"
    TIMEOUT = "timeout"


class Proof(Struct, frozen=True):
    """A used signature: ``fingerprint`` says for which request, ``expires`` until when it would be valid."""

    digest: bytes
    fingerprint: bytes
    expires: float


class Caller(Struct, frozen=True):
    """Who sent an authenticated request. ``bound``: the signature covered the whole request."""

    did: str
    bound: bool
    proof: Proof


class Account(Struct, frozen=True):
    """What authentication needs to know of an agent.

    ``signing_key`` (Ed25519) is None for a legacy agent that has published no prekeys yet, ``agreement_key`` (X25519)
    for any other that has not: it follows from the first. ``bound`` and ``signs`` are latches: once an agent has
    signed whole requests, or requests at all, nothing weaker speaks for it.
    """

    did: str
    signing_key: bytes | None
    agreement_key: bytes | None
    legacy: bool
    bound: bool
    signs: bool


class Agent(Struct, frozen=True):
    """Everything public about an agent except its prekeys."""

    did: str
    signing_key: bytes | None
    legacy: bool
    capabilities: str
    metadata: str
    registered_at: float
    last_seen: float
    reputation: float
    total_sessions: int
    successful_sessions: int
    failed_sessions: int
    timeout_sessions: int
    last_session_at: float | None
    verified_app_id: str | None
    verified_tenant_id: str | None
    verified_at: float | None
    one_time_keys_left: int


class SignedPrekey(Struct, frozen=True):
    """A signed prekey as it is published."""

    key_id: int
    public_key: bytes
    signature: bytes


class OneTimePrekey(Struct, frozen=True):
    """A one-time prekey as it is published."""

    key_id: int
    public_key: bytes


class Bundle(Struct, frozen=True):
    """What a peer needs to open a session. ``one_time`` has been taken: nobody gets it again."""

    agreement_key: bytes
    signing_key: bytes
    signed: SignedPrekey
    one_time: OneTimePrekey | None


class Found(Struct, frozen=True):
    """One agent a discovery found."""

    did: str
    capabilities: str
    reputation: float
    last_seen: float


class Page(Struct, frozen=True):
    """The freshest agents found, and how many there are (counted up to a bound)."""

    found: tuple[Found, ...]
    total: int


# --- verbs that read ------------------------------------------------------------------------------------------------


class FindAgent(Struct, frozen=True):
    """The public record of an agent."""

    did: str


class FindPresence(Struct, frozen=True):
    """When an agent was last seen."""

    did: str


class Discover(Struct, frozen=True):
    """The freshest agents with exactly this capability, leaving out those not seen since ``seen_since``."""

    capability: str
    limit: int
    seen_since: float


# --- verbs that change ----------------------------------------------------------------------------------------------


class Register(Struct, frozen=True):
    """A new agent. Fails when the DID is taken, or its proof has been used before."""

    did: str
    signing_key: bytes | None
    agreement_key: bytes | None
    legacy: bool
    bound: bool
    capabilities: tuple[str, ...]
    metadata: str
    now: float
    proof: Proof | None


class Update(Struct, frozen=True):
    """The owner changes what the agent says about itself; None leaves a part as it is."""

    caller: Caller
    capabilities: tuple[str, ...] | None
    metadata: str | None
    now: float


class Delete(Struct, frozen=True):
    """The owner removes the agent."""

    caller: Caller


class PutPrekeys(Struct, frozen=True):
    """The owner publishes prekeys.

    ``caller`` is None for a legacy agent that signs no requests; then the signed prekey must be one never seen from
    it, because its signature is the only proof, and a proof serves once. ``signed`` is None in a merge that keeps
    the signed prekey.
    """

    did: str
    caller: Caller | None
    merge: bool
    signing_key: bytes
    agreement_key: bytes
    signed: SignedPrekey | None
    one_time: tuple[OneTimePrekey, ...]
    now: float


class TakePrekeys(Struct, frozen=True):
    """Fetch a bundle and, if allowed, take a one-time prekey out of the last few or only out of the rest."""

    did: str
    one_time: bool
    last_ones: bool


class Touch(Struct, frozen=True):
    """The owner says that it is there; refused within ``interval`` seconds of the last time."""

    caller: Caller
    now: float
    interval: float


class Rate(Struct, frozen=True):
    """Another agent's rating moves the average."""

    caller: Caller
    did: str
    score: float


class RecordSession(Struct, frozen=True):
    """A participant reports how a session ended."""

    caller: Caller
    session_id: str
    initiator: str
    receiver: str
    outcome: Outcome
    now: float


class MarkVerified(Struct, frozen=True):
    """An identity provider vouches for the agent's owner."""

    caller: Caller
    app_id: str | None
    tenant_id: str | None
    now: float


class Sweep(Struct, frozen=True):
    """Forget proofs that have expired, and agents not seen since: a few at a time, so that nobody waits for it."""

    now: float
    unpublished_since: float
    """Agents without prekeys, which nobody can talk to, last seen before this."""
    silent_since: float
    """Any others last seen before this."""


MAX_SWEPT = 500
"""Agents a sweep forgets at most; what is left is for the next one."""

Change: TypeAlias = Register | Update | Delete | PutPrekeys | TakePrekeys | Touch | Rate | RecordSession | MarkVerified

# --- what a change came to, where it is not just done ---------------------------------------------------------------


class PutRefused(StrEnum):
    """Why prekeys were not taken; nothing has changed."""

    NO_AGENT = "Agent not found"
    NO_BUNDLE = "there is no bundle to merge into: publish one with a signed_pre_key first"
    TOO_MANY = f"more than {MAX_ONE_TIME_KEYS} one-time prekeys"
    OTHER_KEY = "a one-time prekey with that key_id and another public_key is published already"
    SEEN = "an unsigned request must bring a new signed prekey: this one has been published before"


class TooSoon(Struct, frozen=True):
    """The verb may be repeated in ``wait`` seconds."""

    wait: float


Touched: TypeAlias = "float | TooSoon | None"
Registered: TypeAlias = Literal["created", "exists", "replayed", "full"]


def moved_average(average: float, sample: float, weight: float) -> float:
    """Exponential moving average: ``sample`` counts with ``weight``."""
    return weight * sample + (1 - weight) * average


RATING_WEIGHT = 0.3
SESSION_WEIGHT = 0.2
SESSION_SCORES = {Outcome.SUCCESS: 1.0, Outcome.FAILED: 0.0, Outcome.TIMEOUT: 0.2}
"""What an outcome counts for. Both sides gain by success; the receiver alone answers for the rest."""

REPORTS_KEPT = 90 * 86_400.0
"""Seconds it is remembered who has reported on which session."""


def share(session: RecordSession) -> str | None:
    """Whose reputation a report moves: the other side's, if it answers for such an outcome. Nobody praises itself."""
    other = session.initiator if session.caller.did == session.receiver else session.receiver
    return other if session.outcome is Outcome.SUCCESS or other == session.receiver else None


RESERVED_SHARE = 5
MAX_RESERVED = 5


def reserved(peak: int) -> int:
    """How many of the last one-time keys are kept for authenticated requesters.

    A fifth of what was last published, at most five: enough for known peers while somebody anonymous drains the
    rest, and none of a supply so small that strangers could never have one.
    """
    return min(MAX_RESERVED, peak // RESERVED_SHARE)
