# SPDX-License-Identifier: GPL-2.0-only
"""Long-term pins: memory that a device may reach until it is given back, over any interface.

Mappers, probes and canaries know this protocol, and are given the interface that they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from soak.abi.vfio import Container
from soak.model.vocabulary import Interface

if TYPE_CHECKING:
    from collections.abc import Callable

# What a device may do with the memory: bits, as vfio has them (VFIO_DMA_MAP_FLAG_READ and _WRITE).
READ: Final = 1
WRITE: Final = 2


class LongTermPin(Protocol):
    """Owns what one process has pinned over one interface; closing it gives all of it back.

    `map` and `unmap` return 0 or an errno and raise nothing: they are the calls under test.
    """

    def map(self, address: int, iova: int, size: int, access: int, /) -> int:
        """Pin `size` bytes at `address`, and have the device find them at `iova`."""

    def unmap(self, iova: int, size: int, /) -> int:
        """Give back what lies wholly in this range of the device's addresses."""

    @property
    def unmapped(self) -> int:
        """Bytes that the last `unmap` gave back."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class LongTermInterface:
    """One interface: how a pin is opened on a PCI function."""

    interface: Interface
    open: Callable[[str], LongTermPin]


VFIO_TYPE1: Final = LongTermInterface(Interface.VFIO_TYPE1, Container)
