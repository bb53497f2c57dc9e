"""What ``mesh top`` shows: what a server tells, and nothing that it does not."""

from hypothesis import given
from hypothesis import strategies as st

from meshlib.cli.board import HISTORY, REGISTRY, RELAY, Board, Piece, cut, sparkline
from meshlib.cli.metrics import Between, Page
from meshlib.cli.servers import Health

UP = Health(True, "", {"status": "healthy", "version": "0.1.0"})
OLD = """mesh_relay_agents 2
mesh_relay_routed_total 10
mesh_relay_inbox_frames 7
"""
NEW = """mesh_relay_agents 3
mesh_relay_routed_total 30
mesh_relay_commit_seconds_sum 2
mesh_relay_commit_seconds_count 8
mesh_relay_inbox_oldest_seconds 90
mesh_relay_frames_total{direction="in",type="message"} 5
mesh_relay_frames_total{direction="in",type="heartbeat"} 9
mesh_relay_frames_total{direction="out",type="message"} 0
mesh_relay_refused_frames_total{reason="quota"} 6
"""


def board(old: str, new: str, health: Health = UP) -> Board:
    made = Board("relay", "http://relay", RELAY)
    made.update(health, Between(Page(old, 0.0), Page(new, 2.0)))
    return made


def text_of(one: Board, width: int = 100, *, ascii_only: bool = False) -> list[str]:
    lines = [cut(line, width) for line in one.lines(width, ascii_only=ascii_only)]
    return ["".join(piece.text for piece in line) for line in lines]


def test_counters_are_shown_as_rates_and_gauges_as_they_are() -> None:
    one = board(OLD, NEW)
    assert (one.values["agents"], one.values["routed_per_second"]) == (3, 10)
    shown = "\n".join(text_of(one))
    assert "10/s" in shown
    assert "2 min" in shown  # the oldest message


def test_frames_are_told_apart_where_the_server_does() -> None:
    one = board(OLD, NEW)
    assert one.rates == {"frames in": {"heartbeat": 4.5, "message": 2.5}, "frames out": {}}
    assert any("heartbeat 4.5/s, message 2.5/s" in line for line in text_of(one))
    assert board(OLD, OLD).rates == {}


def test_a_commit_takes_what_the_histogram_has_gained() -> None:
    assert board(NEW, NEW.replace("sum 2", "sum 3").replace("count 8", "count 18")).values["seconds_per_commit"] == 0.1


def test_number_that_is_not_told_has_no_line() -> None:
    one = board(OLD, OLD)
    assert "inbox_oldest_seconds" not in one.values
    assert not any("oldest" in line for line in text_of(one))


def test_server_without_numbers_is_shown_all_the_same() -> None:
    one = Board("registry", "http://registry", REGISTRY)
    one.update(UP, None)
    assert "up" in text_of(one)[0]
    assert one.members()["values"] == {}
    one.update(Health(False, "no answer"), None)
    assert "down" in text_of(one)[0]
    assert "no answer" in text_of(one)[1]


def test_state_that_is_not_healthy_is_said() -> None:
    body = {"status": "degraded", "ready": False, "reason": "disk_full"}
    assert "degraded   not ready: disk_full" in text_of(board(OLD, NEW, Health(True, "", body)))[0]


def test_text_of_a_server_moves_no_cursor() -> None:
    one = board("", 'mesh_relay_frames_total{direction="in",type="\x1b[2J"} 5', Health(False, "\x1b[2J"))
    assert not any("\x1b" in line for line in text_of(one))


@given(st.lists(st.floats(0, 1e12), max_size=2 * HISTORY), st.integers(0, HISTORY), st.booleans())
def test_sparkline_is_as_long_as_it_may(values: list[float], width: int, ascii_only: bool) -> None:
    line = sparkline(values, width, ascii_only=ascii_only)
    assert len(line) == min(len(values), width)
    assert line.isascii() or not ascii_only


def test_sparkline_rises_and_falls() -> None:
    assert sparkline([0, 1, 2, 4, 0], 5) == "▁▃▅█▁"


@given(st.lists(st.text(max_size=20), max_size=5), st.integers(0, 60))
def test_line_is_cut_to_the_terminal(texts: list[str], width: int) -> None:
    assert sum(len(piece.text) for piece in cut(tuple(Piece(text) for text in texts), width)) <= width


def test_history_is_bounded() -> None:
    one = Board("relay", "http://relay", RELAY)
    for second in range(3 * HISTORY):
        one.update(UP, Between(Page(OLD, second), Page(OLD, second + 1.0)))
    assert {len(values) for values in one.history.values()} == {HISTORY}
