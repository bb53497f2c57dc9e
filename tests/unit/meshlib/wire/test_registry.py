"""Registry requests and answers as values. The SDK's own bytes are in vectors/registry."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.crypto.keys import Ed25519Public, X25519Public
from meshlib.crypto.prekeys import make_one_time_prekeys, make_signed_prekey
from meshlib.errors import AgentNotFound, InvalidValue, MalformedFrame, NotAuthentic, RegistryRefused
from meshlib.identity import Did, Identity, bound_request_statement, verify_proof
from meshlib.wire import registry as wire
from meshlib.wire.encoding import b64url, unb64url

NOW = "2026-01-31T12:00:00.000Z"
ALICE = Identity.generate(lambda size: b"a" * size)
BOB = Identity.generate(lambda size: b"b" * size)


def upload(identity: Identity, count: int = 1) -> wire.PrekeyUpload:
    signed = make_signed_prekey(identity, 7, lambda size: b"s" * size)
    return wire.PrekeyUpload.of(identity, signed, make_one_time_prekeys(3, count, lambda size: b"o" * size))


def body(request: wire.Request) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(request.body or b"")
    return members


def answer(value: object, status: int = 200) -> wire.Answer:
    return wire.Answer(status, value if isinstance(value, bytes) else json.dumps(value).encode())


def bundle_of(identity: Identity, **changes: Any) -> dict[str, Any]:
    members = body(wire.upload_prekeys(identity.did, upload(identity)))
    members["one_time_pre_key"] = members.pop("one_time_pre_keys")[0]
    return members | changes


def test_a_bound_request_signs_method_target_and_body() -> None:
    request = wire.update(ALICE.did, ["x"])
    headers = dict(wire.headers(request, wire.Signer.of(ALICE), NOW, bound=True))
    statement = bound_request_statement(ALICE.did, NOW, "PUT", request.target, request.body or b"")
    verify_proof(ALICE.public_key, statement, unb64url(headers["mesh-request-signature"]))
    assert list(headers) == ["content-type", "authorization", "mesh-request-signature"]
    assert "mesh-request-signature" not in dict(wire.headers(request, wire.Signer.of(ALICE), NOW, bound=False))
    assert wire.headers(wire.heartbeat(ALICE.did), None, NOW, bound=True) == []


def test_merging_is_one_member_more_and_replacing_none() -> None:
    replace = wire.upload_prekeys(ALICE.did, upload(ALICE))
    merge = wire.upload_prekeys(ALICE.did, upload(ALICE), "merge")
    assert "mode" not in body(replace)
    assert body(merge) == body(replace) | {"mode": "merge"}


def test_an_update_names_only_what_changes() -> None:
    assert body(wire.update("did:a:b", ["x"])) == {"capabilities": ["x"]}
    assert body(wire.update("did:a:b", None, {})) == {"metadata": {}}


def test_the_display_name_comes_first_and_once() -> None:
    assert wire.profile("A", ["x", "A", "", "x"], {}) == (["A", "x"], {"display_name": "A"})
    assert wire.profile(None, ["x"], {"k": "v"}) == (["x"], {"k": "v"})
    assert wire.profile("A", [], {"display_name": "B"}) == (["A"], {"display_name": "B"})


def test_half_a_surrogate_pair_cannot_be_published() -> None:
    request = wire.register(ALICE, NOW, ["\ud800"])
    assert b"\\ud800" in (request.body or b"")
    with pytest.raises(InvalidValue):
        wire.discover("\ud800")


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_scores_lie_between_0_and_1(score: float) -> None:
    with pytest.raises(InvalidValue):
        wire.reputation(ALICE.did, score)


def test_a_genuine_bundle_is_believed() -> None:
    bundle = wire.read_bundle(answer(bundle_of(ALICE)), ALICE.did).checked(ALICE.did)
    assert bundle.identity_key_ed == ALICE.public_key
    assert (bundle.signed_prekey_id, bundle.one_time_prekey_id) == (7, 3)


def test_a_registry_that_substitutes_keys_is_caught() -> None:
    theirs = bundle_of(BOB)
    for changes in (theirs, {"signed_pre_key": theirs["signed_pre_key"]}, {"identity_key": theirs["identity_key"]}):
        published = wire.read_bundle(answer(bundle_of(ALICE, **changes)), ALICE.did)
        with pytest.raises(NotAuthentic):
            published.checked(ALICE.did)


@pytest.mark.parametrize("member", ["identity_key", "identity_key_ed", "signed_pre_key", "one_time_pre_key"])
def test_a_bundle_of_wrong_lengths_is_malformed_not_a_crash(member: str) -> None:
    members = bundle_of(ALICE)
    if isinstance(members[member], dict):
        members[member] = members[member] | {"public_key": "AAAA"}
    else:
        members[member] = "AAAA"
    published = wire.read_bundle(answer(members), ALICE.did)
    with pytest.raises(MalformedFrame):
        published.checked(ALICE.did)


@pytest.mark.parametrize(
    "changes",
    [
        {"identity_key": 5},
        {"signed_pre_key": None},
        {"signed_pre_key": []},
        {"signed_pre_key": {"key_id": 1, "public_key": "AA"}},
        {"signed_pre_key": {"key_id": -1, "public_key": "AA", "signature": "AA"}},
        {"signed_pre_key": {"key_id": 2**32, "public_key": "AA", "signature": "AA"}},
        {"signed_pre_key": {"key_id": "x", "public_key": "AA", "signature": "AA"}},
        {"signed_pre_key": {"key_id": True, "public_key": "AA", "signature": "AA"}},
        {"one_time_pre_key": "x"},
        {"one_time_pre_key": {"key_id": 1}},
        {"identity_key_ed": None},
        {"identity_key_ed": ["x"]},
    ],
)
def test_an_answer_that_is_no_bundle_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RegistryRefused):
        wire.read_bundle(answer(bundle_of(ALICE, **changes)), ALICE.did)


def test_our_registry_says_more_about_an_agent() -> None:
    members = {"did": ALICE.did, "public_key": b64url(bytes(ALICE.public_key)), "one_time_keys_left": 3}
    record = wire.read_agent(answer(members | {"registration": "legacy", "online": True}), ALICE.did)
    assert record.public_key == ALICE.public_key
    assert (record.one_time_keys_left, record.registration, record.online) == (3, "legacy", True)


def test_unusable_members_read_as_absent() -> None:
    members = {"did": "d", "capabilities": ["a", 1], "one_time_keys_left": -1, "public_key": "AA", "tier": 1}
    members |= {"registration": "x", "reputation_score": True, "last_seen": "2026-01-01T00:00:00", "metadata": []}
    assert wire.read_agent(answer(members), "d") == wire.AgentRecord("d", ("a",))


def test_statuses_become_errors_with_the_registrys_words() -> None:
    with pytest.raises(AgentNotFound):
        wire.read_agent(answer({"detail": "x"}, 404), "d")
    with pytest.raises(RegistryRefused, match="DID mismatch") as caught:
        wire.read_done(answer({"detail": "DID mismatch"}, 403), "d")
    assert caught.value.status == 403
    wire.read_done(answer(b"", 404), "d", absent_is_fine=True)
    with pytest.raises(RegistryRefused, match="bad \\[1\\]"):
        wire.read_upload(answer(b"bad\n[1]", 500))


def test_explanations_are_bounded_and_of_one_line() -> None:
    assert len(wire.detail(answer(b"x" * 100_000))) == wire.MAX_DETAIL
    assert wire.detail(answer({"detail": "a\x1b[31m\r\nb"})) == "a [31m  b"
    assert wire.detail(answer({"detail": [{"msg": "y"}]})) == '[{"msg":"y"}]'
    assert wire.detail(answer(b"")) == "no explanation given"


def test_a_registry_that_wants_the_did_is_recognised() -> None:
    missing = {"type": "missing", "loc": ["body", "did"], "msg": "Field required"}
    assert wire.wants_did(answer({"detail": [missing]}, 422))
    for value in ({"detail": []}, {"detail": "did"}, {"detail": [{"loc": ["body", "did"]}]}, [], b"did"):
        assert not wire.wants_did(answer(value, 422))
    assert not wire.wants_did(answer({"detail": [missing]}, 400))


@given(
    st.integers(200, 599),
    st.binary(max_size=200)
    | st.builds(
        lambda value: json.dumps(value).encode(),
        st.dictionaries(
            st.sampled_from(
                ["did", "results", "identity_key_ed", "identity_key", "signed_pre_key", "last_seen", "detail"]
            ),
            st.none()
            | st.integers()
            | st.text(max_size=10)
            | st.lists(st.none() | st.dictionaries(st.just("did"), st.text())),
        ),
    ),
)
def test_any_answer_is_read_or_refused(status: int, data: bytes) -> None:
    said = wire.Answer(status, data)
    readers = (
        lambda: wire.read_registration(said, "d", key=ALICE.public_key),
        lambda: wire.read_agent(said, "d"),
        lambda: wire.read_bundle(said, "d").checked(Did("did:mesh:x")),
        lambda: wire.read_discovered(said),
        lambda: wire.read_presence(said, "d"),
        lambda: wire.read_reputation(said, "d"),
        lambda: wire.read_upload(said),
        lambda: wire.read_done(said, "d"),
        lambda: wire.wants_did(said),
    )
    for read in readers:
        with contextlib.suppress(RegistryRefused, AgentNotFound, MalformedFrame, NotAuthentic):
            read()


def test_values_do_not_depend_on_lengths_checked_elsewhere() -> None:
    with pytest.raises(InvalidValue):
        X25519Public(bytes(31))
    with pytest.raises(InvalidValue):
        Ed25519Public(bytes(33))
