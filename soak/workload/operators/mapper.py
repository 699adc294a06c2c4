# SPDX-License-Identifier: GPL-2.0-only
"""Mappers: they take and release long-term pins.

Each mapper has its own PCI function: pins in a shared container would outlive the worker that made them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.mmap import MADV_DONTNEED
from soak.model.vocabulary import Operation, RegionKind
from soak.regions.fs_dax import FILE_SIZE, first_files
from soak.regions.pages import PAGE_SIZE
from soak.workload.choices import SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from soak.ledger.writer import BlockWriter
    from soak.regions import Region
    from soak.workload.choices import Choice
    from soak.workload.pins.long_term import LongTermPin

# The first memory above 4 GiB in the original report's guest: clear of the MSI window.
_IOVA_BASE: Final = 0x1_4000_0000
_GIB: Final = 1 << 30


class Mapper:
    """Maps and unmaps ranges of every region; each slot holds one mapping."""

    def __init__(self, block: BlockWriter, regions: Sequence[Region], pin: LongTermPin) -> None:
        """Take ownership of the pin, and map the regions into this process.

        Raises:
            OSError: a region cannot be mapped.
        """
        self._pin = pin
        self._mappings = [region.map() for region in regions]
        self._addresses = [mapping.address for mapping in self._mappings]
        self._kinds = [region.kind for region in regions]
        self._has_files = [kind is RegionKind.FS_DAX for kind in self._kinds]
        self._first_file = first_files(regions)
        # No mapping exceeds the stride, so slots never overlap.
        stride = -(-max(region.size for region in regions) // _GIB) * _GIB
        self._iovas = [_IOVA_BASE + slot * stride for slot in range(SLOTS)]
        self._mapped = block.view("pages_mapped")
        self._unmapped = block.view("pages_unmapped")
        self._quarantine = block.view("quarantine")

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]:
        return {Operation.MAP: self._map, Operation.UNMAP: self._unmap}

    def where(self, region: int, slot: int, offset: int) -> tuple[int, int]:
        """Return the address and the iova that a map of a region's `offset` into a slot uses."""
        return self._addresses[region] + offset, self._iovas[slot] + offset

    def rest(self) -> None:
        """Keep DMA mappings, which the ledger counts, but unmap DAX pages from this process.

        Since Linux 6.15 a mapped DAX page counts a reference.
        """
        for mapping, kind in zip(self._mappings, self._kinds, strict=True):
            if kind is not RegionKind.ANONYMOUS:
                mapping.advise(MADV_DONTNEED)

    def close(self) -> None:
        """Release all pins, count their pages as unmapped, and unmap the regions."""
        self._pin.close()
        for position, mapped in enumerate(self._mapped):
            self._unmapped[position] = mapped
        for mapping in self._mappings:
            mapping.close()

    def _map(self, choice: Choice) -> int:
        _, _, _, region, slot, offset, length, access, _, _ = choice
        iova = self._iovas[slot] + offset
        result = self._pin.map(self._addresses[region] + offset, iova, length, access)
        if result == 0:
            self._mapped[region] += length // PAGE_SIZE
            if self._has_files[region]:
                self._undo_file_pin(choice, iova)
        return result

    def _unmap(self, choice: Choice) -> int:
        _, _, _, region, slot, offset, length, _, _, _ = choice
        result = self._pin.unmap(self._iovas[slot] + offset, length)
        if result == 0:
            self._unmapped[region] += self._pin.unmapped // PAGE_SIZE
        return result

    def _undo_file_pin(self, choice: Choice, iova: int) -> None:
        """Undo a pin that the kernel should have refused, and quarantine its files.

        If the pages keep their references, a truncate of the file never returns.
        """
        first, last = choice.offset // FILE_SIZE, (choice.offset + choice.length - 1) // FILE_SIZE
        base = self._first_file[choice.region]
        for file in range(base + first, base + last + 1):
            self._quarantine[file] = 1
        if self._pin.unmap(iova, choice.length) == 0:
            self._unmapped[choice.region] += self._pin.unmapped // PAGE_SIZE
