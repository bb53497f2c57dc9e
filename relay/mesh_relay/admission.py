"""Who may bind a socket to a DID: proofs of possession, the challenge latch, pinned legacy keys, the replay cache.

Decides; the caller binds, closes and persists.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from mesh_relay.config import Limits
from mesh_relay.records import Credential, Proof
from meshlib.clock import Instant
from meshlib.crypto.keys import Ed25519Public
from meshlib.errors import InvalidValue, MeshError, NotAuthentic
from meshlib.identity import (
    MESH_METHOD,
    Did,
    challenge_statement,
    check_did,
    commits_to_key,
    parse_did,
    timestamp_statement,
    verify_proof,
)
from meshlib.wire.encoding import parse_timestamp, timestamp, unb64

NOT_CONNECT, NO_SENDER, NOT_AUTHENTICATED, IDLE, NOT_PROVEN, REPLACED = 4001, 4002, 4003, 4004, 4005, 4006
"""Close codes of the wire: see docs/operations.md."""

TRY_AGAIN_LATER = 1013
"""Nothing is wrong with the proof; the 4000s above would tell a client to give up."""

FEATURES = ("receipts", "challenge")
"""Extensions this relay knows; :class:`Admitted` lists those the client knows too."""


class Refused(MeshError):
    """The connect frame is not admitted; ``code`` is the close code."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Admitted(NamedTuple):
    """The socket speaks as ``did``."""

    did: Did
    verified: bool
    """A key was proved; False for legacy agents."""
    features: tuple[str, ...] | None
    """Extensions both sides know; None when the client named none and gets no ``connected``."""
    credential: Credential | None
    """To be persisted: new or changed."""
    proof: Proof | None
    """To be persisted."""


class Connect(msgspec.Struct, rename={"sender": "from"}, gc=False):
    sender: str
    public_key: str | msgspec.UnsetType = msgspec.UNSET
    timestamp: str | msgspec.UnsetType = msgspec.UNSET
    signature: str | msgspec.UnsetType = msgspec.UNSET
    features: Any = None  # an extension: junk here must not lock anyone out


_decode = msgspec.json.Decoder(Connect).decode


class Doorkeeper:
    """Checks connect frames against everything seen so far."""

    def __init__(
        self,
        limits: Limits,
        *,
        allow_legacy: bool,
        credentials: Iterable[Credential] = (),
        proofs: Iterable[Proof] = (),
    ) -> None:
        self._limits = limits
        self._allow_legacy = allow_legacy
        self._credentials: dict[Did, Credential] = {known.did: known for known in credentials}
        self._proofs: dict[Did, dict[str, float]] = {}  # when each expires
        self._proofs_count = 0
        for used in proofs:
            self._proofs.setdefault(used.did, {})[used.timestamp] = used.expires_at
            self._proofs_count += 1

    @property
    def credentials(self) -> Mapping[Did, Credential]:
        """Everything remembered, by DID."""
        return self._credentials

    def admit(self, raw: bytes, nonce: str, now: Instant) -> Admitted:
        """Check a connect frame whose envelope has been read.

        Args:
            nonce: the text of this connection's ``Mesh-Challenge``.
        Raises:
            Refused: with the close code and, for a stale timestamp, the measured difference of the clocks.
        """
        try:
            connect = _decode(raw)
        except msgspec.ValidationError as error:
            raise Refused(NOT_PROVEN, f"the connect frame does not fit: {error}") from error
        try:
            did = parse_did(connect.sender)
        except InvalidValue as error:
            raise Refused(NOT_AUTHENTICATED, f"from: {error}") from error
        offered = connect.features if isinstance(connect.features, list) else []
        features = tuple(known for known in FEATURES if known in offered)
        negotiated = features if connect.features is not None else None
        if not commits_to_key(did) and did.lower().startswith(MESH_METHOD):
            raise Refused(NOT_AUTHENTICATED, f"the method is spelled {MESH_METHOD}: no key can prove another spelling")
        if not commits_to_key(did) and not self._allow_legacy:
            raise Refused(NOT_AUTHENTICATED, "this relay admits did:mesh: DIDs only: no key can prove another one")
        text, signed_at, signature = connect.public_key, connect.timestamp, connect.signature
        if text is msgspec.UNSET and signature is msgspec.UNSET:
            self._admit_without_proof(did)
            return Admitted(did, False, negotiated, None, None)
        if text is msgspec.UNSET or signed_at is msgspec.UNSET or signature is msgspec.UNSET:
            raise Refused(NOT_PROVEN, "a proof of possession has public_key, timestamp and signature")
        try:
            key = Ed25519Public(unb64(text))
        except MeshError as error:
            raise Refused(NOT_PROVEN, "public_key is no Ed25519 key in base64") from error
        known = self._check_binding(did, key)
        proof = self._check_proof(did, key, signed_at, signature, nonce if "challenge" in features else None, now)
        credential = self._remember(did, key, known, challenged=proof is None)
        return Admitted(did, True, negotiated, credential, proof)

    def _admit_without_proof(self, did: Did) -> None:
        if commits_to_key(did):
            raise Refused(NOT_PROVEN, "a proof of possession is required: public_key, timestamp and signature")
        if did in self._credentials:
            raise Refused(NOT_PROVEN, "this DID has proved a key before and must prove it again")

    def _check_binding(self, did: Did, key: Ed25519Public) -> Credential | None:
        known = self._credentials.get(did)
        if commits_to_key(did):
            try:
                check_did(did, key)
            except NotAuthentic as error:
                raise Refused(NOT_AUTHENTICATED, str(error)) from error
        elif known is not None and known.key != bytes(key):
            raise Refused(NOT_AUTHENTICATED, "this DID is bound to another key, the first one it proved")
        return known

    def _check_proof(
        self, did: Did, key: Ed25519Public, signed_at: str, signature: str, nonce: str | None, now: Instant
    ) -> Proof | None:
        """The proof to remember; None for one that answers the challenge, which is of no use elsewhere."""
        try:
            moment = parse_timestamp(signed_at)
        except InvalidValue as error:
            raise Refused(NOT_PROVEN, str(error)) from error
        skew = moment - now.utc
        if abs(skew) > self._limits.skew_seconds:
            direction = "ahead of" if skew > 0 else "behind"
            raise Refused(
                NOT_PROVEN,
                f"the proof's timestamp is {abs(skew):.0f} s {direction} this relay's clock, which reads "
                f"{timestamp(now.utc)}; {self._limits.skew_seconds:.0f} s are allowed",
            )
        known = self._credentials.get(did)
        if nonce is None and known is not None and known.challenged:
            # Otherwise a captured bare proof would still do for an agent whose client has long moved on.
            raise Refused(NOT_PROVEN, "this DID answers challenges: a bare timestamp does not prove it any more")
        statement = timestamp_statement(signed_at) if nonce is None else challenge_statement(did, signed_at, nonce)
        try:
            verify_proof(key, statement, unb64(signature))
        except MeshError as error:
            raise Refused(NOT_PROVEN, "the signature does not verify") from error
        if nonce is not None:
            return None
        used = self._proofs.get(did, {})
        if signed_at in used:
            raise Refused(NOT_PROVEN, "this proof has been used before")
        if len(used) >= self._limits.proofs_each:
            self._proofs_count -= len(used)
            used = {signed: expires_at for signed, expires_at in used.items() if expires_at >= now.utc}
            self._proofs[did] = used
            self._proofs_count += len(used)
        if len(used) >= self._limits.proofs_each or self._proofs_count >= self._limits.proofs:
            raise Refused(TRY_AGAIN_LATER, "too many proofs within five minutes; try again later")
        proof = Proof(did, signed_at, moment + self._limits.skew_seconds)
        self._proofs.setdefault(did, used)[signed_at] = proof.expires_at
        self._proofs_count += 1
        return proof

    def _remember(
        self, did: Did, key: Ed25519Public, known: Credential | None, *, challenged: bool
    ) -> Credential | None:
        committed = commits_to_key(did)
        if known is None and committed and not challenged:
            return None  # the DID itself says everything there is to know
        credential = Credential(
            did, None if committed else bytes(key), challenged or (known is not None and known.challenged)
        )
        if credential == known:
            return None
        if known is None and len(self._credentials) >= self._limits.credentials:
            # Admitted without being remembered, it could be impersonated with a captured proof or another key.
            raise Refused(TRY_AGAIN_LATER, "this relay cannot remember any more agents; try again later")
        self._credentials[did] = credential
        return credential

    def forget_stale(self, now: Instant) -> None:
        """Drop used proofs whose timestamp nobody would take any more."""
        fresh = {
            did: {signed_at: expires_at for signed_at, expires_at in used.items() if expires_at >= now.utc}
            for did, used in self._proofs.items()
        }
        self._proofs = {did: used for did, used in fresh.items() if used}
        self._proofs_count = sum(map(len, self._proofs.values()))
