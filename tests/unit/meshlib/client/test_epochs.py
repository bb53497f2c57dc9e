"""Stores that others have seen further than they are."""

import pytest

from meshlib.client.epochs import EPOCH_KEY, next_epoch, published_epoch
from meshlib.errors import StoreError
from meshlib.testing import MemoryMesh


@pytest.mark.parametrize(
    ("metadata", "epoch"),
    [({EPOCH_KEY: "7"}, 7), ({}, 0), ({EPOCH_KEY: 7}, 0), ({EPOCH_KEY: "-1"}, 0), ({EPOCH_KEY: "٣"}, 0)],
)
def test_what_is_no_count_counts_nothing(metadata, epoch):
    assert published_epoch(metadata) == epoch


def test_a_store_counts_on_from_what_it_has():
    assert next_epoch(0, 0) == 1
    assert next_epoch(5, 5) == 6
    assert next_epoch(5, 4) == 6  # saved, and not published before the process died


def test_a_store_that_others_have_seen_further_is_refused():
    with pytest.raises(StoreError, match="counted to 4, but the registry to 5"):
        next_epoch(4, 5)


def test_an_empty_store_goes_on_where_the_lost_one_stopped():
    assert next_epoch(0, 5, fresh=True) == 6


def test_a_count_is_saved_before_it_is_published():
    alice = MemoryMesh().agent("alice")
    assert alice.core.count_epoch(0) == 1
    assert alice.core.changes().epoch == 1
    with pytest.raises(StoreError):
        alice.core.count_epoch(2)
    assert alice.core.changes().epoch is None


def test_a_store_without_prekeys_has_no_keys_to_use_again():
    mesh = MemoryMesh()
    assert mesh.agent("alice").core.has_history
    restarted = mesh.restart(mesh.agent("bob"))
    assert restarted.core.has_history
