# SPDX-License-Identifier: GPL-2.0-only
"""Long-term pins by a vfio container with the type1 IOMMU driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.vfio import Container
from soak.model.vocabulary import Interface
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


VFIO_TYPE1: Final = LongTermInterface(
    Interface.VFIO_TYPE1, Container, _map_without_access, needs_function=True
)
