# SPDX-License-Identifier: GPL-2.0-only
"""Lines of the journal that wait for space on the disk: bounded, in order, violations the last to go."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soak.model.vocabulary import Level

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Line:
    """A numbered line. One that is `kept` tells about the others and is never given up."""

    seq: int
    level: Level
    data: bytes
    kept: bool = False


class Backlog:
    """A queue of lines. When it is too long, lines of the lowest level go, the oldest first.

    The newest are kept, for it is the last sample and the end of a run that its verdict needs.
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
        """The line that is to be written next."""
        heads = [queue[0] for queue in self._levels.values() if queue]
        return min(heads, key=_seq, default=None)

    @property
    def urgent(self) -> bool:
        """Whether something waits that is worth the reserve, or must be given up else."""
        return bool(self._levels[Level.ERROR]) or self.too_long

    @property
    def too_long(self) -> bool:
        return len(self) > self._bound

    def push(self, line: Line) -> None:
        self._levels[line.level].append(line)

    def pop(self) -> None:
        """Take the first line out: it is written."""
        first = self.first
        if first is not None:
            self._levels[first.level].popleft()

    def give_up(self, *, begun: bool) -> int:
        """Drop what is too much and return how much it was.

        Of the first line some may be in the file already; when it is `begun`, it stays.
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
        """Return what was given up since this was asked last, None where nothing was."""
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
