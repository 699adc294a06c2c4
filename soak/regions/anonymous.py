# SPDX-License-Identifier: GPL-2.0-only
"""Anonymous memory: the control that separates broken vfio from broken DAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from soak.abi.mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Mapping
from soak.model.vocabulary import RegionKind
from soak.regions.pages import PAGE_SIZE, PageSpan

if TYPE_CHECKING:
    from soak.config.sections import RegionSection

_DEFAULT_SIZE = 16 << 20


@dataclass(frozen=True)
class AnonymousRegion:
    """Private memory of each worker. It has no device pages, so the leak detector skips it."""

    name: str
    size: int
    kind: RegionKind = RegionKind.ANONYMOUS
    pages: PageSpan | None = None

    @classmethod
    def find(cls, section: RegionSection) -> AnonymousRegion:
        size = section.size or _DEFAULT_SIZE
        return cls(section.name, -(-size // PAGE_SIZE) * PAGE_SIZE)

    def map(self) -> Mapping:
        """Map the region without transparent huge pages, so that each page counts as one."""
        mapping = Mapping(self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        mapping.advise(MADV_NOHUGEPAGE)
        return mapping
