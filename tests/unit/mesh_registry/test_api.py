"""The registry behind its HTTP application: what every pitfall of the field comes to here."""

import json
from typing import Any

import pytest
from mesh_registry.api import sweep
from mesh_registry.core import Policy

from meshlib.buckets import Rate
from meshlib.identity import to_x25519
from meshlib.wire import registry as wire
from meshlib.wire.encoding import b64url, timestamp
from tests.unit.mesh_registry.helpers import NOON, Actor, Site, changed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def site() -> Site:
    return Site()


ALICE = Actor("alice")
BOB = Actor("bob")
MALLORY = Actor("mallory")
OLD = Actor("old", did="did:agentmesh:old")
LEGACY = Policy(allow_legacy=True)


def said(answer: Any, status: int, *words: str) -> dict[str, Any]:
    """The answer's JSON, after a look at its status and at the explanation of a refusal."""
    assert answer.status_code == status, answer.text
    members: dict[str, Any] = answer.json() if answer.content else {}
    if status >= 400:
        assert set(members) == {"detail"}
        assert isinstance(members["detail"], str)
    for word in words:
        assert word in members["detail"]
    return members


async def record(site: Site, did: str) -> dict[str, Any]:
    return said(await site.send(wire.get_agent(did)), 200)


# --- registration ---------------------------------------------------------------------------------------------------


async def test_registration_with_proof_derives_the_did_from_the_key(site: Site) -> None:
    answer = await site.send(ALICE.registration(capabilities=("alice", "chat"), display_name="Alice"))
    assert said(answer, 201) == {"did": ALICE.did, "status": "registered"}
    assert await record(site, ALICE.did) == {
        "did": ALICE.did,
        "capabilities": ["alice", "chat"],
        "metadata": {"display_name": "Alice"},
        "registered_at": timestamp(NOON),
        "last_seen": timestamp(NOON),
        "reputation_score": 0.5,
        "total_sessions": 0,
        "successful_sessions": 0,
        "failed_sessions": 0,
        "timeout_sessions": 0,
        "last_session_at": None,
        "completion_rate": None,
        "tier": "anonymous",
        "verified_app_id": None,
        "verified_tenant_id": None,
        "verified_at": None,
        "public_key": b64url(bytes(ALICE.identity.public_key)),
        "one_time_keys_left": 0,
        "registration": "pop",
        "online": True,
    }


async def test_registering_again_is_a_conflict_that_says_how_to_update(site: Site) -> None:
    said(await site.send(ALICE.registration()), 201)
    said(await site.send(ALICE.registration(NOON + 1)), 409, "already registered", "PUT /v1/agents/{did}")


@pytest.mark.parametrize(
    ("offset", "status"), [(-299.0, 201), (299.0, 201), (-301.0, 401), (301.0, 401), (-86_400.0, 401)]
)
async def test_proofs_of_possession_live_five_minutes(site: Site, offset: float, status: int) -> None:
    answer = await site.send(ALICE.registration(NOON + offset))
    said(answer, status, *(["the registry's time is"] if status == 401 else []))


@pytest.mark.parametrize(
    "text", ["2026-09-21T14:13:20", "2026-09-21", "now", "", "1790000000", "2026-09-21T14:13:20.000", "\u0662026"]
)
async def test_naive_and_odd_timestamps_are_refused_not_crashed_upon(site: Site, text: str) -> None:
    request = wire.register(ALICE.identity, text, ("alice",))
    said(await site.send(request), 401, "proof_timestamp")
    said(await site.send(ALICE.registration()), 201)
    headers = wire.headers(wire.delete_agent(ALICE.did), ALICE.signer, "x", bound=False)
    credentials = f"Ed25519-Timestamp {ALICE.did} {text or '-'} {'A' * 86}"
    headers = [("authorization", credentials.encode("latin-1", "replace").decode("latin-1"))]
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401)


async def test_a_proof_by_another_key_is_refused(site: Site) -> None:
    theirs = json.loads(MALLORY.registration().body or b"")
    said(await site.send(changed(ALICE.registration(), proof=theirs["proof"])), 401, "Invalid proof-of-possession")
    said(await site.send(wire.get_agent(ALICE.did)), 404)


async def test_the_proof_covers_the_text_of_the_key_and_of_the_time(site: Site) -> None:
    request = ALICE.registration()
    padded = json.loads(request.body or b"")["public_key"] + "="
    said(await site.send(changed(request, public_key=padded)), 401)
    said(await site.send(changed(request, proof_timestamp=timestamp(NOON + 1))), 401)


async def test_a_foreign_did_beside_the_proof_is_refused(site: Site) -> None:
    said(await site.send(changed(ALICE.registration(), did=BOB.did)), 422, ALICE.did)
    said(await site.send(changed(ALICE.registration(), did=ALICE.did)), 201)


async def test_a_captured_registration_does_not_bring_a_deleted_agent_back(site: Site) -> None:
    request = ALICE.registration()
    said(await site.send(request), 201)
    said(await site.send(wire.delete_agent(ALICE.did), ALICE), 204)
    said(await site.send(request), 401, "used before")
    said(await site.send(ALICE.registration(NOON + 2)), 201)


@pytest.mark.parametrize("key", ["AAAA", "?", "", b64url(bytes(31)), b64url(bytes(33))])
async def test_keys_of_the_wrong_length_are_refused(site: Site, key: str) -> None:
    said(await site.send(changed(ALICE.registration(), public_key=key)), 422, "public_key")


async def test_a_low_order_key_proves_nothing(site: Site) -> None:
    identity_point = b64url(b"\x01" + bytes(31))
    forged = changed(ALICE.registration(), public_key=identity_point, proof=b64url(b"\x01" + bytes(63)))
    said(await site.send(forged), 401)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("capabilities", ["x"] * 65),
        ("capabilities", [""]),
        ("capabilities", ["x" * 257]),
        ("capabilities", ["line\nfeed"]),
        ("capabilities", [f"{number:02}" + "\U0001f4a3" * 30 for number in range(34)]),
        ("capabilities", "chat"),
        ("capabilities", [1]),
        ("metadata", {"a": 1}),
        ("metadata", {"a": {"deep": "value"}}),
        ("metadata", ["a"]),
        ("metadata", {"a": "x" * 4097}),
        ("metadata", {str(number): "" for number in range(65)}),
        ("metadata", {str(number): "x" * 4000 for number in range(10)}),
        ("metadata", {"display_name": "bell\x07"}),
        ("proof_timestamp", 5),
        ("public_key", ["x"]),
        ("proof", {}),
        ("proof", None),
        ("proof_timestamp", None),
        ("public_key", None),
        ("did", 7),
    ],
)
async def test_members_of_the_wrong_shape_or_size_are_named(site: Site, member: str, value: Any) -> None:
    said(await site.send(changed(ALICE.registration(), **{member: value})), 422, member.partition("_")[0])
    assert await site.store.count() == 0


async def test_unknown_members_are_ignored_and_repeated_capabilities_dropped(site: Site) -> None:
    said(await site.send(changed(ALICE.registration(), capabilities=["b", "a", "b"], future={"x": [1]})), 201)
    assert (await record(site, ALICE.did))["capabilities"] == ["b", "a"]


async def test_registrations_are_rationed_per_address() -> None:
    site = Site(Policy(registrations=Rate(2, 0.1)))
    said(await site.send(ALICE.registration()), 201)
    said(await site.send(wire.Request("POST", "/v1/agents", b"{}")), 422)
    said(await site.send(ALICE.registration(NOON + 1)), 409)
    answer = await site.send(BOB.registration())
    said(answer, 429, "this address")
    assert answer.headers["retry-after"] == "10"
    site.clock.advance(10)
    said(await site.send(BOB.registration()), 201)


async def test_who_never_published_prekeys_or_is_silent_for_long_is_forgotten(site: Site) -> None:
    said(await site.send(MALLORY.registration()), 201)
    await site.join(ALICE)
    site.clock.advance(3700)
    await sweep(site.registry)
    said(await site.send(wire.get_agent(MALLORY.did)), 404)
    site.clock.advance(80 * 86_400)
    await sweep(site.registry)
    said(await site.send(wire.get_agent(ALICE.did)), 200)
    site.clock.advance(10 * 86_400)
    await sweep(site.registry)
    said(await site.send(wire.get_agent(ALICE.did)), 404)
    said(await site.send(ALICE.registration(site.clock.utc)), 201)


# --- authentication -------------------------------------------------------------------------------------------------


async def test_the_owner_updates_capabilities_and_metadata(site: Site) -> None:
    await site.join(ALICE)
    answer = said(await site.send(wire.update(ALICE.did, ["new"], {"k": "v"}), ALICE), 200)
    assert (answer["capabilities"], answer["metadata"]) == (["new"], {"k": "v"})
    site.clock.advance(1)
    answer = said(await site.send(wire.update(ALICE.did, None, {}), ALICE), 200)
    assert (answer["capabilities"], answer["metadata"]) == (["new"], {})
    site.clock.advance(1)
    said(await site.send(wire.update(ALICE.did), ALICE), 422, "nothing to update")


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: wire.delete_agent(ALICE.did),
        lambda: wire.heartbeat(ALICE.did),
        lambda: wire.update(ALICE.did, ["stolen"]),
        lambda: ALICE.publication(3, signed_id=9),
    ],
    ids=["delete", "heartbeat", "update", "prekeys"],
)
async def test_only_the_owner_changes_an_agent(site: Site, request_of: Any) -> None:
    await site.join(ALICE)
    await site.join(BOB)
    before = await record(site, ALICE.did)
    request = request_of()
    said(await site.send(request), 401, "Authorization")
    said(await site.send(request, BOB), 403, "DID mismatch")
    said(await site.send(request, MALLORY), 401, "not registered")
    forged = wire.Signer(MALLORY.identity, ALICE.did)
    headers = wire.headers(request, forged, timestamp(site.clock.utc), bound=False)
    said(await site.send(request, headers=headers), 401, "does not verify")
    said(await site.send(request, ALICE, at=site.clock.utc - 301), 401, "301 s old", timestamp(site.clock.utc))
    said(await site.send(request, ALICE, at=site.clock.utc + 400), 401, "400 s in the future")
    assert await record(site, ALICE.did) == before


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic YTpi",
        "Ed25519-Timestamp",
        "Ed25519-Timestamp a b",
        "Ed25519-Timestamp a b c d",
        "Ed25519-Timestamp {did} 2026-09-21T14:13:20.000Z AAAA",
        "Ed25519-Timestamp {did} 2026-09-21T14:13:20.000Z " + "!" * 86,
        "Ed25519-Timestamp {did} 2026-09-21T14:13:20 " + "A" * 86,
        "Ed25519-Timestamp {did} 2026-13-41T14:13:20Z " + "A" * 86,
        "Ed25519-Timestamp  {did} 2026-09-21T14:13:20.000Z " + "A" * 86,
        "x" * 5000,
        "Ed25519-Timestamp \xff\xfe 2026-09-21T14:13:20.000Z " + "A" * 86,
    ],
)
async def test_malformed_authorization_is_401(site: Site, header: str) -> None:
    await site.join(ALICE)
    answer = await site.http.delete(
        f"/v1/agents/{ALICE.did}", headers={"authorization": header.format(did=ALICE.did).encode("latin-1")}
    )
    said(answer, 401)
    assert answer.headers["www-authenticate"] == "Ed25519-Timestamp"
    said(await site.send(wire.get_agent(ALICE.did)), 200)


async def test_a_captured_signature_serves_no_other_request(site: Site) -> None:
    await site.join(ALICE)
    headers = wire.headers(wire.heartbeat(ALICE.did), ALICE.signer, timestamp(site.clock.utc), bound=False)
    said(await site.send(wire.heartbeat(ALICE.did), headers=headers), 200)
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")
    site.clock.advance(299)
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")
    site.clock.advance(2)
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "old")


@pytest.mark.parametrize("name", ["heartbeat", "update", "upload", "rating", "session"])
async def test_every_change_uses_its_signature_up(site: Site, name: str) -> None:
    await site.join(ALICE)
    await site.join(BOB)
    report = wire.SessionReport("s", ALICE.did, BOB.did, "success", ALICE.did)
    request = {
        "heartbeat": wire.heartbeat(ALICE.did),
        "update": wire.update(ALICE.did, ["x"]),
        "upload": ALICE.publication(3, signed_id=2),
        "rating": wire.reputation(BOB.did, 1),
        "session": wire.report_session(report),
    }[name]
    headers = wire.headers(request, ALICE.signer, timestamp(site.clock.utc), bound=False)
    said(await site.send(request, headers=headers), 200)
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")


async def test_a_signature_seen_on_a_look_up_changes_nothing(site: Site) -> None:
    await site.join(ALICE)
    for request in (
        wire.discover("x"),
        wire.get_agent(ALICE.did),
        wire.fetch_prekeys(ALICE.did),
        wire.presence(ALICE.did),
    ):
        site.clock.advance(1)
        headers = wire.headers(request, ALICE.signer, timestamp(site.clock.utc), bound=False)
        said(await site.send(request, headers=headers), 200)
        said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")
        said(await site.send(ALICE.publication(1), headers=headers), 401, "used for another request")


async def test_authorization_beside_a_registration_is_ignored_unless_it_is_bound(site: Site) -> None:
    said(await site.send(ALICE.registration(), headers=[("authorization", "Bearer x")]), 201)
    said(await site.send(BOB.registration(), MALLORY), 201)
    theirs = Actor("carol")
    said(await site.send(theirs.registration(), MALLORY, bound=True), 401, "another agent")
    said(await site.send(wire.get_agent(theirs.did)), 404)


async def test_a_signature_beside_a_registration_serves_only_the_upload_that_follows(site: Site) -> None:
    headers = wire.headers(ALICE.registration(), ALICE.signer, timestamp(NOON), bound=False)
    said(await site.send(ALICE.registration(), headers=headers), 201)
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")
    said(await site.send(ALICE.publication(), headers=headers), 200)
    said(await site.send(ALICE.publication(3, signed_id=2), headers=headers), 401, "used for another request")
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")


async def test_the_same_request_again_is_answered_again_and_done_once(site: Site) -> None:
    await site.join(ALICE)
    await site.join(BOB)
    rating = wire.reputation(ALICE.did, 1.0)
    headers = wire.headers(rating, BOB.signer, timestamp(site.clock.utc), bound=False)
    first = said(await site.send(rating, headers=headers), 200)
    assert said(await site.send(rating, headers=headers), 200) == first
    assert (await record(site, ALICE.did))["reputation_score"] == pytest.approx(0.65)

    upload = ALICE.publication(3, signed_id=2)
    headers = wire.headers(upload, ALICE.signer, timestamp(site.clock.utc), bound=False)
    said(await site.send(upload, headers=headers), 200)
    for _ in range(3):
        said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)
    assert said(await site.send(upload, headers=headers), 200)["otk_count"] == 3
    assert (await record(site, ALICE.did))["one_time_keys_left"] == 0

    site.clock.advance(1)
    goodbye = wire.delete_agent(ALICE.did)
    headers = wire.headers(goodbye, ALICE.signer, timestamp(site.clock.utc), bound=False)
    said(await site.send(goodbye, headers=headers), 204)
    said(await site.send(goodbye, headers=headers), 204)


async def test_a_refused_request_may_come_again(site: Site) -> None:
    await site.join(ALICE)
    said(await site.send(wire.heartbeat(ALICE.did), ALICE), 200)
    site.clock.advance(4)
    headers = wire.headers(wire.heartbeat(ALICE.did), ALICE.signer, timestamp(site.clock.utc), bound=False)
    answer = await site.send(wire.heartbeat(ALICE.did), headers=headers)
    said(answer, 429, "retry")
    assert answer.headers["retry-after"] == "6"
    site.clock.advance(6)
    said(await site.send(wire.heartbeat(ALICE.did), headers=headers), 200)


@pytest.mark.parametrize("name", ["throttled", "unknown agent", "bad body", "no JSON", "foreign", "no provider"])
async def test_the_signature_of_a_refused_request_serves_no_other(site: Site, name: str) -> None:
    await site.join(ALICE)
    said(await site.send(wire.heartbeat(ALICE.did), ALICE), 200)
    site.clock.advance(1)
    request, status = {
        "throttled": (wire.heartbeat(ALICE.did), 429),
        "unknown agent": (wire.reputation("did:mesh:nobody", 1), 404),
        "bad body": (wire.update(ALICE.did), 422),
        "no JSON": (wire.Request("PUT", f"/v1/agents/{ALICE.did}/prekeys", b"{"), 400),
        "foreign": (wire.heartbeat(BOB.did), 403),
        "no provider": (wire.verify_agent(ALICE.did, "token"), 503),
    }[name]
    headers = wire.headers(request, ALICE.signer, timestamp(site.clock.utc), bound=False)
    said(await site.send(request, headers=headers), status)
    said(await site.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")
    said(await site.send(request, headers=headers), status)


@pytest.mark.parametrize("seen_on", ["look-up", "discovery", "bundle", "refused"])
async def test_a_signature_that_changed_nothing_stays_used_across_a_restart(site: Site, seen_on: str) -> None:
    await site.join(ALICE)
    request, status = {
        "look-up": (wire.get_agent(ALICE.did), 200),
        "discovery": (wire.discover("x"), 200),
        "bundle": (wire.fetch_prekeys(ALICE.did), 200),
        "refused": (wire.update(ALICE.did), 422),
    }[seen_on]
    headers = wire.headers(request, ALICE.signer, timestamp(site.clock.utc + 200), bound=False)
    said(await site.send(request, headers=headers), status)
    restarted = Site()
    restarted.clock = restarted.registry.now = site.clock  # type: ignore[assignment]
    restarted.registry.store = restarted.store = site.store
    restarted.core.restore(await site.store.used_proofs(site.clock.utc))
    said(await restarted.send(wire.delete_agent(ALICE.did), headers=headers), 401, "used for another request")


async def test_who_has_signed_a_whole_request_always_must(site: Site) -> None:
    await site.join(ALICE)
    said(await site.send(wire.heartbeat(ALICE.did), ALICE, bound=True), 200)
    site.clock.advance(20)
    said(await site.send(wire.heartbeat(ALICE.did), ALICE), 401, "Mesh-Request-Signature is missing")
    said(await site.send(wire.heartbeat(ALICE.did), ALICE, bound=True), 200)
    said(await site.send(wire.delete_agent(ALICE.did), ALICE), 401, "Mesh-Request-Signature is missing")
    # Two different requests within a millisecond are two signatures.
    said(await site.send(wire.update(ALICE.did, ["now"]), ALICE, bound=True), 200)
    said(await site.send(wire.delete_agent(ALICE.did), ALICE, bound=True), 204)


async def test_a_registration_can_start_with_whole_signatures(site: Site) -> None:
    said(await site.send(ALICE.registration(), ALICE, bound=True), 201)
    said(await site.send(ALICE.publication(), ALICE), 401, "Mesh-Request-Signature is missing")
    headers = dict(wire.headers(BOB.registration(), BOB.signer, timestamp(NOON), bound=True))
    headers["mesh-request-signature"] = b64url(bytes(64))
    said(await site.send(BOB.registration(), headers=list(headers.items())), 401, "Mesh-Request-Signature")
    said(await site.send(wire.get_agent(BOB.did)), 404)


@pytest.mark.parametrize("part", ["method", "target", "body"])
async def test_a_whole_signature_is_worth_nothing_on_another_request(site: Site, part: str) -> None:
    await site.join(ALICE)
    signed = wire.update(ALICE.did, ["new"])
    other = {
        "method": wire.Request("DELETE", signed.target),
        "target": wire.Request("PUT", signed.target + "?x=1", signed.body),
        "body": wire.update(ALICE.did, ["stolen"]),
    }[part]
    headers = wire.headers(signed, ALICE.signer, timestamp(site.clock.utc), bound=True)
    said(await site.send(other, headers=headers), 401, "Mesh-Request-Signature does not verify")
    said(await site.send(signed, headers=headers), 200)


# --- prekeys --------------------------------------------------------------------------------------------------------


async def test_a_bundle_comes_back_as_published_and_belongs_to_the_did(site: Site) -> None:
    await site.join(ALICE, 3)
    answer = wire.Answer(200, (await site.send(wire.fetch_prekeys(ALICE.did))).content)
    bundle = wire.read_bundle(answer, ALICE.did).checked(ALICE.identity.did)
    published = ALICE.prekeys(3)
    assert bundle.identity_key == to_x25519(ALICE.identity.public_key)
    assert (bundle.signed_prekey_id, bundle.signed_prekey) == (1, published.signed_prekey)
    assert (bundle.one_time_prekey_id, bundle.one_time_prekey) == published.one_time_prekeys[0]


async def test_no_bundle_is_404(site: Site) -> None:
    said(await site.send(wire.fetch_prekeys(ALICE.did)), 404, "Pre-key bundle not found")
    said(await site.send(ALICE.registration()), 201)
    said(await site.send(wire.fetch_prekeys(ALICE.did)), 404, "Pre-key bundle not found")


def _with(request: wire.Request, path: str, value: Any) -> wire.Request:
    body = json.loads(request.body or b"")
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = body
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return wire.Request(request.method, request.target, json.dumps(body).encode())


_THEIRS = json.loads(MALLORY.publication().body or b"")
_LOW_ORDER = b64url(bytes(32))


@pytest.mark.parametrize(
    ("path", "value", "status", "word"),
    [
        ("identity_key", _THEIRS["identity_key"], 422, "identity_key"),
        ("identity_key", None, 422, "identity_key"),
        ("identity_key", b64url(bytes(31)), 422, "identity_key"),
        ("identity_key", 5, 422, "identity_key"),
        ("identity_key_ed", _THEIRS["identity_key_ed"], 403, "registered with"),
        ("identity_key_ed", None, 422, "identity_key_ed"),
        ("identity_key_ed", "", 422, "identity_key_ed"),
        ("signed_pre_key", None, 422, "signed_pre_key"),
        ("signed_pre_key", [], 422, "signed_pre_key"),
        ("signed_pre_key", _THEIRS["signed_pre_key"], 422, "signature"),
        ("signed_pre_key.signature", b64url(bytes(64)), 422, "signature"),
        ("signed_pre_key.signature", b64url(bytes(63)), 422, "signature"),
        ("signed_pre_key.public_key", _THEIRS["signed_pre_key"]["public_key"], 422, "signature"),
        ("signed_pre_key.key_id", -1, 422, "key_id"),
        ("signed_pre_key.key_id", 2**32, 422, "key_id"),
        ("signed_pre_key.key_id", 1e300, 422, "key_id"),
        ("signed_pre_key.key_id", True, 422, "key_id"),
        ("signed_pre_key.key_id", "1", 422, "key_id"),
        ("one_time_pre_keys", {}, 422, "one_time_pre_keys"),
        ("one_time_pre_keys", "x", 422, "one_time_pre_keys"),
        ("one_time_pre_keys.0", 1, 422, "one_time_pre_keys"),
        ("one_time_pre_keys.1.key_id", 1, 422, "same key_id"),
        ("one_time_pre_keys.1.key_id", 10**400, 422, "key_id"),
        ("one_time_pre_keys.1.public_key", "A" * 42, 422, "one_time_pre_keys[1].public_key"),
        ("one_time_pre_keys.1.public_key", "A" * 42 + "\u00e9", 422, "one_time_pre_keys[1].public_key"),
        ("one_time_pre_keys.1.public_key", _LOW_ORDER, 422, "keeps a secret"),
        ("one_time_pre_keys.1.public_key", None, 422, "public_key"),
        ("mode", "append", 422, "mode"),
        ("mode", 1, 422, "mode"),
    ],
)
async def test_a_refused_upload_changes_nothing(site: Site, path: str, value: Any, status: int, word: str) -> None:
    await site.join(ALICE, 3)
    before = await record(site, ALICE.did)
    said(await site.send(_with(ALICE.publication(5, signed_id=2), path, value), ALICE), status, word)
    assert await record(site, ALICE.did) == before
    bundle = said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)
    assert bundle["identity_key_ed"] == b64url(bytes(ALICE.identity.public_key))
    assert bundle["signed_pre_key"]["key_id"] == 1
    assert bundle["one_time_pre_key"]["key_id"] == 1


async def test_a_signed_prekey_of_low_order_is_refused_though_signed(site: Site) -> None:
    await site.join(ALICE)
    signature = b64url(ALICE.identity.sign(bytes(32)))
    weak = {"key_id": 5, "public_key": _LOW_ORDER, "signature": signature}
    said(await site.send(changed(ALICE.publication(1), signed_pre_key=weak), ALICE), 422, "keeps a secret")


async def test_more_than_200_one_time_keys_are_refused_at_once_or_in_portions(site: Site) -> None:
    await site.join(ALICE, 200)
    said(await site.send(ALICE.publication(201), ALICE), 422, "one_time_pre_keys")
    site.clock.advance(1)
    said(await site.send(ALICE.publication(1, "merge", first_id=500), ALICE), 422, "200")
    said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)
    site.clock.advance(1)
    added = said(await site.send(ALICE.publication(1, "merge", first_id=500), ALICE), 200)
    assert added["otk_count"] == 200


async def test_merging_keeps_what_is_there(site: Site) -> None:
    await site.join(ALICE, 2)
    merge = ALICE.publication(2, "merge", first_id=10, signed_id=2)
    assert said(await site.send(merge, ALICE), 200) == {"did": ALICE.did, "otk_count": 4}
    site.clock.advance(1)
    only_keys = _with(ALICE.publication(1, "merge", first_id=20), "signed_pre_key", None)
    assert said(await site.send(only_keys, ALICE), 200)["otk_count"] == 5
    ids = [said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)["one_time_pre_key"]["key_id"] for _ in range(4)]
    assert ids == [1, 2, 10, 11]
    assert said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)["signed_pre_key"]["key_id"] == 2


async def test_strangers_cannot_drain_the_last_keys(site: Site) -> None:
    await site.join(ALICE, 25)
    await site.join(BOB)
    got = [said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)["one_time_pre_key"] for _ in range(30)]
    assert sum(key is not None for key in got) == 20
    for _ in range(5):
        site.clock.advance(0.01)
        assert said(await site.send(wire.fetch_prekeys(ALICE.did), BOB), 200)["one_time_pre_key"] is not None
    site.clock.advance(0.01)
    assert said(await site.send(wire.fetch_prekeys(ALICE.did), BOB), 200)["one_time_pre_key"] is None


async def test_a_replayed_or_forged_signature_is_a_stranger_not_an_error(site: Site) -> None:
    await site.join(ALICE, 25)
    await site.join(BOB)
    for _ in range(20):
        said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)
    headers = wire.headers(wire.fetch_prekeys(ALICE.did), BOB.signer, timestamp(site.clock.utc), bound=False)
    assert said(await site.send(wire.fetch_prekeys(ALICE.did), headers=headers), 200)["one_time_pre_key"]
    assert said(await site.send(wire.fetch_prekeys(ALICE.did), headers=headers), 200)["one_time_pre_key"] is None
    forged = wire.headers(
        wire.fetch_prekeys(ALICE.did), wire.Signer(MALLORY.identity, BOB.did), timestamp(site.clock.utc), bound=True
    )
    assert said(await site.send(wire.fetch_prekeys(ALICE.did), headers=forged), 200)["one_time_pre_key"] is None
    stale = wire.headers(wire.fetch_prekeys(ALICE.did), BOB.signer, timestamp(NOON - 900), bound=False)
    assert said(await site.send(wire.fetch_prekeys(ALICE.did), headers=stale), 200)["one_time_pre_key"] is None


async def test_keys_are_rationed_per_target_and_per_requester() -> None:
    site = Site(Policy(keys_per_target=Rate(3, 0.5), keys_per_requester=Rate(5, 0.5)))
    await site.join(ALICE, 50)
    await site.join(BOB, 50)
    alices = [said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)["one_time_pre_key"] for _ in range(4)]
    assert [key is not None for key in alices] == [True, True, True, False]
    bobs = [said(await site.send(wire.fetch_prekeys(BOB.did)), 200)["one_time_pre_key"] for _ in range(3)]
    assert [key is not None for key in bobs] == [True, False, False], "this requester has used up its five"
    site.clock.advance(2)
    assert said(await site.send(wire.fetch_prekeys(BOB.did)), 200)["one_time_pre_key"] is not None


async def test_strangers_cannot_use_up_what_an_agent_hands_out_to_known_peers() -> None:
    site = Site(Policy(keys_per_target=Rate(3, 0.001)))
    await site.join(ALICE, 50)
    await site.join(BOB)
    for _ in range(10):
        said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)
    got = []
    for _ in range(4):
        site.clock.advance(0.01)
        got.append(said(await site.send(wire.fetch_prekeys(ALICE.did), BOB), 200)["one_time_pre_key"])
    assert [key is not None for key in got] == [True, True, True, False]


# --- agt-4 ----------------------------------------------------------------------------------------------------------


async def test_agents_without_proof_are_refused_by_default(site: Site) -> None:
    said(await site.send(OLD.legacy_registration()), 401, "--allow-legacy")
    assert await site.store.count() == 0


async def test_agents_without_proof_cannot_take_names_that_are_hashes() -> None:
    site = Site(LEGACY)
    for did in (ALICE.did, "did:mesh:alias", "DID:mesh:x", "did:MESH:x"):
        answer = await site.send(OLD.legacy_registration(did))
        assert answer.status_code in (401, 422), answer.text
    for did in ("", "alice", "did:", "did:x", "did:x:a b", "did:x:" + "y" * 300, "did:x:a|b", "did:x:\n"):
        said(
            await site.send(OLD.legacy_registration(did))
            if did
            else await site.send(wire.Request("POST", "/v1/agents", b'{"did":"","public_key":"AAAA"}')),
            422,
        )
    assert await site.store.count() == 0


async def test_a_legacy_registration_needs_a_did_and_a_sound_key() -> None:
    site = Site(LEGACY)
    said(await site.send(changed(OLD.legacy_registration(), did=None)), 422, "did")
    said(await site.send(changed(OLD.legacy_registration(), public_key=b64url(bytes(32)))), 422, "keeps a secret")
    assert await site.store.count() == 0


async def test_an_unsigned_upload_always_brings_its_signed_prekey() -> None:
    site = Site(LEGACY)
    said(await site.send(OLD.legacy_registration()), 201)
    said(await site.send(OLD.publication(2)), 200)
    only_keys = _with(OLD.publication(1, "merge", first_id=20), "signed_pre_key", None)
    said(await site.send(only_keys), 401, "signed_pre_key")
    assert (await record(site, OLD.did))["one_time_keys_left"] == 2


async def test_sdk_4_registers_publishes_and_restarts_without_signing_anything() -> None:
    site = Site(LEGACY)
    said(await site.send(OLD.legacy_registration()), 201)
    assert (await record(site, OLD.did))["registration"] == "legacy"
    said(await site.send(OLD.publication(2)), 200)
    assert (await record(site, OLD.did))["public_key"] == b64url(bytes(OLD.identity.public_key))
    said(await site.send(OLD.legacy_registration()), 409)
    assert said(await site.send(OLD.publication(2, signed_id=0, seed="restarted")), 200)["otk_count"] == 2
    bundle = said(await site.send(wire.fetch_prekeys(OLD.did)), 200)
    assert bundle["signed_pre_key"]["key_id"] == 0


async def test_a_legacy_name_belongs_to_the_first_key_seen() -> None:
    site = Site(LEGACY)
    said(await site.send(OLD.legacy_registration()), 201)
    thief = Actor("thief", did=OLD.did)
    said(await site.send(thief.legacy_registration()), 409)
    said(await site.send(thief.publication()), 403, "registered with")
    said(await site.send(thief.publication(), thief), 403, "registered with")
    said(await site.send(OLD.publication()), 200)
    said(await site.send(thief.publication()), 403, "registered with")
    said(await site.send(wire.delete_agent(OLD.did), thief), 401)
    said(await site.send(wire.delete_agent(OLD.did)), 401)


async def test_nobody_republishes_a_legacy_agents_old_prekeys() -> None:
    site = Site(LEGACY)
    said(await site.send(OLD.legacy_registration()), 201)
    first = OLD.publication(2)
    said(await site.send(first), 200)
    said(await site.send(OLD.publication(2, signed_id=2)), 200)
    said(await site.send(first), 401, "published before")
    stripped = changed(
        OLD.publication(2, signed_id=2), one_time_pre_keys=[{"key_id": 9, "public_key": "CQ" + "A" * 41}]
    )
    said(await site.send(stripped), 401, "published before")
    assert said(await site.send(wire.fetch_prekeys(OLD.did)), 200)["signed_pre_key"]["key_id"] == 2


async def test_a_legacy_agent_that_signs_must_go_on_signing() -> None:
    site = Site(LEGACY)
    said(await site.send(OLD.legacy_registration()), 201)
    said(await site.send(wire.heartbeat(OLD.did), OLD), 401, "publish its prekeys first")
    site.clock.advance(1)
    said(await site.send(OLD.publication(), OLD), 200)
    said(await site.send(OLD.publication(signed_id=2)), 401, "must go on")
    site.clock.advance(1)
    said(await site.send(wire.heartbeat(OLD.did), OLD), 200)


async def test_unsigned_uploads_end_with_the_permission() -> None:
    site = Site(LEGACY)
    said(await site.send(OLD.legacy_registration()), 201)
    strict = Site()
    strict.registry.store = strict.store = site.store
    said(await strict.send(OLD.publication()), 401, "Authorization")
    await strict.join(ALICE)
    said(await Site(LEGACY).send(ALICE.publication()), 401, "Authorization")


# --- finding each other ---------------------------------------------------------------------------------------------


async def test_discovery_shows_the_freshest_first_with_presence(site: Site) -> None:
    for actor in (ALICE, BOB, MALLORY):
        said(await site.send(actor.registration(site.clock.utc, capabilities=("chat", actor.name))), 201)
        site.clock.advance(60)
    answer = said(await site.send(wire.discover("chat")), 200)
    assert [found["did"] for found in answer["results"]] == [MALLORY.did, BOB.did, ALICE.did]
    assert [found["online"] for found in answer["results"]] == [True, False, False]
    assert answer["total"] == 3
    assert said(await site.send(wire.discover("CHAT")), 200) == {"results": [], "total": 0}
    first = said(await site.send(wire.discover("chat", 1)), 200)
    assert (len(first["results"]), first["total"]) == (1, 3)
    presence = said(await site.send(wire.presence(ALICE.did)), 200)
    assert presence == {"did": ALICE.did, "last_seen": timestamp(NOON), "online": False}


async def shown(site: Site, actor: Actor, limit: int = 50) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What is said about an agent: the page of its first capability, and its record."""
    page = said(await site.send(wire.discover(actor.name, limit)), 200)
    assert page["total"] == len(page["results"]) or len(page["results"]) == limit
    return page["results"], await record(site, actor.did)


async def test_what_is_said_of_an_agent_changes_with_time_alone_and_back_with_the_clock(site: Site) -> None:
    await site.join(ALICE)
    for seconds, online in ((80.0, True), (15.0, False), (-15.0, True), (15.0, False)):
        site.clock.advance(seconds)
        page, found = await shown(site, ALICE)
        assert (page[0]["online"], found["online"]) == (online, online)
    site.clock.advance(29.9 * 86_400)
    assert (await shown(site, ALICE))[0]
    site.clock.advance(0.2 * 86_400)
    page, found = await shown(site, ALICE)
    assert page == []
    assert found["did"] == ALICE.did


async def test_what_is_said_of_an_agent_follows_every_change(site: Site) -> None:
    await site.join(ALICE, count=3)
    await site.join(BOB)

    async def changes(request: wire.Request, actor: Actor | None, status: int = 200) -> None:
        before = await shown(site, ALICE)
        assert await shown(site, ALICE) == before, "asked twice, nothing else"
        site.clock.advance(1)
        assert (await site.send(request, actor)).status_code == status
        assert await shown(site, ALICE) != before

    await changes(wire.fetch_prekeys(ALICE.did), None)
    await changes(ALICE.publication(5, "merge", first_id=10), ALICE)
    await changes(wire.update(ALICE.did, capabilities=("alice", "more")), ALICE)
    await changes(wire.update(ALICE.did, metadata={"display_name": "Al"}), ALICE)
    site.clock.advance(10)
    await changes(wire.heartbeat(ALICE.did), ALICE)
    await changes(wire.reputation(ALICE.did, 1.0), BOB)
    await changes(MALLORY.registration(site.clock.utc + 1, ("alice",)), None, 201)
    assert len((await shown(site, ALICE))[0]) == 2
    assert len((await shown(site, ALICE, limit=1))[0]) == 1, "another question, another answer"
    said(await site.send(wire.delete_agent(MALLORY.did), MALLORY), 204)
    assert len((await shown(site, ALICE))[0]) == 1
    said(await site.send(wire.update(ALICE.did, capabilities=("elsewhere",)), ALICE), 200)
    assert (await shown(site, ALICE))[0] == []
    site.clock.advance(1)
    said(await site.send(wire.delete_agent(ALICE.did), ALICE), 204)
    said(await site.send(wire.get_agent(ALICE.did)), 404)


async def test_long_silent_agents_are_not_found(site: Site) -> None:
    said(await site.send(ALICE.registration()), 201)
    site.clock.advance(30 * 86_400 + 1)
    assert said(await site.send(wire.discover("alice")), 200)["results"] == []
    said(await site.send(wire.get_agent(ALICE.did)), 200)
    said(await site.send(wire.heartbeat(ALICE.did), ALICE), 200)
    assert len(said(await site.send(wire.discover("alice")), 200)["results"]) == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 422),
        ("limit=5", 422),
        ("capability=x&limit=0", 422),
        ("capability=x&limit=201", 422),
        ("capability=x&limit=-1", 422),
        ("capability=x&limit=1e2", 422),
        ("capability=x&limit=", 422),
        ("capability=x&limit=%D9%A3", 422),
        ("capability=x&limit=" + "9" * 5000, 422),
        ("capability=" + "x" * 257, 422),
        ("capability=%ff", 422),
        ("capability=a&capability=b", 422),
        ("&".join(f"a{number}=1" for number in range(50)), 422),
        ("capability=x&limit=200", 200),
        ("capability=", 200),
        ("capability=a%2Bb%20c&unknown=1", 200),
    ],
)
async def test_discovery_bounds_its_query(site: Site, query: str, status: int) -> None:
    said(await site.http.get(f"/v1/discover?{query}"), status)


async def test_long_capabilities_do_not_make_an_answer_nobody_can_read() -> None:
    site = Site(max_agents=300)
    for number in range(200):
        actor = Actor(f"poisoner {number}")
        said(
            await site.send(actor.registration(capabilities=("weather", *(f"{n}{chr(34) * 250}" for n in range(16))))),
            201,
        )
        site.clock.advance(0.01)
    answer = await site.send(wire.discover("weather", 200))
    assert 500 * 1024 < len(answer.content) <= 512 * 1024
    found = said(answer, 200)
    assert found["total"] == 200
    assert found["results"][0]["did"] == Actor("poisoner 199").did
    assert len(wire.read_discovered(wire.Answer(200, answer.content))) == len(found["results"])


async def test_names_survive_the_query(site: Site) -> None:
    name = 'a+b c/%&=?"\\ ключ 😀\u2028'
    said(await site.send(ALICE.registration(capabilities=(name,))), 201)
    assert said(await site.send(wire.discover(name)), 200)["results"][0]["capabilities"] == [name]


# --- reputation -----------------------------------------------------------------------------------------------------


async def test_ratings_are_signed_and_not_about_oneself(site: Site) -> None:
    await site.join(ALICE)
    await site.join(BOB)
    said(await site.send(wire.reputation(ALICE.did, 1)), 401)
    said(await site.send(wire.reputation(ALICE.did, 1), ALICE), 403, "itself")
    answer = said(await site.send(wire.reputation(ALICE.did, 1), BOB), 200)
    assert answer == {"did": ALICE.did, "reputation_score": 0.65}
    for score in (1.01, -0.01, "1", None, True, [1]):
        site.clock.advance(1)
        body = json.dumps({"score": score}).encode()
        request = wire.Request("POST", wire.reputation(ALICE.did, 1).target, body)
        said(await site.send(request, BOB), 422, "score")
    site.clock.advance(1)
    said(await site.send(wire.reputation("did:mesh:nobody", 1), BOB), 404)


async def test_sessions_are_reported_by_a_participant_about_itself(site: Site) -> None:
    for actor in (ALICE, BOB, MALLORY):
        await site.join(actor)
    report = wire.SessionReport("s", ALICE.did, BOB.did, "success", ALICE.did)
    answer = said(await site.send(wire.report_session(report), ALICE), 200)
    assert answer == {"session_id": "s", "outcome": "success", "reputation": {BOB.did: 0.6}}
    site.clock.advance(1)
    said(await site.send(wire.report_session(report), BOB), 403, "reporter_amid")
    stranger = wire.SessionReport("s", ALICE.did, BOB.did, "failed", MALLORY.did)
    said(await site.send(wire.report_session(stranger), MALLORY), 403, "participant")
    alone = wire.SessionReport("s", ALICE.did, ALICE.did, "success", ALICE.did)
    said(await site.send(wire.report_session(alone), ALICE), 422, "same agent")
    site.clock.advance(1)
    said(await site.send(changed(wire.report_session(report), outcome="great"), ALICE), 422, "outcome")
    said(await site.send(wire.report_session(report)), 401)
    site.clock.advance(1)
    unknown = wire.SessionReport("s", ALICE.did, "did:mesh:nobody", "success", ALICE.did)
    said(await site.send(wire.report_session(unknown), ALICE), 404, "registered")
    bob = await record(site, BOB.did)
    assert (bob["total_sessions"], bob["successful_sessions"], bob["completion_rate"]) == (1, 1, 1.0)


async def test_verification_without_identity_provider_is_503(site: Site) -> None:
    await site.join(ALICE)
    answer = await site.send(wire.verify_agent(ALICE.did, "token"), ALICE)
    said(answer, 503, "identity provider")


# --- anything at all ------------------------------------------------------------------------------------------------

WITH_BODY = [
    ("POST", "/v1/agents"),
    ("PUT", f"/v1/agents/{ALICE.did}"),
    ("PUT", f"/v1/agents/{ALICE.did}/prekeys"),
    ("POST", f"/v1/agents/{BOB.did}/reputation"),
    ("POST", "/v1/registry/reputation/session"),
]

BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "no JSON": (b"<html>", 400),
    "half": (b'{"public_key":', 400),
    "trailing": (b"{} {}", 400),
    "invalid UTF-8": (b'{"public_key":"\xff\xfe"}', 400),
    "lone surrogate": (b'{"public_key":"\\ud800"}', 400),
    "byte order mark": (b"\xef\xbb\xbf{}", 400),
    "NaN": (b'{"score":NaN}', 400),
    "Infinity": (b'{"score":-Infinity}', 400),
    "huge integer": (b'{"key_id":' + b"9" * 5000 + b"}", 400),
    "duplicate": (b'{"score":1,"score":0}', 400),
    "nested duplicate": (b'{"metadata":{"a":"1","a":"2"}}', 400),
    "deep array": (b"[" * 30_000 + b"]" * 30_000, 400),
    "deep object": (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, 400),
    "array": (b"[1,2]", 422),
    "null": (b"null", 422),
    "number": (b"1e400", 422),
    "text": (b'"x"', 422),
    "nothing needed": (b'{"v":1}', 422),
    "1 MiB + 1": (b'"' + b"x" * (1024 * 1024 - 1) + b'"', 413),
}


@pytest.mark.parametrize("body", BAD_BODIES)
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_every_bad_body_is_a_clear_4xx_and_changes_nothing(site: Site, method: str, path: str, body: str) -> None:
    await site.join(ALICE)
    await site.join(BOB)
    before = [await record(site, actor.did) for actor in (ALICE, BOB)]
    raw, status = BAD_BODIES[body]
    said(await site.send(wire.Request(method, path, raw), ALICE), status)
    assert [await record(site, actor.did) for actor in (ALICE, BOB)] == before
    assert await site.store.count() == 2


async def test_bodies_of_other_types_are_415(site: Site) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = await site.http.post("/v1/agents", content=ALICE.registration().body, headers={"content-type": kind})
        said(answer, 415)
    kind = "Application/JSON; charset=utf-8"
    answer = await site.http.post("/v1/agents", content=ALICE.registration().body, headers={"content-type": kind})
    said(answer, 201)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/agents/x/unknown", 404),
        ("GET", "/v1/agents/did%3Amesh%3Aa%2Fb", 404),
        ("GET", "/v1/agents/%ff%fe", 404),
        ("GET", "/v1/agents/" + "x" * 5000, 404),
        ("GET", "/v1/agents/%D0%BA%D0%BB", 404),
        ("GET", "/v1/agents/did:mesh:nobody/presence", 404),
        ("GET", "/v1/agents", 405),
        ("DELETE", "/v1/agents", 405),
        ("HEAD", f"/v1/agents/{ALICE.did}/prekeys", 405),
        ("PATCH", f"/v1/agents/{ALICE.did}", 405),
        ("POST", "/v1/discover", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/v1/agents", 405),
    ],
)
async def test_unknown_paths_and_methods_say_so(site: Site, method: str, path: str, status: int) -> None:
    await site.join(ALICE, 1)
    answer = await site.http.request(method, path)
    assert answer.status_code == status
    if method != "HEAD":
        said(answer, status)
    if status == 405:
        assert answer.headers["allow"]
    assert (await record(site, ALICE.did))["one_time_keys_left"] == 1


async def test_health_metrics_and_document(site: Site) -> None:
    await site.join(ALICE, 1)
    said(await site.send(wire.fetch_prekeys(ALICE.did)), 200)
    health = said(await site.http.get("/health"), 200)
    assert (health["status"], health["agents"]) == ("healthy", 1)
    metrics = (await site.http.get("/metrics")).text
    assert 'mesh_registry_requests_total{endpoint="get_prekeys",status="200"} 1' in metrics
    assert "mesh_registry_one_time_keys_taken_total 1" in metrics
    assert "mesh_registry_agents 1" in metrics
    assert said(await site.http.get("/openapi.json"), 200)["openapi"] == "3.1.0"


async def test_questions_of_one_address_are_rationed_and_agents_have_an_account_of_their_own() -> None:
    site = Site(Policy(lookups=Rate(3, 0.5)))
    await site.join(ALICE)
    questions = (wire.discover("x"), wire.get_agent(ALICE.did), wire.presence(ALICE.did))
    assert [(await site.send(question)).status_code for question in questions] == [200, 200, 200]
    refused = await site.send(wire.discover("x"))
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 2
    assert (await site.send(wire.discover("x"), ALICE, bound=False)).status_code == 200
    site.clock.advance(2)
    assert (await site.send(wire.discover("x"))).status_code == 200
