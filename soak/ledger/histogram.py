# SPDX-License-Identifier: GPL-2.0-only
"""Durations as a ledger counts them: in buckets, with their sum."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Histogram:
    """Durations by the upper bounds of their buckets; the last bucket has no upper bound."""

    bounds_ns: Sequence[int]
    buckets: Sequence[int]
    sum_ns: int

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def plus(self, other: Histogram) -> Histogram:
        """Return both together.

        Raises:
            ValueError: they do not have the same number of buckets.
        """
        if len(self.buckets) != len(other.buckets):
            raise ValueError("histograms of different widths")
        buckets = list(map(add, self.buckets, other.buckets))
        return Histogram(self.bounds_ns, buckets, self.sum_ns + other.sum_ns)

    def since(self, before: Histogram | None) -> Histogram:
        """Return what was counted after `before`."""
        if before is None:
            return self
        pairs = zip(self.buckets, before.buckets, strict=True)
        buckets = [max(now - then, 0) for now, then in pairs]
        return Histogram(self.bounds_ns, buckets, max(self.sum_ns - before.sum_ns, 0))

    def quantile_ns(self, share: float) -> float | None:
        """Return an upper bound of a quantile, one bucket wide; None where nothing was counted.

        It is infinite where the quantile lies above the highest bound.
        """
        if self.count == 0:
            return None
        rank = max(share * self.count, 1)
        bounds = [*self.bounds_ns, float("inf")]
        totals = zip(bounds, accumulate(self.buckets), strict=True)
        return next(bound for bound, total in totals if total >= rank)
