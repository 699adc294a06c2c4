# SPDX-License-Identifier: GPL-2.0-only
"""Long-term pins: memory that a device may access until it is unpinned, whatever the interface.

Mappers, probes and canaries use this protocol, and name no interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.model.expectations import Expectation
    from soak.model.vocabulary import Interface

# What a device may do with the memory: bits, as vfio has them (VFIO_DMA_MAP_FLAG_READ and _WRITE).
READ: Final = 1
WRITE: Final = 2


class LongTermPin(Protocol):
    """Owns what one process has pinned over one interface; closing it unpins all of it.

    `map` and `unmap` return 0 or an errno and raise nothing: they are the calls under test.
    """

    def map(self, address: int, iova: int, size: int, access: int, /) -> int:
        """Pin `size` bytes at `address`; the device finds them at `iova`."""

    def unmap(self, iova: int, size: int, /) -> int:
        """Unpin the mappings that lie wholly in this range of device addresses."""

    @property
    def unmapped(self) -> int:
        """Bytes that the last `unmap` unpinned."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class LongTermInterface:
    """One interface.

    `open` takes the PCI function, or an empty text where the interface needs none, and raises OSError
    where it cannot be opened. `provoke` pins at an address in a way that fails with the same errno for
    any memory, one that no expectation names: the canary of the refusal detector. `expectations` have
    a row for each kind of region and what it is mapped with.
    """

    interface: Interface
    open: Callable[[str], LongTermPin]
    provoke: Callable[[LongTermPin, int], int]
    expectations: tuple[Expectation, ...]
    needs_function: bool
