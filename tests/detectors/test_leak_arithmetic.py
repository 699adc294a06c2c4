# SPDX-License-Identifier: GPL-2.0-only
"""Leaks: what is counted above idle is compared with what is held and predicted, page by page.

Reading `struct page` itself is tested on real kernels; here the counts are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.detectors.leaks.measure import Held, Idle, RegionLeaks
from soak.regions import AnonymousRegion
from soak.regions.pages import PageSpan
from tests.support.soak import deterministic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.detectors.leaks.measure import Measurement
    from soak.detectors.leaks.struct_pages import StructPages

PAGES = 64
SPAN = PageSpan(0x140000, PAGES, 1)


class Counts:
    """The reference counts of a span's pages; a page that is pinned adds `unit`."""

    def __init__(self, counts: list[int], pieces: int = 7) -> None:
        self.counts_now = counts
        self._pieces = pieces

    def totals(self, span: PageSpan) -> tuple[int, int]:
        counts = [count for piece in self.counts(span) for count in piece]
        return sum(counts), max(counts)

    def counts(self, span: PageSpan) -> Iterator[list[int]]:
        assert span.count == len(self.counts_now)
        for start in range(0, len(self.counts_now), self._pieces):
            yield self.counts_now[start : start + self._pieces]

    def add(self, references: int) -> None:
        """Spread references over the pages."""
        share, rest = divmod(references, len(self.counts_now))
        for page in range(len(self.counts_now)):
            self.counts_now[page] += share + (page < rest)


def watch(counts: Counts, span: PageSpan = SPAN) -> RegionLeaks:
    region = AnonymousRegion("dax", span.count * 4096)
    return RegionLeaks(region, span, cast("StructPages", counts))


def worth(leaks: RegionLeaks, unit: int) -> None:
    """Have a probe find out how much one pinned page adds."""
    leaks.learn_unit(unit)


def idle(leaks: RegionLeaks) -> Idle:
    assert leaks.idle is not None
    return leaks.idle


def predicted(counts: Counts, unit: int = 1) -> RegionLeaks:
    """Return a watch for which a probe confirmed that an unmapped page keeps its reference."""
    leaks = watch(counts)
    worth(leaks, unit)
    leaks.predict(unit)
    counts.add(unit)  # what the probe itself has left
    return leaks


def shown(measured: Measurement) -> tuple[int, int, int, int]:
    return measured.explained, measured.unexplained, measured.predicted, measured.reconciled


@pytest.fixture(params=[1, 1024])
def unit(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_unused_region_has_no_leak() -> None:
    leaks = watch(Counts([1] * PAGES))
    measured = leaks.measure(Held(0, 0))
    assert shown(measured) == (0, 0, 0, 0)
    assert measured.pages == PAGES
    assert measured.highest == 1
    assert idle(leaks).preexisting == ()


def test_held_pages_are_no_leak(unit: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    worth(leaks, unit)
    counts.add(10 * unit)
    assert shown(leaks.measure(Held(live=10, given_back=50))) == (0, 0, 0, 0)


@pytest.mark.parametrize("pages", [1, 2, 63, 64, 1000])
def test_one_extra_page_is_one_leak(unit: int, pages: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    worth(leaks, unit)
    counts.add((10 + pages) * unit)
    assert shown(leaks.measure(Held(live=10, given_back=0))) == (0, pages, 0, 0)


def test_missing_page_is_a_difference(unit: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    worth(leaks, unit)
    counts.add(9 * unit)
    assert shown(leaks.measure(Held(live=10, given_back=0))) == (0, 1, 0, 0)


def test_known_issue_explains_its_exact_prediction(unit: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = predicted(counts, unit)
    assert shown(leaks.measure(Held(0, 0))) == (1, 0, 1, 0)
    counts.add(500 * unit)
    assert shown(leaks.measure(Held(live=100, given_back=400))) == (401, 0, 401, 0)


def test_one_more_than_predicted_is_unexplained(unit: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = predicted(counts, unit)
    counts.add(401 * unit)
    assert shown(leaks.measure(Held(live=0, given_back=400))) == (401, 1, 401, 0)


def test_one_fewer_than_predicted_is_unexplained(unit: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = predicted(counts, unit)
    counts.add(399 * unit)
    assert shown(leaks.measure(Held(live=0, given_back=400))) == (400, 1, 401, 0)


def test_single_reference_is_detected_among_biased_pins() -> None:
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    worth(leaks, 1024)
    counts.add(3 * 1024 + 1)
    # Three pins, and one reference that came by itself: a helper's, say.
    assert shown(leaks.measure(Held(live=0, given_back=0))) == (0, 4, 0, 0)
    assert shown(leaks.measure(Held(live=3, given_back=0))) == (0, 1, 0, 0)


def test_without_a_confirmed_issue_nothing_is_explained() -> None:
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    counts.add(7)
    assert shown(leaks.measure(Held(live=0, given_back=7))) == (0, 7, 0, 0)
    assert shown(leaks.measure(Held(live=0, given_back=7, uncertain=7))) == (0, 7, 0, 0)


def test_pages_of_a_killed_worker_are_reconciled(unit: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = predicted(counts, unit)
    counts.add(30 * unit)
    assert shown(leaks.measure(Held(live=0, given_back=10, uncertain=20))) == (31, 0, 31, 20)
    # They are settled: from then on they are part of what is predicted.
    assert shown(leaks.measure(Held(live=0, given_back=10))) == (31, 0, 31, 0)
    counts.add(unit)
    assert shown(leaks.measure(Held(live=0, given_back=10))) == (31, 1, 31, 0)


@pytest.mark.parametrize("uncertain", [0, 1, 4, 5, 6])
def test_no_more_is_reconciled_than_was_uncertain(unit: int, uncertain: int) -> None:
    counts = Counts([1] * PAGES)
    leaks = predicted(counts, unit)
    counts.add(5 * unit)
    measured = leaks.measure(Held(live=0, given_back=0, uncertain=uncertain))
    if uncertain >= 5:
        assert shown(measured) == (6, 0, 6, 5)
    else:
        assert shown(measured) == (1, 5, 1, 0)


def test_nothing_is_reconciled_where_pages_are_missing() -> None:
    counts = Counts([1] * PAGES)
    leaks = predicted(counts)
    assert shown(leaks.measure(Held(live=0, given_back=3, uncertain=9))) == (1, 3, 4, 0)


def test_preexisting_pages_are_reported_not_idle() -> None:
    numbers = [1] * PAGES
    numbers[3], numbers[9] = 5, 2
    counts = Counts(numbers)
    leaks = watch(counts)
    assert idle(leaks).preexisting == ((SPAN.first + 3, 5), (SPAN.first + 9, 2))
    assert (idle(leaks).head, idle(leaks).tail) == (1, 1)
    measured = leaks.measure(Held(0, 0))
    assert shown(measured) == (0, 0, 0, 0)
    assert measured.highest == 5
    # Whoever used them before and goes away changes the counts, and that is told.
    counts.counts_now[3] = 1
    assert shown(leaks.measure(Held(0, 0))) == (0, 4, 0, 0)


def test_folio_heads_and_tails_have_separate_idle_counts() -> None:
    span = PageSpan(0x140000 + 6, 40, 8)
    numbers = [2 if (span.first + index) % 8 == 0 else 0 for index in range(span.count)]
    leaks = watch(Counts(numbers), span)
    assert (idle(leaks).head, idle(leaks).tail, idle(leaks).preexisting) == (2, 0, ())
    numbers[2] += 512
    numbers[3] += 1
    odd = watch(Counts(numbers), span)
    assert idle(odd).preexisting == ((span.first + 2, 514), (span.first + 3, 1))


def test_the_highest_count_is_that_of_one_page() -> None:
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    counts.counts_now[17] = 1 << 30
    assert leaks.measure(Held(0, 0)).highest == 1 << 30


amounts = st.integers(0, 5000)


@pytest.mark.parametrize(("pages", "stranded"), [(16, 16), (16, 0), (17, 16)])
def test_stranded_pages_are_no_leak(pages: int, stranded: int) -> None:
    """A device has them; each carries the 1024 of a pin, though one over vfio was never measured."""
    counts = Counts([1] * PAGES)
    leaks = watch(counts)
    counts.add(pages * 1024)
    measured = leaks.measure(Held(live=0, given_back=0, stranded=stranded))
    assert measured.unexplained == (0 if pages <= stranded else pages * 1024)


@given(
    st.sampled_from([1, 2, 1024]),
    st.booleans(),
    st.tuples(amounts, amounts, st.integers(0, 300), st.integers(0, 300)),
    st.integers(1, 20),
)
@deterministic
def test_explained_and_unexplained_add_up(
    unit: int,
    known: bool,  # noqa: FBT001 - drawn
    pages: tuple[int, int, int, int],
    pieces: int,
) -> None:
    live, given_back, surplus, uncertain = pages
    counts = Counts([1] * PAGES, pieces)
    leaks = predicted(counts, unit) if known else watch(counts)
    worth(leaks, unit)
    left = (given_back if known else 0) + surplus
    counts.add((live + left) * unit)
    total = left + (1 if known else 0)
    measured = leaks.measure(Held(live, given_back, uncertain))
    assert measured.explained + measured.unexplained == total
    assert measured.explained == measured.predicted
    settled = known and surplus <= uncertain
    assert measured.reconciled == (surplus if settled else 0)
    assert measured.unexplained == (0 if settled else surplus)
    assert measured.predicted == ((1 + given_back + measured.reconciled) if known else 0)


@given(st.sampled_from([1, 1024]), st.integers(1, 300), st.integers(0, 300))
@deterministic
def test_missing_references_are_never_explained(unit: int, missing: int, given_back: int) -> None:
    counts = Counts([1000 * unit] * PAGES)
    leaks = predicted(counts, unit)
    counts.add((given_back - missing) * unit)
    measured = leaks.measure(Held(0, given_back, 1000))
    assert measured.unexplained == missing
    assert measured.explained == max(1 + given_back - missing, 0)
    assert measured.reconciled == 0
