# SPDX-License-Identifier: GPL-2.0-only
"""Trials: one holder and one invalidator work on a file that no other worker touches.

Any later get and put of a page wakes the truncate that waits for it, so a crowd of holders hides the bug
that it should find. In a trial no process touches the file between the release of the pin and the end
of the invalidation.

Both workers of a pair draw a trial from its number alone, so a replaced worker needs only the number to
resume.
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
    """One trial. `offset`, `length`: the range that is written, then pinned; the file ends there.

    `taken_offset`, `taken_length`: the range of the invalidation, or the new size of a truncate and 0.
    The invalidation starts `delay_ns` after the pin.
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
    """Return the pairs of an operation and the interface of a pin that trials test."""
    return [
        (entry.operation, interface)
        for entry in FILE_OPERATIONS
        if entry.aim is not None
        for interface in dict.fromkeys(METHODS[method].interface for method in methods)
        if _fitting(methods, entry.operation, interface)
    ]


class TrialPlan:
    """Draws the trials of a pair by number. Each round runs every pairing once, in shuffled order."""

    def __init__(self, seed: int, pair: str, methods: Sequence[int]) -> None:
        self._key = f"{seed}/{pair}"
        self._methods = methods
        self._pairings = pairings(methods)
        self._round = -1
        self._order: list[tuple[Operation, Interface]] = []

    def trial(self, number: int) -> Trial:
        turn, position = divmod(number, len(self._pairings))
        if turn != self._round:
            self._order = list(self._pairings)
            random.Random(f"{self._key}/round/{turn}").shuffle(self._order)  # noqa: S311 - repeatable
            self._round = turn
        operation, interface = self._order[position]
        draw = random.Random(f"{self._key}/trial/{number}")  # noqa: S311 - repeatable on purpose
        method = draw.choice(_fitting(self._methods, operation, interface))
        pages = min(draw.choice((1, 1, 2, 16, 512)), METHODS[method].most_pages)
        # Leave the first page unpinned, so that the file can shrink to it. A range of 2 MiB starts
        # on a 2 MiB boundary, where a large folio can.
        first = pages if pages > _FILE_PAGES // 4 else 1 + draw.randrange(_FILE_PAGES // 2)
        taken_first, taken_pages = _aimed(operation, first, pages, draw)
        return Trial(
            number=number,
            method=method,
            into=METHODS[method].into and draw.random() < 0.5,  # noqa: PLR2004 - each direction half the time
            offset=first * PAGE_SIZE,
            length=pages * PAGE_SIZE,
            hold_ns=draw.randrange(_SHORTEST_HOLD_NS, _LONGEST_HOLD_NS),
            operation=operation,
            taken_offset=taken_first * PAGE_SIZE,
            taken_length=taken_pages * PAGE_SIZE,
            delay_ns=draw.randrange(_LONGEST_DELAY_NS),
        )


def _fitting(methods: Sequence[int], operation: Operation, interface: Interface) -> list[int]:
    """Return the methods for a pairing. Unlink frees no blocks while the file is mapped."""
    return [
        method
        for method in methods
        if METHODS[method].interface is interface
        and (operation is not Operation.UNLINK or METHODS[method].backing is Backing.UNMAPPED)
    ]


def _aimed(operation: Operation, first: int, pages: int, draw: random.Random) -> Range:
    aim = BY_NAME[operation].aim
    if aim is None:
        raise LookupError(f"{operation} runs only in a crowd: it has no aim")
    return aim(first, pages, draw)
