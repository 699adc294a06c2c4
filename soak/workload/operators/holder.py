# SPDX-License-Identifier: GPL-2.0-only
"""Holders in a crowd: short pins of files that other workers truncate and map."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from soak.abi.mmap import MADV_DONTNEED
from soak.model.vocabulary import Operation
from soak.regions.fs_dax import FILE_SIZE
from soak.workload.loop import SKIPPED
from soak.workload.pins.short import HoldBook, Holding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from soak.ledger.writer import BlockWriter
    from soak.regions import FsDaxRegion
    from soak.workload.choices import Choice


class Holder:
    """Pins ranges of files that other workers resize; skips ranges beyond the end of a file."""

    def __init__(
        self,
        block: BlockWriter,
        region: FsDaxRegion,
        *,
        slow: Sequence[Path],
        fast: Sequence[Path],
        quarantines: Sequence[memoryview[int]],
    ) -> None:
        """Map the files and open the devices.

        Raises:
            OSError: a file cannot be mapped, or a device cannot be opened.
        """
        self._mapping = region.map()
        self._holding = Holding(HoldBook(block, certain=False), slow, fast)
        self._quarantines = quarantines

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]:
        return {Operation.HOLD: self._hold}

    def rest(self) -> None:
        """Unmap the pages: since Linux 6.15 a mapped DAX page counts a reference."""
        self._mapping.advise(MADV_DONTNEED)

    def close(self) -> None:
        self._holding.close()
        self._mapping.close()

    def _hold(self, choice: Choice) -> int:
        if any(words[choice.place] for words in self._quarantines):
            return SKIPPED
        address = self._mapping.address + choice.place * FILE_SIZE + choice.offset
        result = self._holding.hold(choice, address, _no_op)
        # The range lies beyond the current end of the file, which another worker moved.
        return SKIPPED if result == errno.EFAULT else result


def _no_op() -> None:
    pass
