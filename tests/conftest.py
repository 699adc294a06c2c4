# SPDX-License-Identifier: GPL-2.0-only
"""How the tests are run: which beside which, which again, and what the run says of it all."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import pytest

from tests.boots.harness.kernels import MODULELESS_KERNEL, QUICK_KERNEL
from tests.boots.harness.progress_lines import ProgressPrinter, kept, say
from tests.boots.harness.shared_setups import SharedSetUps

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from _pytest.terminal import TerminalReporter

# What a guest takes of a machine's memory: its own, its NVDIMM, and the program beside it.
_GUEST_BYTES: Final = 4 << 30
_MOST_PROCESSES: Final = 8
# More tests than this that pass only when they are run again are a fault of theirs, or of the program.
_MOST_FLAKY: Final = 2
_TOLD_SECONDS: Final = 5.0
# Of the first failure of a flaky test, whose run is often out of reach when it is read.
_SHOWN_LINES: Final = 80


def pytest_report_header() -> str | None:
    """Say what is left out for want of a kernel, and how to get that kernel."""
    if MODULELESS_KERNEL is not None:
        return None
    return (
        f"left out: kernels without modules (the lab boots {QUICK_KERNEL} instead); "
        f"'dax-soak lab --kernel build:6.12 --duration 20s' builds one"
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs this in the background has Ctrl-C ignored, here and in all that is started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(RunReport(), "run-report")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many test processes there may be: each may have a guest of two processors.

    One more than the machine has processors, for now and then each of them waits.
    """
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processors = len(os.sched_getaffinity(0))
    return max(1, min(processors + 1, memory // _GUEST_BYTES, _MOST_PROCESSES))


# Before the nodes' own, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, and tests of one set-up into one process, in their order."""
    costs: dict[str, float] = defaultdict(float)
    places: dict[pytest.Item, str] = {}
    for item in items:
        lab = item.get_closest_marker("lab")
        places[item] = item.nodeid
        if lab is None or "shared" in getattr(item, "fixturenames", ()):
            places[item] = _file(item)
            item.add_marker(pytest.mark.xdist_group(places[item]))
        if lab is not None:
            # A loaded machine may do to a guest what it does once. Unit tests have no such excuse.
            item.add_marker(pytest.mark.flaky(reruns=1))
        cost = lab or item.get_closest_marker("takes")
        if cost is not None:
            costs[places[item]] = max(costs[places[item]], cost.kwargs.get("seconds", 30))
    items.sort(key=lambda item: -costs[places[item]])


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSetUps]:
    """Set-ups that several tests of this process share."""
    setups = SharedSetUps(tmp_path_factory)
    yield setups
    setups.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have it said how each part of a lab test ended that took long."""
    report = yield
    if item.get_closest_marker("lab") is not None and call.duration >= _TOLD_SECONDS:
        say(f"{call.when} {report.outcome} after {call.duration:.0f} s")
    return report


class RunReport:
    """What only the process knows that owns the terminal: which tests were flaky, what was kept."""

    def __init__(self) -> None:
        self._printer = ProgressPrinter()
        self._first_failures: dict[str, pytest.TestReport] = {}
        self._flaky: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "rerun":  # type: ignore[comparison-overlap] # of pytest-rerunfailures
            self._first_failures.setdefault(report.nodeid, report)
        elif report.when == "call" and report.passed and report.nodeid in self._first_failures:
            self._flaky[report.nodeid] = _last_line(self._first_failures[report.nodeid])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._printer.close()
        if len(self._flaky) > _MOST_FLAKY and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Print, last of all, where failed runs are kept, and which tests passed only at a second run."""
        for report in (
            *terminalreporter.getreports("failed"),
            *terminalreporter.getreports("error"),
            *terminalreporter.getreports("rerun"),
        ):
            for place in kept(report.capstdout):
                terminalreporter.write_line(f"kept: {place} ({_name(report.nodeid)})")
        for test in self._flaky:
            terminalreporter.write_sep("_", f"the first failure of {_name(test)}")
            terminalreporter.write_line(_end(self._first_failures[test]))
        for test, failure in self._flaky.items():
            terminalreporter.write_line(f"flaky: {_name(test)} failed first: {failure}", yellow=True)
        if len(self._flaky) > _MOST_FLAKY:
            terminalreporter.write_line(
                f"{len(self._flaky)} tests are flaky, and no more than {_MOST_FLAKY} may be: "
                f"the run has failed",
                red=True,
            )


def _file(item: pytest.Item) -> str:
    """Return the file of a test as its directory and stem: a stem alone may be there twice."""
    return item.nodeid.partition(".py::")[0].removeprefix("tests/")


def _name(nodeid: str) -> str:
    """Return a test's name without the group in which it ran."""
    return nodeid.partition("@")[0]


def _end(report: pytest.TestReport) -> str:
    """Return the end of a failure's text, which has what the lab and its console said."""
    return "\n".join(report.longreprtext.splitlines()[-_SHOWN_LINES:])


def _last_line(report: pytest.TestReport) -> str:
    """Return the line that says what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "without a word"
