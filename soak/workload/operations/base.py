# SPDX-License-Identifier: GPL-2.0-only
"""An operation on a file under test: its system call, and how to draw its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from soak.model.expectations import Expectation
    from soak.model.vocabulary import Operation

# First page and number of pages; for a truncate the new size in pages, and 0.
Range = tuple[int, int]


@dataclass(slots=True)
class FileUnderTest:
    """A file that one worker changes; `memory` is its mapping, or empty."""

    path: bytes
    descriptor: int
    memory: memoryview = memoryview(b"")


@dataclass(frozen=True)
class FileOperation:
    """One operation. `call` takes the file, offset and length in bytes; it returns 0 or an errno.

    `draw` takes the size of the file in pages and draws a range for a crowd; None: trials only.
    `weight` is the operation's share in a crowd, relative to the sum of all weights. `aim` takes the
    first page and the number of pages that a trial pins, and draws a range for it; None: crowds only.
    """

    operation: Operation
    call: Callable[[FileUnderTest, int, int], int]
    draw: Callable[[int, Random], Range] | None = None
    weight: float = 0.0
    aim: Callable[[int, int, Random], Range] | None = None
    # The call sets the size of the file to `offset`.
    resizes: bool = False
    # Rows beyond those of soak.model.expectations.
    expectations: tuple[Expectation, ...] = ()
