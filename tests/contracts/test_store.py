"""What every store promises: the one in memory, the one on the disk, and the one on the disk with a passphrase.

A store on the disk is closed and opened again between the steps, so that only what is in the file counts.
"""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from dataclasses import replace as with_other
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import astuple, replace

from meshlib.client.events import DeliveryState
from meshlib.client.keyring import DatedPrekey
from meshlib.client.peers import Candidate, Entry, Peer, Strand
from meshlib.crypto.keys import Ed25519Private, SecretBytes, X25519Private
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.x3dh import Dialect, Opening
from meshlib.errors import IdentityInUse, InvalidValue, StoreError
from meshlib.identity import Did, Identity
from meshlib.session import Session
from meshlib.snapshot import SealingKey
from meshlib.store import open_store
from meshlib.store.database import DATABASE_FILE, schemas
from meshlib.store.memory import MemoryStore
from meshlib.store.protocol import (
    Changes,
    Incoming,
    Outgoing,
    SavedState,
    Store,
    newest,
    without_candidate_sessions,
)
from meshlib.store.sqlite import SqliteStore
from meshlib.wire.encoding import MessageId

PASSPHRASE = "correct horse battery staple"
QUICK = partial(SealingKey.create, operations=1, memory=8192)
KEEP_SEEN = 250
KEEP_SPENT = 120

# --- things to save --------------------------------------------------------------------------------------------------


def entropy(seed: object) -> Callable[[int], bytes]:
    return random.Random(repr(seed)).randbytes


ME = Identity.generate(entropy("me"))
PEERS = [Identity.generate(entropy(number)) for number in range(3)]
OLD_PEER = Did("did:agentmesh:älter")
SIGNED = [make_signed_prekey(ME, 1000 + number, entropy(number)) for number in range(3)]
ONE_TIME = make_one_time_prekeys(1, 6, entropy("one-time"))


def conversation(peer: Identity, seed: int) -> tuple[list[Session], Opening]:
    """Our end of one session at several moments of its life, and how the peer opened it."""
    draw = entropy(("conversation", seed))
    signed, one_time = SIGNED[seed % 3], ONE_TIME[seed % 6]
    bundle = make_bundle(ME, signed, one_time)
    dialect = list(Dialect)[seed % 2]
    theirs, opening = Session.initiate(peer, peer.did, ME.did, bundle, dialect, draw)
    ours = Session.respond(ME, ME.did, peer.did, opening, signed, one_time, dialect)
    moments = [ours]
    for size in range(3):
        for _ in range(size):
            theirs, _, _ = theirs.encrypt(b"lost", draw)  # leaves a skipped key
        theirs, header, ciphertext = theirs.encrypt(b"ping", draw)
        ours, _ = ours.decrypt(header, ciphertext, draw)
        ours, header, ciphertext = ours.encrypt(b"pong", draw)
        theirs, _ = theirs.decrypt(header, ciphertext, draw)
        moments.append(ours)
    return moments, opening


CONVERSATIONS = [conversation(PEERS[number % 3], number) for number in range(6)]
SESSIONS = [moment for moments, _ in CONVERSATIONS for moment in moments]
OPENINGS = [opening for _, opening in CONVERSATIONS]


def message(number: int) -> MessageId:
    return MessageId(f"00000000-0000-4000-8000-{number:012}")


def peer(number: int = 0, *, counter: int = 5) -> Peer:
    """A peer with everything a peer can have."""
    first, second = CONVERSATIONS[number][0][2], CONVERSATIONS[number + 3][0][1]
    return Peer(
        PEERS[number].did,
        (Strand(first, 3, heard=True, rival=second.id), Strand(second, 1)),
        (
            Candidate(message(7), OPENINGS[number], 4, (SESSIONS[0],), rival=first.id),
            Candidate(message(8), OPENINGS[2], 2, ()),
        ),
        Entry.KNOCKING,
        message(9),
        b"the knock as it was written",
        counter,
        verified=True,
        dialect=Dialect.AGT4,
        pinned=OPENINGS[number].ik,
    )


def incoming(number: int, **facts: bool) -> Incoming:
    return Incoming(PEERS[number % 3].did, message(number), b'"private %d \xf0\x9f\x94\x91"' % number, **facts)


def outgoing(number: int, **facts: object) -> Outgoing:
    return replace(Outgoing(message(number), OLD_PEER, b'"private %d"' % number), **facts)


def everything() -> Changes:
    """A step that changes whatever can change."""
    return Changes(
        signing_key=ME.signing_key,
        signed_prekeys=(DatedPrekey(SIGNED[1], 1_700_000_000.123), DatedPrekey(SIGNED[0], 0.1 + 0.2)),
        one_time_prekeys={key.key_id: key for key in ONE_TIME},
        next_prekey_id=77,
        peers={peer().did: peer(), OLD_PEER: Peer(OLD_PEER)},
        outbox={
            message(1): outgoing(1, queued=1_700_000_000.25),
            message(2): outgoing(2, state=DeliveryState.RELAYED, frame=b"private frame"),
        },
        inbox={(one.sender, one.id): one for one in (incoming(3), incoming(4, encrypted=False, handed_over=True))},
        seen=[(OLD_PEER, message(5)), (OLD_PEER, message(6))],
        spent_ephemerals=[bytes(OPENINGS[0].ek)],
    )


def expected_of_everything() -> SavedState:
    changes = everything()
    return SavedState(
        signing_key=changes.signing_key,
        signed_prekeys=changes.signed_prekeys or (),
        one_time_prekeys={key.key_id: key for key in ONE_TIME},
        next_prekey_id=77,
        peers={did: without_candidate_sessions(one) for did, one in changes.peers.items()},
        outbox=tuple(one for one in changes.outbox.values() if one),
        inbox=tuple(one for one in changes.inbox.values() if one),
        seen=tuple(changes.seen),
        spent_ephemerals=tuple(changes.spent_ephemerals),
    )


# --- the stores ------------------------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """A store that can be put away and taken out again."""

    folder: Path | None
    passphrase: str | None = None
    store: Store | None = None

    def open(self) -> Store:
        if self.store is None:
            if self.folder is None:
                self.store = MemoryStore(keep_seen=KEEP_SEEN, keep_spent=KEEP_SPENT)
            else:
                self.store = SqliteStore(
                    self.folder, self.passphrase, keep_seen=KEEP_SEEN, keep_spent=KEEP_SPENT, make_sealing=QUICK
                )
        return self.store

    def put_away(self) -> None:
        if self.store is not None:
            self.store.close()
            if self.folder is not None:
                self.store = None

    def save(self, *steps: Changes) -> None:
        for changes in steps:
            self.open().save(changes)
            self.put_away()

    def load(self) -> SavedState:
        state = self.open().load()
        self.put_away()
        return state


@pytest.fixture(params=["memory", "disk", "sealed"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(
        None if request.param == "memory" else tmp_path / "store", PASSPHRASE if request.param == "sealed" else None
    )
    yield shelf
    shelf.put_away()


@pytest.fixture(params=[None, PASSPHRASE], ids=["disk", "sealed"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path / "store", request.param)
    yield shelf
    shelf.put_away()


# --- what every store promises ---------------------------------------------------------------------------------------


def test_new_store_holds_nothing(shelf: Shelf) -> None:
    assert shelf.load() == SavedState()


def test_whatever_is_saved_is_loaded(shelf: Shelf) -> None:
    shelf.save(everything())
    assert shelf.load() == expected_of_everything()


def test_saving_the_same_again_changes_nothing(shelf: Shelf) -> None:
    shelf.save(everything(), everything())
    assert shelf.load() == expected_of_everything()


def test_empty_step_changes_nothing(shelf: Shelf) -> None:
    shelf.save(everything(), Changes())
    assert shelf.load() == expected_of_everything()


def test_a_step_needs_no_load_before_it(shelf: Shelf) -> None:
    shelf.save(everything())
    bare = Peer(peer().did, counter=6)
    shelf.save(Changes(peers={bare.did: bare}))
    assert shelf.load().peers[bare.did] == bare


def test_loaded_sessions_still_work(shelf: Shelf) -> None:
    draw = entropy("works")
    bundle = make_bundle(ME, SIGNED[0])
    theirs, opening = Session.initiate(PEERS[0], PEERS[0].did, ME.did, bundle, Dialect.AGT5, draw)
    ours = Session.respond(ME, ME.did, PEERS[0].did, opening, SIGNED[0], None, Dialect.AGT5)
    did = PEERS[0].did
    for number in range(4):
        shelf.save(Changes(peers={did: Peer(did, (Strand(ours, 0, heard=True),))}))
        (strand,) = shelf.load().peers[did].strands
        theirs, header, ciphertext = theirs.encrypt(b"ping %d" % number, draw)
        ours, plaintext = strand.session.decrypt(header, ciphertext, draw)
        assert plaintext == b"ping %d" % number
        ours, header, ciphertext = ours.encrypt(b"pong", draw)
        theirs, plaintext = theirs.decrypt(header, ciphertext, draw)
        assert plaintext == b"pong"


def test_none_deletes(shelf: Shelf) -> None:
    shelf.save(everything())
    shelf.save(
        Changes(
            one_time_prekeys={1: None, 999: None},
            outbox={message(1): None, message(999): None},
            inbox={(incoming(3).sender, message(3)): None, (OLD_PEER, message(999)): None},
        )
    )
    state = shelf.load()
    assert list(state.one_time_prekeys) == [2, 3, 4, 5, 6]
    assert [one.id for one in state.outbox] == [message(2)]
    assert [one.id for one in state.inbox] == [message(4)]


def test_queues_keep_their_order_when_records_change(shelf: Shelf) -> None:
    shelf.save(
        *(Changes(outbox={message(n): outgoing(n)}, inbox={(OLD_PEER, message(n)): received(n)}) for n in (5, 3, 9))
    )
    shelf.save(
        Changes(
            outbox={message(5): outgoing(5, state=DeliveryState.RELAYED, frame=b"frame")},
            inbox={(OLD_PEER, message(3)): received(3, handed_over=True)},
        )
    )
    shelf.save(Changes(outbox={message(5): outgoing(5, state=DeliveryState.STORED)}))
    state = shelf.load()
    assert state.outbox == (outgoing(5, state=DeliveryState.STORED), outgoing(3), outgoing(9))
    assert state.inbox == (received(5), received(3, handed_over=True), received(9))


def received(number: int, **facts: bool) -> Incoming:
    return replace(incoming(number, **facts), sender=OLD_PEER)


def test_same_message_id_of_two_senders_is_two_messages(shelf: Shelf) -> None:
    one, other = incoming(3), received(3)
    shelf.save(Changes(inbox={(one.sender, one.id): one, (other.sender, other.id): other}))
    shelf.save(Changes(inbox={(one.sender, one.id): None}))
    assert shelf.load().inbox == (other,)


def test_sessions_that_were_dropped_are_gone(shelf: Shelf) -> None:
    full = peer()
    shelf.save(Changes(peers={full.did: full}))
    shorter = replace(full, strands=full.strands[1:], candidates=())
    shelf.save(Changes(peers={full.did: shorter}))
    assert shelf.load().peers == {full.did: shorter}
    shelf.save(Changes(peers={full.did: full.without_sessions()}))
    assert shelf.load().peers == {full.did: full.without_sessions()}


def test_sessions_keep_their_order_when_it_changes(shelf: Shelf) -> None:
    full = peer()
    shelf.save(Changes(peers={full.did: full}))
    turned = replace(full, strands=full.strands[::-1], candidates=full.candidates[::-1])
    shelf.save(Changes(peers={full.did: turned}))
    assert shelf.load().peers[full.did] == without_candidate_sessions(turned)


def test_open_store_notices_whatever_differs_from_its_rows(shelf: Shelf) -> None:
    """The same objects in another order, and other bytes under a known id."""
    store = shelf.open()
    full = replace(peer(), candidates=())
    store.save(
        Changes(peers={full.did: full}, outbox={message(1): outgoing(1)}, inbox={(OLD_PEER, message(1)): received(1)})
    )
    turned = replace(full, strands=full.strands[::-1])
    other_out = replace(outgoing(1), payload=b'"other"')
    other_in = replace(received(1), payload=b'"other"')
    store.save(
        Changes(peers={full.did: turned}, outbox={message(1): other_out}, inbox={(OLD_PEER, message(1)): other_in})
    )
    state = shelf.load()
    assert (state.peers, state.outbox, state.inbox) == ({full.did: turned}, (other_out,), (other_in,))
    moved = replace(other_out, peer=PEERS[0].did)
    store = shelf.open()
    store.load()
    store.save(Changes(outbox={message(1): moved}))
    assert shelf.load().outbox == (moved,)


def test_file_does_not_grow_with_ids_that_are_not_kept(disk: Shelf) -> None:
    for start in range(0, 4 * KEEP_SEEN, 20):
        disk.save(Changes(seen=[(OLD_PEER, message(start + number)) for number in range(20)]))
    assert disk.folder is not None
    with closing(sqlite3.connect(disk.folder / DATABASE_FILE)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM seen").fetchone()
    assert KEEP_SEEN <= rows <= KEEP_SEEN + 20


def test_signed_prekeys_are_replaced_as_a_whole(shelf: Shelf) -> None:
    shelf.save(everything())
    shelf.save(Changes(signed_prekeys=(DatedPrekey(SIGNED[2], 5.0), DatedPrekey(SIGNED[1], 4.0))))
    assert [dated.prekey for dated in shelf.load().signed_prekeys] == [SIGNED[2], SIGNED[1]]
    shelf.save(Changes(signed_prekeys=()))
    assert shelf.load().signed_prekeys == ()


def test_only_the_newest_seen_ids_and_spent_keys_are_kept(shelf: Shelf) -> None:
    store = shelf.open()
    seen = [(OLD_PEER, message(number)) for number in range(3 * KEEP_SEEN)]
    spent = [number.to_bytes(32, "big") for number in range(3 * KEEP_SPENT)]
    for start in range(0, len(seen), 50):
        store.save(Changes(seen=seen[start : start + 50], spent_ephemerals=spent[start : start + 50]))
    state = shelf.load()
    assert state.seen == tuple(seen[-KEEP_SEEN:])
    assert state.spent_ephemerals == tuple(spent[-KEEP_SPENT:])


def test_id_seen_again_counts_as_new(shelf: Shelf) -> None:
    one, other = (OLD_PEER, message(1)), (OLD_PEER, message(2))
    shelf.save(Changes(seen=[one, other]), Changes(seen=[one]))
    assert shelf.load().seen == (other, one)


def test_state_prints_no_key_and_no_payload(shelf: Shelf) -> None:
    shelf.save(everything())
    text = repr(shelf.load())
    assert "private" not in text.replace("private=X25519Private(<secret>)", "")
    assert bytes(ME.signing_key).hex() not in text


# --- random steps ----------------------------------------------------------------------------------------------------

DIDS = [OLD_PEER, *(one.did for one in PEERS)]
numbers = st.integers(0, 5)
texts = st.binary(max_size=40)


@st.composite
def peers(draw: st.DrawFn) -> Peer:
    sessions = draw(st.lists(st.sampled_from(SESSIONS), max_size=4, unique_by=lambda session: session.id))
    rivals = st.none() | st.sampled_from([session.id for session in SESSIONS])
    return Peer(
        draw(st.sampled_from(DIDS)),
        tuple(
            Strand(session, draw(numbers), draw(st.booleans()), draw(rivals), draw(st.booleans()))
            for session in sessions
        ),
        tuple(
            Candidate(message(draw(numbers)), opening, draw(numbers), tuple(sessions[:1]), draw(rivals))
            for opening in draw(st.lists(st.sampled_from(OPENINGS), max_size=3))
        ),
        draw(st.sampled_from(Entry)),
        draw(st.none() | numbers.map(message)),
        draw(st.none() | st.binary(max_size=20)),
        draw(st.integers(0, 2**53)),
        draw(st.booleans()),
        draw(st.none() | st.sampled_from(Dialect)),
        draw(st.none() | st.sampled_from([opening.ik for opening in OPENINGS])),
    )


@st.composite
def steps(draw: st.DrawFn) -> Changes:
    outbox = draw(
        st.lists(
            st.builds(
                Outgoing,
                numbers.map(message),
                st.sampled_from(DIDS),
                texts,
                st.sampled_from(DeliveryState),
                st.none() | texts,
            ),
            max_size=3,
        )
    )
    inbox = draw(
        st.lists(
            st.builds(Incoming, st.sampled_from(DIDS), numbers.map(message), texts, st.booleans(), st.booleans()),
            max_size=3,
        )
    )
    return Changes(
        signing_key=draw(st.none() | st.sampled_from([one.signing_key for one in PEERS])),
        signed_prekeys=draw(
            st.none()
            | st.lists(st.sampled_from(SIGNED), unique=True).map(
                lambda prekeys: tuple(DatedPrekey(prekey, prekey.key_id / 7) for prekey in prekeys)
            )
        ),
        one_time_prekeys={
            key.key_id: key if there else None
            for key, there in draw(st.lists(st.tuples(st.sampled_from(ONE_TIME), st.booleans()), max_size=4))
        },
        next_prekey_id=draw(st.none() | st.integers(1, 2**31)),
        peers={one.did: one if draw(st.booleans()) else None for one in draw(st.lists(peers(), max_size=2))},
        outbox={one.id: one if draw(st.booleans()) else None for one in outbox},
        inbox={(one.sender, one.id): one if draw(st.booleans()) else None for one in inbox},
        seen=draw(st.lists(st.tuples(st.sampled_from(DIDS), numbers.map(message)), max_size=4)),
        spent_ephemerals=draw(st.lists(st.sampled_from([bytes(opening.ek) for opening in OPENINGS]), max_size=3)),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(steps(), st.booleans()), max_size=6))
def test_any_steps_leave_disk_and_memory_equal(plan: list[tuple[Changes, bool]]) -> None:
    memory = MemoryStore(keep_seen=5, keep_spent=3)
    with TemporaryDirectory() as folder:
        disk = SqliteStore(Path(folder) / "store", keep_seen=5, keep_spent=3)
        try:
            for changes, reopen in plan:
                memory.save(changes)
                disk.save(changes)
                if reopen:
                    disk.close()
                    disk = SqliteStore(Path(folder) / "store", keep_seen=5, keep_spent=3)
                    assert disk.load() == memory.load()
            disk.close()
            disk = SqliteStore(Path(folder) / "store", keep_seen=5, keep_spent=3)
            assert disk.load() == memory.load()
        finally:
            disk.close()


@given(st.lists(st.integers(0, 9)))
def test_newest_keeps_each_item_where_it_comes_last(items: list[int]) -> None:
    kept = newest(items)
    assert sorted(kept) == sorted(set(items))
    last = {item: position for position, item in enumerate(items)}
    assert [last[item] for item in kept] == sorted(last.values())


# --- all or nothing --------------------------------------------------------------------------------------------------


def test_full_disk_in_the_middle_of_a_step_leaves_nothing_of_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store", max_bytes=60 * 4096)
    store.save(everything())
    before = store.load()
    large = replace(outgoing(50), payload=b'"' + b"x" * 300_000 + b'"')
    with pytest.raises(StoreError, match="full: free some space"):
        store.save(
            Changes(
                next_prekey_id=78,
                one_time_prekeys={1: None},
                peers={peer().did: peer(counter=99)},
                outbox={message(1): None, large.id: large},
                seen=[(OLD_PEER, message(51))],
            )
        )
    assert store.load() == before
    store.save(Changes(next_prekey_id=79))  # a store that was full once goes on
    store.close()
    reopened = SqliteStore(tmp_path / "store")
    assert reopened.load() == with_other(before, next_prekey_id=79)
    reopened.close()


def test_failed_step_is_not_remembered_as_written(disk: Shelf) -> None:
    """What a store believes its rows to hold must follow the rows, or a later step leaves something out."""
    store = disk.open()
    store.save(everything())
    advanced = replace(peer(), strands=(Strand(SESSIONS[3], 9, heard=True),), candidates=())
    twice = (DatedPrekey(SIGNED[0], 1.0), DatedPrekey(SIGNED[0], 2.0))
    step = Changes(
        peers={advanced.did: advanced},
        outbox={message(1): outgoing(1, frame=b"frame"), message(60): outgoing(60)},
        inbox={(OLD_PEER, message(61)): received(61)},
    )
    with pytest.raises(StoreError):
        store.save(with_other(step, signed_prekeys=twice))
    store.save(step)
    disk.put_away()
    state = disk.load()
    assert state.peers[advanced.did] == advanced
    assert outgoing(60) in state.outbox
    assert received(61) in state.inbox


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no file size limit")
def test_file_size_limit_in_the_middle_of_a_step_leaves_nothing_of_it(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from meshlib.errors import StoreError
from meshlib.identity import Did
from meshlib.store.protocol import Changes, Outgoing
from meshlib.store.sqlite import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SqliteStore(Path(sys.argv[1]))
store.save(Changes(next_prekey_id=5))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    store.save(Changes(next_prekey_id=6, outbox={"m": Outgoing("m", Did("did:x:y"), b"x" * 300_000)}))
except StoreError as error:
    print(error, store.load().next_prekey_id, len(store.load().outbox))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    assert "the disk" in done.stdout
    assert done.stdout.strip().endswith("5 0")
    store = SqliteStore(tmp_path / "store")
    assert store.load() == SavedState(next_prekey_id=5)
    store.close()


BUSY_AGENT = """
import sys
from dataclasses import replace
from pathlib import Path
from meshlib.client.peers import Peer
from meshlib.identity import Did
from meshlib.store.protocol import Changes, Incoming
from meshlib.store.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
did = Did("did:x:y")
number = len(store.load().inbox)
while True:
    number += 1
    key = (did, f"m{number}")
    peer = Peer(did, counter=number)
    store.save(Changes(peers={did: peer}, inbox={key: Incoming(*key, b"x" * 2000)}, seen=[key]))
    print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a matter of POSIX")
def test_killed_process_loses_nothing_it_was_told_is_saved_and_leaves_no_half_step(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    told = 0
    for life in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", BUSY_AGENT, str(folder)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(20 + 13 * life):
                told = int(process.stdout.readline())
            with pytest.raises(IdentityInUse, match=f"process {process.pid} on"):
                SqliteStore(folder)
            process.send_signal(signal.SIGKILL)
            told = int((process.stdout.read().split("\n")[-2:-1] or [told])[0])
        store = SqliteStore(folder)
        state = store.load()
        store.close()
        assert len(state.inbox) in (told, told + 1)
        assert len(state.seen) == len(state.inbox) == state.peers[Did("did:x:y")].counter
        assert [one.id for one in state.inbox] == [f"m{number}" for number in range(1, len(state.inbox) + 1)]


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
def test_folder_and_every_file_in_it_are_private(disk: Shelf) -> None:
    before = os.umask(0)
    try:
        disk.open().save(everything())
    finally:
        os.umask(before)
    assert disk.folder is not None
    assert stat.S_IMODE(disk.folder.stat().st_mode) == 0o700
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in disk.folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"lock", DATABASE_FILE, f"{DATABASE_FILE}-wal"} <= set(modes)


def test_folder_is_open_once_and_free_again_after_closing(disk: Shelf) -> None:
    store = disk.open()
    assert disk.folder is not None
    with pytest.raises(IdentityInUse, match=f"process {os.getpid()}"):
        SqliteStore(disk.folder, disk.passphrase)
    store.save(everything())
    store.close()
    store.close()
    disk.store = None
    assert disk.load() == expected_of_everything()


def test_two_folders_live_side_by_side(tmp_path: Path) -> None:
    one, other = SqliteStore(tmp_path / "one"), SqliteStore(tmp_path / "other")
    one.save(Changes(next_prekey_id=1))
    other.save(Changes(next_prekey_id=2))
    assert (one.load().next_prekey_id, other.load().next_prekey_id) == (1, 2)
    one.close()
    other.close()


def test_store_that_could_not_be_opened_holds_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    SqliteStore(folder).close()
    with pytest.raises(StoreError):
        SqliteStore(folder, PASSPHRASE, make_sealing=QUICK)
    SqliteStore(folder).close()


def test_closed_store_is_a_store_error(disk: Shelf) -> None:
    store = disk.open()
    disk.put_away()
    with pytest.raises(StoreError, match="not open"):
        store.save(Changes(next_prekey_id=2))
    with pytest.raises(StoreError, match="not open"):
        store.load()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_child_cannot_advance_its_parents_ratchets(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from meshlib.errors import StoreError
from meshlib.store.protocol import Changes
from meshlib.store.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
store.save(Changes(next_prekey_id=5))
if os.fork() == 0:
    try:
        store.save(Changes(next_prekey_id=6))
    except StoreError:
        store.close()
        os._exit(7)
    os._exit(0)
_, status = os.wait()
store.save(Changes(next_prekey_id=store.load().next_prekey_id + 10))
print(os.waitstatus_to_exitcode(status), store.load().next_prekey_id)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7", "15"]


# --- the passphrase --------------------------------------------------------------------------------------------------


def everything_on_disk(folder: Path) -> bytes:
    return b"".join(entry.read_bytes() for entry in sorted(folder.iterdir()) if entry.name != "lock")


def private_bytes() -> list[bytes]:
    found = [bytes(ME.signing_key), b"private"]
    found += [bytes(one.private) for one in (*SIGNED[:2], *ONE_TIME)]
    for strand in peer().strands:
        found += secrets_of(strand.session.state)
    return found


def secrets_of(value: object) -> list[bytes]:
    if isinstance(value, SecretBytes | X25519Private):
        return [bytes(value)]
    parts = astuple(value) if isinstance(value, Struct) else ()
    return [secret for part in parts for secret in secrets_of(part)]


def test_sealed_store_shows_nothing_private(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store", PASSPHRASE, make_sealing=QUICK)
    store.save(everything())
    content = everything_on_disk(tmp_path / "store")
    assert not [secret for secret in private_bytes() if secret in content]
    assert PASSPHRASE.encode() not in content
    store.close()
    content = everything_on_disk(tmp_path / "store")
    assert not [secret for secret in private_bytes() if secret in content]


def test_unsealed_store_would_show_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    store.save(everything())
    store.close()
    content = everything_on_disk(tmp_path / "store")
    assert len([secret for secret in private_bytes() if secret in content]) >= 9


@pytest.mark.parametrize("wrong", ["Correct horse battery staple", PASSPHRASE + " ", None])
def test_wrong_passphrase_says_so_and_changes_nothing(tmp_path: Path, wrong: str | None) -> None:
    folder = tmp_path / "store"
    store = SqliteStore(folder, PASSPHRASE, make_sealing=QUICK)
    store.save(everything())
    store.close()
    before = everything_on_disk(folder)
    with pytest.raises(StoreError, match="passphrase"):
        SqliteStore(folder, wrong)
    assert everything_on_disk(folder) == before
    store = SqliteStore(folder, PASSPHRASE, make_sealing=QUICK)
    assert store.load() == expected_of_everything()
    store.close()


def test_passphrase_for_an_unsealed_store_says_so_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = SqliteStore(folder)
    store.save(everything())
    store.close()
    before = everything_on_disk(folder)
    with pytest.raises(StoreError, match="made without a passphrase"):
        SqliteStore(folder, PASSPHRASE, make_sealing=QUICK)
    assert everything_on_disk(folder) == before


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE inbox SET sealed_payload = (SELECT sealed_payload FROM outbox LIMIT 1)",
        "UPDATE inbox SET sender = 'did:x:y'",
        "UPDATE outbox SET peer = 'did:x:y'",
        "UPDATE one_time_prekey SET sealed = (SELECT sealed FROM one_time_prekey LIMIT 1)",
        "UPDATE strand SET peer = 'did:agentmesh:älter'",
        "UPDATE strand SET sealed = x''",
        "UPDATE identity SET sealed_key = 'text'",
        "UPDATE signed_prekey SET sealed = zeroblob(64)",
    ],
)
def test_sealed_record_that_was_changed_or_moved_is_found(tmp_path: Path, tampering: str) -> None:
    folder = tmp_path / "store"
    store = SqliteStore(folder, PASSPHRASE, make_sealing=QUICK)
    store.save(everything())
    store.close()
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection, connection:
        connection.execute(tampering)
    store = SqliteStore(folder, PASSPHRASE, make_sealing=QUICK)
    with pytest.raises(StoreError, match="damaged"):
        store.load()
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE strand SET sealed = x'00'",
        "UPDATE strand SET sealed = 5",
        "UPDATE one_time_prekey SET sealed = x'00'",
        "UPDATE one_time_prekey SET sealed = 'text'",
        "UPDATE identity SET sealed_key = x'00'",
        "UPDATE peer SET entry = 'nowhere'",
        "UPDATE peer SET dialect = 'agt-9'",
        "UPDATE peer SET pinned = x'00'",
        "UPDATE candidate SET ik = x'00'",
        "UPDATE candidate SET ek = 'text'",
        "UPDATE outbox SET state = 'nowhere'",
        "UPDATE inbox SET sealed_payload = 5",
        "DELETE FROM identity",
        "DROP TABLE seen",
    ],
)
def test_row_no_version_writes_is_a_store_error_without_its_bytes(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "store"
    store = SqliteStore(folder)
    store.save(everything())
    store.close()
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection, connection:
        connection.execute(damage)
    with pytest.raises(StoreError) as found, closing(SqliteStore(folder)) as damaged:
        damaged.load()
    assert "private" not in str(found.value)


# --- versions --------------------------------------------------------------------------------------------------------

NEXT = "PRAGMA user_version = {version}; ALTER TABLE peer ADD COLUMN note TEXT;"


def next_schemas() -> tuple[str, ...]:
    return (*schemas(), NEXT.format(version=len(schemas()) + 1))


def test_older_store_is_copied_then_upgraded(disk: Shelf) -> None:
    disk.save(everything())
    assert disk.folder is not None
    upgraded = SqliteStore(disk.folder, disk.passphrase, scripts=next_schemas(), make_sealing=QUICK)
    assert upgraded.load() == expected_of_everything()
    upgraded.close()
    copy = disk.folder / f"{DATABASE_FILE}.version-{len(schemas())}"
    os.replace(copy, disk.folder / DATABASE_FILE)
    assert disk.load() == expected_of_everything()


def test_message_queued_before_version_2_waits_on_without_a_time(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "store", scripts=schemas()[:1]).close()
    with closing(sqlite3.connect(tmp_path / "store" / DATABASE_FILE)) as database:
        database.execute(
            "INSERT INTO outbox (id, peer, state, sealed_payload) VALUES ('m', 'did:x:y', 'queued', x'31')"
        )
        database.commit()
    with closing(SqliteStore(tmp_path / "store")) as store:
        (waiting,) = store.load().outbox
        assert (waiting.id, waiting.queued) == ("m", None)
        store.save(Changes(outbox={waiting.id: replace(waiting, state=DeliveryState.RELAYED, frame=b"f")}))
        assert store.load().outbox[0].state is DeliveryState.RELAYED


def test_newer_store_is_refused(disk: Shelf) -> None:
    assert disk.folder is not None
    SqliteStore(disk.folder, disk.passphrase, scripts=next_schemas(), make_sealing=QUICK).close()
    with pytest.raises(StoreError, match="install the newer meshlib"):
        disk.open()


def test_wrong_passphrase_does_not_upgrade(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    SqliteStore(folder, PASSPHRASE, make_sealing=QUICK).close()
    with pytest.raises(StoreError, match="passphrase"):
        SqliteStore(folder, "wrong", scripts=next_schemas())
    assert [path.name for path in folder.glob("*version*")] == []
    SqliteStore(folder, PASSPHRASE, make_sealing=QUICK).close()


def test_damaged_file_is_refused_and_its_lock_let_go(disk: Shelf) -> None:
    disk.save(everything())
    assert disk.folder is not None
    file = disk.folder / DATABASE_FILE
    content = file.read_bytes()
    file.write_bytes(content[:8192] + b"\xa5" * 8192 + content[16384:])
    with pytest.raises(StoreError, match="is damaged"):
        disk.open()
    file.write_bytes(content)
    assert disk.load() == expected_of_everything()


# --- the door --------------------------------------------------------------------------------------------------------


def test_open_store_chooses_by_path(tmp_path: Path) -> None:
    memory = open_store(None)
    assert not memory.durable
    for path in (tmp_path / "a", str(tmp_path / "b")):
        store = open_store(path)
        assert store.durable
        store.close()
    assert (tmp_path / "b" / DATABASE_FILE).exists()


def test_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="empty passphrase"):
        open_store(tmp_path / "store", "")
    assert not (tmp_path / "store").exists()


def test_open_store_seals_with_the_passphrase(tmp_path: Path) -> None:
    open_store(tmp_path / "store", PASSPHRASE).close()
    with pytest.raises(StoreError, match="passphrase"):
        open_store(tmp_path / "store")
    open_store(tmp_path / "store", PASSPHRASE).close()


def test_open_store_takes_no_passphrase_without_a_folder() -> None:
    with pytest.raises(InvalidValue):
        open_store(None, PASSPHRASE)


def test_home_is_understood_in_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    open_store("~/agent").close()
    assert (tmp_path / "agent" / DATABASE_FILE).exists()


def test_opening_random_bytes_is_never_anything_but_a_store_error(tmp_path: Path) -> None:
    draw = entropy("junk")
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o700)
        (folder / DATABASE_FILE).write_bytes(b"SQLite format 3\x00"[: 16 * (number % 2)] + draw(100 * number))
        with suppress(StoreError):
            SqliteStore(folder)
            pytest.fail("random bytes were taken for a store")


def test_signing_key_is_the_same_after_reopening(disk: Shelf) -> None:
    key = Ed25519Private.generate(entropy("key"))
    disk.save(Changes(signing_key=key))
    assert disk.load().signing_key == key
