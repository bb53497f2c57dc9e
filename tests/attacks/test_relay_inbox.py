"""The relay's inbox filled on purpose: every quota refuses with a receipt, and live messages still get through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from bench.load.wire import Agent
from tests.attacks.kit import STORED, Raw, Siege, message, siege

pytestmark = pytest.mark.slow

LIMITS = {
    "pair_frames": 100,
    "pair_bytes": 200_000,
    "recipient_frames": 250,
    "recipient_bytes": 500_000,
    "sender_frames": 300,
    "sender_bytes": 600_000,
    "sender_recipients": 50,
    "total_frames": 2000,
    "total_bytes": 4_000_000,
    "commit_seconds": 0.001,
}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("inbox"), LIMITS) as running:
        yield running


def leave(besieged: Siege, frames: list[bytes], sender: Agent | None = None) -> Counter[str]:
    """Send frames for agents who are away; what the receipts say of them."""
    states: Counter[str] = Counter()
    with Raw.join(besieged.relay, "127.0.0.2", sender) as raw:
        for start in range(0, len(frames), 50):
            batch = frames[start : start + 50]
            raw.say(*batch)
            for _ in batch:
                states[raw.next("receipt")["state"]] += 1
    return states


LARGE = "x" * 20_000
PAIR_FULL = 'refused_frames_total{reason="pair_full"}'


def test_one_sender_leaves_only_so_many_frames_and_bytes_for_one_recipient(besieged: Siege) -> None:
    before = besieged.relay.counted(PAIR_FULL)
    few, large = Agent().did, Agent().did
    assert leave(besieged, [message(few, str(n)) for n in range(150)]) == {"stored": 100, "refused": 50}
    assert leave(besieged, [message(large, str(n), LARGE) for n in range(20)])["refused"] == 11
    assert besieged.relay.counted(PAIR_FULL) == before + 61


def test_all_senders_together_leave_only_so_much_for_one_recipient(besieged: Siege) -> None:
    few, large = Agent().did, Agent().did
    states = [leave(besieged, [message(few, str(n)) for n in range(100)]) for _ in range(4)]
    assert [count["stored"] for count in states] == [100, 100, 50, 0]
    states = [leave(besieged, [message(large, str(n), LARGE) for n in range(9)]) for _ in range(4)]
    assert sum(count["stored"] for count in states) == 24


def test_one_sender_leaves_only_so_much_for_everybody(besieged: Siege) -> None:
    frames = [message(to, str(n)) for to in [Agent().did for _ in range(4)] for n in range(90)]
    assert leave(besieged, frames) == {"stored": 300, "refused": 60}
    frames = [message(to, str(n), LARGE) for to in [Agent().did for _ in range(4)] for n in range(9)]
    assert leave(besieged, frames)["stored"] == 29


def test_a_sender_to_agents_that_do_not_exist_reaches_only_so_many(besieged: Siege) -> None:
    assert leave(besieged, [message(Agent().did, "1") for _ in range(60)]) == {"stored": 50, "refused": 10}


def test_a_full_relay_refuses_and_still_carries_what_is_read_at_once(besieged: Siege) -> None:
    relay, states = besieged.relay, Counter[str]()
    with besieged.watch(grows=STORED) as watch:
        while watch.going or not states["refused"]:
            somebody = Agent().did
            states += leave(besieged, [message(somebody, str(n)) for n in range(100)])
        assert relay.counted("inbox_frames") <= LIMITS["total_frames"] + 1
        assert relay.counted("inbox_bytes") <= LIMITS["total_bytes"]
    assert relay.counted("refused_frames_total") >= states["refused"] > 0
    assert leave(besieged, [message(Agent().did, "1")]) == {"refused": 1}
