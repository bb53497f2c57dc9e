"""The store of tests and throw-away registries: everything in dictionaries, gone at exit.

It is the reference for what the verbs mean; the SQLite store must agree with it, verb by verb.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh_registry.store.protocol import TOTAL_BOUND, Heard
from mesh_registry.store.vitals import Supply, Vitals
from mesh_registry.verbs import (
    INITIAL_REPUTATION,
    MAX_ONE_TIME_KEYS,
    MAX_SWEPT,
    RATING_WEIGHT,
    REPORTS_KEPT,
    SESSION_SCORES,
    SESSION_WEIGHT,
    Account,
    Agent,
    Bundle,
    Caller,
    Delete,
    Discover,
    Found,
    MarkVerified,
    OneTimePrekey,
    Outcome,
    Page,
    Proof,
    PutPrekeys,
    PutRefused,
    Rate,
    RecordSession,
    Register,
    Registered,
    SignedPrekey,
    Sweep,
    TakePrekeys,
    TooSoon,
    Touch,
    Update,
    moved_average,
    reserved,
    share,
)


@dataclass
class _Row:
    did: str
    signing_key: bytes | None
    agreement_key: bytes | None
    legacy: bool
    bound: bool
    capabilities: tuple[str, ...]
    metadata: str
    registered_at: float
    last_seen: float
    signs: bool = False
    heartbeat_at: float | None = None
    reputation: float = INITIAL_REPUTATION
    outcomes: list[Outcome] = field(default_factory=list)
    last_session_at: float | None = None
    verified: tuple[str | None, str | None, float] | None = None
    signed: SignedPrekey | None = None
    one_time: dict[int, bytes] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    spent: set[bytes] = field(default_factory=set)
    reported: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    published: set[bytes] = field(default_factory=set)


class MemoryStore:
    """:class:`~mesh_registry.store.protocol.RegistryStore` without a disk."""

    def __init__(self, max_agents: int) -> None:
        self._agents: dict[str, _Row] = {}
        self._proofs: dict[bytes, Proof] = {}
        self._max_agents = max_agents
        self.vitals = Vitals()
        self._heard: Heard = lambda _: None

    def listen(self, heard: Heard) -> None:
        self._heard = heard

    async def account(self, did: str) -> Account | None:
        row = self._agents.get(did)
        if row is None:
            return None
        return Account(did, row.signing_key, row.agreement_key, row.legacy, row.bound, row.signs)

    async def find(self, did: str) -> Agent | None:
        row = self._agents.get(did)
        return None if row is None else _public(row)

    async def discover(self, query: Discover) -> Page:
        matching = [
            row
            for row in self._agents.values()
            if query.capability in row.capabilities and row.last_seen >= query.seen_since
        ]
        matching.sort(key=lambda row: row.last_seen, reverse=True)
        found = tuple(
            Found(row.did, _json(row.capabilities), row.reputation, row.last_seen) for row in matching[: query.limit]
        )
        return Page(found, min(len(matching), max(TOTAL_BOUND, query.limit)))

    async def used_proofs(self, now: float) -> list[Proof]:
        return [proof for proof in self._proofs.values() if proof.expires >= now]

    async def record_proofs(self, proofs: Sequence[Proof]) -> None:
        for proof in proofs:
            self._use(proof)

    async def register(self, change: Register) -> Registered:
        if change.did in self._agents:
            return "exists"
        if change.proof is not None and change.proof.digest in self._proofs:
            return "replayed"
        if len(self._agents) >= self._max_agents:
            return "full"
        self._use(change.proof)
        self._agents[change.did] = _Row(
            change.did,
            change.signing_key,
            change.agreement_key,
            change.legacy,
            change.bound,
            change.capabilities,
            change.metadata,
            change.now,
            change.now,
        )
        self._tell(self._agents[change.did])
        return "created"

    async def update(self, change: Update) -> Agent | None:
        row = self._caller(change.caller)
        if row is None:
            return None
        self._tell(row)
        if change.capabilities is not None:
            row.capabilities = change.capabilities
        if change.metadata is not None:
            row.metadata = change.metadata
        row.last_seen = change.now
        self._tell(row)
        return _public(row)

    async def delete(self, change: Delete) -> bool:
        if self._caller(change.caller) is None:
            return False
        self._tell(self._agents.pop(change.caller.did))
        return True

    async def put_prekeys(self, change: PutPrekeys) -> int | PutRefused:
        row = self._agents.get(change.did)
        if row is None:
            return PutRefused.NO_AGENT
        if change.merge and change.signed is None and row.signed is None:
            return PutRefused.NO_BUNDLE
        if change.caller is None and change.signed is not None and change.signed.signature in row.published:
            unchanged = change.signed == row.signed and all(
                row.one_time.get(key.key_id) == key.public_key for key in change.one_time
            )
            return _left(row) if unchanged else PutRefused.SEEN
        spent = row.spent | {row.one_time[key_id] for key_id in row.taken if key_id in row.one_time}
        kept = {key_id: key for key_id, key in row.one_time.items() if change.merge and key_id not in row.taken}
        for key in change.one_time:
            if (change.merge and key.key_id in row.taken) or key.public_key in spent:
                continue
            if kept.setdefault(key.key_id, key.public_key) != key.public_key:
                return PutRefused.OTHER_KEY
        if len(kept) > MAX_ONE_TIME_KEYS:
            return PutRefused.TOO_MANY
        if change.caller is not None:
            self._caller(change.caller)
        row.one_time = kept
        row.spent = spent
        row.taken = row.taken if change.merge else set()
        row.peak = len(kept)
        row.signing_key = change.signing_key
        row.agreement_key = change.agreement_key
        row.last_seen = change.now
        if change.signed is not None:
            row.signed = change.signed
            row.published |= {change.signed.signature} if row.legacy else set()
        self._tell(row)
        return len(kept)

    async def take_prekeys(self, change: TakePrekeys) -> Bundle | None:
        row = self._agents.get(change.did)
        if row is None or row.signed is None or row.signing_key is None or row.agreement_key is None:
            return None
        left = sorted(key_id for key_id in row.one_time if key_id not in row.taken)
        keep = 0 if change.last_ones else reserved(row.peak)
        one_time = None
        if change.one_time and len(left) > keep:
            one_time = OneTimePrekey(left[0], row.one_time[left[0]])
            row.taken.add(left[0])
            self._heard({row.did})
        return Bundle(row.agreement_key, row.signing_key, row.signed, one_time)

    async def touch(self, change: Touch) -> float | TooSoon | None:
        row = self._agents.get(change.caller.did)
        if row is None:
            return None
        if row.heartbeat_at is not None and 0 <= change.now - row.heartbeat_at < change.interval:
            return TooSoon(change.interval - (change.now - row.heartbeat_at))
        self._caller(change.caller)
        row.heartbeat_at = row.last_seen = change.now
        self._tell(row)
        return row.last_seen

    async def rate(self, change: Rate) -> float | None:
        row = self._agents.get(change.did)
        if row is None or self._caller(change.caller) is None:
            return None
        row.reputation = moved_average(row.reputation, change.score, RATING_WEIGHT)
        self._tell(row)
        return row.reputation

    async def record_session(self, change: RecordSession) -> Mapping[str, float] | None:
        if change.initiator not in self._agents or change.receiver not in self._agents:
            return None
        reporter = self._caller(change.caller)
        did = share(change)
        if reporter is None or did is None:
            return {}
        row = self._agents[did]
        if change.session_id not in reporter.reported:
            reporter.reported[change.session_id] = change.now
            row.reputation = moved_average(row.reputation, SESSION_SCORES[change.outcome], SESSION_WEIGHT)
            row.outcomes.append(change.outcome)
            row.last_session_at = change.now
            self._tell(row)
        return {did: row.reputation}

    async def mark_verified(self, change: MarkVerified) -> Agent | None:
        row = self._caller(change.caller)
        if row is None:
            return None
        row.verified = (change.app_id, change.tenant_id, change.now)
        self._heard({row.did})
        return _public(row)

    async def count(self) -> int:
        return len(self._agents)

    async def check(self) -> None:
        pass

    def supply(self) -> Supply:
        left = [_left(row) for row in self._agents.values() if row.signed is not None]
        return Supply(sum(left), left.count(0))

    def free(self) -> None:
        return None

    async def sweep(self, change: Sweep) -> int:
        self._proofs = {proof.digest: proof for proof in self._proofs.values() if proof.expires >= change.now}
        for row in self._agents.values():
            row.reported = {name: at for name, at in row.reported.items() if at >= change.now - REPORTS_KEPT}
        gone = [
            row.did
            for row in self._agents.values()
            if row.last_seen < (change.unpublished_since if row.signed is None else change.silent_since)
        ][:MAX_SWEPT]
        for did in gone:
            self._tell(self._agents.pop(did))
        return len(gone)

    async def close(self) -> None:
        pass

    def _caller(self, caller: Caller) -> _Row | None:
        row = self._agents.get(caller.did)
        if row is not None:
            self._use(caller.proof)
            row.signs = True
            row.bound = row.bound or caller.bound
        return row

    def _tell(self, row: _Row) -> None:
        self._heard({row.did, *row.capabilities})

    def _use(self, proof: Proof | None) -> None:
        if proof is not None:
            self._proofs[proof.digest] = proof


def _left(row: _Row) -> int:
    return sum(key_id not in row.taken for key_id in row.one_time)


def _json(capabilities: Iterable[str]) -> str:
    return json.dumps(list(capabilities), ensure_ascii=False, separators=(",", ":"))


def _public(row: _Row) -> Agent:
    app_id, tenant_id, verified_at = row.verified or (None, None, None)
    return Agent(
        did=row.did,
        signing_key=row.signing_key,
        legacy=row.legacy,
        capabilities=_json(row.capabilities),
        metadata=row.metadata,
        registered_at=row.registered_at,
        last_seen=row.last_seen,
        reputation=row.reputation,
        total_sessions=len(row.outcomes),
        successful_sessions=row.outcomes.count(Outcome.SUCCESS),
        failed_sessions=row.outcomes.count(Outcome.FAILED),
        timeout_sessions=row.outcomes.count(Outcome.TIMEOUT),
        last_session_at=row.last_session_at,
        verified_app_id=app_id,
        verified_tenant_id=tenant_id,
        verified_at=verified_at,
        one_time_keys_left=_left(row),
    )
