# SPDX-License-Identifier: GPL-2.0-only
"""Page faults: a store into a hole or an unwritten extent of a mapped file allocates its block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.model.expectations import Expectation
from soak.model.vocabulary import Backing, Interface, Operation, RegionKind
from soak.regions.pages import PAGE_SIZE
from soak.workload.operations.base import FileOperation
from soak.workload.operations.holes import draw_range

if TYPE_CHECKING:
    from random import Random

    from soak.workload.operations.base import FileUnderTest, Range

# Each page costs a fault and a block.
_LONGEST_PAGES: Final = 16
_BYTES: Final = b"\x5a" * _LONGEST_PAGES


def _fault(file: FileUnderTest, offset: int, length: int) -> int:
    """Store one byte into each page."""
    file.memory[offset : offset + length : PAGE_SIZE] = _BYTES[: length // PAGE_SIZE]
    return 0


def _draw(pages: int, random: Random) -> Range:
    return draw_range(pages, random, _LONGEST_PAGES)


FAULT: Final = FileOperation(
    Operation.FAULT,
    _fault,
    _draw,
    0.25,
    expectations=(
        Expectation(
            (Operation.FAULT,),
            RegionKind.FS_DAX,
            Interface.NONE,
            Backing.SHARED,
            None,
            "a store into a mapped page within the size of the file succeeds",
        ),
    ),
)
