"""One suite over every registry store: they agree, verb by verb."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from pathlib import Path

import pytest
from mesh_registry.store.memory import MemoryStore
from mesh_registry.store.protocol import RegistryStore
from mesh_registry.store.sqlite import SqliteStore
from mesh_registry.verbs import (
    Caller,
    Delete,
    Discover,
    MarkVerified,
    OneTimePrekey,
    Outcome,
    Proof,
    PutPrekeys,
    PutRefused,
    Rate,
    RecordSession,
    Register,
    SignedPrekey,
    Sweep,
    TakePrekeys,
    TooSoon,
    Touch,
    Update,
)

pytestmark = pytest.mark.anyio
MAX_AGENTS = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # uvicorn's loop is the only one these stores serve


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RegistryStore]:
    opened: RegistryStore = (
        MemoryStore(MAX_AGENTS) if request.param == "memory" else SqliteStore(tmp_path / "registry.db", MAX_AGENTS)
    )
    yield opened
    await opened.close()


def proof(name: str, expires: float = 1300.0) -> Proof:
    return Proof(name.encode().ljust(16, b"."), b"for " + name.encode(), expires)


def caller(did: str, name: str = "", *, bound: bool = False) -> Caller:
    return Caller(did, bound, proof(name or f"by {did}"))


def agent(
    did: str, *capabilities: str, now: float = 1000.0, legacy: bool = False, used: Proof | None = None
) -> Register:
    key = did.encode().ljust(32, b".")
    return Register(
        did=did,
        signing_key=None if legacy else key,
        agreement_key=key if legacy else None,
        legacy=legacy,
        bound=False,
        capabilities=capabilities,
        metadata='{"display_name":"é"}',
        now=now,
        proof=used,
    )


def signed(number: int = 1) -> SignedPrekey:
    return SignedPrekey(number, bytes([number]) * 32, bytes([number]) * 64)


def one_time(*ids: int, salt: int = 0) -> tuple[OneTimePrekey, ...]:
    return tuple(OneTimePrekey(key_id, bytes([key_id % 256, salt]) * 16) for key_id in ids)


def put(
    did: str,
    keys: tuple[OneTimePrekey, ...],
    *,
    merge: bool = False,
    spk: SignedPrekey | None = None,
    by: Caller | None = None,
    now: float = 1001.0,
) -> PutPrekeys:
    key = did.encode().ljust(32, b".")
    return PutPrekeys(did, by, merge, key, key, spk if spk is not None or merge else signed(), keys, now)


async def take_ids(store: RegistryStore, did: str, count: int, *, last_ones: bool = True) -> list[int | None]:
    ids: list[int | None] = []
    for _ in range(count):
        bundle = await store.take_prekeys(TakePrekeys(did, True, last_ones))
        assert bundle is not None
        ids.append(None if bundle.one_time is None else bundle.one_time.key_id)
    return ids


async def test_a_did_is_registered_once(store: RegistryStore) -> None:
    assert await store.register(agent("did:a:1", "chat")) == "created"
    assert await store.register(agent("did:a:1", "other")) == "exists"
    found = await store.find("did:a:1")
    assert found is not None
    assert found.capabilities == '["chat"]'
    assert found.metadata == '{"display_name":"é"}'
    assert (found.reputation, found.registered_at, found.last_seen) == (0.5, 1000.0, 1000.0)
    assert await store.count() == 1


async def test_a_used_registration_proof_does_not_bring_a_deleted_agent_back(store: RegistryStore) -> None:
    first = agent("did:a:1", used=proof("register"))
    assert await store.register(first) == "created"
    assert await store.delete(Delete(caller("did:a:1")))
    assert await store.register(first) == "replayed"
    assert await store.find("did:a:1") is None


async def test_a_full_registry_takes_no_more(store: RegistryStore) -> None:
    for number in range(MAX_AGENTS):
        assert await store.register(agent(f"did:a:{number}")) == "created"
    assert await store.register(agent("did:a:more")) == "full"
    assert await store.delete(Delete(caller("did:a:0")))
    assert await store.register(agent("did:a:more")) == "created"


async def supply(store: RegistryStore) -> tuple[int, int]:
    """One-time keys left, and agents that have none, once they have been counted."""
    while (found := store.supply()) is None:
        await asyncio.sleep(0.001)
    return found.left, found.agents_without


async def test_the_supply_of_one_time_keys_follows_every_change(store: RegistryStore) -> None:
    assert await supply(store) == (0, 0)
    for name in ("did:a:1", "did:a:2", "did:a:3"):
        await store.register(agent(name))
    assert await supply(store) == (0, 0), "who has published nothing cannot be without keys"
    await store.put_prekeys(put("did:a:1", one_time(1, 2, 3)))
    await store.put_prekeys(put("did:a:2", ()))
    assert await supply(store) == (3, 1)
    assert await take_ids(store, "did:a:1", 4) == [1, 2, 3, None]
    assert await supply(store) == (0, 2)
    await store.put_prekeys(put("did:a:1", one_time(4, 5), merge=True))
    assert await supply(store) == (2, 1)
    await take_ids(store, "did:a:1", 1)
    await store.put_prekeys(put("did:a:1", one_time(*range(10, 20), salt=1), spk=signed(2)))
    assert await supply(store) == (10, 1)
    assert await store.put_prekeys(put("did:a:1", one_time(*range(1000), salt=2))) is PutRefused.TOO_MANY
    assert await supply(store) == (10, 1)
    await store.put_prekeys(put("did:a:3", one_time(1), now=9000.0))
    assert await store.delete(Delete(caller("did:a:2")))
    assert await supply(store) == (11, 0)
    assert await store.sweep(Sweep(0.0, 0.0, 8000.0)) == 1
    assert await supply(store) == (1, 0)


async def test_a_check_leaves_everything_as_it_is(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.check()
    assert await store.count() == 1
    assert store.vitals.healthy


async def test_unknown_agents_are_none(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    nobody = caller("did:a:nobody")
    assert await store.account("did:a:nobody") is None
    assert await store.find("did:a:nobody") is None
    assert await store.update(Update(nobody, ("x",), None, 1.0)) is None
    assert not await store.delete(Delete(nobody))
    assert await store.put_prekeys(put("did:a:nobody", ())) is PutRefused.NO_AGENT
    assert await store.take_prekeys(TakePrekeys("did:a:nobody", True, True)) is None
    assert await store.touch(Touch(nobody, 1.0, 10.0)) is None
    assert await store.rate(Rate(nobody, "did:a:nobody", 1.0)) is None
    report = RecordSession(nobody, "s", "did:a:nobody", "did:a:1", Outcome.SUCCESS, 1.0)
    assert await store.record_session(report) is None
    assert await store.mark_verified(MarkVerified(nobody, None, None, 1.0)) is None


async def test_latches_follow_the_caller_and_never_open_again(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    account = await store.account("did:a:1")
    assert account is not None
    assert (account.bound, account.signs) == (False, False)
    await store.touch(Touch(caller("did:a:1", "one", bound=True), 2000.0, 10.0))
    await store.touch(Touch(caller("did:a:1", "two", bound=False), 3000.0, 10.0))
    account = await store.account("did:a:1")
    assert account is not None
    assert (account.bound, account.signs) == (True, True)


async def test_used_proofs_are_remembered_until_they_expire(store: RegistryStore) -> None:
    await store.register(agent("did:a:1", used=proof("register", expires=1100.0)))
    await store.touch(Touch(caller("did:a:1", "touch"), 1000.0, 10.0))
    digests = {used.digest for used in await store.used_proofs(1050.0)}
    assert digests == {proof("register").digest, proof("touch").digest}
    assert {used.digest for used in await store.used_proofs(1200.0)} == {proof("touch").digest}
    await store.sweep(Sweep(1200.0, 0.0, 0.0))
    assert {used.digest for used in await store.used_proofs(0.0)} == {proof("touch").digest}


async def test_proofs_without_a_change_are_remembered_too(store: RegistryStore) -> None:
    await store.record_proofs([proof("a"), proof("b")])
    await store.record_proofs([proof("a")])
    assert {used.digest for used in await store.used_proofs(1000.0)} == {proof("a").digest, proof("b").digest}


async def test_an_update_changes_what_it_names(store: RegistryStore) -> None:
    await store.register(agent("did:a:1", "old", "both"))
    changed = await store.update(Update(caller("did:a:1"), ("both", "new"), None, 1500.0))
    assert changed is not None
    assert (changed.capabilities, changed.metadata) == ('["both","new"]', '{"display_name":"é"}')
    assert changed.last_seen == 1500.0
    changed = await store.update(Update(caller("did:a:1", "more"), None, '{"k":"v"}', 1501.0))
    assert changed is not None
    assert (changed.capabilities, changed.metadata) == ('["both","new"]', '{"k":"v"}')
    for name, total in (("old", 0), ("both", 1), ("new", 1)):
        assert (await store.discover(Discover(name, 10, 0.0))).total == total


async def test_a_deleted_agent_leaves_nothing(store: RegistryStore) -> None:
    await store.register(agent("did:a:1", "chat"))
    await store.put_prekeys(put("did:a:1", one_time(1, 2), by=caller("did:a:1")))
    assert await take_ids(store, "did:a:1", 1) == [1]
    assert await store.delete(Delete(caller("did:a:1", "gone")))
    assert await store.take_prekeys(TakePrekeys("did:a:1", True, True)) is None
    assert (await store.discover(Discover("chat", 10, 0.0))).found == ()
    await store.register(agent("did:a:2", "other"))
    assert (await store.discover(Discover("chat", 10, 0.0))).found == ()
    await store.put_prekeys(put("did:a:2", one_time(1, 2), by=caller("did:a:2")))
    assert await take_ids(store, "did:a:2", 3) == [1, 2, None]
    await store.register(agent("did:a:1", "chat"))
    assert await store.take_prekeys(TakePrekeys("did:a:1", True, True)) is None


async def test_agents_expire_by_when_they_were_last_seen(store: RegistryStore) -> None:
    for number in range(4):
        await store.register(agent(f"did:a:{number}", "chat", now=1000.0))
    for number in range(2):
        change = put(f"did:a:{number}", one_time(1), by=caller(f"did:a:{number}", f"put {number}"), now=1000.0)
        await store.put_prekeys(change)
    assert await take_ids(store, "did:a:0", 1) == [1]
    await store.touch(Touch(caller("did:a:1", "t1"), 3000.0, 10.0))
    await store.touch(Touch(caller("did:a:3", "t3"), 3000.0, 10.0))
    assert await store.sweep(Sweep(5000.0, 900.0, 900.0)) == 0
    assert await store.sweep(Sweep(5000.0, 2000.0, 900.0)) == 1
    assert await store.find("did:a:2") is None
    assert await store.sweep(Sweep(5000.0, 2000.0, 2000.0)) == 1
    assert await store.take_prekeys(TakePrekeys("did:a:0", True, True)) is None
    page = await store.discover(Discover("chat", 10, 0.0))
    assert {found.did for found in page.found} == {"did:a:1", "did:a:3"}
    assert await store.count() == 2
    assert await store.register(agent("did:a:0")) == "created"
    assert await store.take_prekeys(TakePrekeys("did:a:0", True, True)) is None


async def test_discovery_is_exact_freshest_first_bounded_and_leaves_out_the_silent(store: RegistryStore) -> None:
    for number, seen in enumerate((1000.0, 3000.0, 2000.0, 10.0)):
        await store.register(agent(f"did:a:{number}", "chat", "Chat", now=seen))
    page = await store.discover(Discover("chat", 10, 100.0))
    assert [found.did for found in page.found] == ["did:a:1", "did:a:2", "did:a:0"]
    assert page.total == 3
    page = await store.discover(Discover("chat", 2, 0.0))
    assert [found.last_seen for found in page.found] == [3000.0, 2000.0]
    assert page.total == 4
    assert (await store.discover(Discover("cha", 10, 0.0))).found == ()
    await store.touch(Touch(caller("did:a:0"), 4000.0, 10.0))
    page = await store.discover(Discover("chat", 1, 0.0))
    assert page.found[0].did == "did:a:0"


async def test_each_one_time_key_is_handed_out_once_and_exhaustion_is_no_failure(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    assert await store.put_prekeys(put("did:a:1", one_time(3, 1, 2), by=caller("did:a:1"), now=1700.0)) == 3
    assert await take_ids(store, "did:a:1", 5) == [1, 2, 3, None, None]
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", True, True))
    assert bundle is not None
    assert bundle.signed == signed()
    found = await store.find("did:a:1")
    assert found is not None
    assert (found.one_time_keys_left, found.last_seen) == (0, 1700.0)


async def test_a_bundle_without_wish_takes_no_key(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.put_prekeys(put("did:a:1", one_time(1), by=caller("did:a:1")))
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", False, True))
    assert bundle is not None
    assert bundle.one_time is None
    assert await take_ids(store, "did:a:1", 1) == [1]


async def test_the_last_keys_are_kept_for_those_who_may_have_them(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.put_prekeys(put("did:a:1", one_time(*range(20)), by=caller("did:a:1")))
    strangers = await take_ids(store, "did:a:1", 18, last_ones=False)
    assert strangers == [*range(16), None, None]
    assert await take_ids(store, "did:a:1", 5) == [16, 17, 18, 19, None]


async def test_replacing_forgets_old_keys(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.put_prekeys(put("did:a:1", one_time(1, 2), by=caller("did:a:1", "one")))
    assert await take_ids(store, "did:a:1", 1) == [1]
    change = put("did:a:1", one_time(1, 5, salt=9), spk=signed(2), by=caller("did:a:1", "two"))
    assert await store.put_prekeys(change) == 2
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", True, True))
    assert bundle is not None
    assert bundle.signed == signed(2)
    assert bundle.one_time == one_time(1, salt=9)[0]


async def test_merging_adds_and_never_brings_back_a_taken_key(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.put_prekeys(put("did:a:1", one_time(1, 2, 3), by=caller("did:a:1", "one")))
    assert await take_ids(store, "did:a:1", 1) == [1]
    assert await store.put_prekeys(put("did:a:1", one_time(1, 3, 4), merge=True, by=caller("did:a:1", "two"))) == 3
    assert await take_ids(store, "did:a:1", 4) == [2, 3, 4, None]
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", True, True))
    assert bundle is not None
    assert bundle.signed == signed()
    change = put("did:a:1", (), merge=True, spk=signed(2), by=caller("did:a:1", "three"))
    assert await store.put_prekeys(change) == 0
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", True, True))
    assert bundle is not None
    assert bundle.signed == signed(2)


async def test_refused_prekeys_change_nothing(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    assert await store.put_prekeys(put("did:a:1", one_time(1), merge=True)) is PutRefused.NO_BUNDLE
    await store.put_prekeys(put("did:a:1", one_time(*range(150)), by=caller("did:a:1", "one")))
    before = await store.find("did:a:1")
    refused = (
        (put("did:a:1", one_time(*range(150, 201)), merge=True, spk=signed(2), now=5000.0), PutRefused.TOO_MANY),
        (put("did:a:1", one_time(7, 300, salt=1), merge=True, spk=signed(2), now=5000.0), PutRefused.OTHER_KEY),
    )
    for change, reason in refused:
        assert await store.put_prekeys(change) is reason
        assert await store.find("did:a:1") == before
    bundle = await store.take_prekeys(TakePrekeys("did:a:1", True, True))
    assert bundle is not None
    assert bundle.signed == signed(1)
    assert bundle.one_time == one_time(0)[0]


async def test_an_unsigned_upload_needs_a_signed_prekey_never_seen_before(store: RegistryStore) -> None:
    await store.register(agent("did:a:old", legacy=True))
    first = put("did:a:old", one_time(1, 2), spk=signed(1))
    assert await store.put_prekeys(first) == 2
    assert await take_ids(store, "did:a:old", 1) == [1]
    assert await store.put_prekeys(first) == 1, "the repetition is answered, and brings no key back"
    assert await store.put_prekeys(put("did:a:old", one_time(1, salt=6), spk=signed(1))) is PutRefused.SEEN
    assert await store.put_prekeys(put("did:a:old", one_time(8), spk=signed(2))) == 1
    assert await store.put_prekeys(first) is PutRefused.SEEN, "an old bundle does not come back"
    assert await take_ids(store, "did:a:old", 2) == [8, None]


async def test_heartbeats_are_throttled(store: RegistryStore) -> None:
    await store.register(agent("did:a:1", now=1000.0))
    assert await store.touch(Touch(caller("did:a:1", "one"), 1001.0, 10.0)) == 1001.0
    assert await store.touch(Touch(caller("did:a:1", "two"), 1004.0, 10.0)) == TooSoon(7.0)
    assert await store.touch(Touch(caller("did:a:1", "three"), 1011.0, 10.0)) == 1011.0


async def test_reputation_is_a_moving_average(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.register(agent("did:a:2"))
    assert await store.rate(Rate(caller("did:a:2"), "did:a:1", 1.0)) == pytest.approx(0.65)


async def test_a_session_report_moves_the_other_side_once(store: RegistryStore) -> None:
    calls = 0

    async def report(by: str, session: str, outcome: Outcome, receiver: str = "did:a:2") -> Mapping[str, float] | None:
        nonlocal calls
        calls += 1
        change = RecordSession(caller(by, f"s{calls}"), session, "did:a:1", receiver, outcome, 2000.0 + calls)
        return await store.record_session(change)

    await store.register(agent("did:a:1"))
    await store.register(agent("did:a:2"))
    assert await report("did:a:1", "s", Outcome.SUCCESS) == pytest.approx({"did:a:2": 0.6})
    assert await report("did:a:1", "s", Outcome.SUCCESS) == pytest.approx({"did:a:2": 0.6}), "counts once"
    assert await report("did:a:1", "s", Outcome.FAILED) == pytest.approx({"did:a:2": 0.6}), "whatever the outcome"
    assert await report("did:a:2", "s", Outcome.SUCCESS) == pytest.approx({"did:a:1": 0.6})
    assert await report("did:a:1", "t", Outcome.TIMEOUT) == pytest.approx({"did:a:2": 0.52})
    assert await report("did:a:2", "t", Outcome.FAILED) == {}, "the initiator does not answer for it"
    assert await report("did:a:1", "u", Outcome.SUCCESS, "did:a:gone") is None
    found = await store.find("did:a:2")
    assert found is not None
    sessions = (found.total_sessions, found.successful_sessions, found.failed_sessions, found.timeout_sessions)
    assert sessions == (2, 1, 0, 1)
    assert found.last_session_at == 2005.0
    await store.sweep(Sweep(2000.0 + 91 * 86_400, 0.0, 0.0))
    assert await report("did:a:1", "s", Outcome.SUCCESS) == pytest.approx({"did:a:2": 0.616})


async def test_a_taken_key_is_never_handed_out_again(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    await store.put_prekeys(put("did:a:1", one_time(1, 2, 3), by=caller("did:a:1", "one")))
    assert await take_ids(store, "did:a:1", 1) == [1]
    assert await store.put_prekeys(put("did:a:1", one_time(1, 2, 3), by=caller("did:a:1", "two"))) == 2
    assert await take_ids(store, "did:a:1", 1) == [2]
    assert await store.put_prekeys(put("did:a:1", one_time(1, salt=4), by=caller("did:a:1", "three"))) == 1
    assert await take_ids(store, "did:a:1", 2) == [1, None]
    other_id = (OneTimePrekey(9, one_time(2)[0].public_key),)
    again = put("did:a:1", one_time(1, 2, 3) + other_id, by=caller("did:a:1", "four"))
    assert await store.put_prekeys(again) == 1
    assert await take_ids(store, "did:a:1", 2) == [3, None]
    merged = put("did:a:1", one_time(20) + other_id, merge=True, by=caller("did:a:1", "five"))
    assert await store.put_prekeys(merged) == 1
    assert await take_ids(store, "did:a:1", 2) == [20, None]


async def test_verification_is_recorded(store: RegistryStore) -> None:
    await store.register(agent("did:a:1"))
    marked = await store.mark_verified(MarkVerified(caller("did:a:1"), "app", None, 1234.0))
    assert marked is not None
    assert (marked.verified_app_id, marked.verified_tenant_id, marked.verified_at) == ("app", None, 1234.0)
    assert await store.find("did:a:1") == marked


NAMES = ("did:a:1", "did:a:2", "did:a:3", "did:a:4")
SKILLS = ("chat", "sums", "maps", "did:a:1")


async def public(store: RegistryStore) -> dict[tuple[str, str], object]:
    """Everything anybody can be shown, by what it is about."""
    records = {("agent", did): await store.find(did) for did in NAMES}
    pages = {("page", skill): await store.discover(Discover(skill, 50, 0.0)) for skill in SKILLS}
    return {**records, **pages}


def some_verb(store: RegistryStore, chance: random.Random, now: float) -> Awaitable[object]:
    did, other = chance.sample(NAMES, 2)
    by = caller(did, f"{now}")
    skills = tuple(chance.sample(SKILLS, chance.randrange(3)))
    session = RecordSession(by, f"{chance.randrange(9)}", did, other, chance.choice(list(Outcome)), now)
    keys = one_time(*(chance.randrange(50) for _ in range(3)), salt=chance.randrange(250))
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: store.register(agent(did, *skills, now=now)),
        lambda: store.register(agent(other, *skills, now=now)),
        lambda: store.update(Update(by, skills, None, now)),
        lambda: store.update(Update(by, None, f'{{"at":"{now}"}}', now)),
        lambda: store.put_prekeys(put(did, keys, merge=chance.random() < 0.5, spk=signed(), by=by, now=now)),
        lambda: store.take_prekeys(TakePrekeys(did, True, True)),
        lambda: store.touch(Touch(by, now, 1.0)),
        lambda: store.rate(Rate(by, other, chance.random())),
        lambda: store.record_session(session),
        lambda: store.mark_verified(MarkVerified(by, "app", "tenant", now)),
        lambda: store.record_proofs([proof(f"p{now}")]),
        lambda: store.delete(Delete(by)) if chance.random() < 0.3 else store.check(),
        lambda: store.sweep(Sweep(now, now - 60.0, now - 90.0)),
    ]
    return chance.choice(verbs)()


@pytest.mark.parametrize("seed", range(4))
async def test_whoever_listens_hears_of_every_change_before_its_maker_does(store: RegistryStore, seed: int) -> None:
    chance, now, heard = random.Random(seed), 1000.0, set[str]()

    def hear(names: Collection[str]) -> None:
        heard.update(names)

    store.listen(hear)
    before, changes = await public(store), 0
    for _ in range(400):
        now += 1
        await some_verb(store, chance, now)
        after = await public(store)
        changed = {about for about in after if after[about] != before[about]}
        assert {name for _, name in changed} <= heard, "an answer kept about it would be wrong for ever"
        changes += len(changed)
        before = after
        heard.clear()
    assert changes > 200


async def test_reading_is_no_change(store: RegistryStore) -> None:
    await store.register(agent("did:a:1", "chat"))
    heard: list[Collection[str]] = []
    store.listen(heard.append)
    await public(store)
    await store.account("did:a:1")
    assert await store.take_prekeys(TakePrekeys("did:a:1", True, True)) is None
    assert not heard
