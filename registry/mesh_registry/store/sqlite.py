"""The registry on SQLite: one writer thread with group commit, reads beside it on a connection of their own.

The file belongs to one process: the writer remembers which one-time keys are left, and two that remember would hand
out the same key. A lock beside the file sees to that.

``synchronous`` is FULL: a key that was handed out stays handed out across a power failure too. Group commit shares
the price.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from mesh_registry.store.protocol import TOTAL_BOUND, Heard, StoreFailed
from mesh_registry.store.stock import Stock
from mesh_registry.store.vitals import Supply, Vitals
from mesh_registry.store.writer import Writer
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

APPLICATION_ID = 0x6D657368
"""``mesh``, in the file's header: keeps us from opening somebody else's database."""

POOLS = 4096
"""Bundles with their one-time keys kept ready by the writer. 200 keys each make some 30 KiB, so at most 120 MiB."""

TAKEN_REMEMBERED = 1000
"""Taken keys remembered per agent: five times what it can have published at a time."""

_LEFT = """
    (SELECT count(*) FROM one_time_prekey AS k WHERE k.agent = a.id
        AND NOT EXISTS (SELECT 1 FROM taken_prekey AS t WHERE t.agent = k.agent AND t.key_id = k.key_id))"""

_AGENT = f"""
    SELECT did, signing_key, legacy, capabilities, metadata, registered_at, last_seen, reputation,
        successful_sessions + failed_sessions + timeout_sessions, successful_sessions, failed_sessions,
        timeout_sessions, last_session_at, verified_app_id, verified_tenant_id, verified_at, {_LEFT}
    FROM agent AS a WHERE did = ?"""  # noqa: S608 - constants only


class SqliteStore:
    """:class:`~mesh_registry.store.protocol.RegistryStore` in one file."""

    def __init__(self, path: Path, max_agents: int) -> None:
        """Open or create the store.

        Raises:
            StoreFailed: another process uses it, it is no registry's, or it comes from a newer version.
        """
        with contextlib.ExitStack() as opened:
            self._lock = opened.enter_context(contextlib.closing(_lock(path)))
            try:
                _prepare(path)
                self._reader = opened.enter_context(contextlib.closing(_connect(path)))
                self._reader.execute("PRAGMA query_only = ON")
                self._reader.execute("PRAGMA mmap_size = 268435456")
                self.vitals = Vitals()
                self._stock = opened.enter_context(contextlib.closing(Stock(_connect(path))))
                self._writer: Writer[_Session] = Writer(partial(_Session, path, max_agents, self.vitals), self.vitals)
            except (sqlite3.Error, OSError) as error:
                raise StoreFailed(f"{path} cannot be used: {error}") from error
            opened.pop_all()  # from here on close() does it
            self._folder = path.parent

    def listen(self, heard: Heard) -> None:
        self._writer.heard = heard

    async def account(self, did: str) -> Account | None:
        row = self._reader.execute(
            "SELECT signing_key, agreement_key, legacy, bound, signs FROM agent WHERE did = ?", (did,)
        ).fetchone()
        return None if row is None else Account(did, row[0], row[1], bool(row[2]), bool(row[3]), bool(row[4]))

    async def find(self, did: str) -> Agent | None:
        return _agent(self._reader, did)

    async def discover(self, query: Discover) -> Page:
        rows = self._reader.execute(
            "SELECT a.did, a.capabilities, a.reputation, c.last_seen"
            " FROM capability AS c JOIN agent AS a ON a.id = c.agent WHERE c.name = ? AND c.last_seen >= ?"
            " ORDER BY c.last_seen DESC, c.agent DESC LIMIT ?",
            (query.capability, query.seen_since, query.limit),
        ).fetchall()
        total = len(rows)
        if total == query.limit:
            counted = "SELECT 1 FROM capability WHERE name = ? AND last_seen >= ? LIMIT ?"
            bounds = (query.capability, query.seen_since, max(TOTAL_BOUND, query.limit))
            (total,) = self._reader.execute(f"SELECT count(*) FROM ({counted})", bounds).fetchone()  # noqa: S608
        return Page(tuple(Found(*row) for row in rows), total)

    async def used_proofs(self, now: float) -> list[Proof]:
        rows = self._reader.execute("SELECT digest, fingerprint, expires FROM used_proof WHERE expires >= ?", (now,))
        return [Proof(*row) for row in rows]

    async def record_proofs(self, proofs: Sequence[Proof]) -> None:
        await self._writer.run(partial(_Session.record_proofs, proofs=proofs))

    async def register(self, change: Register) -> Registered:
        return await self._writer.run(partial(_Session.register, change=change))

    async def update(self, change: Update) -> Agent | None:
        return await self._writer.run(partial(_Session.update, change=change))

    async def delete(self, change: Delete) -> bool:
        return await self._writer.run(partial(_Session.delete, change=change))

    async def put_prekeys(self, change: PutPrekeys) -> int | PutRefused:
        return await self._writer.run(partial(_Session.put_prekeys, change=change))

    async def take_prekeys(self, change: TakePrekeys) -> Bundle | None:
        return await self._writer.run(partial(_Session.take_prekeys, change=change))

    async def touch(self, change: Touch) -> float | TooSoon | None:
        return await self._writer.run(partial(_Session.touch, change=change))

    async def rate(self, change: Rate) -> float | None:
        return await self._writer.run(partial(_Session.rate, change=change))

    async def record_session(self, change: RecordSession) -> Mapping[str, float] | None:
        return await self._writer.run(partial(_Session.record_session, change=change))

    async def mark_verified(self, change: MarkVerified) -> Agent | None:
        return await self._writer.run(partial(_Session.mark_verified, change=change))

    async def count(self) -> int:
        return self.vitals.agents

    async def check(self) -> None:
        await self._writer.run(_Session.check)

    def supply(self) -> Supply | None:
        found, since = self._stock.found, self.vitals.supply
        return None if found is None else Supply(found.left + since.left, found.agents_without + since.agents_without)

    def free(self) -> int | None:
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:
            return None

    async def sweep(self, change: Sweep) -> int:
        return await self._writer.run(partial(_Session.sweep, change=change))

    async def close(self) -> None:
        await self._writer.close()
        self._stock.close()
        self._reader.close()
        self._lock.close()


@dataclass
class _Pool:
    """One agent's bundle and the one-time keys left of it, the next one last."""

    agent: int
    agreement_key: bytes
    signing_key: bytes
    signed: SignedPrekey
    one_time: list[OneTimePrekey]
    reserved: int


class _Session:
    """The writer's side: a connection, and the pools keys are taken from in memory.

    Taking a key touches the disk once per batch, in one statement for all agents; a statement for each key costs ten
    times as much. The pools are never ahead of the disk for longer than a transaction: a rollback drops them all.
    """

    def __init__(self, path: Path, max_agents: int, vitals: Vitals) -> None:
        self._db = _connect(path)
        self._vitals = vitals
        self._pools: OrderedDict[str, _Pool] = OrderedDict()
        self._taken: list[int] = []
        self._changed: set[str] = set()
        self._max_agents = max_agents
        try:
            (self._agents,) = self._db.execute("SELECT count(*) FROM agent").fetchone()
        except sqlite3.Error:
            self._db.close()
            raise
        self._supply = Supply(0, 0)
        self._changes = 0
        self._checks = False
        self._tell()

    # --- transaction ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._changes, self._checks = self._db.total_changes, False

    def commit(self) -> bool:
        self._flush_taken()
        self._db.execute("COMMIT")
        self._tell()
        return self._checks or self._db.total_changes > self._changes

    def rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        self._pools.clear()
        self._taken.clear()
        self._agents, self._supply = self._vitals.agents, self._vitals.supply

    def _tell(self) -> None:
        self._vitals.agents, self._vitals.supply = self._agents, self._supply

    def take_changed(self) -> set[str]:
        changed, self._changed = self._changed, set()
        return changed

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA optimize")
        self._db.close()

    def _flush_taken(self) -> None:
        while self._taken:
            values, self._taken = self._taken[:20_000], self._taken[20_000:]  # SQLite binds at most 32,766 values
            rows = ",".join(["(?,?)"] * (len(values) // 2))
            self._db.execute(f"INSERT INTO taken_prekey (agent, key_id) VALUES {rows}", values)  # noqa: S608

    # --- verbs ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        self._db.execute(f"PRAGMA user_version = {_one(self._db, 'PRAGMA user_version')}")  # writes the file's header
        self._checks = True

    def register(self, change: Register) -> Registered:
        if self._id(change.did) is not None:
            return "exists"
        proof = change.proof
        if (
            proof is not None
            and self._db.execute("SELECT 1 FROM used_proof WHERE digest = ?", (proof.digest,)).fetchone()
        ):
            return "replayed"
        if self._agents >= self._max_agents:
            return "full"
        self._use(proof)
        cursor = self._db.execute(
            "INSERT INTO agent (did, signing_key, agreement_key, legacy, bound, capabilities, metadata, registered_at,"
            " last_seen, reputation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                change.did,
                change.signing_key,
                change.agreement_key,
                change.legacy,
                change.bound,
                _json(change.capabilities),
                change.metadata,
                change.now,
                change.now,
                INITIAL_REPUTATION,
            ),
        )
        assert cursor.lastrowid is not None
        self._list(cursor.lastrowid, change.capabilities, change.now)
        self._changed.add(change.did)
        self._agents += 1
        return "created"

    def update(self, change: Update) -> Agent | None:
        agent = self._caller(change.caller)
        if agent is None:
            return None
        if change.capabilities is not None:
            self._unlist(agent)
            self._db.execute("UPDATE agent SET capabilities = ? WHERE id = ?", (_json(change.capabilities), agent))
        if change.metadata is not None:
            self._db.execute("UPDATE agent SET metadata = ? WHERE id = ?", (change.metadata, agent))
        self._seen(agent, change.caller.did, change.now)
        return _agent(self._db, change.caller.did)

    def delete(self, change: Delete) -> bool:
        agent = self._caller(change.caller)
        if agent is None:
            return False
        self._forget(agent, change.caller.did)
        return True

    def put_prekeys(self, change: PutPrekeys) -> int | PutRefused:
        agent = self._id(change.did)
        if agent is None:
            return PutRefused.NO_AGENT
        self._flush_taken()
        legacy, *signed = self._db.execute(
            "SELECT legacy, signed_prekey_id, signed_prekey, signed_prekey_signature FROM agent WHERE id = ?", (agent,)
        ).fetchone()
        if change.merge and change.signed is None and signed[0] is None:
            return PutRefused.NO_BUNDLE
        published = dict(
            self._db.execute("SELECT key_id, public_key FROM one_time_prekey WHERE agent = ?", (agent,)).fetchall()
        )
        taken = {key_id for (key_id,) in self._db.execute("SELECT key_id FROM taken_prekey WHERE agent = ?", (agent,))}
        if change.caller is None and change.signed is not None and self._was_published(agent, change.signed):
            unchanged = change.signed == SignedPrekey(*signed) and all(
                published.get(key.key_id) == key.public_key for key in change.one_time
            )
            return len(published.keys() - taken) if unchanged else PutRefused.SEEN
        spent = {key for (key,) in self._db.execute("SELECT public_key FROM spent_prekey WHERE agent = ?", (agent,))}
        spent |= {published[key_id] for key_id in taken if key_id in published}
        kept = {key_id: key for key_id, key in published.items() if change.merge and key_id not in taken}
        for key in change.one_time:
            if (change.merge and key.key_id in taken) or key.public_key in spent:
                continue
            if kept.setdefault(key.key_id, key.public_key) != key.public_key:
                return PutRefused.OTHER_KEY
        if len(kept) > MAX_ONE_TIME_KEYS:
            return PutRefused.TOO_MANY
        if change.caller is not None:
            self._caller(change.caller)
        self._supply = self._supply.changed(None if signed[0] is None else len(published.keys() - taken), len(kept))
        self._replace_one_time_keys(agent, kept, forget_taken=not change.merge)
        if change.signed is not None:
            self._db.execute(
                "UPDATE agent SET signed_prekey_id = ?, signed_prekey = ?, signed_prekey_signature = ? WHERE id = ?",
                (change.signed.key_id, change.signed.public_key, change.signed.signature, agent),
            )
            if legacy:
                self._db.execute(
                    "INSERT OR IGNORE INTO published_prekey (agent, signature) VALUES (?, ?)",
                    (agent, change.signed.signature),
                )
        self._db.execute(
            "UPDATE agent SET signing_key = ?, agreement_key = ?, one_time_peak = ? WHERE id = ?",
            (change.signing_key, change.agreement_key, len(kept), agent),
        )
        self._seen(agent, change.did, change.now)
        self._pools.pop(change.did, None)
        return len(kept)

    def take_prekeys(self, change: TakePrekeys) -> Bundle | None:
        pool = self._pool(change.did)
        if pool is None:
            return None
        keep = 0 if change.last_ones else pool.reserved
        one_time = None
        if change.one_time and len(pool.one_time) > keep:
            one_time = pool.one_time.pop()
            self._taken += (pool.agent, one_time.key_id)
            self._changed.add(change.did)
            self._supply = self._supply.changed(len(pool.one_time) + 1, len(pool.one_time))
        return Bundle(pool.agreement_key, pool.signing_key, pool.signed, one_time)

    def touch(self, change: Touch) -> float | TooSoon | None:
        row = self._db.execute("SELECT heartbeat_at FROM agent WHERE did = ?", (change.caller.did,)).fetchone()
        if row is None:
            return None
        if row[0] is not None and 0 <= change.now - row[0] < change.interval:
            return TooSoon(change.interval - (change.now - row[0]))
        agent = self._caller(change.caller)
        assert agent is not None
        self._db.execute("UPDATE agent SET heartbeat_at = ? WHERE id = ?", (change.now, agent))
        self._seen(agent, change.caller.did, change.now)
        return change.now

    def rate(self, change: Rate) -> float | None:
        agent = self._id(change.did)
        if agent is None or self._caller(change.caller) is None:
            return None
        return self._move(agent, change.score, RATING_WEIGHT)

    def record_session(self, change: RecordSession) -> Mapping[str, float] | None:
        if self._id(change.initiator) is None or self._id(change.receiver) is None:
            return None
        reporter = self._caller(change.caller)
        did = share(change)
        agent = None if did is None else self._id(did)
        if reporter is None or did is None or agent is None:
            return {}
        new = self._db.execute(
            "INSERT OR IGNORE INTO reported_session (reporter, digest, reported_at) VALUES (?, ?, ?)",
            (reporter, hashlib.blake2b(change.session_id.encode(), digest_size=16).digest(), change.now),
        ).rowcount
        column = {"success": "successful_sessions", "failed": "failed_sessions", "timeout": "timeout_sessions"}[
            change.outcome
        ]
        if new:
            self._db.execute(
                f"UPDATE agent SET {column} = {column} + 1, last_session_at = ? WHERE id = ?",  # noqa: S608
                (change.now, agent),
            )
        return {did: self._move(agent, SESSION_SCORES[change.outcome], SESSION_WEIGHT if new else 0)}

    def mark_verified(self, change: MarkVerified) -> Agent | None:
        agent = self._caller(change.caller)
        if agent is None:
            return None
        self._db.execute(
            "UPDATE agent SET verified_app_id = ?, verified_tenant_id = ?, verified_at = ? WHERE id = ?",
            (change.app_id, change.tenant_id, change.now, agent),
        )
        self._changed.add(change.caller.did)
        return _agent(self._db, change.caller.did)

    def record_proofs(self, proofs: Sequence[Proof]) -> None:
        for proof in proofs:
            self._use(proof)

    def sweep(self, change: Sweep) -> int:
        self._db.execute("DELETE FROM used_proof WHERE expires < ?", (change.now,))
        self._db.execute("DELETE FROM reported_session WHERE reported_at < ?", (change.now - REPORTS_KEPT,))
        gone = self._db.execute(
            "SELECT * FROM (SELECT id, did FROM agent WHERE signed_prekey IS NULL AND last_seen < ?1"
            " UNION ALL SELECT id, did FROM agent WHERE signed_prekey IS NOT NULL AND last_seen < ?2) LIMIT ?3",
            (change.unpublished_since, change.silent_since, MAX_SWEPT),
        ).fetchall()
        for agent, did in gone:
            self._forget(agent, did)
        return len(gone)

    # --- parts of verbs ---------------------------------------------------------------------------------------------

    def _id(self, did: str) -> int | None:
        row = self._db.execute("SELECT id FROM agent WHERE did = ?", (did,)).fetchone()
        return None if row is None else int(row[0])

    def _caller(self, caller: Caller) -> int | None:
        agent = self._id(caller.did)
        if agent is not None:
            self._use(caller.proof)
            self._db.execute(
                "UPDATE agent SET signs = 1, bound = max(bound, ?) WHERE id = ? AND (signs, bound) <> (1, ?)",
                (caller.bound, agent, caller.bound),
            )
        return agent

    def _forget(self, agent: int, did: str) -> None:
        self._unlist(agent)
        self._changed.add(did)
        self._pools.pop(did, None)
        self._flush_taken()
        published, left = self._db.execute(
            f"SELECT signed_prekey IS NOT NULL, {_LEFT} FROM agent AS a WHERE id = ?",  # noqa: S608 - constants only
            (agent,),
        ).fetchone()
        self._supply = self._supply.changed(left if published else None, None)
        for table in ("one_time_prekey", "taken_prekey", "spent_prekey", "published_prekey"):
            self._db.execute(f"DELETE FROM {table} WHERE agent = ?", (agent,))  # noqa: S608
        self._db.execute("DELETE FROM reported_session WHERE reporter = ?", (agent,))
        self._db.execute("DELETE FROM agent WHERE id = ?", (agent,))
        self._agents -= 1

    def _use(self, proof: Proof | None) -> None:
        if proof is not None:
            self._db.execute(
                "INSERT OR IGNORE INTO used_proof (digest, fingerprint, expires) VALUES (?, ?, ?)",
                (proof.digest, proof.fingerprint, proof.expires),
            )

    def _seen(self, agent: int, did: str, now: float) -> None:
        self._changed.add(did)
        capabilities = self._unlist(agent)
        self._db.execute("UPDATE agent SET last_seen = ? WHERE id = ?", (now, agent))
        self._list(agent, capabilities, now)

    def _list(self, agent: int, capabilities: Sequence[str], last_seen: float) -> None:
        self._changed.update(capabilities)
        self._db.executemany(
            "INSERT OR IGNORE INTO capability (name, last_seen, agent) VALUES (?, ?, ?)",
            [(name, last_seen, agent) for name in capabilities],
        )

    def _unlist(self, agent: int) -> list[str]:
        text, last_seen = self._db.execute(
            "SELECT capabilities, last_seen FROM agent WHERE id = ?", (agent,)
        ).fetchone()
        capabilities: list[str] = json.loads(text)
        self._changed.update(capabilities)
        self._db.executemany(
            "DELETE FROM capability WHERE name = ? AND last_seen = ? AND agent = ?",
            [(name, last_seen, agent) for name in capabilities],
        )
        return capabilities

    def _was_published(self, agent: int, signed: SignedPrekey) -> bool:
        query = "SELECT 1 FROM published_prekey WHERE agent = ? AND signature = ?"
        return self._db.execute(query, (agent, signed.signature)).fetchone() is not None

    def _replace_one_time_keys(self, agent: int, keys: Mapping[int, bytes], *, forget_taken: bool) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO spent_prekey (agent, public_key) SELECT k.agent, k.public_key"
            " FROM one_time_prekey AS k JOIN taken_prekey AS t ON t.agent = k.agent AND t.key_id = k.key_id"
            " WHERE k.agent = ?",
            (agent,),
        )
        self._db.execute(
            "DELETE FROM spent_prekey WHERE agent = ?1 AND id <= (SELECT id FROM spent_prekey WHERE agent = ?1"
            " ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (agent, TAKEN_REMEMBERED),
        )
        self._db.execute("DELETE FROM one_time_prekey WHERE agent = ?", (agent,))
        if keys:
            rows = ",".join(["(?,?,?)"] * len(keys))
            values = [value for key_id, key in keys.items() for value in (agent, key_id, key)]
            self._db.execute(f"INSERT INTO one_time_prekey (agent, key_id, public_key) VALUES {rows}", values)  # noqa: S608
        self._db.execute(
            "DELETE FROM taken_prekey WHERE agent = ?1 AND key_id <= coalesce((SELECT key_id FROM taken_prekey"
            " WHERE agent = ?1 ORDER BY key_id DESC LIMIT 1 OFFSET ?2), -1)",
            (agent, 0 if forget_taken else TAKEN_REMEMBERED),
        )

    def _move(self, agent: int, sample: float, weight: float) -> float:
        did, capabilities, reputation = self._db.execute(
            "SELECT did, capabilities, reputation FROM agent WHERE id = ?", (agent,)
        ).fetchone()
        self._changed.update((did, *json.loads(capabilities)))
        moved = moved_average(reputation, sample, weight)
        self._db.execute("UPDATE agent SET reputation = ? WHERE id = ?", (moved, agent))
        return moved

    def _pool(self, did: str) -> _Pool | None:
        pool = self._pools.get(did)
        if pool is not None:
            self._pools.move_to_end(did)
            return pool
        row = self._db.execute(
            "SELECT id, agreement_key, signing_key, signed_prekey_id, signed_prekey, signed_prekey_signature,"
            " one_time_peak FROM agent WHERE did = ? AND signed_prekey IS NOT NULL",
            (did,),
        ).fetchone()
        if row is None:
            return None
        self._flush_taken()
        keys = self._db.execute(
            "SELECT k.key_id, k.public_key FROM one_time_prekey AS k WHERE k.agent = ?1 AND NOT EXISTS (SELECT 1"
            " FROM taken_prekey AS t WHERE t.agent = ?1 AND t.key_id = k.key_id) ORDER BY k.key_id DESC",
            (row[0],),
        )
        pool = _Pool(
            row[0], row[1], row[2], SignedPrekey(*row[3:6]), [OneTimePrekey(*key) for key in keys], reserved(row[6])
        )
        self._pools[did] = pool
        if len(self._pools) > POOLS:
            self._pools.popitem(last=False)
        return pool


def _agent(db: sqlite3.Connection, did: str) -> Agent | None:
    row = db.execute(_AGENT, (did,)).fetchone()
    return None if row is None else Agent(row[0], row[1], bool(row[2]), *row[3:])


def _json(capabilities: Sequence[str]) -> str:
    return json.dumps(capabilities, ensure_ascii=False, separators=(",", ":"))


# --- the file -------------------------------------------------------------------------------------------------------


def _lock(path: Path) -> IO[str]:
    """Hold ``path`` for this process, until the returned file is closed."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(  # noqa: SIM115 - held as long as the store
            path.with_name(path.name + ".lock"), "w", opener=lambda name, flags: os.open(name, flags, 0o600)
        )
    except OSError as error:
        raise StoreFailed(f"{path} cannot be used: {error}") from error
    try:
        import fcntl  # not on Windows, where opening the same store twice stays the operator's own risk
    except ImportError:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StoreFailed(
            f"{path} is in use by another mesh-registry: stop it, or give this one its own --store"
        ) from error
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    with contextlib.ExitStack() as opened:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
        opened.callback(db.close)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        opened.pop_all()
    return db


def _migrations() -> list[str]:
    folder = files("mesh_registry.store") / "schema"
    return [script.read_text() for script in sorted(folder.iterdir(), key=lambda item: item.name)]


def _prepare(path: Path) -> None:
    """Create the file with mode 0600, or bring it to the newest schema after a backup beside it."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with contextlib.closing(_connect(path)) as db:
        version = _one(db, "PRAGMA user_version")
        migrations = _migrations()
        empty = version == 0 and _one(db, "SELECT count(*) FROM sqlite_master") == 0
        if not empty and _one(db, "PRAGMA application_id") != APPLICATION_ID:
            raise StoreFailed(f"{path} is another program's database")
        if version > len(migrations):
            raise StoreFailed(f"{path} was written by a newer mesh-registry (schema {version}): upgrade this one")
        if not empty and version < len(migrations):
            _one(db, "PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copy2(path, path.with_name(f"{path.name}.schema-{version}"))
        db.execute("PRAGMA journal_mode = WAL")
        for number, script in enumerate(migrations[version:], start=version + 1):
            db.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {APPLICATION_ID};"
                f" PRAGMA user_version = {number}; COMMIT;"
            )


def _one(db: sqlite3.Connection, query: str) -> Any:
    return db.execute(query).fetchone()[0]
