"""Signatures that authenticate requests: how they are read, how long they live, and that each serves once.

``Authorization`` signs a bare timestamp: whoever sees one could use it for any other request for five minutes. So a
signature belongs to the first request it came with: the same request again is answered as before, another one is
refused. The second header, ``Mesh-Request-Signature``, signs the whole request and makes that moot.
"""

import hashlib
import heapq
from collections import Counter
from enum import Enum, auto

from msgspec import Struct

from mesh_registry.bodies import SIGNATURE_SIZE, decode
from mesh_registry.refusal import Refusal, too_soon, unauthenticated, unavailable
from mesh_registry.verbs import Proof
from meshlib.crypto.keys import Ed25519Public
from meshlib.errors import InvalidValue, NotAuthentic
from meshlib.identity import Did, bound_request_statement, timestamp_statement, verify_proof
from meshlib.wire.encoding import parse_timestamp, timestamp

WINDOW = 300.0
"""Seconds a proof may be older or newer than our clock."""

MAX_AUTHORIZATION = 1024
"""Characters. DID, timestamp and signature make some 170."""

MAX_REMEMBERED = 500_000
"""Proofs remembered at a time: 1,600 signed requests a second for five minutes, in some 200 MiB."""

MAX_PER_AGENT = 5_000
"""Proofs remembered of one agent at a time: 16 a second for five minutes. A hundred agents are needed to fill it."""

SCHEME = "Ed25519-Timestamp"


class Credentials(Struct, frozen=True):
    """An ``Authorization`` header, parsed; not yet verified. ``bound`` is the signature over the whole request."""

    did: str
    timestamp: str
    moment: float
    signature: bytes
    bound: bytes | None


def parse_credentials(authorization: str, bound: str | None) -> Credentials:
    """Read the header ``Ed25519-Timestamp <did> <ISO timestamp> <base64url signature>``.

    Raises:
        Refusal: 401, saying what is wrong with it.
    """
    if len(authorization) > MAX_AUTHORIZATION or len(bound or "") > MAX_AUTHORIZATION:
        raise unauthenticated(f"Authorization has more than {MAX_AUTHORIZATION} characters")
    scheme, *parts = authorization.split(" ")
    if scheme != SCHEME or len(parts) != 3:
        raise unauthenticated(f"Authorization must read: {SCHEME} <did> <ISO timestamp> <base64url signature>")
    did, moment, signature = parts
    try:
        return Credentials(
            did,
            moment,
            parse_timestamp(moment),
            decode(signature, "the signature", SIGNATURE_SIZE),
            None if bound is None else decode(bound, "Mesh-Request-Signature", SIGNATURE_SIZE),
        )
    except InvalidValue as error:
        raise unauthenticated(f"Authorization: {error}") from error
    except Refusal as error:
        raise unauthenticated(f"Authorization: {error.detail}") from error


def check_moment(moment: float, utc: float) -> None:
    """Refuse a proof outside the window, telling our time, so that whoever has the wrong one can correct it.

    Raises:
        Refusal: 401.
    """
    if abs(utc - moment) > WINDOW:
        age = utc - moment
        side = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s in the future"
        raise unauthenticated(
            f"the timestamp is {side}, at most {WINDOW:.0f} s are accepted; the registry's time is {timestamp(utc)}",
            "clock",
        )


def check_signature(key: bytes, credentials: Credentials) -> None:
    """Check the signature over the bare timestamp.

    Raises:
        Refusal: 401.
    """
    try:
        verify_proof(Ed25519Public(key), timestamp_statement(credentials.timestamp), credentials.signature)
    except NotAuthentic as error:
        raise unauthenticated("the signature does not verify", "bad_signature") from error


def check_bound_signature(key: bytes, credentials: Credentials, method: str, target: str, body: bytes) -> None:
    """Check the signature over the whole request, if there is one.

    Raises:
        Refusal: 401.
    """
    if credentials.bound is None:
        return
    statement = bound_request_statement(Did(credentials.did), credentials.timestamp, method, target, body)
    try:
        verify_proof(Ed25519Public(key), statement, credentials.bound)
    except NotAuthentic as error:
        detail = "Mesh-Request-Signature does not verify for this method, target and body"
        raise unauthenticated(detail, "bad_signature") from error


def fingerprint(method: str, target: str, body: bytes) -> bytes:
    """What tells one request from another, 16 bytes."""
    digest = hashlib.blake2b(f"{method}\n{target}\n".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()


def request_proof(credentials: Credentials, method: str, target: str, body: bytes) -> Proof:
    """The proof a request uses up: the signature over the request if there is one, else that over the timestamp."""
    signature = credentials.signature if credentials.bound is None else credentials.bound
    digest = hashlib.blake2b(
        f"{credentials.did}\n{credentials.timestamp}\n".encode() + signature, digest_size=16
    ).digest()
    return Proof(digest, fingerprint(method, target, body), credentials.moment + WINDOW)


class Reply(Struct, frozen=True):
    """What a request was answered, kept to be said again."""

    status: int
    body: bytes


class _State(Enum):
    CLAIMED = auto()
    """It belongs to a request that has not been carried out: refused, or not decided yet. That one may come again."""
    UNDER_WAY = auto()
    DONE = auto()
    REGISTERED = auto()
    """It came with a registration, which rests on another proof; the upload of prekeys may still use it."""


class UsedProofs:
    """Proofs that have been used, and what for. Entries leave when they expire; a full memory refuses newcomers."""

    def __init__(self, limit: int = MAX_REMEMBERED, per_agent: int = MAX_PER_AGENT) -> None:
        self._limit = limit
        self._per_agent = per_agent
        self._counts: Counter[str] = Counter()
        self._entries: dict[bytes, tuple[bytes, _State | Reply]] = {}
        self._expiry: list[tuple[float, bytes, str]] = []
        self._unsaved: dict[bytes, Proof] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def restore(self, proof: Proof) -> None:
        """Remember a proof used before a restart. Its reply is lost."""
        self._add("", proof, _State.DONE)

    def repeated(self, proof: Proof) -> Reply | None:
        """The reply to say again, when the same request has been carried out under this proof."""
        used_for, state = self._entries.get(proof.digest, (b"", None))
        return state if used_for == proof.fingerprint and isinstance(state, Reply) else None

    def claim(self, did: str, proof: Proof, *, bare: bool = True, after_registering: bool = False) -> None:
        """Tie a proof to the request it came with, before that request is looked at any further.

        Whatever becomes of the request, refused ones included, the proof serves no other one: its header has been
        on the wire.

        Args:
            did: whose it is.
            bare: the signature does not cover the request, so nothing but this memory ties it to one.
            after_registering: the request may follow a registration under the same proof.
        Raises:
            Refusal: 401 when it belongs to another request, 429 or 503 when too many are remembered.
        """
        known = self._entries.get(proof.digest)
        if known is None:
            if len(self._entries) >= self._limit:
                raise unavailable("too many signed requests at the moment", 30)
            if self._counts[did] >= self._per_agent:
                raise too_soon("too many signed requests of this agent", 60)
            self._add(did, proof, _State.CLAIMED)
        else:
            used_for, state = known
            if after_registering and state is _State.REGISTERED:
                self._entries[proof.digest] = (proof.fingerprint, _State.CLAIMED)
            elif used_for != proof.fingerprint:
                detail = "this signature has been used for another request: sign each request anew"
                raise unauthenticated(detail, "replayed")
            else:
                return
        if bare:
            self._unsaved[proof.digest] = proof

    def use(self, proof: Proof) -> None:
        """Use a claimed proof for a change. Carry it out, then :meth:`finish`, or :meth:`release` if it failed.

        Raises:
            Refusal: 409 or 503 when the request is done or being done and there is no reply to repeat.
        """
        used_for, state = self._entries[proof.digest]
        assert used_for == proof.fingerprint
        if state is _State.UNDER_WAY:
            raise unavailable("this very request is being carried out")
        if state is not _State.CLAIMED:
            detail = "this very request has been received before: sign it anew to repeat it"
            raise Refusal(409, detail, reason="replayed")
        self._entries[proof.digest] = (used_for, _State.UNDER_WAY)

    def spend(self, did: str, proof: Proof, *, bare: bool = True, registering: bool = False) -> bool:
        """Use up a proof a request carried without needing it. Whether it was fresh.

        Args:
            did: whose it is.
            bare: as in :meth:`claim`.
            registering: it came with a registration, which another request may follow under the same proof.
        """
        full = len(self._entries) >= self._limit or self._counts[did] >= self._per_agent
        if full or proof.digest in self._entries:
            return False
        self._add(did, proof, _State.REGISTERED if registering else _State.DONE)
        if bare:
            self._unsaved[proof.digest] = proof
        return True

    def finish(self, proof: Proof, reply: Reply | None) -> None:
        """The change has been carried out and answered; the store has recorded the proof with it."""
        self._unsaved.pop(proof.digest, None)
        if proof.digest in self._entries:  # else it has expired meanwhile
            self._entries[proof.digest] = (proof.fingerprint, _State.DONE if reply is None else reply)

    def release(self, proof: Proof) -> None:
        """The change has not been carried out: the same request may come again."""
        if proof.digest in self._entries:
            self._entries[proof.digest] = (proof.fingerprint, _State.CLAIMED)

    def take_unsaved(self) -> list[Proof]:
        """Bare proofs that no change records in the store, each told once.

        They must be recorded all the same: after a restart a header that was seen on a look-up or on a refused
        request would otherwise serve for any change.
        """
        if not self._unsaved:
            return []
        ready = [
            proof
            for digest, proof in self._unsaved.items()
            if self._entries.get(digest, (b"", None))[1] is not _State.UNDER_WAY
        ]
        for proof in ready:
            del self._unsaved[proof.digest]
        return ready

    def expire(self, utc: float) -> None:
        """Forget what could not be used any more anyway."""
        while self._expiry and self._expiry[0][0] < utc:
            _, digest, did = heapq.heappop(self._expiry)
            self._entries.pop(digest, None)
            self._counts[did] -= 1
            if self._counts[did] <= 0:
                del self._counts[did]

    def _add(self, did: str, proof: Proof, state: _State) -> None:
        self._entries[proof.digest] = (proof.fingerprint, state)
        heapq.heappush(self._expiry, (proof.expires, proof.digest, did))
        self._counts[did] += 1
