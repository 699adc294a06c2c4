# SPDX-License-Identifier: GPL-2.0-only
"""Sweeps: compare the measured page references with those recorded by the workers, and report leaks."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from soak.detectors.base import Detector, Finding
from soak.detectors.leaks.measure import REFCOUNT_LIMIT, Held
from soak.detectors.leaks.probe import PROBES, ProbePlace
from soak.detectors.probes import ProbeRecord
from soak.journal.writer import Level
from soak.ledger.schema import ACCOUNT_COLUMNS, NO_KNOWN_ISSUE, account_field, leaks_field
from soak.model.known_issues import leak_issue
from soak.model.vocabulary import DetectorName, Interface, Operation, ProbeResult, Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from soak.detectors.leaks.measure import Measurement, RegionLeaks
    from soak.detectors.reporter import Reporter
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.model.known_issues import KnownIssue
    from soak.regions import Region
    from soak.workload.pins.long_term import LongTermPin
    from soak.workload.pool import WorkerPool

FULL_HEADROOM_PPM: Final = 1_000_000
_EVER: Final = "leaked_total "


def totals(region: Region, block: BlockWriter, pool: WorkerPool) -> tuple[int, int, int]:
    """Return the totals of a region in pages: given back, leaked explained, leaked unexplained."""
    position = block.index("sweeps", region.name)[0]
    given_back = _given_back(pool, position, leak_issue(region.kind))
    field = leaks_field(region.name)
    columns, words = block.names(field), block.view(field)
    leaked = {
        column.removeprefix(_EVER): count
        for column, count in zip(columns, words, strict=True)
        if column.startswith(_EVER)
    }
    unexplained = leaked.pop(NO_KNOWN_ISSUE)
    return given_back, sum(leaked.values()), unexplained


def _given_back(pool: WorkerPool, position: int, issue: KnownIssue | None) -> int:
    """Return the number of pages unmapped over interfaces that leak according to the issue."""
    interfaces = issue.interfaces if issue is not None else ()
    return sum(
        worker.block.get("pages_unmapped", position)
        for worker in pool.workers
        if worker.plan.long_term is not None and worker.plan.long_term.interface in interfaces
    )


class Sweeper(Detector):
    """Sweeps all regions with readable reference counts."""

    name = DetectorName.LEAKS

    def __init__(
        self,
        block: BlockWriter,
        journal: Journal,
        reporter: Reporter,
        watches: Sequence[RegionLeaks],
        pool: WorkerPool,
        *,
        open_pins: Mapping[Interface, Callable[[], LongTermPin]],
        known_issues: frozenset[str],
        canaries: Sequence[BlockWriter] = (),
    ) -> None:
        """`canaries` are the blocks of canaries that record their pins as workers do."""
        self._block = block
        self._journal = journal
        self._reporter = reporter
        self._watches = watches
        self._pool = pool
        self._workers = pool.workers
        self._canaries = canaries
        self._open_pins = open_pins
        self._probes = ProbeRecord(reporter, known_issues)
        # The known issue that predicts leaks of each region, if any.
        self._issues = {watch.region.name: leak_issue(watch.region.kind) for watch in watches}
        self._uncertain = block.view("uncertain")
        # The leaks of each region that this or an earlier supervisor has reported.
        self._explained = {
            name: self._leaked(name, "leaked_total", issue.name) if issue else 0
            for name, issue in self._issues.items()
        }
        self._unexplained = {name: self._leaked(name, "leaked", NO_KNOWN_ISSUE) for name in self._issues}
        for watch in watches:
            self._store_account(watch)

    def probe(self) -> None:
        """Probe each region with a single pin, while no other page is pinned.

        The next call repeats inconclusive probes.

        Raises:
            HelperError: a probe did not finish.
        """
        if self._probes.empty:
            for watch in self._watches:
                self._note_preexisting(watch)
        for watch in self._watches:
            issue = self._issues[watch.region.name]
            if issue is not None and self._probes.is_open(issue.name, watch.region.name):
                self._probe(watch, issue)

    def _note_preexisting(self, watch: RegionLeaks) -> None:
        if watch.idle is not None and watch.idle.preexisting:
            self._journal.write(
                "region.differs",
                Level.WARNING,
                region=watch.region.name,
                pages=[list(page) for page in watch.idle.preexisting],
                summary=f"pages of region {watch.region.name} were in use before the run",
            )

    def _probe(self, watch: RegionLeaks, issue: KnownIssue) -> None:
        open_pin = self._open_pins.get(issue.interfaces[0])
        if open_pin is None:
            return
        # If the supervisor dies now, one page may or may not stay pinned.
        position = self._position(watch)[0]
        self._uncertain[position] += 1
        pin = PROBES[issue.name](ProbePlace(watch.region, watch.references, open_pin))
        watch.learn_unit(pin.pinned)
        if pin.result is ProbeResult.CONFIRMED and self._probes.applies(issue.name):
            watch.predict(pin.left)
        self._store_account(watch)
        self._uncertain[position] -= 1
        self._probes.note(issue.name, pin, watch.region.name)

    @property
    def undecided(self) -> bool:
        return self._probes.undecided

    def _is_undecided(self, watch: RegionLeaks) -> bool:
        issue = self._issues[watch.region.name]
        if issue is None:
            return False
        return self._probes.result(issue.name, watch.region.name) is ProbeResult.INCONCLUSIVE

    def prepare(self) -> None:
        """Record the head-room of each region, before any page is pinned."""
        for watch in self._watches:
            self._note_headroom(watch, watch.highest())

    def at_rest(self) -> None:
        """Sweep each region."""
        for watch in self._watches:
            self._sweep(watch)

    def differences(self) -> dict[str, int] | None:
        """Return the unexplained references of each region, measured as in a sweep but not recorded.

        Return None if a worker died meanwhile, because the kernel then released its pins.
        """
        found = {
            watch.region.name: watch.measure(
                replace(self._held(watch), uncertain=0, stranded=0)
            ).difference
            for watch in self._watches
        }
        return None if self._pool.lost_one() else found

    def sweeps(self) -> dict[str, int]:
        return {
            watch.region.name: self._block.get("sweeps", *self._position(watch))
            for watch in self._watches
        }

    def _sweep(self, watch: RegionLeaks) -> None:
        block, position = self._block, self._position(watch)
        start = time.monotonic_ns()
        held = self._held(watch)
        measured = watch.measure(held)
        if self._pool.lost_one():
            # The kernel released its pins during the measurement: leave this one to the next sweep.
            return
        now = time.monotonic_ns()
        block.add("sweeps", 1, *position)
        block.add("swept_pages", measured.pages, *position)
        block.set("sweep_duration_ns", now - start, *position)
        block.set("last_sweep_ns", now, *position)
        self._note_headroom(watch, measured.highest)
        # While the probe is inconclusive, the pages of a killed worker cannot be told from leaks.
        if held.uncertain and not self._is_undecided(watch):
            self._settle(watch, held, measured)
        self._store(watch, measured)
        self._report(watch, measured)

    def _note_headroom(self, watch: RegionLeaks, highest: int) -> None:
        left = max(FULL_HEADROOM_PPM - highest * FULL_HEADROOM_PPM // REFCOUNT_LIMIT, 0)
        self._block.set("headroom_ppm", left, *self._position(watch))

    def _held(self, watch: RegionLeaks) -> Held:
        region = self._position(watch)[0]
        given_back = _given_back(self._pool, region, self._issues[watch.region.name])
        mapped = sum(worker.block.get("pages_mapped", region) for worker in self._workers)
        unmapped = sum(worker.block.get("pages_unmapped", region) for worker in self._workers)
        live = mapped - unmapped
        for block in self._canaries:
            live += block.get("pages_mapped", region) - block.get("pages_unmapped", region)
        stranded = self._pool.stranded(region)
        return Held(live, given_back, self._uncertain[region], stranded=stranded)

    def _settle(self, watch: RegionLeaks, held: Held, measured: Measurement) -> None:
        """Journal how many pages the unfinished maps of killed workers had pinned."""
        self._journal.write(
            "leak.reconciled",
            region=watch.region.name,
            pages=measured.reconciled,
            uncertain=held.uncertain,
            summary=f"workers killed in the middle of a map had pinned "
            f"{measured.reconciled} of its {held.uncertain} pages",
        )
        self._store_account(watch)
        self._uncertain[self._position(watch)[0]] = 0

    def _store(self, watch: RegionLeaks, measured: Measurement) -> None:
        """Store the current, total and predicted leaks as one group."""
        name, before, none = watch.region.name, watch.account, NO_KNOWN_ISSUE
        ever = self._leaked(name, "leaked_total", none)
        values = {
            f"leaked {none}": measured.unexplained,
            f"leaked_total {none}": max(before.unexplained + measured.unexplained, ever),
        }
        if (issue := self._issues[name]) is not None:
            values |= {
                f"leaked {issue.name}": measured.explained,
                f"leaked_total {issue.name}": before.explained + measured.explained,
                f"predicted {issue.name}": measured.predicted,
            }
        columns = self._block.names(leaks_field(name))
        self._block.set_group(leaks_field(name), [values.get(column, 0) for column in columns[1:]])

    def _store_account(self, watch: RegionLeaks) -> None:
        """Store the baseline of a region for the next supervisor."""
        values = asdict(watch.account)
        self._block.set_group(
            account_field(watch.region.name), [values[column] for column in ACCOUNT_COLUMNS[1:]]
        )

    def _leaked(self, region: str, column: str, issue: str) -> int:
        columns = self._block.names(leaks_field(region))
        return self._block.view(leaks_field(region))[columns.index(f"{column} {issue}")]

    def _report(self, watch: RegionLeaks, measured: Measurement) -> None:
        region, issue = watch.region, self._issues[watch.region.name]
        evidence = {
            "explained": measured.explained,
            "unexplained": measured.unexplained,
            "predicted": measured.predicted,
            "references_of_a_pin": watch.unit,
        }
        explained = watch.account.explained + measured.explained
        new = explained - self._explained[region.name]
        if issue is not None and new > 0:
            self._explained[region.name] = explained
            self._reporter.report(
                Finding(
                    Violation.LEAK,
                    region.kind,
                    issue.interfaces[0],
                    issue.operations[0],
                    new,
                    f"unmap did not release {explained:,} page references of region {region.name}, "
                    f"exactly as {issue.name} predicts",
                    region.name,
                    issue.name,
                    evidence,
                )
            )
        change = measured.unexplained - self._unexplained[region.name]
        self._unexplained[region.name] = measured.unexplained
        if change > 0:
            undecided = issue if self._is_undecided(watch) else None
            self._reporter.report(
                Finding(
                    Violation.LEAK,
                    region.kind,
                    undecided.interfaces[0] if undecided else Interface.NONE,
                    Operation.UNMAP,
                    change,
                    f"the page references of region {region.name} differ by "
                    f"{measured.unexplained:,} from those held and predicted",
                    region.name,
                    None,
                    evidence,
                    undecided=undecided.name if undecided else None,
                )
            )

    def _position(self, watch: RegionLeaks) -> tuple[int, ...]:
        return self._block.index("sweeps", watch.region.name)
