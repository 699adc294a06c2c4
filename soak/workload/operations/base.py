# SPDX-License-Identifier: GPL-2.0-only
"""What an operation on a file under test consists of: the system call, and how its range is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from soak.model.expectations import Expectation
    from soak.model.vocabulary import Operation

# First page and number of pages. A truncation has its new size in `first`, and no length.
Range = tuple[int, int]


@dataclass(slots=True)
class FileUnderTest:
    """A file that one worker changes; `memory` is its mapping, empty where the worker has none."""

    path: bytes
    descriptor: int
    memory: memoryview = memoryview(b"")


@dataclass(frozen=True)
class FileOperation:
    """One operation. `call` takes the file, offset and length in bytes; it returns 0 or an errno.

    `draw` takes the size of the file in pages and draws a range for a crowd; None leaves the operation
    to trials. `weight` is its share there, of the sum of all weights. `aim` takes first page and number
    of the pages that a trial pins and draws a range that concerns them; None leaves it to the crowd.
    """

    operation: Operation
    call: Callable[[FileUnderTest, int, int], int]
    draw: Callable[[int, Random], Range] | None = None
    weight: float = 0.0
    aim: Callable[[int, int, Random], Range] | None = None
    # Whether the file has the size `offset` afterwards.
    resizes: bool = False
    # What kernels owe, where soak.model.expectations has no row for it.
    expectations: tuple[Expectation, ...] = ()
