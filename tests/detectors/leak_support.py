# SPDX-License-Identifier: GPL-2.0-only
"""A region of which the reference counts are given, and all that stands around its sweeper."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from soak.detectors.leaks.measure import RegionLeaks
from soak.detectors.leaks.probe import PinProbe
from soak.detectors.leaks.sweeper import Sweeper
from soak.detectors.reporter import Reporter
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import SUPERVISOR, leaks_field
from soak.model.vocabulary import Interface, Violation
from soak.regions import DeviceDaxRegion
from soak.regions.pages import PageSpan
from soak.workload.loop import outcome_columns
from soak.workload.pool import WorkerPool, WorkerProcess
from tests.support.idle_operators import Idle
from tests.support.soak import KNOWN_ISSUE, make_ledger, workers

if TYPE_CHECKING:
    from soak.detectors.leaks.struct_pages import StructPages

PAGES = 64
SPAN = PageSpan(0x140000, PAGES, 1)
REGION = DeviceDaxRegion("dax", Path("/dev/dax0.0"), PAGES * 4096, 4096, SPAN)
CONFIRMED = PinProbe(pinned=1, left=1)
REFUTED = PinProbe(pinned=1, left=0)
INCONCLUSIVE = PinProbe(pinned=0, left=0, refused=12)


class Counts:
    """The reference counts of a region: one for each page, and what is added to the first.

    They lie in memory that helpers share, as the real ones do.
    """

    def __init__(self) -> None:
        self._extra = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    @property
    def extra(self) -> int:
        return self._extra[0]

    @extra.setter
    def extra(self, references: int) -> None:
        self._extra[0] = references

    def totals(self, _span: PageSpan) -> tuple[int, int]:
        return PAGES + self.extra, 1 + self.extra

    def counts(self, _span: PageSpan) -> list[list[int]]:
        return [[1 + self.extra, *([1] * (PAGES - 1))]]


@dataclass
class GivenPin:
    """A long-term pin of which it is given what it adds to the counts, and what of that remains."""

    counts: Counts
    shows: PinProbe
    # Whether its process dies as soon as it is pinned.
    dies: bool = False
    unmapped: int = 0

    def map(self, _address: int, _iova: int, _size: int, _access: int) -> int:
        self.counts.extra += self.shows.pinned
        if self.dies:
            os._exit(1)
        return self.shows.refused

    def unmap(self, _iova: int, _size: int) -> int:
        self.counts.extra -= self.shows.pinned - self.shows.left
        return 0

    def close(self) -> None:
        pass


class Desk:
    def __init__(
        self, place: Path, *, recyclable: bool = False, applying: tuple[str, ...] = (KNOWN_ISSUE,)
    ) -> None:
        device = place / "dax0.0"
        device.touch()
        ledger = make_ledger(place / "ledger")
        self.block = ledger.block(SUPERVISOR)
        processes = [
            WorkerProcess(plan, ledger.block(plan.name), outcome_columns(plan.cells, (6, 1)), Idle)
            for plan in workers()
        ]
        self.worker = processes[0].block
        self.pool = WorkerPool(processes, self.block.view("pause"), self.block.view("uncertain"))
        self._path = place / "journal.jsonl"
        self.journal = FileJournal(self._path)
        self.reporter = Reporter(self.block, self.journal)
        self.counts = Counts()
        # What becomes of a pin here.
        self.shows, self.dies = CONFIRMED, False
        self._applying = applying
        region = replace(REGION, path=device, recyclable=recyclable)
        self.watch = RegionLeaks(region, SPAN, cast("StructPages", self.counts))
        self.sweeper = self.another()

    def another(self) -> Sweeper:
        """Return the sweeper of a supervisor that takes over."""
        return Sweeper(
            self.block,
            self.journal,
            self.reporter,
            [self.watch],
            self.pool,
            open_pins={Interface.VFIO_TYPE1: lambda: GivenPin(self.counts, self.shows, self.dies)},
            known_issues=frozenset(self._applying),
        )

    def map_and_unmap(self, pages: int, kept: int = 0) -> None:
        """Do as a mapper would, on a kernel that leaks `kept` of the pages."""
        for name in ("pages_mapped", "pages_unmapped"):
            self.worker.set(name, self.worker.get(name, 0) + pages, 0)
        self.counts.extra += kept

    def events(self) -> list[dict[str, Any]]:
        return list(read_journal(self._path))

    def sweep(self) -> list[dict[str, Any]]:
        """Sweep, and return what is new in the journal."""
        before = len(self.events())
        self.sweeper.at_rest()
        self.reporter.flush()
        return self.events()[before:]

    def leaks(self) -> dict[str, int]:
        columns = self.block.names(leaks_field("dax"))
        return dict(zip(columns, self.block.view(leaks_field("dax")), strict=True))

    def counted(self, issue: str) -> int:
        return self.block.get("violations", *self.block.index("violations", Violation.LEAK, issue))
