# SPDX-License-Identifier: GPL-2.0-only
"""The rings of a worker's block, decoded: its flight recorder and, for a holder, its short pins.

Whoever reads a ring while its worker writes has to know what a line stands for: see the columns in
`soak.ledger.schema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.ledger.schema import HOLD_COLUMNS, HOLDS_LENGTH, RECORDER_COLUMNS, RECORDER_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Line = dict[str, int]


@dataclass(frozen=True)
class Ring:
    """Lines of words, each written over when `length` more have begun."""

    columns: tuple[str, ...]
    length: int

    def start(self, number: int) -> int:
        """Return the position of the first word of a line."""
        return number % self.length * len(self.columns)

    def line(self, words: Sequence[int], number: int) -> Line:
        """Return a line by its number, counted from 0 since the run began."""
        start = self.start(number)
        return dict(zip(self.columns, words[start : start + len(self.columns)], strict=True))

    def last(self, words: Sequence[int], begun: int, count: int) -> list[Line]:
        """Return the newest lines, the newest last."""
        return [self.line(words, number) for number in range(max(begun - count, 0), begun)]

    def unread(self, read: int, begun: int) -> range:
        """Return the numbers from `read` on that can be read: the oldest may just be written over."""
        return range(max(read, begun - self.length + 1), begun)


RECORDER: Final = Ring(RECORDER_COLUMNS, RECORDER_LENGTH)
HOLDS: Final = Ring(HOLD_COLUMNS, HOLDS_LENGTH)


def in_flight(get: Callable[[str], int], words: Callable[[str], Sequence[int]]) -> Line | None:
    """Return the line of the operation that has begun and is not counted as ended.

    `get` and `words` read a word and a whole field of the worker's block. Where `end_ns` is set the
    operation has ended, and is about to be counted.
    """
    begun = get("begun")
    return RECORDER.line(words("recorder"), begun - 1) if begun > get("ended") else None
