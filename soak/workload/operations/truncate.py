# SPDX-License-Identifier: GPL-2.0-only
"""Truncates: they set the size of a file and free the blocks beyond its new end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.fallocate import open_truncate, truncate
from soak.model.vocabulary import Operation
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.operations.base import FileOperation

if TYPE_CHECKING:
    from random import Random

    from soak.workload.operations.base import FileUnderTest, Range

_FILE_PAGES: Final = FILE_SIZE // PAGE_SIZE
_LONGEST_GROWTH_PAGES: Final = 256


def _truncate(file: FileUnderTest, offset: int, _length: int) -> int:
    return truncate(file.descriptor, offset)


def _open_truncate(file: FileUnderTest, _offset: int, _length: int) -> int:
    return open_truncate(file.path)


def _draw_shorter(pages: int, random: Random) -> Range:
    return int(random.random() * pages), 0


def _draw_longer(pages: int, random: Random) -> Range:
    return pages + 1 + int(random.random() * (_FILE_PAGES - pages)), 0


def _draw_empty(_pages: int, random: Random) -> Range:
    random.random()  # every operation draws, whatever the weights are
    return 0, 0


def _aim_shorter(first: int, pages: int, random: Random) -> Range:
    return random.randrange(1, first + pages), 0


def _aim_longer(first: int, pages: int, random: Random) -> Range:
    return first + pages + random.randrange(1, _LONGEST_GROWTH_PAGES), 0


def _aim_empty(_first: int, _pages: int, _random: Random) -> Range:
    return 0, 0


TRUNCATE_DOWN: Final = FileOperation(
    Operation.TRUNCATE_DOWN, _truncate, _draw_shorter, 0.15, _aim_shorter, resizes=True
)
TRUNCATE_ZERO: Final = FileOperation(
    Operation.TRUNCATE_ZERO, _truncate, _draw_empty, 0.08, _aim_empty, resizes=True
)
TRUNCATE_UP: Final = FileOperation(
    Operation.TRUNCATE_UP, _truncate, _draw_longer, 0.2, _aim_longer, resizes=True
)
OPEN_TRUNCATE: Final = FileOperation(
    Operation.OPEN_TRUNCATE, _open_truncate, _draw_empty, 0.07, _aim_empty, resizes=True
)
