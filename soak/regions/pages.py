# SPDX-License-Identifier: GPL-2.0-only
"""Spans of physical pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAGE_SIZE: Final = 4096  # x86-64 has no other base page


@dataclass(frozen=True)
class PageSpan:
    """`count` pages from page frame `first`; folios are aligned to `folio_pages` pages."""

    first: int
    count: int
    folio_pages: int

    def meets(self, other: PageSpan) -> bool:
        """Return whether the two spans overlap."""
        return self.first < other.first + other.count and other.first < self.first + self.count
