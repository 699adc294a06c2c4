# SPDX-License-Identifier: GPL-2.0-only
"""Operations on a range of a file: punch its blocks out, or make them unwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.fallocate import punch_hole, zero_range
from soak.model.vocabulary import Operation
from soak.workload.operations.base import FileOperation

if TYPE_CHECKING:
    from random import Random

    from soak.workload.operations.base import FileUnderTest, Range

# A single call covers a range of any length.
_LONGEST_PAGES: Final = 512
# Chance that a trial's range starts in the pinned pages; else it starts anywhere before their end.
_AT_THE_PIN: Final = 0.75


def _punch_hole(file: FileUnderTest, offset: int, length: int) -> int:
    return punch_hole(file.descriptor, offset, length)


def _zero_range(file: FileUnderTest, offset: int, length: int) -> int:
    return zero_range(file.descriptor, offset, length)


def draw_range(pages: int, random: Random, longest: int = _LONGEST_PAGES) -> Range:
    """Draw a range of 1 to `longest` pages within a file of `pages` pages."""
    first = int(random.random() * pages)
    return first, 1 + int(random.random() * min(pages - first - 1, longest - 1))


def _aim_range(first: int, pages: int, random: Random) -> Range:
    end = first + pages
    at_the_pin = random.random() < _AT_THE_PIN
    start = first + random.randrange(pages) if at_the_pin else random.randrange(end)
    return start, 1 + random.randrange(end - start)


PUNCH_HOLE: Final = FileOperation(Operation.PUNCH_HOLE, _punch_hole, draw_range, 0.15, _aim_range)
ZERO_RANGE: Final = FileOperation(Operation.ZERO_RANGE, _zero_range, draw_range, 0.1, _aim_range)
