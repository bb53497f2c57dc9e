"""Every process killed with -9 at random instants while messages flow: every message once and in order."""

import os

import pytest

from tests.faults.chaos import play, report

ROUNDS = 20
MESSAGES = 250
KILLS = 4
FIRST_SEED = int(os.environ.get("MESH_CHAOS_SEED", "1"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_every_message_arrives_once_and_in_order_whoever_is_killed(number, tmp_path):
    both = number % 2 == 1
    outcome = play(FIRST_SEED + number, MESSAGES, KILLS, tmp_path, both=both)
    assert not outcome.faults, report(outcome, number, MESSAGES, KILLS, both=both)
    assert sum(outcome.kills.values()) >= KILLS // 2
