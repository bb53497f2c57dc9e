import pytest
from mesh_registry.proofs import Reply, UsedProofs
from mesh_registry.refusal import Refusal
from mesh_registry.verbs import Proof


def proof(name: str, *, request: str = "a", expires: float = 100.0) -> Proof:
    return Proof(name.encode(), request.encode(), expires)


def take(used: UsedProofs, proof: Proof, *, after_registering: bool = False) -> None:
    used.claim("did:a", proof, after_registering=after_registering)
    used.use(proof)


def status_of(used: UsedProofs, again: Proof, *, after_registering: bool = False) -> int:
    with pytest.raises(Refusal) as caught:
        take(used, again, after_registering=after_registering)
    return caught.value.status


def test_a_full_memory_refuses_newcomers_and_forgets_nobody() -> None:
    used = UsedProofs(limit=2)
    take(used, proof("one"))
    take(used, proof("two"))
    assert status_of(used, proof("three")) == 503
    assert not used.spend("did:a", proof("three"))
    assert status_of(used, proof("one", request="b")) == 401
    used.expire(101.0)
    take(used, proof("three", expires=200.0))


def test_released_proofs_are_good_for_the_same_request_only() -> None:
    used = UsedProofs()
    take(used, proof("one"))
    used.release(proof("one"))
    assert status_of(used, proof("one", request="b")) == 401
    take(used, proof("one"))
    used.finish(proof("one"), Reply(200, b"x"))
    assert used.repeated(proof("one")) == Reply(200, b"x")
    assert used.repeated(proof("one", request="b")) is None


def test_a_reply_too_long_to_keep_is_a_conflict() -> None:
    used = UsedProofs()
    take(used, proof("one"))
    used.finish(proof("one"), None)
    assert used.repeated(proof("one")) is None
    assert status_of(used, proof("one")) == 409


def test_only_the_upload_may_follow_a_registration() -> None:
    used = UsedProofs()
    assert used.spend("did:a", proof("one", request="register"), registering=True)
    assert status_of(used, proof("one", request="delete")) == 401
    take(used, proof("one", request="upload"), after_registering=True)
    assert status_of(used, proof("one", request="other upload"), after_registering=True) == 401


def test_expiry_forgets_only_what_has_expired() -> None:
    used = UsedProofs()
    for number in range(10):
        take(used, proof(str(number), expires=float(number)))
    used.expire(5.0)
    assert len(used) == 5
    used.expire(5.0)
    assert len(used) == 5


def test_proofs_no_change_records_are_told_once_to_be_saved() -> None:
    used = UsedProofs()
    used.claim("did:a", proof("refused"))
    take(used, proof("under way"))
    take(used, proof("failed"))
    take(used, proof("done"))
    used.claim("did:a", proof("whole"), bare=False)
    assert used.spend("did:a", proof("look-up"))
    used.release(proof("failed"))
    used.finish(proof("done"), None)
    assert used.take_unsaved() == [proof("refused"), proof("failed"), proof("look-up")]
    used.finish(proof("under way"), None)
    assert used.take_unsaved() == []


def test_one_agent_does_not_use_up_everybodys_memory() -> None:
    used = UsedProofs(limit=10, per_agent=2)
    used.claim("did:a", proof("one"))
    assert used.spend("did:a", proof("two"))
    assert status_of(used, proof("three")) == 429
    assert not used.spend("did:a", proof("three"))
    used.claim("did:a", proof("one"))
    assert used.spend("did:b", proof("four", expires=300.0))
    used.expire(200.0)
    assert len(used) == 1
    take(used, proof("three", expires=400.0))


def test_the_same_signature_again_and_again_is_remembered_once() -> None:
    used = UsedProofs(limit=10, per_agent=2)
    for _ in range(100):
        take(used, proof("one"))
        used.release(proof("one"))
    assert len(used) == 1
    used.claim("did:a", proof("two"))
