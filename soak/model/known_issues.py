# SPDX-License-Identifier: GPL-2.0-only
"""Known issues: understood violations, each with name, scope, prediction and reference.

A known issue applies only if a probe at the start of the run confirmed it, and explains an observation
only if that equals its prediction. Detectors iterate over the table and name no issue.
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
    """The properties of a violation that a known issue may predict.

    `interfaces` are those of the pins involved. `ended`: the waiting operation returned by itself.
    `pinned_again`: a page may have been pinned, and so mapped, during the wait.
    """

    violation: Violation
    region: RegionKind
    interfaces: tuple[Interface, ...]
    ended: bool = False
    pinned_again: bool = False


@dataclass(frozen=True)
class KnownIssue:
    """An understood violation; `shows` tests an observation beyond the scope of the other fields."""

    name: str
    violations: tuple[Violation, ...]
    region: RegionKind
    interfaces: tuple[Interface, ...]
    operations: tuple[Operation, ...]
    kernels: KernelRange
    prediction: str
    reference: str
    shows: Callable[[Observation], bool] = lambda _: True

    def explains(self, observation: Observation) -> bool:
        """Return whether the issue predicts this observation."""
        return (
            observation.violation in self.violations
            and observation.region is self.region
            and any(interface in self.interfaces for interface in observation.interfaces)
            and self.shows(observation)
        )


TYPE1_DEVICE_DAX_LEAK: Final = KnownIssue(
    "type1-device-dax-leak",
    (Violation.LEAK,),
    RegionKind.DEVICE_DAX,
    (Interface.VFIO_TYPE1,),
    (Operation.UNMAP,),
    # 5.10 is the oldest kernel that showed it.
    KernelRange((5, 10)),
    "every mapped page keeps one reference after it is unmapped",
    "drivers/vfio/vfio_iommu_type1.c: put_pfn() does not unpin reserved pages, and pages of device "
    "DAX stay reserved (seen on 5.10, 6.1, 6.12 and 7.2)",
)

O_DIRECT_LOST_WAKEUP: Final = KnownIssue(
    "o-direct-lost-wakeup",
    (Violation.STALL,),
    RegionKind.FS_DAX,
    (Interface.O_DIRECT,),
    INVALIDATIONS,
    # Only seen on this series: 5.10, 6.12 and 7.2 wake the waiter.
    KernelRange((6, 1), (6, 2)),
    "a task that waits for a page pinned by an O_DIRECT transfer sleeps on in state S after the "
    "transfer ended, until a signal or another pin of that page wakes it",
    "seen on 6.1.192, ext4 and xfs; release of a vmsplice pin wakes the waiter (compare "
    "23c84eb78375, 237388320def, f4f451a16dd1)",
    # With several pins, the lost wakeup need not be that of the last release.
    shows=lambda observation: not observation.ended,
)

REMAPPED_PAGE_STALL: Final = KnownIssue(
    "remapped-page-stall",
    (Violation.STALL, Violation.LATE_WAKEUP),
    RegionKind.FS_DAX,
    SHORT_PINS,
    INVALIDATIONS,
    # Seen on 7.2; not on 6.12, where a page with one reference is idle, mapped or not.
    KernelRange((6, 15)),
    "a task that waits for a pinned page sleeps on after the release of the pin if the page was "
    "mapped again meanwhile, until that mapping goes or a signal arrives",
    "fs/dax.c: wait_page_idle() waits until a page has no references, and a mapping holds one since "
    "fs-dax pages are refcounted normally (6.15); the page is unmapped only once, before the wait "
    "(seen on 7.2.13)",
    # A pin during the wait maps the page again.
    shows=lambda observation: observation.pinned_again,
)

KNOWN_ISSUES: Final = (TYPE1_DEVICE_DAX_LEAK, O_DIRECT_LOST_WAKEUP, REMAPPED_PAGE_STALL)


def leak_issue(region: RegionKind) -> KnownIssue | None:
    """Return the issue that predicts leaks of a kind of region; at most one does."""
    return next(
        (
            issue
            for issue in KNOWN_ISSUES
            if Violation.LEAK in issue.violations and issue.region is region
        ),
        None,
    )
