"""What only the store on disk promises; the verbs themselves are in tests/contracts/test_registry_store.py."""

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from mesh_registry.store.protocol import StoreFailed
from mesh_registry.store.sqlite import SqliteStore
from mesh_registry.verbs import (
    Caller,
    Delete,
    OneTimePrekey,
    Proof,
    PutPrekeys,
    Register,
    SignedPrekey,
    TakePrekeys,
    Update,
)

pytestmark = pytest.mark.anyio
KEY = bytes(32)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def opened(path: Path) -> SqliteStore:
    return SqliteStore(path, 1000)


def registration(did: str = "did:a:1", *, capabilities: tuple[str, ...] = ("chat",)) -> Register:
    return Register(did, KEY, None, False, False, capabilities, "{}", 1000.0, None)


def caller(name: str) -> Caller:
    return Caller("did:a:1", True, Proof(name.encode(), b"for", 9000.0))


def upload(count: int) -> PutPrekeys:
    keys = tuple(OneTimePrekey(number, number.to_bytes(32, "big")) for number in range(count))
    return PutPrekeys("did:a:1", caller("put"), False, KEY, KEY, SignedPrekey(1, KEY, KEY + KEY), keys, 1000.0)


async def taken(store: SqliteStore) -> int | None:
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", True, True))
    assert bundle is not None
    return None if bundle.one_time is None else bundle.one_time.key_id


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
async def test_the_files_are_for_the_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = opened(tmp_path / "new" / "registry.db")
        await store.register(registration())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
        assert set(modes.values()) == {0o600}, modes
        await store.close()
    finally:
        os.umask(before)


async def test_everything_survives_a_restart_and_taken_keys_stay_taken(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(5))
    assert [await taken(store) for _ in range(2)] == [0, 1]
    await store.close()
    store = opened(tmp_path / "registry.db")
    account = await store.account("did:a:1")
    assert account is not None
    assert account.bound
    assert [used.digest for used in await store.used_proofs(0.0)] == [b"put"]
    assert await store.count() == 1
    assert [await taken(store) for _ in range(4)] == [2, 3, 4, None]
    await store.close()


async def test_concurrent_fetches_never_get_the_same_key_and_share_commits(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(200))
    before = store.vitals.commits.count
    got = await asyncio.gather(*(taken(store) for _ in range(300)))
    assert sorted(key for key in got if key is not None) == list(range(200))
    assert store.vitals.commits.count - before < 10
    await store.close()


async def counted(store: SqliteStore) -> tuple[int, int]:
    while (supply := store.supply()) is None:
        await asyncio.sleep(0.001)
    return supply.left, supply.agents_without


async def test_the_supply_is_counted_anew_after_a_restart_and_goes_on_from_there(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(3))
    await taken(store)
    assert await counted(store) == (2, 0)
    await store.close()
    store = opened(tmp_path / "registry.db")
    await taken(store)
    assert await counted(store) == (1, 0)
    await taken(store)
    assert await counted(store) == (0, 1)
    await store.close()


async def test_a_change_that_fails_leaves_the_numbers_as_they_were_and_shows(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(3))
    results = await asyncio.gather(
        taken(store), store.register(registration("did:a:\ud800")), taken(store), return_exceptions=True
    )
    assert isinstance(results[1], StoreFailed)
    assert await counted(store) == (1, 0)
    assert await store.count() == 1
    assert store.vitals.commit_failures == 1
    await store.close()


async def test_only_a_change_shows_that_the_disk_works_again(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    with pytest.raises(StoreFailed):
        await store.register(registration("did:a:\ud800"))
    assert not store.vitals.healthy
    commits = store.vitals.commits.count
    await store.record_proofs([])
    assert not store.vitals.healthy
    await store.check()
    assert store.vitals.healthy
    assert store.vitals.commits.count == commits + 1
    await store.close()


async def test_one_change_that_fails_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    poisoned = registration("did:a:\ud800")
    results = await asyncio.gather(
        store.register(registration("did:a:1")),
        store.register(poisoned),
        store.register(registration("did:a:2")),
        return_exceptions=True,
    )
    assert results[0] == results[2] == "created"
    assert isinstance(results[1], StoreFailed)
    assert await store.count() == 2
    await store.close()


async def test_keys_taken_in_a_failed_transaction_are_not_lost(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(3))
    first, failed, second = await asyncio.gather(
        taken(store), store.register(registration("did:a:\ud800")), taken(store), return_exceptions=True
    )
    assert (first, second) == (0, 1)
    assert isinstance(failed, StoreFailed)
    assert await taken(store) == 2
    await store.close()


async def test_a_second_registry_on_the_same_file_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    with pytest.raises(StoreFailed, match="in use by another mesh-registry"):
        opened(tmp_path / "registry.db")
    await store.close()
    await opened(tmp_path / "registry.db").close()


async def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreFailed, match="another program"):
        opened(path)
    assert path.read_bytes() == before


async def test_junk_and_newer_files_are_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreFailed):
        opened(junk)
    await opened(tmp_path / "newer.db").close()
    db = sqlite3.connect(tmp_path / "newer.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreFailed, match="newer"):
        opened(tmp_path / "newer.db")
    with pytest.raises(StoreFailed):
        opened(Path("/proc/nowhere/registry.db"))


async def test_discovery_does_not_scan_all_agents(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await asyncio.gather(*(store.register(registration(f"did:a:{n}", capabilities=(f"c{n}",))) for n in range(50)))
    await store.close()
    db = sqlite3.connect(tmp_path / "registry.db")
    plan = db.execute(
        "EXPLAIN QUERY PLAN SELECT a.did, c.last_seen FROM capability AS c JOIN agent AS a ON a.id = c.agent"
        " WHERE c.name = ? AND c.last_seen >= ? ORDER BY c.last_seen DESC, c.agent DESC LIMIT 5",
        ("c1", 0.0),
    ).fetchall()
    db.close()
    text = " ".join(str(row[3]) for row in plan)
    assert "SCAN" not in text
    assert "TEMP B-TREE" not in text


async def test_updates_do_not_leave_stale_index_rows(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    for number in range(5):
        await store.update(Update(caller(f"u{number}"), ("chat", f"c{number}"), None, 1000.0 + number))
    await store.close()
    db = sqlite3.connect(tmp_path / "registry.db")
    assert db.execute("SELECT name, last_seen FROM capability ORDER BY name").fetchall() == [
        ("c4", 1004.0),
        ("chat", 1004.0),
    ]
    db.close()


async def test_a_key_taken_while_its_agent_is_deleted_leaves_no_row(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(5))
    await asyncio.gather(taken(store), store.delete(Delete(caller("gone"))))
    await store.close()
    db = sqlite3.connect(tmp_path / "registry.db")
    for table in ("agent", "capability", "one_time_prekey", "taken_prekey", "spent_prekey", "published_prekey"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    db.close()


async def test_ids_of_long_taken_keys_are_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(1))
    for start in range(1, 1400, 200):
        keys = tuple(OneTimePrekey(number, number.to_bytes(32, "big")) for number in range(start, start + 199))
        merge = PutPrekeys("did:a:1", caller(f"{start}"), True, KEY, KEY, None, keys, 1000.0)
        assert isinstance(await store.put_prekeys(merge), int)
        await asyncio.gather(*(taken(store) for _ in range(200)))
    await store.put_prekeys(PutPrekeys("did:a:1", caller("last"), True, KEY, KEY, None, (), 1000.0))
    await store.close()
    db = sqlite3.connect(tmp_path / "registry.db")
    assert db.execute("SELECT count(*), max(key_id) FROM taken_prekey").fetchone() == (1000, 1399)
    assert db.execute("SELECT count(*) FROM spent_prekey").fetchone() == (1000,)
    db.close()


async def test_a_key_taken_while_new_ones_replace_it_costs_none_of_them(tmp_path: Path) -> None:
    store = opened(tmp_path / "registry.db")
    await store.register(registration())
    await store.put_prekeys(upload(5))
    fresh = tuple(OneTimePrekey(number, bytes([number, 9]) * 16) for number in range(5))
    change = PutPrekeys("did:a:1", caller("more"), False, KEY, KEY, SignedPrekey(2, KEY, KEY + KEY), fresh, 1000.0)
    first, count = await asyncio.gather(taken(store), store.put_prekeys(change))
    assert (first, count) == (0, 5)
    assert [await taken(store) for _ in range(6)] == [0, 1, 2, 3, 4, None]
    await store.close()
