"""A core that starts from what a store kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from meshlib.client.events import FaultFound
from meshlib.client.peers import Entry
from meshlib.store.protocol import Changes, SavedState
from meshlib.store.sqlite import SqliteStore
from meshlib.testing import MemoryClient, MemoryMesh


@pytest.fixture
def mesh() -> MemoryMesh:
    return MemoryMesh()


def knocked(mesh: MemoryMesh) -> tuple[MemoryClient, MemoryClient]:
    """Bob has let Alice's knock in; her first message still travels."""
    alice, bob = mesh.agent("alice"), mesh.agent("bob")
    alice.send(bob, "hello")
    mesh.deliver(bob)
    return alice, bob


def from_disk(folder: Path, client: MemoryClient) -> SavedState:
    """What a store on the disk makes of a client's state."""
    state = client.store.load()
    if (folder / "mesh.db").exists():
        for file in folder.iterdir():
            file.unlink()
    store = SqliteStore(folder)
    store.save(
        Changes(
            signing_key=state.signing_key,
            signed_prekeys=state.signed_prekeys,
            one_time_prekeys=dict(state.one_time_prekeys),
            next_prekey_id=state.next_prekey_id,
            peers=dict(state.peers),
            outbox={one.id: one for one in state.outbox},
            inbox={(one.sender, one.id): one for one in state.inbox},
            seen=list(state.seen),
            spent_ephemerals=list(state.spent_ephemerals),
        )
    )
    store.close()
    store = SqliteStore(folder)
    state = store.load()
    store.close()
    return state


def test_candidate_is_settled_after_a_restart(mesh: MemoryMesh) -> None:
    alice, bob = knocked(mesh)
    (candidate,) = bob.store.load().peers[alice.did].candidates
    assert candidate.sessions == ()
    bob = mesh.restart(bob)
    mesh.settle()
    assert bob.payloads == ["hello"]
    bob.send(alice, "welcome")
    mesh.settle()
    assert alice.payloads == ["welcome"]
    assert not bob.told(FaultFound)


def test_its_one_time_key_is_spent_with_the_first_message_after_the_restart(mesh: MemoryMesh) -> None:
    alice, bob = knocked(mesh)
    one_time = bob.core.peer(alice.did).candidates[0].opening.one_time_key_id
    bob = mesh.restart(bob)
    assert one_time in bob.store.load().one_time_prekeys
    mesh.settle()
    assert one_time not in bob.store.load().one_time_prekeys


def test_restart_derives_nothing_until_the_peer_speaks(mesh: MemoryMesh) -> None:
    alice, bob = knocked(mesh)
    bob = mesh.restart(bob)
    assert [one.sessions for one in bob.core.peer(alice.did).candidates] == [()]
    mesh.settle()
    assert bob.core.peer(alice.did).candidates == ()


def test_candidate_whose_one_time_key_is_gone_is_dropped_without_harm(mesh: MemoryMesh) -> None:
    alice, bob = knocked(mesh)
    state = bob.store.load()
    bob = mesh.agent("bob", state=replace(state, one_time_prekeys={}))
    mesh.settle()
    assert bob.payloads == []
    assert bob.core.peer(alice.did).candidates == ()
    bob.send(alice, "once more")  # on a session of our own
    mesh.settle()
    assert alice.payloads == ["once more"]


def test_bundle_that_was_being_fetched_is_asked_for_again(mesh: MemoryMesh) -> None:
    alice, bob = mesh.agent("alice"), mesh.agent("bob")
    alice.core.send(bob.did, "hello", mesh.clock.now)
    alice.store.save(alice.core.changes())  # saved, then killed before the registry was asked
    assert alice.store.load().peers[bob.did].entry is Entry.FETCHING
    mesh.restart(alice)
    mesh.settle()
    assert bob.payloads == ["hello"]


def test_conversation_survives_a_restart_from_the_disk_before_every_frame(mesh: MemoryMesh, tmp_path: Path) -> None:
    alice, bob = mesh.agent("alice"), mesh.agent("bob")
    heard: dict[str, list[object]] = {"alice": [], "bob": []}
    for number in range(3):
        alice.send(bob, f"ping {number}")
        bob.send(alice, f"pong {number}")
        while mesh.inboxes[alice.did] or mesh.inboxes[bob.did]:
            for client in (alice, bob):
                heard[client.name] += client.payloads
            alice = mesh.agent("alice", state=from_disk(tmp_path / "alice", alice))
            bob = mesh.agent("bob", state=from_disk(tmp_path / "bob", bob))
            mesh.deliver(alice)
            mesh.deliver(bob)
        for client in (alice, bob):
            heard[client.name] += client.payloads
            client.received.clear()
    assert list(dict.fromkeys(heard["bob"])) == ["ping 0", "ping 1", "ping 2"]
    assert list(dict.fromkeys(heard["alice"])) == ["pong 0", "pong 1", "pong 2"]
