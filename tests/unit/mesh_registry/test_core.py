"""The core under arbitrary input: it decides or refuses, and never anything else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_registry.core import Core, Decision, Endpoint, Policy, Request
from mesh_registry.proofs import Reply
from mesh_registry.refusal import Refusal
from mesh_registry.verbs import Account, Discover, FindAgent, FindPresence, TakePrekeys, Update

from meshlib.buckets import Rate
from meshlib.clock import Instant
from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp
from tests.unit.mesh_registry.helpers import NOON, Actor

ALICE = Actor("alice")
NOW = Instant(1000.0, NOON)
PUBLIC = {Endpoint.GET_AGENT, Endpoint.GET_PREKEYS, Endpoint.PRESENCE, Endpoint.DISCOVER}


def account(*, bound: bool = False) -> Account:
    return Account(ALICE.did, bytes(ALICE.identity.public_key), None, legacy=False, bound=bound, signs=False)


def request(endpoint: Endpoint, **members: Any) -> Request:
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "method": "PUT",
        "target": f"/v1/agents/{ALICE.did}",
        "did": ALICE.did,
        "query": "",
        "body": b"",
        "authorization": None,
        "bound": None,
        "requester": "192.0.2.1",
    }
    return Request(**(values | members))


def outcome(core: Core, asked: Request, known: Account | None) -> Decision | Refusal:
    core.account_needed(asked)
    try:
        return core.decide(asked, known, NOW)
    except Refusal as raised:
        refusal = raised
    assert 400 <= refusal.status <= 503
    assert refusal.detail
    return refusal


headers = (
    st.none()
    | st.text(max_size=200)
    | st.builds(
        "Ed25519-Timestamp {} {} {}".format,
        st.sampled_from([ALICE.did, "did:mesh:other", ""]) | st.text(max_size=20),
        st.sampled_from([timestamp(NOON), "2026-01-01T00:00:00", "0000-00-00T00:00:00Z"]) | st.text(max_size=30),
        st.sampled_from(["A" * 86, "", "="]) | st.text(max_size=90),
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
MEMBERS = """
    did public_key proof proof_timestamp capabilities metadata identity_key identity_key_ed signed_pre_key
    one_time_pre_keys mode score reason session_id initiator_amid receiver_amid outcome reporter_amid amid
    verification_token
"""
members = st.dictionaries(st.sampled_from(MEMBERS.split()), json_values)
bodies = st.binary(max_size=300) | members.map(lambda value: json.dumps(value).encode())


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(Endpoint),
    headers,
    headers,
    bodies,
    st.text(max_size=100),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_whatever_comes_is_decided_or_refused(
    endpoint: Endpoint,
    authorization: str | None,
    bound: str | None,
    body: bytes,
    query: str,
    legacy: bool,
    known: bool,
    latched: bool,
) -> None:
    core = Core(Policy(allow_legacy=legacy, verify_tokens=True))
    asked = request(endpoint, authorization=authorization, bound=bound, body=body, query=query)
    decision = outcome(core, asked, account(bound=latched) if known else None)
    if not isinstance(decision, Refusal):
        # Nothing but reading comes of a request nobody has signed.
        assert isinstance(decision, FindAgent | FindPresence | Discover | TakePrekeys)


@settings(max_examples=150, deadline=None)
@given(bodies)
def test_a_signed_request_with_an_arbitrary_body_is_decided_or_refused(body: bytes) -> None:
    for endpoint in set(Endpoint) - PUBLIC:
        core = Core(Policy(allow_legacy=True, verify_tokens=True))
        sent = wire.Request("PUT", f"/v1/agents/{ALICE.did}", body)
        signed = dict(wire.headers(sent, ALICE.signer, timestamp(NOON), bound=True))
        asked = request(
            endpoint, body=body, authorization=signed["authorization"], bound=signed["mesh-request-signature"]
        )
        outcome(core, asked, account())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_change_to_a_signed_request_is_refused(data: st.DataObject) -> None:
    update = wire.update(ALICE.did, ["chat"])
    assert update.body is not None
    signed = dict(wire.headers(update, ALICE.signer, timestamp(NOON), bound=True))
    fields: dict[str, Any] = {
        "target": update.target,
        "body": update.body,
        "authorization": signed["authorization"],
        "bound": signed["mesh-request-signature"],
    }
    assert isinstance(outcome(Core(Policy()), request(Endpoint.UPDATE, **fields), account()), Update)
    name = data.draw(st.sampled_from(sorted(fields)))
    value = fields[name]
    place = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(st.sampled_from("Aa1 ").filter(lambda character: character != str(value)[place]))
    if isinstance(value, bytes):
        fields[name] = value[:place] + other.encode() + value[place + 1 :]
    else:
        fields[name] = value[:place] + other + value[place + 1 :]
    if fields[name] == value:
        return
    decision = outcome(Core(Policy()), request(Endpoint.UPDATE, **fields), account())
    # The last character of base64 has bits nobody reads.
    assert isinstance(decision, Refusal) or (name in ("authorization", "bound") and place == len(value) - 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_an_ipv6_network_of_64_bits_counts_as_one_address(one: str, other: str, same: bool) -> None:
    core = Core(Policy(registrations=Rate(1, 0.001)))
    for actor, requester in ((ALICE, one), (Actor("bob"), other)):
        asked = request(Endpoint.REGISTER, method="POST", body=actor.registration().body, requester=requester)
        decided = outcome(core, asked, None)
    assert isinstance(decided, Refusal) == same


def test_a_request_under_way_is_not_carried_out_twice() -> None:
    core = Core(Policy())
    update = wire.update(ALICE.did, ["chat"])
    signed = dict(wire.headers(update, ALICE.signer, timestamp(NOON), bound=False))
    asked = request(Endpoint.UPDATE, target=update.target, body=update.body, authorization=signed["authorization"])
    first = outcome(core, asked, account())
    assert isinstance(first, Update)
    second = outcome(core, asked, account())
    assert isinstance(second, Refusal)
    assert second.status == 503
    core.used.finish(first.caller.proof, Reply(200, b"{}"))
    assert outcome(core, asked, account()) == Reply(200, b"{}")


def test_proofs_of_before_a_restart_stay_used() -> None:
    core = Core(Policy())
    update = wire.update(ALICE.did, ["chat"])
    signed = dict(wire.headers(update, ALICE.signer, timestamp(NOON), bound=False))
    asked = request(Endpoint.UPDATE, target=update.target, body=update.body, authorization=signed["authorization"])
    first = outcome(core, asked, account())
    assert isinstance(first, Update)
    restarted = Core(Policy())
    restarted.restore([first.caller.proof])
    again = outcome(restarted, asked, account())
    assert isinstance(again, Refusal)
    assert again.status == 409
    other = request(Endpoint.DELETE, method="DELETE", authorization=signed["authorization"])
    refused = outcome(restarted, other, account())
    assert isinstance(refused, Refusal)
    assert refused.status == 401
    restarted.sweep(Instant(2000.0, NOON + 301))
    assert len(restarted.used) == 0
