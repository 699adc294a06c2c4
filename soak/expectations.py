"""What a kernel owes, as data: for an operation, an interface and a kind of memory.

A row holds for a range of kernels, half open, and says where the rule comes from. A combination that no
row covers makes the verdict unknown; it is never taken for granted.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.vocabulary import Interface, Operation, RegionKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from soak.schema import Cell

Release = tuple[int, int]
FIRST: Final[Release] = (0, 0)
LAST: Final[Release] = (1 << 30, 0)


@dataclass(frozen=True)
class Expectation:
    """One row. `refusal` is the errno that is owed, or None where the operation must be done."""

    operations: tuple[Operation, ...]
    region: RegionKind
    interface: Interface
    backing: str
    refusal: int | None
    reason: str
    kernels: tuple[Release, Release] = (FIRST, LAST)

    def covers(self, cell: Cell, release: Release) -> bool:
        return (
            cell.operation in self.operations
            and cell.region is self.region
            and cell.interface is self.interface
            and self.kernels[0] <= release < self.kernels[1]
        )


_INVALIDATIONS = (
    Operation.TRUNCATE_DOWN,
    Operation.TRUNCATE_ZERO,
    Operation.TRUNCATE_UP,
    Operation.PUNCH_HOLE,
)

EXPECTATIONS: Final = (
    Expectation(
        (Operation.MAP,),
        RegionKind.DEVICE_DAX,
        Interface.VFIO_TYPE1,
        "shared",
        None,
        "device DAX has no blocks to take away: long-term pins are granted (vma_is_fsdax() is about "
        "files only, include/linux/fs.h)",
    ),
    Expectation(
        (Operation.MAP,),
        RegionKind.FS_DAX,
        Interface.VFIO_TYPE1,
        "shared",
        errno.EOPNOTSUPP,
        "check_vma_flags() refuses FOLL_LONGTERM on a DAX file before anything else is looked at "
        "(94db151dc892, mm/gup.c)",
        ((4, 16), LAST),
    ),
    Expectation(
        (Operation.MAP,),
        RegionKind.ANONYMOUS,
        Interface.VFIO_TYPE1,
        "private",
        None,
        "the control: where this fails, vfio is broken, not DAX",
    ),
    Expectation(
        (Operation.UNMAP,),
        RegionKind.DEVICE_DAX,
        Interface.VFIO_TYPE1,
        "shared",
        None,
        "unmapping exactly what was mapped is done (drivers/vfio/vfio_iommu_type1.c)",
    ),
    Expectation(
        (Operation.UNMAP,),
        RegionKind.ANONYMOUS,
        Interface.VFIO_TYPE1,
        "private",
        None,
        "unmapping exactly what was mapped is done (drivers/vfio/vfio_iommu_type1.c)",
    ),
    Expectation(
        (*_INVALIDATIONS, Operation.FAULT),
        RegionKind.FS_DAX,
        Interface.NONE,
        "shared",
        None,
        "with no pin to wait for, changing a file's blocks and touching its pages are done",
    ),
)


def parse_release(text: str) -> Release:
    """Return (major, minor) of a kernel release.

    Raises:
        ValueError: it does not start with two numbers.
    """
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"the kernel release {text!r} does not start with two numbers")
    return int(match[1]), int(match[2])


def expected(
    cell: Cell, release: Release, rows: Iterable[Expectation] = EXPECTATIONS
) -> Expectation | None:
    """Return the row for a cell on a kernel, or None where nobody knows what is owed."""
    return next((row for row in rows if row.covers(cell, release)), None)
