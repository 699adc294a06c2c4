# SPDX-License-Identifier: GPL-2.0-only
"""Leaks: does the kernel give back every page reference?

While the workers rest, the reference counts of all pages of a region are summed. What is above the idle
sum must be what the soak itself holds, and nothing more. The idle counts are those of the fresh region,
and the worth of one pin is measured, not assumed: it is 1 or 1024, as the page is part of a large folio
or not (include/linux/mm_types.h, GUP_PIN_COUNTING_BIAS).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from soak.detectors.leaks.struct_pages import StructPages
    from soak.regions import Region
    from soak.regions.pages import PageSpan

# What a pin adds to the count of a page of its own (include/linux/mm.h, GUP_PIN_COUNTING_BIAS).
_GUP_PIN_COUNTING_BIAS: Final = 1024
REFCOUNT_LIMIT: Final = 1 << 31  # the kernel's count is a signed int, and gup refuses below zero

_MOST_PREEXISTING: Final = 20


@dataclass(frozen=True)
class Idle:
    """The counts of a region that nobody uses."""

    head: int
    tail: int
    total: int
    # Pages that carried another count when the region was fresh: frame number and count.
    preexisting: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Account:
    """What a region is measured against, from the moment when its pages were last new.

    `idle` is the sum of counts then, `settled` the references since that are there for a known
    reason, `unit` what one pinned page adds to the sum. `given_back` pages had been given back
    before; `explained` and `unexplained` pages had leaked before, and are gone.
    """

    idle: int
    settled: int = 0
    unit: int = 1
    given_back: int = 0
    explained: int = 0
    unexplained: int = 0


@dataclass(frozen=True)
class Held:
    """What the soak did to a region's pages, in pages: from the workers' own books.

    `uncertain` counts pages of maps whose worker was killed before it could note how they ended,
    `stranded` those that may be held by calls of workers that do not come back.
    """

    live: int
    given_back: int
    uncertain: int = 0
    stranded: int = 0


@dataclass(frozen=True)
class Measurement:
    """References that a region's pages carry beyond idle and beyond what is held, in pinned pages.

    `reconciled` pages were left by workers that were killed in the middle of a map. `difference` is
    what `unexplained` is made of: references, not pages, and negative where some are missing.
    """

    pages: int
    explained: int
    unexplained: int
    predicted: int
    reconciled: int
    highest: int
    difference: int


class RegionLeaks:
    """Watches one region whose physical pages are known."""

    def __init__(
        self, region: Region, span: PageSpan, pages: StructPages, account: Account | None = None
    ) -> None:
        """Calibrate on the region as it is now: nobody may be using it.

        With an `account` go on with what was measured before, on pages that were not reset since.
        """
        self.region = region
        self._span = span
        self._pages = pages
        self.idle: Idle | None = None
        # Whether a known issue predicts that unmapping gives nothing back.
        self.predicted = False
        self.account = account if account is not None else Account(self._calibrated())

    def renew(self, given_back: int, explained: int, unexplained: int) -> None:
        """Calibrate again: the pages are new. `given_back` pages were, and so many leaked, before."""
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
        """Return the sum of all reference counts."""
        return self._sum()[0]

    def highest(self) -> int:
        """Return the highest reference count of a page."""
        return self._sum()[1]

    def learn_unit(self, pinned: int) -> None:
        """Take the references that one pinned page was seen to add for what each pin adds."""
        self.account = replace(self.account, unit=max(pinned, 1))

    def predict(self, left: int) -> None:
        """Take it from a confirmed known issue that whatever is unmapped stays pinned.

        The probe that confirmed it has `left` so many references.
        """
        self.predicted = True
        self._settle(left)

    def measure(self, held: Held) -> Measurement:
        """Read all counts and compare: nobody may take or give a pin meanwhile."""
        total, highest = self._sum()
        account = self.account
        excess = total - account.idle - held.live * self.unit
        predicted = account.settled
        if self.predicted:
            predicted += (held.given_back - account.given_back) * self.unit
        difference = excess - predicted
        reconciled = 0
        if self.predicted and 0 < difference <= held.uncertain * self.unit:
            # Only the kernel knows how much of the killed worker's last map was done.
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
        """Count whole pins as one each; what is left over came one by one."""
        pins, rest = divmod(max(references, 0), self.unit)
        return pins + rest

    def _sum(self) -> tuple[int, int]:
        return self._pages.totals(self._span)


def _calibrate(span: PageSpan, pages: StructPages) -> Idle:
    """Take the commonest count of folio heads, and of other pages, for the idle one."""
    counts = [count for chunk in pages.counts(span) for count in chunk]
    step = span.folio_pages
    first_head = -span.first % step
    heads = Counter(counts[first_head::step])
    head = _commonest(heads)
    tails = Counter(counts)
    tails.subtract(heads)
    tail = _commonest(tails) if step > 1 else head
    odd: tuple[tuple[int, int], ...] = ()
    # Hardly ever is there any, and to look at each of some hundred thousand pages takes its time.
    if heads[head] + (tails[tail] if step > 1 else 0) < len(counts):
        odd = tuple(
            (span.first + index, count)
            for index, count in enumerate(counts)
            if count != (head if (index - first_head) % step == 0 else tail)
        )
    return Idle(head, tail, sum(counts), odd[:_MOST_PREEXISTING])


def _commonest(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0]
