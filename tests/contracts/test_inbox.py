"""One suite for every inbox: what :class:`mesh_relay.inbox.protocol.Inbox` promises."""

import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mesh_relay.inbox.memory import MemoryInbox
from mesh_relay.inbox.protocol import Inbox
from mesh_relay.inbox.sqlite import SqliteInbox
from mesh_relay.records import Credential, Load, Proof, Removed, StoredFrame, Sweep, Usage, Work

from meshlib.errors import StoreError
from meshlib.identity import Did

ALICE, BOB, CAROL = Did("did:mesh:a"), Did("did:mesh:b"), Did("did:x:carol")
Make = Callable[[], Inbox]


@pytest.fixture(params=["memory", "sqlite", "sqlite strict"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes the inbox: the first call a new one, further calls one over what the last has left."""
    if request.param == "memory":
        memory = MemoryInbox()
        return lambda: memory
    return lambda: SqliteInbox(tmp_path / "deep" / "relay.db", strict="strict" in request.param)


@pytest.fixture
def inbox(make: Make) -> Iterator[Inbox]:
    inbox = make()
    inbox.open()
    yield inbox
    inbox.close()


def frame(
    seq: int, frame_id: str | None = None, *, body: bytes = b"{}", to: Did = BOB, sender: Did = ALICE, at: float = 0.0
) -> StoredFrame:
    return StoredFrame(seq, to, sender, frame_id or str(seq), False, at, body)


def ran(inbox: Inbox, *frames: StoredFrame, removals: list[int] | None = None) -> tuple[set[int], list[Removed]]:
    """Run frames and removals; what was a duplicate, and what was replaced."""
    done = inbox.run(Work(frames, removals or ()))
    assert not done.expired
    assert not done.pages
    return set(done.duplicates), list(done.replaced)


def load(inbox: Inbox, to: Did = BOB, after: int = 0, count: int = 100, size: int = 10_000) -> list[int]:
    (page,) = inbox.run(Work(loads=[Load(to, after)], page_frames=count, page_bytes=size)).pages
    return [seq for seq, *_ in page.frames]


def test_a_new_inbox_is_empty(make: Make) -> None:
    inbox = make()
    assert inbox.open() == (0, [], [], [], None)
    inbox.close()


def test_every_transaction_tells_how_old_the_oldest_frame_is(make: Make) -> None:
    inbox = make()
    inbox.open()
    assert inbox.run(Work([frame(1, at=5.0), frame(2, at=6.0), frame(3, at=7.0)])).oldest == 5.0
    assert inbox.run(Work(removals=[1])).oldest == 6.0
    assert inbox.run(Work(sweep=Sweep(6.5, 0.0, 10))).oldest == 7.0
    inbox.close()
    again = make()
    assert again.open().oldest == 7.0
    assert again.run(Work(removals=[3])).oldest is None
    again.close()


def test_frames_come_back_whole_and_in_order(inbox: Inbox) -> None:
    body = b'{"x":"\xe2\x80\xa8\\u0000"}'
    frames = [frame(1, body=body), frame(2, to=CAROL), StoredFrame(3, BOB, CAROL, "k", True, 12.5, b"")]
    assert ran(inbox, *frames) == (set(), [])
    (page,) = inbox.run(Work(loads=[Load(BOB, 0)], page_frames=10, page_bytes=1000)).pages
    assert page.frames == [(seq, *rest) for seq, _, *rest in (frames[0], frames[2])]
    assert not page.more


def test_loads_see_the_transaction_they_came_with(inbox: Inbox) -> None:
    done = inbox.run(Work([frame(1), frame(2)], loads=[Load(BOB, 1), Load(CAROL, 0)], page_frames=9, page_bytes=999))
    assert [[seq for seq, *_ in page.frames] for page in done.pages] == [[2], []]


def test_pages_are_bounded_by_count_and_by_size_but_never_empty(inbox: Inbox) -> None:
    inbox.run(Work([frame(seq, body=b"x" * 100) for seq in range(1, 8)]))
    for count, size, expected in ((3, 10_000, 3), (100, 350, 3), (100, 10, 1), (100, 10_000, 7)):
        (page,) = inbox.run(Work(loads=[Load(BOB, 0)], page_frames=count, page_bytes=size)).pages
        assert len(page.frames) == expected
        assert page.more is (expected < 7)


def test_a_page_that_ends_exactly_has_no_more(inbox: Inbox) -> None:
    inbox.run(Work([frame(1), frame(2)]))
    (page,) = inbox.run(Work(loads=[Load(BOB, 0)], page_frames=2, page_bytes=1000)).pages
    assert (len(page.frames), page.more) == (2, False)


def test_removed_frames_are_gone_and_removing_nothing_is_fine(inbox: Inbox) -> None:
    inbox.run(Work([frame(seq) for seq in range(1, 1300)]))
    inbox.run(Work(removals=[*range(1, 1298), 5000]))
    assert load(inbox) == [1298, 1299]


def test_the_same_frame_keeps_its_place(inbox: Inbox) -> None:
    inbox.run(Work([frame(1, "x"), frame(2, "y")]))
    assert ran(inbox, frame(3, "x"), frame(4, "z")) == ({3}, [])
    assert load(inbox) == [1, 2, 4]


def test_another_frame_of_the_same_sender_and_id_takes_over(inbox: Inbox) -> None:
    inbox.run(Work([frame(1, "x", body=b"old!"), frame(2, "y")]))
    assert ran(inbox, frame(3, "x", body=b"new")) == (set(), [Removed(1, BOB, ALICE, "x", 4)])
    assert load(inbox) == [2, 3]


def test_duplicates_within_one_transaction_count_as_well(inbox: Inbox) -> None:
    frames = [frame(1, "x", body=b"a"), frame(2, "x", body=b"a"), frame(3, "x", body=b"bb"), frame(4, "x", body=b"bb")]
    assert ran(inbox, *frames) == ({2, 4}, [Removed(1, BOB, ALICE, "x", 1)])
    assert load(inbox) == [3]


def test_ids_belong_to_their_sender_and_recipient(inbox: Inbox) -> None:
    assert ran(inbox, frame(1, "x"), frame(2, "x", sender=CAROL), frame(3, "x", to=CAROL)) == (set(), [])
    assert (load(inbox), load(inbox, CAROL)) == ([1, 2], [3])


def test_a_removed_frame_makes_room_for_its_key_in_the_same_transaction(inbox: Inbox) -> None:
    inbox.run(Work([frame(1, "x", body=b"a")]))
    assert ran(inbox, frame(2, "x", body=b"a"), removals=[1]) == (set(), [])
    assert load(inbox) == [2]


def test_a_number_used_again_after_reopening_is_in_the_page_of_its_recipient_alone(make: Make) -> None:
    """The relay counts on from the last number an inbox knows; frames removed since may have had higher ones."""
    inbox = make()
    inbox.open()
    inbox.run(Work([frame(seq) for seq in range(1, 5)]))
    inbox.run(Work(removals=[4]))
    inbox.close()
    inbox = make()
    following = inbox.open().last_seq + 1
    inbox.run(Work([frame(following, to=CAROL)]))
    assert load(inbox, BOB) == [1, 2, 3]
    assert load(inbox, CAROL) == [following]
    inbox.close()


def test_sweeping_takes_the_oldest_up_to_the_limit(inbox: Inbox) -> None:
    inbox.run(Work([frame(seq, at=float(seq)) for seq in range(1, 7)]))
    done = inbox.run(Work(sweep=Sweep(5.0, 0.0, 3)))
    assert list(done.expired) == [Removed(seq, BOB, ALICE, str(seq), 2) for seq in (1, 2, 3)]
    done = inbox.run(Work(sweep=Sweep(5.0, 0.0, 3)))
    assert [removed.seq for removed in done.expired] == [4]
    assert load(inbox) == [5, 6]


def test_sweeping_forgets_stale_proofs(inbox: Inbox, make: Make) -> None:
    proofs = [Proof(ALICE, "t1", 10.0), Proof(ALICE, "t2", 20.0), Proof(BOB, "t1", 5.0)]
    inbox.run(Work(proofs=proofs))
    inbox.run(Work(sweep=Sweep(0.0, 10.0, 5)))
    inbox.close()
    again = make()
    assert sorted(again.open().proofs) == sorted(proofs[:2])
    again.close()


def test_what_was_run_is_there_after_reopening(make: Make) -> None:
    inbox = make()
    inbox.open()
    credentials = [Credential(ALICE, None, True), Credential(CAROL, bytes(32), False)]
    inbox.run(Work([frame(7, body=b"1234"), frame(9, body=b"12"), frame(8, to=CAROL)], credentials=credentials))
    inbox.run(Work(credentials=[Credential(CAROL, bytes(32), True)]))
    inbox.close()
    inbox.close()
    again = make()
    contents = again.open()
    assert contents.last_seq == 9
    assert sorted(contents.usage) == [Usage(BOB, ALICE, 2, 6), Usage(CAROL, ALICE, 1, 2)]
    assert sorted(contents.credentials) == [credentials[0], Credential(CAROL, bytes(32), True)]
    again.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)  # disks wait
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.sampled_from("xyz"), st.sampled_from([ALICE, CAROL]), st.binary(max_size=2)), max_size=6
            ),
            st.lists(st.integers(1, 30), max_size=4),
        ),
        max_size=6,
    )
)
def test_sqlite_does_what_memory_does(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[list[tuple[str, Did, bytes]], list[int]]],
) -> None:
    memory, disk = MemoryInbox(), SqliteInbox(tmp_path_factory.mktemp("inbox") / "relay.db")
    memory.open(), disk.open()
    seq = 0
    for frames, removals in steps:
        stored = []
        for frame_id, sender, body in frames:
            seq += 1
            stored.append(frame(seq, frame_id, sender=sender, body=body, at=float(seq)))
        assert ran(memory, *stored, removals=removals) == ran(disk, *stored, removals=removals)
        assert load(memory, after=seq // 3, count=4) == load(disk, after=seq // 3, count=4)
    disk.close()
    assert sorted(memory.open().usage) == sorted(disk.open().usage)
    disk.close()


# --- the durable one --------------------------------------------------------------------------------------------------


def test_what_was_run_survives_a_process_that_ends_there(tmp_path: Path) -> None:
    """A second connection reads the files as they are while the first has not closed anything."""
    inbox = SqliteInbox(tmp_path / "relay.db")
    inbox.open()
    inbox.run(Work([frame(1), frame(2)]))
    (tmp_path / "after").mkdir()
    for file in tmp_path.glob("relay.db*"):
        (tmp_path / "after" / file.name).write_bytes(file.read_bytes())
    after = SqliteInbox(tmp_path / "after" / "relay.db")
    assert after.open().last_seq == 2
    assert load(after) == [1, 2]
    after.close()
    inbox.close()


def test_a_half_written_transaction_leaves_nothing(tmp_path: Path) -> None:
    inbox = SqliteInbox(tmp_path / "relay.db")
    inbox.open()
    inbox.run(Work([frame(1)]))
    with pytest.raises(StoreError):
        inbox.run(Work([frame(2)], removals=[1], credentials=[(None, None, None)]))  # type: ignore[list-item]
    assert load(inbox) == [1]
    inbox.run(Work([frame(2)]))
    assert load(inbox) == [1, 2]
    inbox.close()


def test_a_transaction_that_sqlite_has_rolled_back_itself_names_the_cause(tmp_path: Path) -> None:
    """As upon a full disk: another ROLLBACK would fail and hide the reason."""
    inbox = SqliteInbox(tmp_path / "relay.db")
    inbox.open()
    inbox.close()
    database = sqlite3.connect(tmp_path / "relay.db")
    database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON frames BEGIN SELECT RAISE(ROLLBACK, 'the disk is full'); END"
    )
    database.close()
    inbox.open()
    with pytest.raises(StoreError, match="the disk is full"):
        inbox.run(Work([frame(1)]))
    inbox.close()


def test_work_that_was_done_may_come_again(tmp_path: Path) -> None:
    """Its pages could not be read: then all of it is tried again."""
    inbox = SqliteInbox(tmp_path / "relay.db")
    inbox.open()
    inbox.run(Work([frame(1)]))
    for _ in range(2):
        ran(inbox, frame(2), frame(3), frame(4, "x", body=b"older"), frame(5, "x", body=b"newer"), removals=[1])
        assert load(inbox) == [2, 3, 5]
    inbox.close()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "relay.db"
    inbox = SqliteInbox(path)
    inbox.open()
    inbox.run(Work([frame(1)]))
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {
        "relay.db": 0o600,
        "relay.db-wal": 0o600,
    }
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    inbox.close()


def test_a_second_relay_on_the_same_store_is_refused_with_a_reason(tmp_path: Path) -> None:
    first, second = SqliteInbox(tmp_path / "relay.db"), SqliteInbox(tmp_path / "relay.db")
    first.open()
    with pytest.raises(StoreError, match="in use by another relay"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "relay.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer version"):
        SqliteInbox(tmp_path / "relay.db").open()


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    path.write_bytes(b"something precious" * 100)
    with pytest.raises(StoreError):
        SqliteInbox(path).open()
    assert path.read_bytes() == b"something precious" * 100


def test_a_store_of_the_first_version_is_upgraded_and_its_copy_kept(tmp_path: Path) -> None:
    path, copy = tmp_path / "relay.db", tmp_path / "relay.db.v1"
    first = resources.files("mesh_relay.inbox").joinpath("schema", "001.sql").read_text("utf-8")
    database = sqlite3.connect(path)
    database.executescript(f"{first} PRAGMA user_version = 1;")
    database.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?)", [frame(1), frame(2, to=CAROL), frame(4)])
    database.commit()
    database.close()
    inbox = SqliteInbox(path)
    assert inbox.open()[:2] == (4, [Usage(BOB, ALICE, 2, 4), Usage(CAROL, ALICE, 1, 2)])
    assert ran(inbox, frame(5, "1"), frame(6, "4", body=b"new")) == ({5}, [Removed(4, BOB, ALICE, "4", 2)])
    assert load(inbox) == [1, 6]
    inbox.close()
    database = sqlite3.connect(copy)
    assert database.execute("SELECT seq FROM frames ORDER BY seq").fetchall() == [(1,), (2,), (4,)]
    database.close()


def test_pages_that_others_are_between_bring_only_ones_own(inbox: Inbox) -> None:
    inbox.run(Work([frame(seq, to=CAROL if seq % 3 else BOB) for seq in range(1, 3001)]))
    assert load(inbox, count=5000, size=10**6) == list(range(3, 3001, 3))
    inbox.run(Work(removals=list(range(1, 2000, 2))))
    assert load(inbox, count=5000, size=10**6) == [*range(6, 2000, 6), *range(2001, 3001, 3)]
    assert load(inbox, to=CAROL, after=2996, count=3) == [2998, 2999]
