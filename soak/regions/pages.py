# SPDX-License-Identifier: GPL-2.0-only
"""Spans of physical pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAGE_SIZE: Final = 4096  # x86-64 has no other base page


@dataclass(frozen=True)
class PageSpan:
    """Pages from frame number `first` on, whose folios start at multiples of `folio_pages`."""

    first: int
    count: int
    folio_pages: int

    def meets(self, other: PageSpan) -> bool:
        """Say whether the two have a page in common."""
        return self.first < other.first + other.count and other.first < self.first + self.count
