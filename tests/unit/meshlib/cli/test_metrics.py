"""Pages of numbers: as Prometheus reads them, and whatever else a server may answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.cli.metrics import Between, Page

TEXT = """# HELP mesh_relay_frames_total Frames
# TYPE mesh_relay_frames_total counter
mesh_relay_frames_total{direction="in",type="message"} 10
mesh_relay_frames_total{direction="in",type="heartbeat"} 4
mesh_relay_frames_total{direction="out",type="message"} 9
mesh_relay_agents 3
odd{text="a \\"quoted\\", one"} 1.5 1700000000
broken{ 1
nothing NaN
"""


def test_samples_are_summed_over_labels_that_are_not_named() -> None:
    page = Page(TEXT, 0.0)
    assert page.value("mesh_relay_frames_total") == 23
    assert page.value("mesh_relay_frames_total", direction="in") == 14
    assert page.by("mesh_relay_frames_total", "type", direction="in") == {"message": 10, "heartbeat": 4}
    assert page.value("mesh_relay_agents") == 3
    assert page.value("odd", text='a \\"quoted\\", one') == 1.5


@pytest.mark.parametrize("name", ["absent", "nothing", "broken"])
def test_number_that_is_not_there_is_none(name: str) -> None:
    assert Page(TEXT, 0.0).value(name) is None
    assert Between(Page(TEXT, 0.0), Page(TEXT, 1.0)).rate(name) is None


def test_rates_are_rises_per_second() -> None:
    between = Between(Page(TEXT, 0.0), Page(TEXT.replace('"} 10', '"} 30'), 2.0))
    assert between.rate("mesh_relay_frames_total", type="message") == 10
    assert between.rates("mesh_relay_frames_total", "type") == {"message": 10}


def test_server_that_started_anew_does_not_run_backwards() -> None:
    between = Between(Page("total 1000", 0.0), Page("total 4", 2.0))
    assert between.rate("total") == 2


def test_metric_that_appears_counts_from_zero() -> None:
    assert Between(Page("", 0.0), Page("total 4", 2.0)).rate("total") == 2


@given(st.text())
def test_any_text_is_a_page(text: str) -> None:
    page = Page(text, 0.0)
    assert page.value("x") is None or isinstance(page.value("x"), float)
