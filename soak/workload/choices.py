"""Which operation comes next: drawn by a seeded generator, never by what happened.

A chooser follows a model of the world in which every expectation holds (a granted map fills a slot, a
truncated file is short), so that the same seed gives the same choices on every kernel, and they can be
printed without running any of them.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from soak.abi.vfio import DMA_MAP_FLAG_READ, DMA_MAP_FLAG_WRITE
from soak.errors import UsageError
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.schema import Cell
from soak.vocabulary import Interface, Operation, RegionKind, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_T = TypeVar("_T")

SLOTS: Final = 4

_RANDOM_SIZE_LIMIT: Final = 16 << 20
# In pages. A page that is touched costs a fault and a block, a hole is one call whatever its length.
_LONGEST: Final = {Operation.PUNCH_HOLE: 512, Operation.FAULT: 16}


class Choice(NamedTuple):
    """One drawn operation. `region` counts in the plan's list; `place` is a slot or a file."""

    number: int
    cell: int
    operation: Operation
    region: int
    place: int
    offset: int
    length: int
    access: int


@dataclass(frozen=True)
class PlannedRegion:
    """As much of a region as choices depend on."""

    name: str
    kind: RegionKind
    size: int


@dataclass(frozen=True)
class Scenario:
    """A mix of operations, as relative weights."""

    name: str
    map_regions: Mapping[RegionKind, float]
    map_sizes: Mapping[int | str, float]
    accesses: Mapping[int, float]
    invalidations: Mapping[Operation, float]


_READ_WRITE: Final = DMA_MAP_FLAG_READ | DMA_MAP_FLAG_WRITE
WHOLE: Final = "whole"
ANY: Final = "any"

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "mixed",
            {RegionKind.DEVICE_DAX: 0.5, RegionKind.FS_DAX: 0.3, RegionKind.ANONYMOUS: 0.2},
            {4 << 10: 0.25, 64 << 10: 0.2, 2 << 20: 0.35, ANY: 0.198, WHOLE: 0.002},
            {_READ_WRITE: 0.8, DMA_MAP_FLAG_READ: 0.2},
            {
                Operation.TRUNCATE_DOWN: 0.2,
                Operation.TRUNCATE_ZERO: 0.1,
                Operation.TRUNCATE_UP: 0.2,
                Operation.PUNCH_HOLE: 0.25,
                Operation.FAULT: 0.25,
            },
        ),
    )
}


@dataclass(frozen=True)
class WorkerPlan:
    """All that decides what a worker does."""

    name: str
    role: Role
    index: int
    cells: tuple[Cell, ...]
    regions: tuple[PlannedRegion, ...]
    files: tuple[int, ...]
    scenario: Scenario
    seed: int

    def choices(self, incarnation: int = 0) -> Iterator[Choice]:
        """Draw for ever. A worker that was replaced goes another way than the one before it."""
        key = f"{self.seed}/{self.name}/{incarnation}"
        generator = random.Random(key)  # noqa: S311 - repeatable on purpose
        if self.role is Role.MAPPER:
            return _mapper_choices(self, generator)
        return _invalidator_choices(self, generator)


def plan_workers(
    regions: Sequence[PlannedRegion], scenario_name: str, mappers: int, invalidators: int, seed: int
) -> list[WorkerPlan]:
    """Decide which workers there are and what each may touch.

    Raises:
        UsageError: there is no such scenario, or nothing for a kind of worker to work on.
    """
    if scenario_name not in SCENARIOS:
        raise UsageError(
            f"The scenario {scenario_name!r} is unknown: there is {', '.join(sorted(SCENARIOS))}."
        )
    scenario = SCENARIOS[scenario_name]
    plans = [
        WorkerPlan(
            f"mapper-{index}", Role.MAPPER, index, _mapper_cells(regions), tuple(regions), (),
            scenario, seed,
        )
        for index in range(mappers)
    ]  # fmt: skip
    fs_regions = tuple(region for region in regions if region.kind is RegionKind.FS_DAX)
    if mappers and not regions:
        raise UsageError("There is no region to map: add a [[region]] to the configuration.")
    if not fs_regions:
        invalidators = 0
    for index in range(invalidators):
        # A file has one invalidator, so nobody else changes the size that it has in mind.
        region = fs_regions[index % len(fs_regions)]
        sharers = len(range(index % len(fs_regions), invalidators, len(fs_regions)))
        files = range(index // len(fs_regions), region.size // FILE_SIZE, sharers)
        if not files:
            raise UsageError(
                f"The region {region.name!r} has {region.size // FILE_SIZE} files of {FILE_SIZE} bytes "
                f"for {sharers} invalidators: give it a larger size, or have fewer invalidators."
            )
        plans.append(
            WorkerPlan(
                f"invalidator-{index}", Role.INVALIDATOR, index, _invalidator_cells(scenario),
                (region,), tuple(files), scenario, seed,
            )
        )  # fmt: skip
    return plans


def _mapper_cells(regions: Sequence[PlannedRegion]) -> tuple[Cell, ...]:
    kinds = dict.fromkeys(region.kind for region in regions)
    maps = [Cell(Operation.MAP, kind, Interface.VFIO_TYPE1) for kind in kinds]
    unmaps = [
        Cell(Operation.UNMAP, kind, Interface.VFIO_TYPE1)
        for kind in kinds
        if kind is not RegionKind.FS_DAX
    ]
    return (*maps, *unmaps)


def _invalidator_cells(scenario: Scenario) -> tuple[Cell, ...]:
    return tuple(
        Cell(operation, RegionKind.FS_DAX, Interface.NONE) for operation in scenario.invalidations
    )


def _mapper_choices(plan: WorkerPlan, generator: random.Random) -> Iterator[Choice]:
    scenario = plan.scenario
    cells = {(cell.operation, cell.region): index for index, cell in enumerate(plan.cells)}
    weights = [scenario.map_regions[region.kind] for region in plan.regions]
    draw_region = _drawer(generator, range(len(plan.regions)), weights)
    draw_size = _drawer(generator, list(scenario.map_sizes), list(scenario.map_sizes.values()))
    draw_access = _drawer(generator, list(scenario.accesses), list(scenario.accesses.values()))
    live: list[Choice | None] = [None] * SLOTS
    number = 0
    while True:
        slot = int(generator.random() * SLOTS)
        mapped = live[slot]
        if mapped is not None:
            kind = plan.regions[mapped.region].kind
            cell = cells[Operation.UNMAP, kind]
            live[slot] = None
            yield mapped._replace(number=number, cell=cell, operation=Operation.UNMAP)
        else:
            region = draw_region()
            planned = plan.regions[region]
            length = _length(draw_size(), planned.size, generator)
            pages = (planned.size - length) // PAGE_SIZE + 1
            offset = int(generator.random() * pages) * PAGE_SIZE
            cell = cells[Operation.MAP, planned.kind]
            choice = Choice(
                number, cell, Operation.MAP, region, slot, offset, length, draw_access()
            )
            if planned.kind is not RegionKind.FS_DAX:
                live[slot] = choice
            yield choice
        number += 1


def _length(drawn: int | str, size: int, generator: random.Random) -> int:
    if drawn == WHOLE:
        return size
    if drawn == ANY:
        limit = min(size, _RANDOM_SIZE_LIMIT) // PAGE_SIZE
        return (int(generator.random() * limit) + 1) * PAGE_SIZE
    return min(int(drawn), size)


def _invalidator_choices(plan: WorkerPlan, generator: random.Random) -> Iterator[Choice]:
    cells = {cell.operation: index for index, cell in enumerate(plan.cells)}
    mix = plan.scenario.invalidations
    draw = _drawer(generator, list(mix), list(mix.values()))
    sizes = dict.fromkeys(plan.files, FILE_SIZE)
    number = 0
    while True:
        file = plan.files[int(generator.random() * len(plan.files))]
        operation, size = draw(), sizes[file]
        if size == 0:
            # Nothing is left to shrink, punch or touch.
            operation = Operation.TRUNCATE_UP
        elif size == FILE_SIZE and operation is Operation.TRUNCATE_UP:
            operation = Operation.TRUNCATE_DOWN
        page, count = _range(operation, size // PAGE_SIZE, generator)
        if operation in {Operation.TRUNCATE_DOWN, Operation.TRUNCATE_UP, Operation.TRUNCATE_ZERO}:
            sizes[file] = page * PAGE_SIZE
        yield Choice(
            number, cells[operation], operation, 0, file, page * PAGE_SIZE, count * PAGE_SIZE, 0
        )
        number += 1


def _range(operation: Operation, pages: int, generator: random.Random) -> tuple[int, int]:
    """Draw first page and number of pages; truncations have a new size and no length."""
    draw = generator.random()
    match operation:
        case Operation.TRUNCATE_ZERO:
            return 0, 0
        case Operation.TRUNCATE_DOWN:
            return int(draw * pages), 0
        case Operation.TRUNCATE_UP:
            return pages + 1 + int(draw * (FILE_SIZE // PAGE_SIZE - pages)), 0
        case _:
            first = int(draw * pages)
            most = _LONGEST[operation] - 1
            return first, 1 + int(generator.random() * min(pages - first - 1, most))


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
