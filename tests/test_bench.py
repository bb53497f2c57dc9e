"""The benchmarks work: they measure, they notice what goes wrong, and the page is what the figures say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import report
from bench.load.traffic import Traffic
from bench.load.wire import ACK_AFTER, ACK_BEFORE, Lane, Shape, client_frame, cut, server_head
from bench.measures import Case, Measure, Run, take_turns
from meshlib.wire import frames
from meshlib.wire.codec import decode
from tests.commands import ROOT, environment

FAST_FIRST = Case("relay", "routed", {}, "messages/s", True, {"theirs": 2.0})
SLOW_FIRST = Case("relay", "latency", {}, "ms", False)


def measured(case: Case, ours: float, theirs: float) -> Measure:
    return take_turns(case, {"ours": lambda: Run(ours), "theirs": lambda: Run(theirs)}, 3)


class Wire(SimpleNamespace):
    """A connection without a socket."""

    def __init__(self) -> None:
        super().__init__(rest=b"", unsent=b"", written=b"", closed=False)
        self.idle = lambda _: None
        self.take = self.idle

    def send(self, data: bytes) -> None:
        self.written += data


def text(lane: Lane, number: int) -> bytes:
    """The JSON of a lane's message, without the frame."""
    frame = lane.frame(number)
    return frame[frame.index(b"{") :]


def served(lane: Lane, *numbers: int) -> bytes:
    """What a relay sends of a lane."""
    return b"".join(server_head(len(text(lane, number))) + text(lane, number) for number in numbers)


def receiving(count: int, payload: int = 256) -> tuple[Traffic, Lane, Any]:
    """A flow whose sender has sent ``count`` messages, and its recipient."""
    lane, recipient = Lane.between(7, "did:mesh:" + "a" * 32, "did:mesh:" + "b" * 32, payload), Wire()
    traffic = Traffic(SimpleNamespace(spin=lambda *_, **__: True), Shape.of(lane))  # type: ignore[arg-type]
    traffic.add(lane, Wire(), recipient, 4).sent = count  # type: ignore[arg-type]
    return traffic, lane, recipient


@pytest.mark.parametrize(("case", "ours"), [(FAST_FIRST, 30.0), (SLOW_FIRST, 10.0 / 3)])
def test_ratio_is_above_one_when_ours_is_better(case: Case, ours: float) -> None:
    assert measured(case, ours, 10.0).ratio("theirs") == pytest.approx(3.0)


def test_what_is_wanted_is_judged_and_the_rest_is_not() -> None:
    assert measured(FAST_FIRST, 20.0, 10.0).reached("theirs") is True
    assert measured(FAST_FIRST, 19.0, 10.0).reached("theirs") is False
    assert measured(SLOW_FIRST, 19.0, 10.0).reached("theirs") is None


def test_everybody_has_a_turn_before_anybody_has_two() -> None:
    order: list[str] = []

    def contender(name: str) -> Run:
        order.append(name)
        return Run(1.0)

    take_turns(FAST_FIRST, {"a": lambda: contender("a"), "b": lambda: contender("b")}, 2)
    assert order == ["a", "b", "a", "b"]


def test_measure_survives_json() -> None:
    measure = take_turns(FAST_FIRST, {"ours": lambda: Run(2.0, {"us": 1.5, "lost": 1})}, 2)
    assert Measure.from_json(json.loads(json.dumps(measure.to_json()))) == measure


def test_load_without_time_left_is_the_bottleneck_only_if_the_server_has_time() -> None:
    assert Run(1.0, {"load": 0.98, "server": 0.5}).load_bound
    assert not Run(1.0, {"load": 0.98, "server": 0.99}).load_bound
    assert not Run(1.0, {"load": 0.5, "server": 0.99}).load_bound


@pytest.mark.parametrize("payload", [16, 256, 4096, 65536])
def test_lanes_write_frames_that_clients_read(payload: int) -> None:
    lane = Lane.between(7, "did:mesh:" + "a" * 32, "did:mesh:" + "b" * 32, payload)
    message = decode(text(lane, 3))
    assert isinstance(message, frames.Message)
    assert message.id == "00000007-0000-4000-8000-000000000003"
    assert len(message.ciphertext) == payload + 28
    assert cut(served(lane, 3, 4) + b"\x81") == ([(1, text(lane, 3)), (1, text(lane, 4))], b"\x81")


@pytest.mark.parametrize("payload", [16, 256, 65536])
@pytest.mark.parametrize("chunk", [1000, 100_000])
def test_whole_stream_has_no_faults_and_is_acked(payload: int, chunk: int) -> None:
    traffic, lane, recipient = receiving(10, payload)
    stream = served(lane, *range(10))
    for start in range(0, len(stream), chunk):
        recipient.take(stream[start : start + chunk])
    assert traffic.received == 10
    assert sum(traffic.faults().values()) == 0
    ids = [b"00000007-0000-4000-8000-%012d" % number for number in range(10)]
    assert recipient.written == b"".join(ACK_BEFORE + one + ACK_AFTER for one in ids)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ((0, 1, 3), {"lost": 1}),
        ((0, 1, 2), {"lost": 1}),
        ((0, 1, 2, 2, 3), {"doubled": 1}),
        ((0, 2, 1, 3), {"reordered": 1}),
        ((3, 2, 1, 0), {"reordered": 3}),
    ],
)
def test_faults_of_a_stream_are_counted(numbers: tuple[int, ...], fault: dict[str, int]) -> None:
    traffic, lane, recipient = receiving(4)
    recipient.take(served(lane, *numbers))
    none = {"lost": 0, "doubled": 0, "reordered": 0, "refused": 0}
    assert traffic.faults() == none | fault


def test_pings_among_messages_are_answered_and_nothing_is_missed() -> None:
    traffic, lane, recipient = receiving(3)
    recipient.take(served(lane, 0) + b"\x89\x02hi" + served(lane, 1, 2))
    assert sum(traffic.faults().values()) == 0
    assert client_frame(b"hi", 10) in recipient.written


def test_page_is_what_the_figures_say() -> None:
    said = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    notes = (ROOT / "bench" / "notes.md").read_text()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == report.page(said, notes), "make bench writes both"
    assert said["about"]["quick"] == "false"


def test_pictures_of_the_page_are_there() -> None:
    for name in report.PICTURES:
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


@pytest.mark.slow
@pytest.mark.runtimes
def test_quick_run_measures_everything_and_makes_a_page(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", str(figures)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(figures.read_text())
    assert {one["group"] for one in said["measures"]} == {"crypto", "relay", "queues", "registry", "client"}
    assert all("ours" in one["runs"] or "ours, in memory" in one["runs"] for one in said["measures"])
    assert report.main(figures, tmp_path) == 0
    assert all((tmp_path / "pictures" / f"{name}.svg").exists() for name in report.PICTURES)
