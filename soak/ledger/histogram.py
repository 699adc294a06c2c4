# SPDX-License-Identifier: GPL-2.0-only
"""Histograms of durations, as the ledger stores them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Histogram:
    """Counts of durations by bucket, and their sum; the last bucket has no upper bound."""

    bounds_ns: Sequence[int]
    buckets: Sequence[int]
    sum_ns: int

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def plus(self, other: Histogram) -> Histogram:
        """Return the sum of both histograms.

        Raises:
            ValueError: their numbers of buckets differ.
        """
        if len(self.buckets) != len(other.buckets):
            raise ValueError("histograms of different widths")
        buckets = list(map(add, self.buckets, other.buckets))
        return Histogram(self.bounds_ns, buckets, self.sum_ns + other.sum_ns)

    def since(self, before: Histogram | None) -> Histogram:
        """Return the durations counted after `before`."""
        if before is None:
            return self
        pairs = zip(self.buckets, before.buckets, strict=True)
        buckets = [max(now - then, 0) for now, then in pairs]
        return Histogram(self.bounds_ns, buckets, max(self.sum_ns - before.sum_ns, 0))

    def quantile_ns(self, share: float) -> float | None:
        """Return the upper bound of the quantile's bucket; None for an empty histogram.

        It is infinite if the quantile lies above the highest bound.
        """
        if self.count == 0:
            return None
        rank = max(share * self.count, 1)
        bounds = [*self.bounds_ns, float("inf")]
        totals = zip(bounds, accumulate(self.buckets), strict=True)
        return next(bound for bound, total in totals if total >= rank)
