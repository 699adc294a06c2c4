# SPDX-License-Identifier: GPL-2.0-only
"""Long-term pins by a vfio container with the type1 IOMMU driver."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from soak.abi.vfio import Container
from soak.model.expectations import Expectation
from soak.model.kernels import KernelRange
from soak.model.vocabulary import Backing, Interface, Operation, RegionKind
from soak.regions.pages import PAGE_SIZE
from soak.workload.pins.long_term import LongTermInterface

if TYPE_CHECKING:
    from soak.workload.pins.long_term import LongTermPin

_IOVA: Final = 0x1_4000_0000
_NO_ACCESS: Final = 0


def _map_without_access(pin: LongTermPin, address: int) -> int:
    """Map a page that the device may neither read nor write: EINVAL.

    vfio_dma_do_map() checks the flags before it looks at the memory.
    """
    return pin.map(address, _IOVA, PAGE_SIZE, _NO_ACCESS)


_EXPECTATIONS: Final = (
    Expectation(
        (Operation.MAP,),
        RegionKind.DEVICE_DAX,
        Interface.VFIO_TYPE1,
        Backing.SHARED,
        None,
        "device DAX has no blocks to free: long-term pins are granted (vma_is_fsdax() covers files "
        "only, include/linux/fs.h)",
    ),
    Expectation(
        (Operation.MAP,),
        RegionKind.FS_DAX,
        Interface.VFIO_TYPE1,
        Backing.SHARED,
        errno.EOPNOTSUPP,
        "check_vma_flags() refuses FOLL_LONGTERM on a DAX file before any other check "
        "(94db151dc892, mm/gup.c)",
        KernelRange((4, 16)),
    ),
    Expectation(
        (Operation.MAP,),
        RegionKind.ANONYMOUS,
        Interface.VFIO_TYPE1,
        Backing.PRIVATE,
        None,
        "the control: where this fails, vfio is broken, not DAX",
    ),
    Expectation(
        (Operation.UNMAP,),
        RegionKind.DEVICE_DAX,
        Interface.VFIO_TYPE1,
        Backing.SHARED,
        None,
        "unmapping exactly the mapped range succeeds (drivers/vfio/vfio_iommu_type1.c)",
    ),
    Expectation(
        (Operation.UNMAP,),
        RegionKind.ANONYMOUS,
        Interface.VFIO_TYPE1,
        Backing.PRIVATE,
        None,
        "unmapping exactly the mapped range succeeds (drivers/vfio/vfio_iommu_type1.c)",
    ),
)

VFIO_TYPE1: Final = LongTermInterface(
    Interface.VFIO_TYPE1, Container, _map_without_access, _EXPECTATIONS, needs_function=True
)
