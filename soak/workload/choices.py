# SPDX-License-Identifier: GPL-2.0-only
"""Choices: a seeded generator draws the next operation, independent of earlier outcomes.

The generator models a kernel that meets every expectation: a granted map fills a slot, a truncate sets
the file's size. The same seed gives the same choices on every kernel, and a command can print choices
without running them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, count
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from soak.model.vocabulary import Operation
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.operations.table import BY_NAME
from soak.workload.pins.methods import METHODS
from soak.workload.scenarios import ANY, WHOLE

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from soak.model.cell import Cell
    from soak.model.vocabulary import RegionKind
    from soak.workload.scenarios import Scenario

_T = TypeVar("_T")

SLOTS: Final = 4

_RANDOM_SIZE_LIMIT: Final = 16 << 20
_SHORTEST_HOLD_NS: Final = 1_000_000
_LONGEST_HOLD_NS: Final = 20_000_000
_LONGEST_HELD_PAGES: Final = 16


class Choice(NamedTuple):
    """One drawn operation. `region` indexes the worker's regions; `place` is a slot or a file.

    Short pins use `method` and `hold_ns`; a trial's invalidation starts `hold_ns` after the pin.
    """

    number: int
    cell: int
    operation: Operation
    region: int
    place: int
    offset: int
    length: int
    access: int
    method: int = 0
    hold_ns: int = 0


@dataclass(frozen=True)
class PlannedRegion:
    """The properties of a region that choices depend on."""

    name: str
    kind: RegionKind
    size: int


def mapper_choices(
    scenario: Scenario, cells: Sequence[Cell], regions: Sequence[PlannedRegion], generator: random.Random
) -> Iterator[Choice]:
    """Draw maps and the unmaps that undo them; each slot holds one mapping at a time."""
    positions = {(cell.operation, cell.region): index for index, cell in enumerate(cells)}
    weights = [scenario.map_regions[region.kind] for region in regions]
    draw_region = _drawer(generator, range(len(regions)), weights)
    draw_size = _drawer(generator, list(scenario.map_sizes), list(scenario.map_sizes.values()))
    draw_access = _drawer(generator, list(scenario.accesses), list(scenario.accesses.values()))
    # Drawing is part of the hot loop: look up every constant before it.
    uniform, map_it, unmap_it = generator.random, Operation.MAP, Operation.UNMAP
    map_cells = [positions[map_it, region.kind] for region in regions]
    # None where the kernel refuses every map, which leaves nothing to unmap.
    unmap_cells = [positions.get((unmap_it, region.kind)) for region in regions]
    # The unmap that each slot needs: cell, region, offset, length, access.
    live: list[tuple[int, int, int, int, int] | None] = [None] * SLOTS
    for number in count():
        slot = int(uniform() * SLOTS)
        mapped = live[slot]
        if mapped is None:
            region = draw_region()
            size = regions[region].size
            length = _length(draw_size(), size, generator)
            offset = int(uniform() * ((size - length) // PAGE_SIZE + 1)) * PAGE_SIZE
            access = draw_access()
            unmap_cell = unmap_cells[region]
            if unmap_cell is not None:
                live[slot] = (unmap_cell, region, offset, length, access)
            yield Choice(number, map_cells[region], map_it, region, slot, offset, length, access)
        else:
            live[slot] = None
            cell, region, offset, length, access = mapped
            yield Choice(number, cell, unmap_it, region, slot, offset, length, access)


def _length(drawn: int | str, size: int, generator: random.Random) -> int:
    if drawn == WHOLE:
        return size
    if drawn == ANY:
        limit = min(size, _RANDOM_SIZE_LIMIT) // PAGE_SIZE
        return (int(generator.random() * limit) + 1) * PAGE_SIZE
    return min(int(drawn), size)


def invalidator_choices(
    scenario: Scenario, cells: Sequence[Cell], files: Sequence[int], generator: random.Random
) -> Iterator[Choice]:
    """Draw operations on files that no other worker resizes."""
    positions = {cell.operation: index for index, cell in enumerate(cells)}
    mix = scenario.invalidations
    draw = _drawer(generator, list(mix), list(mix.values()))
    sizes = dict.fromkeys(files, FILE_SIZE)
    for number in count():
        file = files[int(generator.random() * len(files))]
        operation, size = draw(), sizes[file]
        if size == 0:
            # An empty file has nothing to shrink, punch or fault in.
            operation = Operation.TRUNCATE_UP
        elif size == FILE_SIZE and operation is Operation.TRUNCATE_UP:
            operation = Operation.TRUNCATE_DOWN
        entry = BY_NAME[operation]
        if entry.draw is None:
            raise LookupError(f"{operation} runs only in trials: it draws no range")
        first, pages = entry.draw(size // PAGE_SIZE, generator)
        if entry.resizes:
            sizes[file] = first * PAGE_SIZE
        place = (0, file, first * PAGE_SIZE, pages * PAGE_SIZE, 0)
        yield Choice(number, positions[operation], operation, *place)


def holder_choices(
    scenario: Scenario,
    cells: Sequence[Cell],
    files: Sequence[int],
    methods: Sequence[int],
    generator: random.Random,
) -> Iterator[Choice]:
    """Draw short pins; `methods` are indices into METHODS."""
    mix = [scenario.holds[METHODS[method]] for method in methods]
    positions = {cell.interface: index for index, cell in enumerate(cells)}
    draw = _drawer(generator, methods, mix)
    uniform = generator.random
    for number in count():
        method = draw()
        file = files[int(uniform() * len(files))]
        pages = 1 + int(uniform() * _LONGEST_HELD_PAGES)
        first = int(uniform() * (FILE_SIZE // PAGE_SIZE - pages))
        hold_ns = _SHORTEST_HOLD_NS + int(uniform() * (_LONGEST_HOLD_NS - _SHORTEST_HOLD_NS))
        into = METHODS[method].into and uniform() < 0.5  # noqa: PLR2004 - each direction half the time
        yield Choice(
            number,
            positions[METHODS[method].interface],
            Operation.HOLD,
            0,
            file,
            first * PAGE_SIZE,
            pages * PAGE_SIZE,
            int(into),
            method,
            hold_ns,
        )


def _drawer(
    generator: random.Random, entries: Sequence[_T], weights: Sequence[float]
) -> Callable[[], _T]:
    """Return a function that draws an entry by weight."""
    bounds = list(accumulate(weights))
    total = bounds[-1]
    uniform = generator.random

    def draw() -> _T:
        return entries[bisect_right(bounds, uniform() * total, 0, len(bounds) - 1)]

    return draw
