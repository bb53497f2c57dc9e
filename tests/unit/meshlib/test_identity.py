"""Who an agent is: DIDs, the two forms of its key, and the bytes of its proofs."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.crypto.keys import Ed25519Private, Ed25519Public, X25519Public
from meshlib.errors import InvalidValue, NotAuthentic, WeakKey
from meshlib.identity import (
    MAX_DID_LENGTH,
    Did,
    Identity,
    bound_request_statement,
    challenge_statement,
    check_did,
    commits_to_key,
    did_of,
    parse_did,
    recover_ed25519,
    registration_statement,
    sdk_did,
    timestamp_statement,
    to_x25519,
    verify_proof,
)

P = 2**255 - 19
seeds = st.binary(min_size=32, max_size=32)


@given(seeds)
def test_did_is_the_hash_of_the_key(seed):
    identity = Identity(Ed25519Private(seed))
    assert identity.did == "did:mesh:" + hashlib.sha256(bytes(identity.public_key)).hexdigest()[:32]
    check_did(identity.did, identity.public_key)


@given(seeds)
def test_converted_public_key_is_the_public_key_of_the_converted_private_key(seed):
    identity = Identity(Ed25519Private(seed))
    assert to_x25519(identity.public_key) == identity.agreement_key.public


@given(seeds)
def test_ed25519_key_is_recovered_from_its_x25519_form_and_the_did(seed):
    identity = Identity(Ed25519Private(seed))
    assert recover_ed25519(identity.agreement_key.public, identity.did) == identity.public_key


def test_both_signs_are_recovered():
    signs = {bytes(Identity.generate(os.urandom).public_key)[31] >> 7 for _ in range(64)}
    assert signs == {0, 1}
    for _ in range(16):
        identity = Identity.generate(os.urandom)
        assert recover_ed25519(identity.agreement_key.public, identity.did) == identity.public_key


@given(seeds, seeds)
def test_a_key_of_somebody_else_is_not_recovered(seed, other):
    mine, theirs = Identity(Ed25519Private(seed)), Identity(Ed25519Private(other))
    if seed != other:
        with pytest.raises(NotAuthentic):
            recover_ed25519(theirs.agreement_key.public, mine.did)


@pytest.mark.parametrize("u", [0, 1, P - 1, P, P + 1, 2**255 - 1, 2**256 - 1])
def test_a_key_without_ed25519_form_is_refused_quietly(u):
    with pytest.raises(NotAuthentic):
        recover_ed25519(X25519Public(u.to_bytes(32, "little")), Identity.generate(os.urandom).did)


def test_another_encoding_of_the_right_key_is_not_the_right_key():
    """Two byte strings for one key would be two identities for whoever compares bytes."""
    identity = Identity.generate(os.urandom)
    raw = bytes(identity.agreement_key.public)
    with pytest.raises(NotAuthentic):
        recover_ed25519(X25519Public(raw[:31] + bytes((raw[31] | 0x80,))), identity.did)


def test_a_did_that_commits_to_nothing_proves_nothing():
    identity = Identity.generate(os.urandom)
    with pytest.raises(NotAuthentic):
        check_did(Did("did:agentmesh:alice"), identity.public_key)
    with pytest.raises(NotAuthentic):
        recover_ed25519(identity.agreement_key.public, Did("did:agentmesh:alice"))


@pytest.mark.parametrize("change", [str.upper, lambda did: did + "0", lambda did: did[:-1], lambda did: did[:-1] + "g"])
def test_a_did_spelled_otherwise_is_another_did(change):
    identity = Identity.generate(os.urandom)
    with pytest.raises(NotAuthentic):
        check_did(Did(change(identity.did)), identity.public_key)


@pytest.mark.parametrize("raw", [bytes(32), (1).to_bytes(32, "little"), (2).to_bytes(32, "little"), b"\xff" * 32])
def test_an_ed25519_key_off_the_curve_or_of_small_order_is_weak(raw):
    with pytest.raises(WeakKey):
        to_x25519(Ed25519Public(raw))


@pytest.mark.parametrize(
    "text",
    ["did:mesh:0123456789abcdef0123456789abcdef", "did:agentmesh:alice", "did:web:example.org:a", "did:mesh:café"],
)
def test_a_did_is_parsed_as_it_is(text):
    assert parse_did(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "did",
        "did:",
        "did:mesh",
        "did:mesh:",
        "did::x",
        "DID:mesh:x",
        "did:mesh:a b",
        "did:mesh:a\tb",
        "did:mesh:a\n",
        "did:mesh:a|b",
        "did:mesh:\x00",
        "did:mesh:\ud800",
        "did:mesh:\u2028",
        "did:mesh:\u202e",
        "did:mesh:" + "a" * MAX_DID_LENGTH,
    ],
)
def test_what_is_no_did_is_refused(text):
    with pytest.raises(InvalidValue):
        parse_did(text)


def test_longest_did_has_256_characters():
    longest = "did:mesh:" + "a" * 247
    assert parse_did(longest) == longest
    with pytest.raises(InvalidValue):
        parse_did(longest + "a")


def test_only_mesh_dids_commit_to_a_key():
    assert commits_to_key(Did("did:mesh:x"))
    assert not commits_to_key(Did("did:agentmesh:x"))
    assert not commits_to_key(Did("did:meshx:x"))


def test_sdk_keeps_a_mesh_did_and_replaces_any_other():
    key = Identity.generate(os.urandom).public_key
    assert sdk_did(key, "did:mesh:alice") == "did:mesh:alice"
    assert sdk_did(key, "DID:MESH:alice") == sdk_did(key, "") == sdk_did(key, "did:key:z6") == did_of(key)


def test_identity_is_read_in_both_lengths():
    identity = Identity.generate(os.urandom)
    secret, public = bytes(identity.signing_key), bytes(identity.public_key)
    assert Identity.from_secret(secret, public) == identity
    assert Identity.from_secret(secret + public, public) == identity


def test_identity_of_halves_that_do_not_belong_together_is_refused():
    """Signing with a foreign public half gives away the private one."""
    identity, other = Identity.generate(os.urandom), Identity.generate(os.urandom)
    secret, public, foreign = bytes(identity.signing_key), bytes(identity.public_key), bytes(other.public_key)
    for pair in (
        (secret, foreign),
        (secret + foreign, foreign),
        (secret + foreign, public),
        (secret[:31], public),
        (secret + public + public, public),
        (secret + b"\x00", public),
        (b"", public),
    ):
        with pytest.raises(InvalidValue):
            Identity.from_secret(*pair)


def test_identity_shows_its_did_only():
    identity = Identity.generate(os.urandom)
    assert repr(identity) == f"Identity({identity.did})"


def test_proofs_verify_for_their_statement_only():
    identity = Identity.generate(os.urandom)
    when, body = "2026-01-02T03:04:05.678Z", b"{}"
    statements = [
        timestamp_statement(when),
        registration_statement("key", when),
        challenge_statement(identity.did, when, "nonce"),
        bound_request_statement(identity.did, when, "PUT", "/v1/agents/x/prekeys", body),
        bound_request_statement(identity.did, when, "DELETE", "/v1/agents/x/prekeys", body),
        bound_request_statement(identity.did, when, "PUT", "/v1/agents/y/prekeys", body),
        bound_request_statement(identity.did, when, "PUT", "/v1/agents/x/prekeys", b"{ }"),
    ]
    assert len(set(statements)) == len(statements)
    for signed in statements:
        proof = identity.sign(signed)
        for statement in statements:
            if statement == signed:
                verify_proof(identity.public_key, statement, proof)
            else:
                with pytest.raises(NotAuthentic):
                    verify_proof(identity.public_key, statement, proof)


def test_statements_are_these_bytes():
    did = Did("did:mesh:x")
    assert timestamp_statement("T") == b"T"
    assert registration_statement("K", "T") == b"KT"
    assert challenge_statement(did, "T", "N") == b"mesh-relay-connect-v1\ndid:mesh:x\nT\nN"
    assert bound_request_statement(did, "T", "PUT", "/a?b", b"body") == (
        b"mesh-registry-request-v1\ndid:mesh:x\nT\nPUT\n/a?b\n" + hashlib.sha256(b"body").hexdigest().encode()
    )
