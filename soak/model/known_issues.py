# SPDX-License-Identifier: GPL-2.0-only
"""Violations that are understood: a name, a scope, a prediction and where it is written down.

One applies only where a probe at the start of the run confirmed it, and explains an observation only
when that equals its prediction, neither more nor less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.model.vocabulary import (
    INVALIDATIONS,
    SHORT_PINS,
    Interface,
    Operation,
    RegionKind,
    Violation,
)

if TYPE_CHECKING:
    from soak.model.expectations import Release


@dataclass(frozen=True)
class KnownIssue:
    """A violation that is understood."""

    name: str
    violations: tuple[Violation, ...]
    region: RegionKind
    interfaces: tuple[Interface, ...]
    operations: tuple[Operation, ...]
    kernels: tuple[Release, Release]
    prediction: str
    reference: str


TYPE1_DEVICE_DAX_LEAK: Final = KnownIssue(
    "type1-device-dax-leak",
    (Violation.LEAK,),
    RegionKind.DEVICE_DAX,
    (Interface.VFIO_TYPE1,),
    (Operation.UNMAP,),
    # The oldest kernel on which it was seen.
    ((5, 10), (1 << 30, 0)),
    "every page that was mapped keeps one page reference after it was unmapped",
    "drivers/vfio/vfio_iommu_type1.c: put_pfn() does not unpin reserved pages, and pages of device "
    "DAX stay reserved (seen on 5.10, 6.1, 6.12 and 7.2)",
)

O_DIRECT_LOST_WAKEUP: Final = KnownIssue(
    "o-direct-lost-wakeup",
    (Violation.STALL,),
    RegionKind.FS_DAX,
    (Interface.O_DIRECT,),
    INVALIDATIONS,
    # The only series on which it was seen: 5.10, 6.12 and 7.2 wake what waits.
    ((6, 1), (6, 2)),
    "what waits for a page that an O_DIRECT transfer has pinned sleeps on in state S after the "
    "transfer has ended, until a signal or another pin of that page ends it",
    "seen on 6.1.192, ext4 and xfs; pins held by vmsplice wake what waits (compare 23c84eb78375, "
    "237388320def, f4f451a16dd1)",
)

REMAPPED_PAGE_STALL: Final = KnownIssue(
    "remapped-page-stall",
    (Violation.STALL, Violation.LATE_WAKEUP),
    RegionKind.FS_DAX,
    SHORT_PINS,
    INVALIDATIONS,
    # Seen on 7.2; 6.12, where a page is idle with one reference, mapped or not, does not have it.
    ((6, 15), (1 << 30, 0)),
    "what waits for a pinned page sleeps on after the pin was given back where the page was mapped "
    "again meanwhile, until that mapping goes or a signal comes",
    "fs/dax.c: wait_page_idle() waits until a page has no reference at all, and a mapping is one "
    "since fs-dax pages are counted like others (6.15); it is unmapped once, before the wait (seen "
    "on 7.2.13)",
)

KNOWN_ISSUES: Final = (TYPE1_DEVICE_DAX_LEAK, O_DIRECT_LOST_WAKEUP, REMAPPED_PAGE_STALL)
