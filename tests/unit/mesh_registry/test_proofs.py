import pytest
from mesh_registry.proofs import Reply, UsedProofs
from mesh_registry.refusal import Refusal
from mesh_registry.verbs import Proof


def proof(name: str, *, request: str = "a", expires: float = 100.0) -> Proof:
    return Proof(name.encode(), request.encode(), expires)


def status_of(used: UsedProofs, again: Proof) -> int:
    with pytest.raises(Refusal) as caught:
        used.use(again)
    return caught.value.status


def test_a_full_memory_refuses_newcomers_and_forgets_nobody() -> None:
    used = UsedProofs(limit=2)
    used.use(proof("one"))
    used.use(proof("two"))
    assert status_of(used, proof("three")) == 503
    assert not used.spend(proof("three"))
    assert status_of(used, proof("one", request="b")) == 401
    used.expire(101.0)
    used.use(proof("three", expires=200.0))


def test_released_proofs_are_fresh_again() -> None:
    used = UsedProofs()
    used.use(proof("one"))
    used.release(proof("one"))
    used.use(proof("one"))
    used.finish(proof("one"), Reply(200, b"x"))
    assert used.repeated(proof("one")) == Reply(200, b"x")
    assert used.repeated(proof("one", request="b")) is None


def test_a_reply_too_long_to_keep_is_a_conflict() -> None:
    used = UsedProofs()
    used.use(proof("one"))
    used.finish(proof("one"), None)
    assert used.repeated(proof("one")) is None
    assert status_of(used, proof("one")) == 409


def test_only_the_upload_may_follow_a_registration() -> None:
    used = UsedProofs()
    assert used.spend(proof("one", request="register"), registering=True)
    assert status_of(used, proof("one", request="delete")) == 401
    used.use(proof("one", request="upload"), after_registering=True)
    with pytest.raises(Refusal):
        used.use(proof("one", request="other upload"), after_registering=True)


def test_expiry_forgets_only_what_has_expired() -> None:
    used = UsedProofs()
    for number in range(10):
        used.use(proof(str(number), expires=float(number)))
    used.expire(5.0)
    assert len(used) == 5
    used.expire(5.0)
    assert len(used) == 5
