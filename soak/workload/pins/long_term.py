# SPDX-License-Identifier: GPL-2.0-only
"""Long-term pins: a device may access the memory until it is unpinned.

Mappers, probes and canaries use this protocol and name no interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.model.expectations import Expectation
    from soak.model.vocabulary import Interface

# Access bits of a device, with the values of VFIO_DMA_MAP_FLAG_READ and _WRITE.
READ: Final = 1
WRITE: Final = 2


class LongTermPin(Protocol):
    """Owns the pins of one process over one interface; `close` releases all of them.

    `map` and `unmap` return 0 or an errno and raise nothing: they are the calls under test.
    """

    def map(self, address: int, iova: int, size: int, access: int, /) -> int:
        """Pin `size` bytes at `address`; the device finds them at `iova`."""

    def unmap(self, iova: int, size: int, /) -> int:
        """Unpin the mappings that lie entirely in this range of device addresses."""

    @property
    def unmapped(self) -> int:
        """Bytes that the last `unmap` unpinned."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class LongTermInterface:
    """One interface.

    `open` takes the PCI function, or an empty string if the interface needs none, and raises OSError
    on failure. `provoke`, the canary of the refusal detector, tries a pin that fails for any memory,
    with an errno that no expectation names. `expectations` has a row for each operation, kind of region
    and backing.
    """

    interface: Interface
    open: Callable[[str], LongTermPin]
    provoke: Callable[[LongTermPin, int], int]
    expectations: tuple[Expectation, ...]
    needs_function: bool
