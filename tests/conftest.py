"""What holds for every test: nothing is left out where all must run, and node tests say loudly when they cannot."""

import os
from collections.abc import Generator, Iterator

import pytest

from demo.node import MissingNode, find_node
from tests.commands import Servers, mesh_up

_ALL_MUST_RUN = os.environ.get("CI", "").lower() in ("true", "1", "yes")
_NODE = find_node()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs node when there is none. Under CI the skip then counts as a failure."""
    if isinstance(_NODE, MissingNode):
        for item in items:
            if item.get_closest_marker("node"):
                item.add_marker(pytest.mark.skip(reason=f"needs node: {_NODE.reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Nobody should read a green line as "TypeScript works" when no TypeScript ran."""
    if isinstance(_NODE, MissingNode):
        terminalreporter.section("NO TYPESCRIPT WAS TESTED", sep="!", red=True)
        terminalreporter.line(_NODE.reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a skipped test is a failed one: a promise nobody checked."""
    report = yield
    if _ALL_MUST_RUN and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and CI=true allows no skips: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself."""
    report = yield
    if _ALL_MUST_RUN and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, and CI=true allows no skips: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A relay and a registry for all tests of commands, examples and documents."""
    with mesh_up(tmp_path_factory.mktemp("servers")) as started:
        yield started
