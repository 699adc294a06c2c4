# SPDX-License-Identifier: GPL-2.0-only
"""Trials: one holder, one invalidator, one file, and nobody else.

The kernel's waiting truncate is woken by any later get and put of the page, so a crowd of holders heals
the very bug that it should find. In a trial nobody touches the file after the pin is given back, until
the invalidation has ended.

Both of a pair draw the same trial from its number alone, so that one which was replaced needs nothing
but the number to fall in with the other.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, NamedTuple

from soak.model.vocabulary import Backing, Operation
from soak.regions.fs_dax import TRIAL_FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.operations.table import BY_NAME, FILE_OPERATIONS
from soak.workload.pins.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.model.vocabulary import Interface
    from soak.workload.operations.base import Range

_MILLISECOND: Final = 1_000_000
_SHORTEST_HOLD_NS: Final = 20 * _MILLISECOND
_LONGEST_HOLD_NS: Final = 80 * _MILLISECOND
_LONGEST_DELAY_NS: Final = 8 * _MILLISECOND
_FILE_PAGES: Final = TRIAL_FILE_SIZE // PAGE_SIZE


class Trial(NamedTuple):
    """One trial. `offset`, `length`: what is pinned, and written before; the file ends behind it.

    `taken_offset`, `taken_length`: what the invalidation takes away; a truncation has a new size and
    no length. It begins `delay_ns` after the pin was taken.
    """

    number: int
    method: int
    into: bool
    offset: int
    length: int
    hold_ns: int
    operation: Operation
    taken_offset: int
    taken_length: int
    delay_ns: int


def pairings(methods: Sequence[int]) -> list[tuple[Operation, Interface]]:
    """Return what a trial can try: which operation against a pin through which interface."""
    return [
        (entry.operation, interface)
        for entry in FILE_OPERATIONS
        if entry.aim is not None
        for interface in dict.fromkeys(METHODS[method].interface for method in methods)
        if _fitting(methods, entry.operation, interface)
    ]


class TrialPlan:
    """Draws the trials of a pair, by number. Each round tries every pairing once, in another order."""

    def __init__(self, seed: int, pair: str, methods: Sequence[int]) -> None:
        self._key = f"{seed}/{pair}"
        self._methods = methods
        self._pairings = pairings(methods)
        self._round = -1
        self._order: list[tuple[Operation, Interface]] = []

    def trial(self, number: int) -> Trial:
        """Draw the trial of this number."""
        turn, position = divmod(number, len(self._pairings))
        if turn != self._round:
            self._order = list(self._pairings)
            random.Random(f"{self._key}/round/{turn}").shuffle(self._order)  # noqa: S311 - repeatable
            self._round = turn
        operation, interface = self._order[position]
        draw = random.Random(f"{self._key}/trial/{number}")  # noqa: S311 - repeatable on purpose
        method = draw.choice(_fitting(self._methods, operation, interface))
        pages = min(draw.choice((1, 1, 2, 16, 512)), METHODS[method].most_pages)
        # The first page is left, so that there is something to shrink to. A range of 2 MiB starts
        # where a large folio can.
        first = pages if pages > _FILE_PAGES // 4 else 1 + draw.randrange(_FILE_PAGES // 2)
        taken_first, taken_pages = _aimed(operation, first, pages, draw)
        return Trial(
            number=number,
            method=method,
            into=METHODS[method].into and draw.random() < 0.5,  # noqa: PLR2004 - both ways alike
            offset=first * PAGE_SIZE,
            length=pages * PAGE_SIZE,
            hold_ns=draw.randrange(_SHORTEST_HOLD_NS, _LONGEST_HOLD_NS),
            operation=operation,
            taken_offset=taken_first * PAGE_SIZE,
            taken_length=taken_pages * PAGE_SIZE,
            delay_ns=draw.randrange(_LONGEST_DELAY_NS),
        )


def _fitting(methods: Sequence[int], operation: Operation, interface: Interface) -> list[int]:
    """Return the methods for a pairing: an unlinked file goes only when nobody maps it."""
    return [
        method
        for method in methods
        if METHODS[method].interface is interface
        and (operation is not Operation.UNLINK or METHODS[method].backing is Backing.UNMAPPED)
    ]


def _aimed(operation: Operation, first: int, pages: int, draw: random.Random) -> Range:
    aim = BY_NAME[operation].aim
    if aim is None:
        raise LookupError(f"{operation} belongs to the crowd and has no aim")
    return aim(first, pages, draw)
