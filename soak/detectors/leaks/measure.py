# SPDX-License-Identifier: GPL-2.0-only
"""Leak measurement: does the kernel release every page reference?

While the workers rest, the detector sums the reference counts of all pages of a region. The excess over
the idle sum must equal the references that the soak itself holds. It takes the idle counts from the fresh
region, and measures what one pin adds: 1 for a page of a large folio, otherwise 1024
(include/linux/mm_types.h, GUP_PIN_COUNTING_BIAS).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from soak.detectors.leaks.struct_pages import StructPages
    from soak.regions import Region
    from soak.regions.pages import PageSpan

# A pin of a small folio adds this much to its reference count (include/linux/mm.h).
_GUP_PIN_COUNTING_BIAS: Final = 1024
REFCOUNT_LIMIT: Final = 1 << 31  # the kernel's count is a signed int, and gup refuses below zero

_MOST_PREEXISTING: Final = 20


@dataclass(frozen=True)
class Idle:
    """The reference counts of an unused region."""

    head: int
    tail: int
    total: int
    # Pages that had another count when the region was fresh: frame number and count.
    preexisting: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Account:
    """The baseline of a region since its pages were last initialised.

    `idle` is the sum of reference counts at that time, `settled` the later references with a known
    reason, `unit` the references that one pinned page adds. The other fields count pages up to that
    time: `given_back` were unmapped; `explained` and `unexplained` had leaked, and no longer count.
    """

    idle: int
    settled: int = 0
    unit: int = 1
    given_back: int = 0
    explained: int = 0
    unexplained: int = 0


@dataclass(frozen=True)
class Held:
    """A region's pinned (`live`) and unpinned (`given_back`) pages as recorded by the workers.

    `uncertain` counts pages of maps whose worker was killed before it recorded the result, `stranded`
    pages that calls of wedged workers may hold.
    """

    live: int
    given_back: int
    uncertain: int = 0
    stranded: int = 0


@dataclass(frozen=True)
class Measurement:
    """The references of a region beyond the idle sum and the held pins, in pinned pages.

    Workers that were killed in the middle of a map left `reconciled` pages. `difference` is
    `unexplained` in references instead of pages, and negative if references are missing.
    """

    pages: int
    explained: int
    unexplained: int
    predicted: int
    reconciled: int
    highest: int
    difference: int


class RegionLeaks:
    """Measures one region whose physical pages are known."""

    def __init__(
        self, region: Region, span: PageSpan, pages: StructPages, account: Account | None = None
    ) -> None:
        """Calibrate on the region, which must be unused.

        With an `account`, keep that baseline instead; the pages must not have been reset since.
        """
        self.region = region
        self._span = span
        self._pages = pages
        self.idle: Idle | None = None
        # Whether a known issue predicts that unmap releases no reference.
        self.predicted = False
        self.account = account if account is not None else Account(self._calibrated())

    def renew(self, given_back: int, explained: int, unexplained: int) -> None:
        """Calibrate again on reinitialised pages; the arguments are the totals up to now, in pages."""
        self.account = Account(
            self._calibrated(),
            unit=self.account.unit,
            given_back=given_back,
            explained=explained,
            unexplained=unexplained,
        )

    @property
    def unit(self) -> int:
        """References that one pinned page adds to the sum."""
        return self.account.unit

    def _calibrated(self) -> int:
        self.idle = _calibrate(self._span, self._pages)
        return self.idle.total

    def references(self) -> int:
        """Return the sum of the reference counts."""
        return self._sum()[0]

    def highest(self) -> int:
        """Return the highest reference count of a page."""
        return self._sum()[1]

    def learn_unit(self, pinned: int) -> None:
        """Set the unit to the references that a probe's pinned page added."""
        self.account = replace(self.account, unit=max(pinned, 1))

    def predict(self, left: int) -> None:
        """Predict that every unmapped page stays pinned: a probe confirmed the known issue.

        The probe itself leaked `left` references.
        """
        self.predicted = True
        self._settle(left)

    def measure(self, held: Held) -> Measurement:
        """Read and compare all counts; no process may take or release a pin meanwhile."""
        total, highest = self._sum()
        account = self.account
        excess = total - account.idle - held.live * self.unit
        predicted = account.settled
        if self.predicted:
            predicted += (held.given_back - account.given_back) * self.unit
        difference = excess - predicted
        reconciled = 0
        if self.predicted and 0 < difference <= held.uncertain * self.unit:
            # The ledger does not show how many pages of its last map a killed worker had pinned.
            self._settle(difference)
            predicted += difference
            reconciled, difference = difference, 0
        if 0 < difference <= held.stranded * max(self.unit, _GUP_PIN_COUNTING_BIAS):
            difference = 0
        return Measurement(
            pages=self._span.count,
            explained=self._in_pages(min(excess, predicted)),
            unexplained=self._in_pages(abs(difference)),
            predicted=self._in_pages(predicted),
            reconciled=self._in_pages(reconciled),
            highest=highest,
            difference=difference,
        )

    def _settle(self, references: int) -> None:
        self.account = replace(self.account, settled=self.account.settled + references)

    def _in_pages(self, references: int) -> int:
        """Convert references to pages: whole units count as one page, each remaining reference as one."""
        pins, rest = divmod(max(references, 0), self.unit)
        return pins + rest

    def _sum(self) -> tuple[int, int]:
        return self._pages.totals(self._span)


def _calibrate(span: PageSpan, pages: StructPages) -> Idle:
    """Use the most common count of folio heads, and that of tail pages, as the idle counts."""
    counts = [count for chunk in pages.counts(span) for count in chunk]
    step = span.folio_pages
    first_head = -span.first % step
    heads = Counter(counts[first_head::step])
    head = _most_common(heads)
    tails = Counter(counts)
    tails.subtract(heads)
    tail = _most_common(tails) if step > 1 else head
    odd: tuple[tuple[int, int], ...] = ()
    # Odd pages are rare, and a loop over some hundred thousand pages is slow.
    if heads[head] + (tails[tail] if step > 1 else 0) < len(counts):
        odd = tuple(
            (span.first + index, count)
            for index, count in enumerate(counts)
            if count != (head if (index - first_head) % step == 0 else tail)
        )
    return Idle(head, tail, sum(counts), odd[:_MOST_PREEXISTING])


def _most_common(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0]
