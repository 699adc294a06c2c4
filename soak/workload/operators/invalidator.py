# SPDX-License-Identifier: GPL-2.0-only
"""Invalidators: they free the blocks of fs-dax files and allocate them again."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from soak.abi.mmap import MADV_DONTNEED
from soak.regions.fs_dax import FILE_SIZE
from soak.workload.loop import SKIPPED
from soak.workload.operations.base import FileUnderTest
from soak.workload.operations.table import FILE_OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from soak.model.vocabulary import Operation
    from soak.regions import FsDaxRegion
    from soak.workload.choices import Choice


class Invalidator:
    """Changes files that no other worker resizes, while mappers try to pin them."""

    def __init__(
        self, region: FsDaxRegion, files: Sequence[int], quarantines: Sequence[memoryview[int]]
    ) -> None:
        """Open the files and set them to full size.

        Raises:
            OSError: a file cannot be opened or mapped.
        """
        paths = region.paths()
        descriptors = {file: os.open(paths[file], os.O_RDWR | os.O_CLOEXEC) for file in files}
        self._quarantines = quarantines
        for file, descriptor in descriptors.items():
            if not self._is_quarantined(file):
                os.ftruncate(descriptor, FILE_SIZE)
        self._mapping = region.map()
        self._files = {
            file: FileUnderTest(
                bytes(paths[file]),
                descriptor,
                self._mapping.bytes[file * FILE_SIZE : (file + 1) * FILE_SIZE],
            )
            for file, descriptor in descriptors.items()
        }

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]:
        return {
            entry.operation: partial(self._do, entry.call)
            for entry in FILE_OPERATIONS
            if entry.draw is not None
        }

    def rest(self) -> None:
        """Unmap the pages: since Linux 6.15 a mapped DAX page counts a reference."""
        self._mapping.advise(MADV_DONTNEED)

    def close(self) -> None:
        for file in self._files.values():
            file.memory.release()
            os.close(file.descriptor)
        self._mapping.close()

    def _do(self, call: Callable[[FileUnderTest, int, int], int], choice: Choice) -> int:
        if self._is_quarantined(choice.place):
            return SKIPPED
        return call(self._files[choice.place], choice.offset, choice.length)

    def _is_quarantined(self, file: int) -> bool:
        """Return whether this run must not touch the file again."""
        return any(words[file] for words in self._quarantines)
