# SPDX-License-Identifier: GPL-2.0-only
"""Decodes the rings of a worker's block: the flight recorder and, for a holder, the short pins.

`soak.ledger.schema` documents the columns and the order in which a worker writes them.
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
    """A ring of `length` lines; a new line overwrites the oldest."""

    columns: tuple[str, ...]
    length: int

    def start(self, number: int) -> int:
        """Return the position of the first word of a line."""
        return number % self.length * len(self.columns)

    def line(self, words: Sequence[int], number: int) -> Line:
        """Return a line by its number, counted from 0 at the start of the run."""
        start = self.start(number)
        return dict(zip(self.columns, words[start : start + len(self.columns)], strict=True))

    def last(self, words: Sequence[int], begun: int, count: int) -> list[Line]:
        """Return the newest `count` lines in order."""
        return [self.line(words, number) for number in range(max(begun - count, 0), begun)]

    def unread(self, read: int, begun: int) -> range:
        """Return the readable numbers from `read` on, without the line that may be being overwritten."""
        return range(max(read, begun - self.length + 1), begun)


RECORDER: Final = Ring(RECORDER_COLUMNS, RECORDER_LENGTH)
HOLDS: Final = Ring(HOLD_COLUMNS, HOLDS_LENGTH)


def in_flight(get: Callable[[str], int], words: Callable[[str], Sequence[int]]) -> Line | None:
    """Return the line of the operation that has begun and is not yet counted as ended.

    `get` and `words` read a word and a whole field of the worker's block. If `end_ns` is set, the
    operation has ended but is not yet counted.
    """
    begun = get("begun")
    return RECORDER.line(words("recorder"), begun - 1) if begun > get("ended") else None
