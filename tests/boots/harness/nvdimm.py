# SPDX-License-Identifier: GPL-2.0-only
"""The guest's struct pages, read from outside, in the file that stands for its NVDIMM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# struct nd_pfn_sb, drivers/nvdimm/pfn.h: where a namespace keeps its own struct pages.
_SUPERBLOCK_OFFSET: Final = 4096
_SIGNATURE: Final = b"NVDIMM_DAX_INFO\0"
_DATA_OFFSET_FIELD: Final = 56
# struct page on x86-64: a constant of the images under test, found with pahole, not with this project.
_STRUCT_PAGE_WORDS: Final = 64 // 4
_REFCOUNT_WORD: Final = 52 // 4


class NvdimmReader:
    """Reads the guest's struct pages of the device-dax in the file that stands for the NVDIMM.

    It shares nothing with the soak's own way: no BPF, no type information, not even the guest.
    """

    def __init__(self, image: Path) -> None:
        # The open file outlives its name.
        self._file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)

    def extra_references(self) -> int:
        """Sum the references to all pages beside the one that each has from the start.

        Of a compound page only the head has it (memmap_init_compound(), mm/mm_init.c), and pins of any
        of its pages count there.
        """
        head = os.pread(self._file, 4096, _SUPERBLOCK_OFFSET)
        assert head.startswith(_SIGNATURE), "there is no device-dax"
        data = int.from_bytes(head[_DATA_OFFSET_FIELD : _DATA_OFFSET_FIELD + 8], "little")
        # The array lies between the superblock and the data, on a 2 MiB boundary of its own.
        start = 2 << 20
        words = memoryview(os.pread(self._file, data - start, start)).cast("I")
        return sum(count - 1 for count in words[_REFCOUNT_WORD::_STRUCT_PAGE_WORDS] if count)

    def close(self) -> None:
        os.close(self._file)
