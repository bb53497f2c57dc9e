"""Pages of metrics, read by Prometheus' own parser."""

import os
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshlib import process
from meshlib.prometheus import Histogram, Page


def parsed(page: Page) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by the values of their labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page.text()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_numbers_come_back_as_they_were_counted() -> None:
    page = Page("mesh_x")
    page.counter("a_total", "Plain", 7)
    page.gauge("b", "One label", {"in": 1, 404: 2.5}, "kind")
    page.gauge("c", "Two labels", {("in", 200): 3}, "direction", "status")
    page.gauge("d", "No values yet", {}, "kind")
    assert parsed(page) == {
        "mesh_x_a_total": {(): 7},
        "mesh_x_b": {("in",): 1, ("404",): 2.5},
        "mesh_x_c": {("in", "200"): 3},
    }
    assert "# TYPE mesh_x_d gauge\n" in page.text()


def test_a_label_cannot_end_its_line_or_its_quotes() -> None:
    page = Page("mesh_x")
    evil = 'a"} 1\n# TYPE b counter\\'
    page.gauge("a", "Text", {evil: 1}, "kind")
    assert parsed(page) == {"mesh_x_a": {(evil,): 1}}


def test_a_histogram_counts_each_value_up_to_its_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(value)
    page = Page("mesh_x")
    page.histogram("seconds", "Text", {"a": histogram}, "endpoint")
    found = parsed(page)
    assert found["mesh_x_seconds_bucket"] == {("a", "0.1"): 2, ("a", "1.0"): 3, ("a", "+Inf"): 4}
    assert found["mesh_x_seconds_sum"] == {("a",): pytest.approx(3.65)}
    assert found["mesh_x_seconds_count"] == {("a",): 4}
    assert histogram.count == 4


def test_wrong_labels_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zip"):
        Page("mesh_x").gauge("a", "Text", {("in", "out"): 1}, "direction")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc here to read")
def test_the_process_shows_its_memory_and_open_files() -> None:
    def shown() -> dict[str, dict[tuple[str, ...], float]]:
        page = Page("mesh_x")
        process.show(page, 1_790_000_000.0)
        return parsed(page)

    before = shown()
    with socket.socket(), socket.socket():
        after = shown()
    assert after["process_open_fds"][()] - before["process_open_fds"][()] == 2
    assert after["process_resident_memory_bytes"][()] > 1_000_000
    assert after["process_cpu_seconds_total"][()] > 0
    assert after["process_max_fds"][()] > 0
    assert after["process_start_time_seconds"][()] == 1_790_000_000.0
