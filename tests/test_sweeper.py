# SPDX-License-Identifier: GPL-2.0-only
"""Sweeps without a kernel: counts are given, and what is reported, stored and judged is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from soak.detectors.leaks.measure import PinProbe, RegionLeaks
from soak.detectors.leaks.sweeper import Sweeper
from soak.detectors.reporter import Reporter
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import NO_KNOWN_ISSUE, SUPERVISOR, leaks_field
from soak.model.vocabulary import Violation
from soak.regions import DeviceDaxRegion
from soak.regions.pages import PageSpan
from soak.workload.pool import WorkerPool, WorkerProcess
from soak.workload.worker import outcome_columns
from tests.idle_operators import Idle
from tests.soak_support import KNOWN_ISSUE, make_ledger, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.detectors.leaks.struct_pages import StructPages
    from soak.workload.pins.long_term import LongTermPin

PAGES = 64
SPAN = PageSpan(0x140000, PAGES, 1)
REGION = DeviceDaxRegion("dax", Path("/dev/dax0.0"), PAGES * 4096, 4096, SPAN)
CONFIRMED = PinProbe(pinned=1, left=1)
REFUTED = PinProbe(pinned=1, left=0)
INCONCLUSIVE = PinProbe(pinned=0, left=0, refused=12)


class Counts:
    """The reference counts of a region: one for each page, and what is added to the first."""

    extra = 0

    def totals(self, _span: PageSpan) -> tuple[int, int]:
        return PAGES + self.extra, 1 + self.extra

    def counts(self, _span: PageSpan) -> list[list[int]]:
        return [[1 + self.extra, *([1] * (PAGES - 1))]]


class Probed(RegionLeaks):
    """A region whose probe shows what it is told to, and leaves that behind."""

    shows = CONFIRMED

    def __init__(self, counts: Counts) -> None:
        super().__init__(REGION, SPAN, cast("StructPages", counts))
        self._counts = counts

    def probe(self, _open_pin: Callable[[], LongTermPin]) -> PinProbe:
        self._counts.extra += self.shows.left
        return self.shows


class Desk:
    def __init__(self, place: Path) -> None:
        ledger = make_ledger(place / "ledger")
        self.block = ledger.block(SUPERVISOR)
        members = [
            WorkerProcess(plan, ledger.block(plan.name), outcome_columns(plan.cells, (6, 1)), Idle)
            for plan in workers()
        ]
        self.worker = members[0].block
        self.pool = WorkerPool(members, self.block.view("pause"), self.block.view("uncertain"))
        self._path = place / "journal.jsonl"
        self.journal = FileJournal(self._path)
        self.reporter = Reporter(self.block, self.journal)
        self.counts = Counts()
        self.watch = Probed(self.counts)
        self.sweeper = self.another()

    def another(self) -> Sweeper:
        """Return the sweeper of a supervisor that takes over."""
        return Sweeper(
            self.block,
            self.journal,
            self.reporter,
            [self.watch],
            self.pool,
            open_pin=lambda: pytest.fail("the probe is the region's"),
            known_issues=frozenset({KNOWN_ISSUE}),
        )

    def map_and_unmap(self, pages: int, kept: int = 0) -> None:
        """Do as a mapper would, on a kernel that leaks `kept` of the pages."""
        for name in ("pages_mapped", "pages_unmapped"):
            self.worker.set(name, self.worker.get(name, 0) + pages, 0)
        self.counts.extra += kept

    def sweep(self) -> list[dict[str, Any]]:
        """Sweep, and return what is new in the journal."""
        before = len(list(read_journal(self._path)))
        self.sweeper.at_rest()
        self.reporter.flush()
        return list(read_journal(self._path))[before:]

    def leaks(self) -> dict[str, int]:
        columns = self.block.names(leaks_field("dax"))
        return dict(zip(columns, self.block.view(leaks_field("dax")), strict=True))

    def counted(self, issue: str) -> int:
        return self.block.get("violations", *self.block.index("violations", Violation.LEAK, issue))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_clean_sweep_reports_nothing_and_is_counted(desk: Desk) -> None:
    desk.watch.shows = REFUTED
    desk.sweeper.probe()
    desk.map_and_unmap(40)
    assert desk.sweep() == []
    assert desk.sweeper.sweeps() == {"dax": 1}
    assert desk.block.get("swept_pages", 0) == PAGES


def test_a_reference_too_many_is_reported_once(desk: Desk) -> None:
    desk.watch.shows = REFUTED
    desk.sweeper.probe()
    desk.counts.extra += 3
    (found,) = desk.sweep()
    assert (found["kind"], found["count"], found["known_issue"]) == (Violation.LEAK, 3, None)
    assert desk.sweep() == []
    desk.counts.extra += 2
    (more,) = desk.sweep()
    assert more["count"] == 2
    assert desk.counted(NO_KNOWN_ISSUE) == 5
    assert desk.leaks()[f"leaked {NO_KNOWN_ISSUE}"] == 5


def test_what_a_confirmed_issue_predicts_is_explained_to_the_page(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.map_and_unmap(40, kept=40)
    (first,) = desk.sweep()
    # The page of the probe has stayed as well.
    assert (first["count"], first["known_issue"]) == (41, KNOWN_ISSUE)
    desk.map_and_unmap(10, kept=11)
    found = {event["known_issue"]: event["count"] for event in desk.sweep()}
    assert found == {KNOWN_ISSUE: 10, None: 1}
    assert (desk.counted(KNOWN_ISSUE), desk.counted(NO_KNOWN_ISSUE)) == (51, 1)


def test_fewer_than_predicted_is_unexplained(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.map_and_unmap(40, kept=38)
    assert [event["count"] for event in desk.sweep() if event["known_issue"] is None] == [2]


def test_until_a_probe_decides_nothing_is_counted(desk: Desk) -> None:
    desk.watch.shows = INCONCLUSIVE
    desk.sweeper.probe()
    assert desk.sweeper.undecided
    desk.map_and_unmap(5, kept=5)
    (found,) = desk.sweep()
    assert found["undecided"] == KNOWN_ISSUE
    assert (desk.counted(KNOWN_ISSUE), desk.counted(NO_KNOWN_ISSUE)) == (0, 0)
    desk.watch.shows = CONFIRMED
    desk.sweeper.probe()
    assert not desk.sweeper.undecided
    assert desk.counted(KNOWN_ISSUE) == 5


def test_the_last_map_of_a_killed_worker_is_reconciled(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.pool.uncertain[0] = 16
    desk.counts.extra += 9
    reconciled, found = desk.sweep()
    assert (reconciled["event"], reconciled["pages"]) == ("leak.reconciled", 9)
    assert found["known_issue"] == KNOWN_ISSUE
    assert desk.pool.uncertain[0] == 0


def test_a_supervisor_that_takes_over_reports_nothing_twice(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.map_and_unmap(7, kept=8)
    assert len(desk.sweep()) == 2
    desk.sweeper = desk.another()
    assert desk.sweep() == []
    desk.map_and_unmap(1, kept=1)
    (found,) = desk.sweep()
    assert (found["count"], found["known_issue"]) == (1, KNOWN_ISSUE)
