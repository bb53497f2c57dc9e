"""A store on the disk: one SQLite file in a private folder.

Owns which record goes into which row, and which of them are sealed. Leaves the file and its errors to
:mod:`meshlib.store.database`, the lock to :mod:`meshlib.store.lock` and how a session becomes bytes to
:mod:`meshlib.snapshot`.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from meshlib.client.events import DeliveryState
from meshlib.client.keyring import DatedPrekey
from meshlib.client.peers import Candidate, Entry, Peer, Strand
from meshlib.crypto.keys import Ed25519Private, Entropy, X25519Private, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, SignedPrekey
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.errors import InvalidValue, MeshError, StoreError
from meshlib.identity import Did
from meshlib.snapshot import SealingKey, pack_session, unpack_session
from meshlib.store import rows
from meshlib.store.database import Database, prepare_folder, schemas
from meshlib.store.lock import FolderLock
from meshlib.store.protocol import (
    OUTCOMES_KEPT,
    SEEN_KEPT,
    SPENT_KEPT,
    Changes,
    InboxKey,
    Incoming,
    Outcome,
    Outgoing,
    SavedState,
    newest,
)
from meshlib.store.seal import Seal
from meshlib.wire.encoding import MessageId

_Key = TypeVar("_Key")
_Record = TypeVar("_Record")
_Row = tuple[Any, ...]


class SqliteStore:
    """Keeps one identity in a folder, and the folder to itself until :meth:`close`.

    Not for two threads at a time; which thread it is may change between calls. What was saved survives the process
    and a power cut.

    Args:
        folder: made with mode 0700 if it is not there.
        passphrase: seals keys, sessions and payloads. Names of peers, ids and times stay readable. Costs a
            fraction of a second on opening.
        keep_seen: message ids that :meth:`load` returns.
        keep_spent: ephemeral keys that :meth:`load` returns.
        max_bytes: bound of the file's size; saving beyond it fails like a full disk.
        scripts: the schema's versions, for tests of upgrades.
        make_sealing: how a new store's key is made of the passphrase, for tests in a hurry.
    Raises:
        InvalidValue: the passphrase is empty.
        IdentityInUse: the folder is open elsewhere; the message names the holder.
        StoreError: the folder cannot be used, or the passphrase is not the one it was made with.
    """

    durable = True

    def __init__(
        self,
        folder: Path,
        passphrase: str | None = None,
        *,
        keep_seen: int = SEEN_KEPT,
        keep_spent: int = SPENT_KEPT,
        max_bytes: int | None = None,
        scripts: Sequence[str] | None = None,
        make_sealing: Callable[[str, Entropy], SealingKey] = SealingKey.create,
    ) -> None:
        if passphrase == "":
            raise InvalidValue("an empty passphrase seals nothing: give one, or none")
        self.folder = folder
        self._make_sealing = make_sealing
        self._seen = _Window("seen", ("sender", "id"), keep_seen)
        self._spent = _Window("spent_ephemeral", ("ek",), keep_spent)
        self._outcomes = _Window("outcome", ("id", "peer", "state"), OUTCOMES_KEPT)
        # What the rows hold, to write only what differs. The records are the core's own, not copies.
        self._peers: dict[Did, Peer] = {}
        self._outbox: dict[MessageId, Outgoing] = {}
        self._inbox: dict[InboxKey, Incoming] = {}
        self._loaded = False
        prepare_folder(folder)
        self._lock = FolderLock(folder)
        try:
            self._seal, self._database = self._open(passphrase, schemas() if scripts is None else scripts, max_bytes)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let go of the file, then of the lock. May be called twice."""
        try:
            if self._lock.held:
                self._database.close()
        finally:
            self._lock.release()

    # --- opening -----------------------------------------------------------------------------------------------------

    def _open(self, passphrase: str | None, scripts: Sequence[str], max_bytes: int | None) -> tuple[Seal, Database]:
        made: list[Seal] = []

        def fill(connection: sqlite3.Connection) -> None:
            seal = Seal.make(passphrase, self._make_sealing)
            connection.execute("INSERT INTO identity (one, sealing) VALUES (1, ?)", (seal.header,))
            made.append(seal)

        database = Database(self.folder, fill, scripts, max_bytes)
        try:
            # The passphrase comes before the upgrade: a wrong one changes nothing.
            seal = made[0] if made else Seal.find(passphrase, *_only(database.rows("SELECT sealing FROM identity")))
            database.upgrade()
        except BaseException:
            database.close()
            raise
        return seal, database

    # --- reading -----------------------------------------------------------------------------------------------------

    def load(self) -> SavedState:
        """Everything that is there.

        Raises:
            StoreError: it cannot be read, or a record is not what was written.
        """
        self._still_ours()
        try:
            self._peers = self._load_peers()
            self._outbox = {outgoing.id: outgoing for outgoing in self._load_outbox()}
            self._inbox = {(incoming.sender, incoming.id): incoming for incoming in self._load_inbox()}
            self._loaded = True
            signing_key, next_prekey_id, epoch = _only(
                self._rows("SELECT sealed_key, next_prekey_id, epoch FROM identity")
            )
            return SavedState(
                signing_key=None if signing_key is None else Ed25519Private(self._seal.unlock(signing_key, "identity")),
                signed_prekeys=tuple(self._load_signed_prekeys()),
                one_time_prekeys={
                    key_id: OneTimePrekey(key_id, X25519Private(self._seal.unlock(sealed, "one-time prekey", key_id)))
                    for key_id, sealed in self._rows("SELECT key_id, sealed FROM one_time_prekey ORDER BY key_id")
                },
                next_prekey_id=next_prekey_id,
                epoch=epoch,
                peers=dict(self._peers),
                outbox=tuple(self._outbox.values()),
                inbox=tuple(self._inbox.values()),
                seen=newest((Did(sender), MessageId(message)) for sender, message in self._seen.load(self._database)),
                spent_ephemerals=newest(ek for (ek,) in self._spent.load(self._database)),
                outcomes=newest(
                    Outcome(MessageId(message), Did(peer), DeliveryState(state))
                    for message, peer, state in self._outcomes.load(self._database)
                ),
            )
        except StoreError:
            raise
        except (MeshError, ValueError, TypeError) as error:
            # A row that no version of ours writes. The value stays out of the message: it may be a key.
            raise StoreError(
                f"{self._database.path} holds a record that cannot be read ({type(error).__name__}): restore a copy"
            ) from None

    def _load_signed_prekeys(self) -> Iterable[DatedPrekey]:
        for key_id, made, signature, sealed in self._rows(
            "SELECT key_id, made, signature, sealed FROM signed_prekey ORDER BY place"
        ):
            private = X25519Private(self._seal.unlock(sealed, "signed prekey", key_id))
            yield DatedPrekey(SignedPrekey(key_id, private, signature), made)

    def _load_peers(self) -> dict[Did, Peer]:
        strands: dict[str, list[Strand]] = {}
        for did, session_id, opened, heard, rival, mute, sealed in self._rows(
            "SELECT peer, session, opened, heard, rival, mute, sealed FROM strand ORDER BY peer, place"
        ):
            session = unpack_session(self._seal.unlock(sealed, "strand", did, session_id.hex()))
            strands.setdefault(did, []).append(Strand(session, opened, bool(heard), rival, bool(mute)))
        candidates: dict[str, list[Candidate]] = {}
        for did, knock_id, ik, ek, one_time_key_id, opened, rival in self._rows(
            "SELECT peer, knock_id, ik, ek, one_time_key_id, opened, rival FROM candidate ORDER BY peer, place"
        ):
            opening = Opening.from_bytes(ik, ek, one_time_key_id)
            candidates.setdefault(did, []).append(Candidate(MessageId(knock_id), opening, opened, (), rival))
        return {
            Did(did): Peer(
                Did(did),
                tuple(strands.get(did, ())),
                tuple(candidates.get(did, ())),
                Entry(entry),
                knock_id,
                knock_frame,
                counter,
                bool(verified),
                None if dialect is None else Dialect(dialect),
                None if pinned is None else X25519Public(pinned),
            )
            for did, entry, knock_id, knock_frame, counter, verified, dialect, pinned in self._rows(
                "SELECT did, entry, knock_id, knock_frame, counter, verified, dialect, pinned FROM peer"
            )
        }

    def _load_outbox(self) -> Iterable[Outgoing]:
        for message, peer, state, payload, frame, queued in self._rows(
            "SELECT id, peer, state, sealed_payload, sealed_frame, queued FROM outbox ORDER BY position"
        ):
            yield Outgoing(
                MessageId(message),
                Did(peer),
                self._seal.unlock(payload, "outbox payload", peer, message),
                DeliveryState(state),
                None if frame is None else self._seal.unlock(frame, "outbox frame", peer, message),
                queued,
            )

    def _load_inbox(self) -> Iterable[Incoming]:
        for sender, message, payload, encrypted, handed_over in self._rows(
            "SELECT sender, id, sealed_payload, encrypted, handed_over FROM inbox ORDER BY position"
        ):
            yield Incoming(
                Did(sender),
                MessageId(message),
                self._seal.unlock(payload, "inbox payload", sender, message),
                bool(encrypted),
                bool(handed_over),
            )

    def _rows(self, query: str) -> list[_Row]:
        return self._database.rows(query)

    # --- writing -----------------------------------------------------------------------------------------------------

    def save(self, changes: Changes) -> None:
        """Write all of ``changes`` in one transaction, and only what differs from the rows.

        Raises:
            StoreError: nothing of it was written.
        """
        self._still_ours()
        if not self._loaded:
            self.load()  # to know what the rows hold
        with self._database.transaction() as connection:
            self._save_keys(connection, changes)
            gone, there = _split(changes.peers)
            self._save_peers(connection, there.values())
            self._forget_peers(connection, gone)
            self._save_outbox(connection, changes.outbox)
            self._save_inbox(connection, changes.inbox)
            self._seen.append(connection, changes.seen)
            self._spent.append(connection, ((ek,) for ek in changes.spent_ephemerals))
            self._outcomes.append(connection, changes.outcomes)
        _apply(self._peers, changes.peers)
        _apply(self._outbox, changes.outbox)
        _apply(self._inbox, changes.inbox)
        self._seen.committed()
        self._spent.committed()
        self._outcomes.committed()

    def _save_keys(self, connection: sqlite3.Connection, changes: Changes) -> None:
        if changes.signing_key is not None:
            sealed = self._seal.lock(bytes(changes.signing_key), "identity")
            connection.execute("UPDATE identity SET sealed_key = ?", (sealed,))
        if changes.epoch is not None:
            connection.execute("UPDATE identity SET epoch = ?", (changes.epoch,))
        if changes.next_prekey_id is not None:
            connection.execute("UPDATE identity SET next_prekey_id = ?", (changes.next_prekey_id,))
        if changes.signed_prekeys is not None:
            connection.execute("DELETE FROM signed_prekey")
            connection.executemany(
                "INSERT INTO signed_prekey (key_id, place, made, signature, sealed) VALUES (?, ?, ?, ?, ?)",
                [
                    (key_id, place, dated.made, signature, self._seal.lock(bytes(private), "signed prekey", key_id))
                    for place, dated in enumerate(changes.signed_prekeys)
                    for key_id, private, signature in (dated.prekey,)
                ],
            )
        gone, there = _split(changes.one_time_prekeys)
        rows.change(connection, "DELETE FROM one_time_prekey WHERE key_id IN", gone)
        rows.insert(
            connection,
            "INSERT OR REPLACE INTO one_time_prekey (key_id, sealed)",
            [(key_id, self._seal.lock(bytes(key.private), "one-time prekey", key_id)) for key_id, key in there.items()],
        )

    def _save_peers(self, connection: sqlite3.Connection, peers: Iterable[Peer]) -> None:
        facts: list[_Row] = []
        strands: list[_Row] = []
        candidates: list[_Row] = []
        ended: list[_Row] = []
        settled: list[Did] = []
        for peer in peers:
            before = self._peers.get(peer.did) or Peer(peer.did)
            facts.append(
                (
                    peer.did,
                    peer.entry.value,
                    peer.knock_id,
                    peer.knock_frame,
                    peer.counter,
                    peer.verified,
                    peer.dialect,
                    _raw(peer.pinned),
                )
            )
            kept = {strand.session.id: (place, strand) for place, strand in enumerate(before.strands)}
            for place, strand in enumerate(peer.strands):
                was_place, was = kept.pop(strand.session.id, (-1, None))
                if was_place != place or was is not strand:  # stragglers may keep thousands of skipped keys
                    strands.append(self._strand_row(peer.did, place, strand))
            ended.extend((peer.did, session_id) for session_id in kept)
            if peer.candidates is not before.candidates:
                settled.append(peer.did)
                candidates.extend(_candidate_rows(peer))
        rows.insert(
            connection,
            "INSERT OR REPLACE INTO peer (did, entry, knock_id, knock_frame, counter, verified, dialect, pinned)",
            facts,
        )
        connection.executemany("DELETE FROM strand WHERE peer = ? AND session = ?", ended)
        rows.insert(
            connection,
            "INSERT INTO strand (peer, session, place, opened, heard, rival, mute, sealed)",
            strands,
            "ON CONFLICT (peer, session) DO UPDATE SET place = excluded.place, opened = excluded.opened,"
            " heard = excluded.heard, rival = excluded.rival, mute = excluded.mute, sealed = excluded.sealed",
        )
        rows.change(connection, "DELETE FROM candidate WHERE peer IN", settled)
        rows.insert(
            connection,
            "INSERT INTO candidate (peer, place, knock_id, ik, ek, one_time_key_id, opened, rival)",
            candidates,
        )

    def _forget_peers(self, connection: sqlite3.Connection, dids: Sequence[Did]) -> None:
        for statement in (
            "DELETE FROM strand WHERE peer IN",
            "DELETE FROM candidate WHERE peer IN",
            "DELETE FROM peer WHERE did IN",
        ):
            rows.change(connection, statement, dids)

    def _strand_row(self, did: Did, place: int, strand: Strand) -> _Row:
        session_id = strand.session.id
        sealed = self._seal.lock(pack_session(strand.session), "strand", did, session_id.hex())
        return (did, session_id, place, strand.opened, strand.heard, strand.rival, strand.mute, sealed)

    def _save_outbox(self, connection: sqlite3.Connection, changes: Mapping[MessageId, Outgoing | None]) -> None:
        gone, there = _split(changes)
        fresh: list[_Row] = []
        moved: list[tuple[DeliveryState, MessageId]] = []
        rewritten: list[_Row] = []
        for message, outgoing in there.items():
            before = self._outbox.get(message)
            known = before is not None and before.payload == outgoing.payload and before.peer == outgoing.peer
            if known and before is not None and before.frame is outgoing.frame:
                moved.append((outgoing.state, message))
                continue
            frame = None
            if outgoing.frame is not None:
                frame = self._seal.lock(outgoing.frame, "outbox frame", outgoing.peer, message)
            if known:
                rewritten.append((outgoing.state, frame, message))
            else:
                payload = self._seal.lock(outgoing.payload, "outbox payload", outgoing.peer, message)
                fresh.append((message, outgoing.peer, outgoing.state, payload, frame, outgoing.queued))
        rows.change(connection, "DELETE FROM outbox WHERE id IN", gone)
        for state, messages in rows.grouped(moved).items():
            rows.change(connection, "UPDATE outbox SET state = ? WHERE id IN", messages, state)
        connection.executemany("UPDATE outbox SET state = ?, sealed_frame = ? WHERE id = ?", rewritten)
        rows.insert(
            connection,
            "INSERT INTO outbox (id, peer, state, sealed_payload, sealed_frame, queued)",
            fresh,
            "ON CONFLICT (id) DO UPDATE SET peer = excluded.peer, state = excluded.state,"
            " sealed_payload = excluded.sealed_payload, sealed_frame = excluded.sealed_frame, queued = excluded.queued",
        )

    def _save_inbox(self, connection: sqlite3.Connection, changes: Mapping[InboxKey, Incoming | None]) -> None:
        gone, there = _split(changes)
        fresh: list[_Row] = []
        moved: list[tuple[tuple[bool, bool, Did], MessageId]] = []
        for key, incoming in there.items():
            before = self._inbox.get(key)
            if before is not None and before.payload == incoming.payload:
                moved.append(((incoming.encrypted, incoming.handed_over, incoming.sender), incoming.id))
            else:
                payload = self._seal.lock(incoming.payload, "inbox payload", *key)
                fresh.append((*key, incoming.encrypted, incoming.handed_over, payload))
        for sender, messages in rows.grouped(gone).items():
            rows.change(connection, "DELETE FROM inbox WHERE sender = ? AND id IN", messages, sender)
        for facts, messages in rows.grouped(moved).items():
            statement = "UPDATE inbox SET encrypted = ?, handed_over = ? WHERE sender = ? AND id IN"
            rows.change(connection, statement, messages, *facts)
        rows.insert(
            connection,
            "INSERT INTO inbox (sender, id, encrypted, handed_over, sealed_payload)",
            fresh,
            "ON CONFLICT (sender, id) DO UPDATE SET encrypted = excluded.encrypted,"
            " handed_over = excluded.handed_over, sealed_payload = excluded.sealed_payload",
        )

    def _still_ours(self) -> None:
        if not self._lock.held:
            raise StoreError(
                f"the store in {self.folder} is not open in this process: open it here, after a fork and after close()"
            )


class _Window:
    """A table of which only the newest rows count. Older ones go in batches: one at a time would double the work."""

    def __init__(self, table: str, columns: tuple[str, ...], keep: int) -> None:
        names = ", ".join(columns)
        self._insert = f"INSERT INTO {table} ({names})"
        self._trim = f"DELETE FROM {table} WHERE position <= (SELECT max(position) FROM {table}) - ?"  # noqa: S608
        self._newest = f"SELECT {names} FROM {table} ORDER BY position DESC LIMIT ?"  # noqa: S608
        self._keep = keep
        self._batch = keep // 100 + 1
        self._untrimmed = self._batch  # an earlier process may have left some
        self._pending = 0

    def append(self, connection: sqlite3.Connection, latest: Iterable[_Row]) -> None:
        """Add rows, the newest last, within a transaction."""
        added = list(latest)
        self._pending = self._untrimmed
        if not added:
            return
        rows.insert(connection, self._insert, added)
        self._pending += len(added)
        if self._pending > self._batch:
            connection.execute(self._trim, (self._keep,))
            self._pending = 0

    def committed(self) -> None:
        """The transaction is on the disk."""
        self._untrimmed = self._pending

    def load(self, database: Database) -> list[_Row]:
        """The newest rows, oldest first."""
        return database.rows(self._newest, (self._keep,))[::-1]


def _candidate_rows(peer: Peer) -> Iterable[_Row]:
    for place, candidate in enumerate(peer.candidates):
        ik, ek, one_time_key_id = candidate.opening
        yield (
            peer.did,
            place,
            candidate.knock_id,
            bytes(ik),
            bytes(ek),
            one_time_key_id,
            candidate.opened,
            candidate.rival,
        )


def _raw(key: X25519Public | None) -> bytes | None:
    return None if key is None else bytes(key)


def _only(rows: list[_Row]) -> _Row:
    if len(rows) != 1:
        raise StoreError("the store has lost its identity row: restore a copy of the folder")
    return rows[0]


def _split(changes: Mapping[_Key, _Record | None]) -> tuple[list[_Key], dict[_Key, _Record]]:
    """Keys of deleted records, and the others."""
    return (
        [key for key, record in changes.items() if record is None],
        {key: record for key, record in changes.items() if record is not None},
    )


def _apply(records: dict[_Key, _Record], changes: Mapping[_Key, _Record | None]) -> None:
    gone, there = _split(changes)
    for key in gone:
        records.pop(key, None)
    records.update(there)
