"""Sweeps: what the leak detector measures is compared with the workers' books and reported."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from soak.abi.procfs import kernel_release
from soak.detectors.finding import Finding
from soak.detectors.leaks import REFCOUNT_LIMIT, Held
from soak.expectations import parse_release
from soak.journal import Level
from soak.known_issues import TYPE1_DEVICE_DAX_LEAK
from soak.schema import NO_KNOWN_ISSUE, leaks_field
from soak.vocabulary import Interface, Operation, Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.crew import Crew
    from soak.detectors.leaks import Measurement, RegionLeaks
    from soak.journal import Journal
    from soak.ledger import BlockWriter
    from soak.reporter import Reporter

FULL_HEADROOM_PPM: Final = 1_000_000


class Sweeper:
    """Sweeps all regions whose pages can be read. Whoever calls sees to it that no worker pins."""

    def __init__(
        self,
        block: BlockWriter,
        journal: Journal,
        reporter: Reporter,
        watches: Sequence[RegionLeaks],
        crew: Crew,
        *,
        probe_function: str | None,
        known_issues: frozenset[str],
        canaries: Sequence[BlockWriter] = (),
    ) -> None:
        """Take the blocks of `canaries` whose pins, as those of workers, are in the books."""
        self._block = block
        self._journal = journal
        self._reporter = reporter
        self._watches = watches
        self._crew = crew
        self._members = crew.members
        self._canaries = canaries
        self._probe_function = probe_function
        self._known_issues = known_issues
        self._explained = {watch.region.name: 0 for watch in watches}
        self._unexplained = {watch.region.name: 0 for watch in watches}

    def probe(self) -> None:
        """Learn what the kernel does with a single pin, before anything else is pinned.

        Raises:
            HelperError: a probe did not come to an end.
        """
        issue = TYPE1_DEVICE_DAX_LEAK
        first, last = issue.kernels
        in_scope = first <= parse_release(kernel_release()) < last
        for watch in self._watches:
            if watch.idle.preexisting:
                self._journal.write(
                    "region.differs",
                    Level.WARNING,
                    region=watch.region.name,
                    pages=[list(page) for page in watch.idle.preexisting],
                    summary=f"pages of region {watch.region.name} were in use before the run",
                )
            if watch.region.kind is not issue.region or self._probe_function is None:
                continue
            result = watch.probe(self._probe_function)
            shown = result.pinned > 0 and result.left == result.pinned
            if shown and in_scope and issue.name in self._known_issues:
                watch.predict(result)
            self._journal.write(
                "known-issue.probed",
                known_issue=issue.name,
                region=watch.region.name,
                confirmed=watch.predicted,
                pinned=result.pinned,
                left=result.left,
                errno=result.refused,
            )

    def sweep(self) -> None:
        """Read all counts, compare, report."""
        for watch in self._watches:
            self._sweep(watch)

    def differences(self) -> dict[str, int] | None:
        """Measure each region as a sweep does and return what is unexplained; nothing is noted.

        Return None where a worker died meanwhile, and what it held went with it.
        """
        found = {
            watch.region.name: watch.measure(
                replace(self._held(*self._position(watch)), uncertain=0)
            ).difference
            for watch in self._watches
        }
        return None if self._crew.lost_one() else found

    def counts(self) -> dict[str, int]:
        """Return how often each region was swept."""
        return {
            watch.region.name: self._block.get("sweeps", *self._position(watch))
            for watch in self._watches
        }

    def _sweep(self, watch: RegionLeaks) -> None:
        block, position = self._block, self._position(watch)
        start = time.monotonic_ns()
        held = self._held(*position)
        measured = watch.measure(held)
        if self._crew.lost_one():
            # What it held went while the counts were read: the next sweep sees how it stands.
            return
        now = time.monotonic_ns()
        block.add("sweeps", 1, *position)
        block.add("swept_pages", measured.pages, *position)
        block.set("sweep_duration_ns", now - start, *position)
        block.set("last_sweep_ns", now, *position)
        used = measured.highest * FULL_HEADROOM_PPM // REFCOUNT_LIMIT
        block.set("headroom_ppm", max(FULL_HEADROOM_PPM - used, 0), *position)
        if held.uncertain:
            self._settle(watch, held, measured)
        self._store(watch, measured)
        self._report(watch, measured)

    def _held(self, region: int) -> Held:
        blocks = (*(member.block for member in self._members), *self._canaries)
        mapped = sum(block.get("pages_mapped", region) for block in blocks)
        unmapped = sum(block.get("pages_unmapped", region) for block in blocks)
        uncertain = sum((member.uncertain or {}).get(region, 0) for member in self._members)
        return Held(live=mapped - unmapped, given_back=unmapped, uncertain=uncertain)

    def _settle(self, watch: RegionLeaks, held: Held, measured: Measurement) -> None:
        """Note what the maps of killed workers turned out to have pinned."""
        self._journal.write(
            "leak.reconciled",
            region=watch.region.name,
            pages=measured.reconciled,
            uncertain=held.uncertain,
            summary=f"workers that were killed in the middle of a map had pinned "
            f"{measured.reconciled} of its {held.uncertain} pages",
        )
        for member in self._members:
            if member.uncertain:
                member.uncertain.pop(self._position(watch)[0], None)

    def _store(self, watch: RegionLeaks, measured: Measurement) -> None:
        """Store what is leaked now and ever, and what was predicted, as one group."""
        known, none = TYPE1_DEVICE_DAX_LEAK.name, NO_KNOWN_ISSUE
        words = self._block.view(leaks_field(watch.region.name))
        columns = self._block.names(leaks_field(watch.region.name))
        ever = words[columns.index(f"leaked_total {none}")]
        values = {
            f"leaked {known}": measured.explained,
            f"leaked {none}": measured.unexplained,
            f"leaked_total {known}": measured.explained,
            f"leaked_total {none}": max(measured.unexplained, ever),
            f"predicted {known}": measured.predicted,
        }
        self._block.set_group(
            leaks_field(watch.region.name), [values.get(column, 0) for column in columns[1:]]
        )

    def _report(self, watch: RegionLeaks, measured: Measurement) -> None:
        region, issue = watch.region, TYPE1_DEVICE_DAX_LEAK
        evidence = {
            "explained": measured.explained,
            "unexplained": measured.unexplained,
            "predicted": measured.predicted,
            "references_of_a_pin": watch.unit,
        }
        new = measured.explained - self._explained[region.name]
        if new > 0:
            self._explained[region.name] = measured.explained
            self._reporter.report(
                Finding(
                    Violation.LEAK,
                    region.kind,
                    issue.interfaces[0],
                    issue.operations[0],
                    new,
                    f"{measured.explained:,} page references of region {region.name} were not "
                    f"given back by unmap, exactly as {issue.name} predicts",
                    region.name,
                    issue.name,
                    evidence,
                )
            )
        change = measured.unexplained - self._unexplained[region.name]
        self._unexplained[region.name] = measured.unexplained
        if change > 0:
            self._reporter.report(
                Finding(
                    Violation.LEAK,
                    region.kind,
                    Interface.NONE,
                    Operation.UNMAP,
                    change,
                    f"the page references of region {region.name} differ by "
                    f"{measured.unexplained:,} from what is held and predicted",
                    region.name,
                    None,
                    evidence,
                )
            )

    def _position(self, watch: RegionLeaks) -> tuple[int, ...]:
        return self._block.index("sweeps", watch.region.name)
