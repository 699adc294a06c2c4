# SPDX-License-Identifier: GPL-2.0-only
"""Unlink: removing the last link of a file frees all its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.fallocate import unlink
from soak.model.vocabulary import Operation
from soak.workload.operations.base import FileOperation

if TYPE_CHECKING:
    from random import Random

    from soak.workload.operations.base import FileUnderTest, Range


def _unlink(file: FileUnderTest, _offset: int, _length: int) -> int:
    return unlink(file.path)


def _aim_whole(_first: int, _pages: int, _random: Random) -> Range:
    return 0, 0


UNLINK: Final = FileOperation(Operation.UNLINK, _unlink, aim=_aim_whole)
