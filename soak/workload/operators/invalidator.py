# SPDX-License-Identifier: GPL-2.0-only
"""Invalidators: they take blocks away from fs-dax files and bring them back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from soak.abi.fallocate import open_truncate, punch_hole, truncate, zero_range
from soak.abi.mmap import MADV_DONTNEED
from soak.model.vocabulary import Operation
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.worker import SKIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from soak.regions import FsDaxRegion
    from soak.workload.choices import Choice

_TOUCH: Final = b"\x5a" * (FILE_SIZE // PAGE_SIZE)


class Invalidator:
    """Works on files that nobody else changes; mappers go on trying to pin them meanwhile."""

    def __init__(
        self, region: FsDaxRegion, files: Sequence[int], quarantines: Sequence[memoryview[int]]
    ) -> None:
        """Open the files and bring them to their full size.

        Raises:
            OSError: a file cannot be opened or mapped.
        """
        paths = region.paths()
        self._files = {file: os.open(paths[file], os.O_RDWR | os.O_CLOEXEC) for file in files}
        self._paths = {file: bytes(paths[file]) for file in files}
        self._quarantines = quarantines
        for file, descriptor in self._files.items():
            if not self._is_quarantined(file):
                os.ftruncate(descriptor, FILE_SIZE)
        self._mapping = region.map()
        self._memory = self._mapping.bytes

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]:
        return {
            Operation.TRUNCATE_DOWN: self._truncate,
            Operation.TRUNCATE_ZERO: self._truncate,
            Operation.TRUNCATE_UP: self._truncate,
            Operation.OPEN_TRUNCATE: self._open_truncate,
            Operation.PUNCH_HOLE: self._punch,
            Operation.ZERO_RANGE: self._zero,
            Operation.FAULT: self._fault,
        }

    def rest(self) -> None:
        """Unmap the pages, not the files: since Linux 6.15 a mapping counts as a reference."""
        self._mapping.advise(MADV_DONTNEED)

    def close(self) -> None:
        self._memory.release()
        self._mapping.close()
        for descriptor in self._files.values():
            os.close(descriptor)

    def _truncate(self, choice: Choice) -> int:
        if self._is_quarantined(choice.place):
            return SKIPPED
        return truncate(self._files[choice.place], choice.offset)

    def _punch(self, choice: Choice) -> int:
        if self._is_quarantined(choice.place):
            return SKIPPED
        return punch_hole(self._files[choice.place], choice.offset, choice.length)

    def _zero(self, choice: Choice) -> int:
        if self._is_quarantined(choice.place):
            return SKIPPED
        return zero_range(self._files[choice.place], choice.offset, choice.length)

    def _open_truncate(self, choice: Choice) -> int:
        if self._is_quarantined(choice.place):
            return SKIPPED
        return open_truncate(self._paths[choice.place])

    def _fault(self, choice: Choice) -> int:
        """Store one byte into each page: a hole or an unwritten extent gets its block."""
        if self._is_quarantined(choice.place):
            return SKIPPED
        start = choice.place * FILE_SIZE + choice.offset
        pages = choice.length // PAGE_SIZE
        self._memory[start : start + choice.length : PAGE_SIZE] = _TOUCH[:pages]
        return 0

    def _is_quarantined(self, file: int) -> bool:
        """Say whether a pin was granted on the file: it is never touched again in this run."""
        return any(words[file] for words in self._quarantines)
