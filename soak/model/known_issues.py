# SPDX-License-Identifier: GPL-2.0-only
"""Violations that are understood: a name, a scope, a prediction and where it is written down.

One applies only where a probe at the start of the run confirmed it, and explains an observation only
when that equals its prediction, neither more nor less. Detectors ask each of them, and name none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.model.kernels import KernelRange
from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Interface, Operation, RegionKind, Violation

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Observation:
    """What a violation has shown, as far as an issue may predict it.

    `interfaces` are those of the pins that it came with, `ended` says whether what waited has ended by
    itself, `pinned_again` whether a page may have been pinned, and so mapped, while something waited.
    """

    violation: Violation
    region: RegionKind
    interfaces: tuple[Interface, ...]
    ended: bool = False
    pinned_again: bool = False


@dataclass(frozen=True)
class KnownIssue:
    """A violation that is understood; `shows` says what it looks like, beside its scope."""

    name: str
    violations: tuple[Violation, ...]
    region: RegionKind
    interfaces: tuple[Interface, ...]
    operations: tuple[Operation, ...]
    kernels: KernelRange
    prediction: str
    reference: str
    shows: Callable[[Observation], bool] = lambda _: True

    def explains(self, seen: Observation) -> bool:
        """Say whether this is what it predicts."""
        return (
            seen.violation in self.violations
            and seen.region is self.region
            and any(interface in self.interfaces for interface in seen.interfaces)
            and self.shows(seen)
        )


TYPE1_DEVICE_DAX_LEAK: Final = KnownIssue(
    "type1-device-dax-leak",
    (Violation.LEAK,),
    RegionKind.DEVICE_DAX,
    (Interface.VFIO_TYPE1,),
    (Operation.UNMAP,),
    # The oldest kernel on which it was seen.
    KernelRange((5, 10)),
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
    KernelRange((6, 1), (6, 2)),
    "what waits for a page that an O_DIRECT transfer has pinned sleeps on in state S after the "
    "transfer has ended, until a signal or another pin of that page ends it",
    "seen on 6.1.192, ext4 and xfs; pins held by vmsplice wake what waits (compare 23c84eb78375, "
    "237388320def, f4f451a16dd1)",
    # In a crowd, what lost the wake-up need not be what was given back last.
    shows=lambda seen: not seen.ended,
)

REMAPPED_PAGE_STALL: Final = KnownIssue(
    "remapped-page-stall",
    (Violation.STALL, Violation.LATE_WAKEUP),
    RegionKind.FS_DAX,
    SHORT_PINS,
    INVALIDATIONS,
    # Seen on 7.2; 6.12, where a page is idle with one reference, mapped or not, does not have it.
    KernelRange((6, 15)),
    "what waits for a pinned page sleeps on after the pin was given back where the page was mapped "
    "again meanwhile, until that mapping goes or a signal comes",
    "fs/dax.c: wait_page_idle() waits until a page has no reference at all, and a mapping is one "
    "since fs-dax pages are counted like others (6.15); it is unmapped once, before the wait (seen "
    "on 7.2.13)",
    # A pin that is taken while the truncate waits maps the page again.
    shows=lambda seen: seen.pinned_again,
)

KNOWN_ISSUES: Final = (TYPE1_DEVICE_DAX_LEAK, O_DIRECT_LOST_WAKEUP, REMAPPED_PAGE_STALL)


def leak_issue(region: RegionKind) -> KnownIssue | None:
    """Return the issue that predicts leaks of a kind of memory: there is one at most."""
    return next(
        (
            issue
            for issue in KNOWN_ISSUES
            if Violation.LEAK in issue.violations and issue.region is region
        ),
        None,
    )
