"""Who may bind: pitfalls 15, 20, 29 and 35."""

import json
from typing import Any

import pytest
from mesh_relay.links import Link

from meshlib.identity import Identity
from meshlib.wire.encoding import b64, timestamp
from tests.unit.mesh_relay.kit import ALICE, BOB, MALLORY, NONCE, UTC, Relay, ack, connect_frame, dump, message

LEGACY = "did:agentmesh:old"


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.mark.parametrize("features", [None, [], ["receipts"], ["challenge", "receipts", "of the future"]])
def test_a_proof_binds_and_stays_silent_unless_features_were_named(relay: Relay, features: list[str] | None) -> None:
    link = relay.join(ALICE, features)
    assert link not in relay.closed
    assert relay.core.connected == relay.core.verified == 1
    known = [name for name in ("receipts", "challenge") if name in (features or ())]
    expected = {"v": 1, "type": "connected", "features": known, "server_time": timestamp(relay.now.utc)}
    assert relay.got[link] == ([] if features is None else [expected])


@pytest.mark.parametrize(
    "first", [b"null", b"[1,2]", b"junk", b"\xff", b"{}", message(BOB.did, "1"), ack("1"), dump({"type": "heartbeat"})]
)
def test_anything_but_connect_first_closes_4001(relay: Relay, first: bytes) -> None:
    link = relay.open()
    relay.say(link, first, connect_frame(ALICE, UTC))
    assert relay.closed[link][0] == 4001
    assert "connect" in relay.errors(link)[0]
    assert relay.core.connected == 0


@pytest.mark.parametrize("frame", [{"type": "connect"}, {"type": "connect", "from": ""}])
def test_connect_without_from_closes_4002(relay: Relay, frame: dict[str, object]) -> None:
    link = relay.open()
    relay.say(link, dump(frame))
    assert relay.closed[link][0] == 4002


@pytest.mark.parametrize("did", ["alice", "did:mesh:", "did:mesh:a b", "did:mesh:" + "a" * 300, "did:x:a|b"])
def test_connect_from_something_that_is_no_did_closes_4003(relay: Relay, did: str) -> None:
    link = relay.open()
    relay.say(link, dump({"type": "connect", "from": did}))
    assert relay.closed[link][0] == 4003


def test_another_agents_did_closes_4003(relay: Relay) -> None:
    link = relay.open()
    relay.say(link, connect_frame(MALLORY, relay.now.utc, did=ALICE.did))
    assert relay.closed[link][0] == 4003
    assert relay.core.connected == 0


@pytest.mark.parametrize(
    "change",
    [
        {"signature": b64(bytes(64))},
        {"signature": "AAAA"},
        {"signature": ""},
        {"signature": 5},
        {"public_key": "AAAA"},
        {"public_key": {}},
        {"timestamp": "yesterday"},
        {"timestamp": "2026-09-21T12:00:00.000"},
        {"timestamp": 5},
        {"timestamp": "9999-12-31T23:59:59.999+99:99"},
    ],
)
def test_a_broken_proof_closes_4005(relay: Relay, change: dict[str, Any]) -> None:
    link = relay.open()
    relay.say(link, connect_frame(ALICE, relay.now.utc, **change))
    assert relay.closed[link][0] == 4005


@pytest.mark.parametrize(
    "missing", [("signature",), ("public_key",), ("timestamp",), ("signature", "public_key", "timestamp")]
)
def test_a_missing_proof_closes_4005(relay: Relay, missing: tuple[str, ...]) -> None:
    frame = json.loads(connect_frame(ALICE, relay.now.utc))
    link = relay.open()
    relay.say(link, dump({name: value for name, value in frame.items() if name not in missing}))
    assert relay.closed[link][0] == 4005


@pytest.mark.parametrize(("skew", "words"), [(-412.0, "412 s behind"), (301.0, "301 s ahead of"), (-1e9, "behind")])
def test_a_stale_proof_is_told_the_measured_skew(relay: Relay, skew: float, words: str) -> None:
    link = relay.open()
    relay.say(link, connect_frame(ALICE, relay.now.utc + skew))
    assert relay.closed[link][0] == 4005
    error = relay.got[link][0]
    assert words in error["detail"]
    assert timestamp(relay.now.utc) in error["detail"]
    assert error["server_time"] == timestamp(relay.now.utc)
    assert error["code"] == 4005


@pytest.mark.parametrize("skew", [-299.0, 299.0])
def test_five_minutes_of_skew_are_allowed(relay: Relay, skew: float) -> None:
    link = relay.open()
    relay.say(link, connect_frame(ALICE, relay.now.utc + skew))
    assert relay.core.connected == 1


def test_a_captured_proof_does_not_bind_again_nor_evict(relay: Relay) -> None:
    proof = connect_frame(ALICE, relay.now.utc)
    alice, thief = relay.open(), relay.open()
    relay.say(alice, proof)
    relay.say(thief, proof)
    assert relay.closed == {thief: (4005, "this proof has been used before")}


def test_a_captured_proof_does_not_bind_after_a_restart(relay: Relay) -> None:
    proof = connect_frame(ALICE, relay.now.utc)
    relay.say(relay.open(), proof)
    relay.commit()
    restarted = Relay(relay.inbox)
    thief = restarted.open()
    restarted.say(thief, proof)
    assert restarted.closed[thief][0] == 4005


def test_used_proofs_are_forgotten_once_stale(relay: Relay) -> None:
    relay.join(ALICE)
    relay.commit()
    assert Relay(relay.inbox).inbox.open().proofs
    relay.wait(700)
    relay.commit()
    assert not relay.inbox.open().proofs


def test_with_all_proofs_remembered_one_is_told_to_try_again_later() -> None:
    """4005 would tell an SDK to give up."""
    relay = Relay(proofs=1, bad_proof_burst=1)
    relay.join(MALLORY)
    link = relay.join(ALICE)
    assert relay.closed[link] == (1013, "too many proofs within five minutes; try again later")
    assert relay.got[link][0]["code"] == 1013
    assert relay.core.welcome("192.0.2.1", relay.now)  # no fault of theirs
    assert relay.join(ALICE, ["challenge"]) not in relay.closed
    relay.wait(700)
    assert relay.join(ALICE, ["challenge"]) not in relay.closed
    assert relay.join(BOB) not in relay.closed


def test_one_agent_does_not_use_up_what_others_need() -> None:
    relay = Relay(proofs_each=3)
    links = [relay.join(MALLORY) for _ in range(5)]
    assert [relay.closed.get(link, (0,))[0] for link in links] == [4006, 4006, 0, 1013, 1013]
    assert relay.join(ALICE) not in relay.closed
    relay.commit()
    restarted = Relay(relay.inbox, proofs_each=3)
    restarted.now = relay.now
    assert restarted.closed.get(restarted.join(MALLORY), (0,))[0] == 1013
    restarted.wait(400)
    assert restarted.join(MALLORY) not in restarted.closed


@pytest.mark.parametrize("features", [["challenge"], ["receipts", "challenge"]])
def test_who_cannot_be_remembered_as_answering_challenges_is_not_admitted(features: list[str]) -> None:
    relay = Relay(credentials=1)
    assert relay.join(BOB, features) not in relay.closed
    assert relay.closed[relay.join(ALICE, features)][0] == 1013
    assert relay.join(BOB, features) not in relay.closed
    assert relay.closed[relay.join(BOB)][0] == 4005
    assert relay.join(MALLORY) not in relay.closed


def test_an_answer_to_another_connections_challenge_is_refused(relay: Relay) -> None:
    link = relay.open(nonce="another")
    relay.say(link, connect_frame(ALICE, relay.now.utc, nonce=NONCE, features=["challenge"]))
    assert relay.closed[link][0] == 4005


def test_a_bare_proof_does_not_pass_for_an_answered_challenge(relay: Relay) -> None:
    link = relay.open()
    relay.say(link, connect_frame(ALICE, relay.now.utc, features=["challenge"]))
    assert relay.closed[link][0] == 4005


def test_who_has_answered_a_challenge_is_never_taken_on_a_bare_proof_again(relay: Relay) -> None:
    relay.join(ALICE, ["challenge"])
    bare = relay.join(ALICE)
    assert relay.closed[bare][0] == 4005
    relay.commit()
    restarted = Relay(relay.inbox)
    bare = restarted.join(ALICE)
    assert restarted.closed[bare][0] == 4005
    assert restarted.join(ALICE, ["challenge"]) not in restarted.closed


@pytest.mark.parametrize("features", ["receipts", 5, {"challenge": 1}, [1, None, ["challenge"]]])
def test_junk_features_lock_nobody_out(relay: Relay, features: object) -> None:
    link = relay.open()
    relay.say(link, connect_frame(ALICE, relay.now.utc, features=features))  # type: ignore[arg-type]
    assert relay.core.connected == 1


# --- legacy -----------------------------------------------------------------------------------------------------------


def legacy_connect(did: str = LEGACY) -> bytes:
    return dump({"v": 1, "type": "connect", "from": did})


def test_legacy_agents_are_refused_by_default(relay: Relay) -> None:
    bare, proved = relay.open(), relay.open()
    relay.say(bare, legacy_connect())
    relay.say(proved, connect_frame(ALICE, relay.now.utc, did=LEGACY))
    assert relay.closed[bare][0] == relay.closed[proved][0] == 4003


def test_allow_legacy_admits_without_proof_outside_did_mesh_only() -> None:
    relay = Relay(allow_legacy=True)
    old, posing = relay.open(), relay.open()
    relay.say(old, legacy_connect())
    relay.say(posing, legacy_connect(ALICE.did))
    assert old not in relay.closed
    assert relay.closed[posing][0] == 4005
    assert (relay.core.connected, relay.core.verified) == (1, 0)


def prove_legacy(relay: Relay, who: Identity) -> Link:
    return relay.join(who, did=LEGACY)


def test_a_legacy_did_is_bound_to_the_first_key_it_proved() -> None:
    relay = Relay(allow_legacy=True)
    prove_legacy(relay, BOB)
    assert relay.core.verified == 1
    relay.commit()
    for after in (relay, Relay(relay.inbox, allow_legacy=True)):
        after.wait(1)
        assert prove_legacy(after, BOB) not in after.closed
        thief, bare = prove_legacy(after, MALLORY), after.open()
        after.say(bare, legacy_connect())
        assert after.closed[thief][0] == 4003
        assert after.closed[bare][0] == 4005


def test_a_legacy_key_that_cannot_be_pinned_is_not_admitted() -> None:
    relay = Relay(allow_legacy=True, credentials=1)
    relay.join(BOB, ["challenge"])
    assert relay.closed[prove_legacy(relay, ALICE)][0] == 1013
    assert prove_legacy(relay, MALLORY) in relay.closed


@pytest.mark.parametrize("did", ["did:Mesh:" + ALICE.did[9:], "did:MESH:x", "DID:mesh:" + ALICE.did[9:]])
def test_a_look_alike_of_did_mesh_is_no_legacy_agent(did: str) -> None:
    relay = Relay(allow_legacy=True)
    bare, proved = relay.open(), relay.open()
    relay.say(bare, legacy_connect(did))
    relay.say(proved, connect_frame(ALICE, relay.now.utc, did=did))
    assert relay.closed[bare][0] == relay.closed[proved][0] == 4003


def test_a_failed_legacy_proof_pins_nothing() -> None:
    relay = Relay(allow_legacy=True)
    relay.say(relay.open(), connect_frame(MALLORY, relay.now.utc, did=LEGACY, signature=b64(bytes(64))))
    assert prove_legacy(relay, BOB) not in relay.closed


# --- deadlines and numbers --------------------------------------------------------------------------------------------


def test_a_socket_has_ten_seconds_for_its_proof(relay: Relay) -> None:
    link = relay.open()
    relay.wait(9)
    assert link not in relay.closed
    relay.wait(2)
    assert relay.closed[link][0] == 4005
    assert relay.core.unproven == 0


def test_one_socket_too_many_costs_the_one_that_waits_longest() -> None:
    relay = Relay(unproven=3)
    links = [relay.open() for _ in range(4)]
    relay.carry_out()
    assert list(relay.closed) == links[:1]
    relay.say(links[3], connect_frame(ALICE, relay.now.utc))
    assert relay.core.connected == 1


def test_addresses_that_keep_failing_are_turned_away_and_others_are_not() -> None:
    relay = Relay(bad_proof_burst=3, bad_proof_rate=1)
    for _ in range(4):
        assert relay.core.welcome("192.0.2.1", relay.now)
        relay.say(relay.open(), b"junk")
    assert not relay.core.welcome("192.0.2.1", relay.now)
    assert relay.core.welcome("192.0.2.2", relay.now)
    relay.wait(5)
    assert relay.core.welcome("192.0.2.1", relay.now)


def test_new_sockets_are_limited_per_address_but_not_for_loopback() -> None:
    relay = Relay(address_burst=2, address_rate=1)
    assert [relay.core.welcome("192.0.2.1", relay.now) for _ in range(4)] == [True, True, False, False]
    assert all(relay.core.welcome("loopback", relay.now) for _ in range(100))
