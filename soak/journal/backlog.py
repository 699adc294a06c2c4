# SPDX-License-Identifier: GPL-2.0-only
"""A bounded queue of journal lines that wait for disk space; it drops violations last."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soak.model.vocabulary import Level

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Line:
    """A numbered line. `kept` marks the journal's own events, which are never dropped."""

    seq: int
    level: Level
    data: bytes
    kept: bool = False


class Backlog:
    """A queue of lines that, beyond its bound, drops the oldest lines of the lowest level.

    It keeps the newest, because the verdict needs the last sample and the end of the run.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._levels: dict[Level, deque[Line]] = {level: deque() for level in Level}
        self._given_up: Counter[Level] = Counter()
        self._span = (0, 0)

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    @property
    def first(self) -> Line | None:
        """The line to write next."""
        heads = [queue[0] for queue in self._levels.values() if queue]
        return min(heads, key=_seq, default=None)

    @property
    def urgent(self) -> bool:
        """Whether the waiting lines justify using the reserve: an error, or an overflow."""
        return bool(self._levels[Level.ERROR]) or self.too_long

    @property
    def too_long(self) -> bool:
        return len(self) > self._bound

    def push(self, line: Line) -> None:
        self._levels[line.level].append(line)

    def pop(self) -> None:
        """Remove the first line after it was written."""
        first = self.first
        if first is not None:
            self._levels[first.level].popleft()

    def give_up(self, *, begun: bool) -> int:
        """Drop lines beyond the bound and return how many.

        With `begun`, the first line is partly in the file and stays.
        """
        count = 0
        first = self.first if begun else None
        while self.too_long:
            line = next(self._dispensable(first), None)
            if line is None:
                break
            self._levels[line.level].remove(line)
            self._given_up[line.level] += 1
            numbers = [seq for seq in self._span if seq]
            self._span = (min([*numbers, line.seq]), max([*numbers, line.seq]))
            count += 1
        return count

    def take_gap(self) -> dict[str, Any] | None:
        """Return the fields of `journal.gap` for lines dropped since the last call, or None."""
        if not self._given_up:
            return None
        gap = {
            "first": self._span[0],
            "last": self._span[1],
            "given_up": {str(level): self._given_up[level] for level in Level},
        }
        self._given_up.clear()
        self._span = (0, 0)
        return gap

    def _dispensable(self, first: Line | None) -> Iterator[Line]:
        for queue in self._levels.values():
            yield from (line for line in queue if line is not first and not line.kept)


def _seq(line: Line) -> int:
    return line.seq
