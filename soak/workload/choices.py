# SPDX-License-Identifier: GPL-2.0-only
"""Which operation comes next: drawn by a seeded generator, never by what happened.

A chooser follows a model of the world in which every expectation holds (a granted map fills a slot, a
truncated file is short), so that the same seed gives the same choices on every kernel, and they can be
printed without running any of them.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, count
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from soak.errors import UsageError
from soak.model.cell import Cell
from soak.model.vocabulary import INVALIDATIONS, Interface, Operation, RegionKind, Role
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.pins.long_term import READ, VFIO_TYPE1, WRITE
from soak.workload.pins.methods import COPY, METHODS, PIPE, REPEATED, TRANSFER, Method, available
from soak.workload.trials import TrialPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_T = TypeVar("_T")

SLOTS: Final = 4

_RANDOM_SIZE_LIMIT: Final = 16 << 20
# In pages. A page that is touched costs a fault and a block, a hole is one call whatever its length.
_LONGEST: Final = {Operation.PUNCH_HOLE: 512, Operation.ZERO_RANGE: 512, Operation.FAULT: 16}
_SHORTEST_HOLD_NS: Final = 1_000_000
_LONGEST_HOLD_NS: Final = 20_000_000
_LONGEST_HELD_PAGES: Final = 16


class Choice(NamedTuple):
    """One drawn operation. `region` counts in the plan's list; `place` is a slot or a file.

    `method` and `hold_ns` belong to short pins; an invalidation of a trial begins `hold_ns` after
    the pin was taken.
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
    holds: Mapping[Method, float]


_READ_WRITE: Final = READ | WRITE
WHOLE: Final = "whole"
ANY: Final = "any"

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "mixed",
            {RegionKind.DEVICE_DAX: 0.5, RegionKind.FS_DAX: 0.3, RegionKind.ANONYMOUS: 0.2},
            {4 << 10: 0.25, 64 << 10: 0.2, 2 << 20: 0.35, ANY: 0.198, WHOLE: 0.002},
            {_READ_WRITE: 0.8, READ: 0.2},
            {
                Operation.TRUNCATE_DOWN: 0.15,
                Operation.TRUNCATE_ZERO: 0.08,
                Operation.TRUNCATE_UP: 0.2,
                Operation.OPEN_TRUNCATE: 0.07,
                Operation.PUNCH_HOLE: 0.15,
                Operation.ZERO_RANGE: 0.1,
                Operation.FAULT: 0.25,
            },
            # Where a kernel loses wake-ups, each costs the invalidator seconds: trials look for them.
            {PIPE: 0.8, COPY: 0.14, REPEATED: 0.03, TRANSFER: 0.03},
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
    # Positions of the methods by which a holder, or the holder of a trial, may pin.
    methods: tuple[int, ...] = ()
    # The pair that a worker of trials belongs to.
    pair: str = ""

    @cached_property
    def _trials(self) -> TrialPlan:
        return TrialPlan(self.seed, self.pair, self.methods)

    def trial_choices(self, number: int) -> tuple[Choice, Choice]:
        """Return what a worker of trials does in the trial of this number."""
        trial = self._trials.trial(number)
        first, second = 2 * number, 2 * number + 1
        (place,) = self.files
        if self.role is Role.HOLDER:
            cells = {(cell.operation, cell.interface): at for at, cell in enumerate(self.cells)}
            held = (Operation.HOLD, METHODS[trial.method].interface)
            return (
                Choice(
                    first,
                    cells[Operation.FAULT, Interface.NONE],
                    Operation.FAULT,
                    0,
                    place,
                    trial.offset,
                    trial.length,
                    0,
                ),
                Choice(
                    second,
                    cells[held],
                    Operation.HOLD,
                    0,
                    place,
                    trial.offset,
                    trial.length,
                    int(trial.into),
                    trial.method,
                    trial.hold_ns,
                ),
            )
        at = {cell.operation: position for position, cell in enumerate(self.cells)}
        return (
            Choice(
                first,
                at[trial.operation],
                trial.operation,
                0,
                place,
                trial.taken_offset,
                trial.taken_length,
                0,
                trial.method,
                trial.delay_ns,
            ),
            Choice(second, at[Operation.TRUNCATE_ZERO], Operation.TRUNCATE_ZERO, 0, place, 0, 0, 0),
        )

    def choices(self, incarnation: int = 0) -> Iterator[Choice]:
        """Draw for ever. A worker that was replaced goes another way than the one before it."""
        if self.pair:
            return chain.from_iterable(self.trial_choices(number) for number in count())
        key = f"{self.seed}/{self.name}/{incarnation}"
        generator = random.Random(key)  # noqa: S311 - repeatable on purpose
        if self.role is Role.MAPPER:
            return _mapper_choices(self, generator)
        if self.role is Role.HOLDER:
            return _holder_choices(self, generator)
        return _invalidator_choices(self, generator)


def plan_workers(
    regions: Sequence[PlannedRegion],
    scenario_name: str,
    mappers: int,
    invalidators: int,
    seed: int,
    *,
    holders: int = 0,
    trials: int = 0,
    transfers: bool = False,
) -> list[WorkerPlan]:
    """Decide which workers there are and what each may touch.

    `trials` counts pairs of a holder and an invalidator; `transfers` says whether there are block
    devices to move memory to and from.

    Raises:
        UsageError: there is no such scenario, or nothing for a kind of worker to work on.
    """
    if scenario_name not in SCENARIOS:
        raise UsageError(
            f"Unknown scenario {scenario_name!r} (choose from {', '.join(sorted(SCENARIOS))})."
        )
    scenario = SCENARIOS[scenario_name]
    plans = [
        WorkerPlan(
            f"mapper-{index}",
            Role.MAPPER,
            index,
            _mapper_cells(regions),
            tuple(regions),
            (),
            scenario,
            seed,
        )
        for index in range(mappers)
    ]
    fs_regions = tuple(region for region in regions if region.kind is RegionKind.FS_DAX)
    if mappers and not regions:
        raise UsageError("There is no region to map: add a [[region]] to the configuration.")
    if not fs_regions:
        invalidators = holders = trials = 0
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
                f"invalidator-{index}",
                Role.INVALIDATOR,
                index,
                _invalidator_cells(scenario),
                (region,),
                tuple(files),
                scenario,
                seed,
            )
        )
    methods = available(transfers=transfers)
    for index in range(holders):
        region = fs_regions[index % len(fs_regions)]
        if region.size < FILE_SIZE:
            raise UsageError(
                f"The region {region.name!r} has {region.size} bytes, and a holder needs a file of "
                f"{FILE_SIZE} bytes: give it a larger size, or have no holders."
            )
        mixed = tuple(method for method in methods if METHODS[method] in scenario.holds)
        plans.append(
            WorkerPlan(
                f"holder-{index}",
                Role.HOLDER,
                index,
                _holder_cells(mixed),
                (region,),
                tuple(range(region.size // FILE_SIZE)),
                scenario,
                seed,
                mixed,
            )
        )
    for index in range(trials):
        region = fs_regions[index % len(fs_regions)]
        plans += _pair(index, region, methods, scenario, seed)
    return plans


def _pair(
    index: int, region: PlannedRegion, methods: tuple[int, ...], scenario: Scenario, seed: int
) -> Iterator[WorkerPlan]:
    """Plan the holder and the invalidator of a pair, whose file is nobody else's."""
    file = region.size // FILE_SIZE + index
    fault = Cell(Operation.FAULT, RegionKind.FS_DAX, Interface.NONE)
    invalidations = tuple(
        Cell(operation, RegionKind.FS_DAX, Interface.NONE) for operation in INVALIDATIONS
    )
    for role, cells in (
        (Role.HOLDER, (*_holder_cells(methods), fault)),
        (Role.INVALIDATOR, invalidations),
    ):
        yield WorkerPlan(
            f"trial-{role}-{index}",
            role,
            index,
            cells,
            (region,),
            (file,),
            scenario,
            seed,
            methods,
            f"trial-{index}",
        )


def _holder_cells(methods: Sequence[int]) -> tuple[Cell, ...]:
    interfaces = dict.fromkeys(METHODS[method].interface for method in methods)
    return tuple(Cell(Operation.HOLD, RegionKind.FS_DAX, interface) for interface in interfaces)


def _mapper_cells(regions: Sequence[PlannedRegion]) -> tuple[Cell, ...]:
    kinds = dict.fromkeys(region.kind for region in regions)
    over = VFIO_TYPE1.interface
    maps = [Cell(Operation.MAP, kind, over) for kind in kinds]
    unmaps = [Cell(Operation.UNMAP, kind, over) for kind in kinds if kind is not RegionKind.FS_DAX]
    return (*maps, *unmaps)


def _invalidator_cells(scenario: Scenario) -> tuple[Cell, ...]:
    return tuple(
        Cell(operation, RegionKind.FS_DAX, Interface.NONE) for operation in scenario.invalidations
    )


def _mapper_choices(plan: WorkerPlan, generator: random.Random) -> Iterator[Choice]:
    scenario, regions = plan.scenario, plan.regions
    cells = {(cell.operation, cell.region): index for index, cell in enumerate(plan.cells)}
    weights = [scenario.map_regions[region.kind] for region in regions]
    draw_region = _drawer(generator, range(len(regions)), weights)
    draw_size = _drawer(generator, list(scenario.map_sizes), list(scenario.map_sizes.values()))
    draw_access = _drawer(generator, list(scenario.accesses), list(scenario.accesses.values()))
    # This is part of the loop under test: what does not depend on the draw is looked up here.
    uniform, map_it, unmap_it = generator.random, Operation.MAP, Operation.UNMAP
    map_cells = [cells[map_it, region.kind] for region in regions]
    # None where the kernel refuses every map, so that nothing is there to unmap.
    unmap_cells = [cells.get((unmap_it, region.kind)) for region in regions]
    # What undoes the mapping in each slot: cell, region, offset, length, access.
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
        if operation in _RESIZES:
            sizes[file] = page * PAGE_SIZE
        yield Choice(number, cells[operation], operation, 0, file, page * PAGE_SIZE, count * PAGE_SIZE, 0)
        number += 1


_RESIZES: Final = frozenset(
    (Operation.TRUNCATE_DOWN, Operation.TRUNCATE_UP, Operation.TRUNCATE_ZERO, Operation.OPEN_TRUNCATE)
)


def _holder_choices(plan: WorkerPlan, generator: random.Random) -> Iterator[Choice]:
    mix = [plan.scenario.holds[METHODS[method]] for method in plan.methods]
    cells = {cell.interface: index for index, cell in enumerate(plan.cells)}
    draw = _drawer(generator, plan.methods, mix)
    uniform = generator.random
    for number in count():
        method = draw()
        file = plan.files[int(uniform() * len(plan.files))]
        pages = 1 + int(uniform() * _LONGEST_HELD_PAGES)
        first = int(uniform() * (FILE_SIZE // PAGE_SIZE - pages))
        hold_ns = _SHORTEST_HOLD_NS + int(uniform() * (_LONGEST_HOLD_NS - _SHORTEST_HOLD_NS))
        into = METHODS[method].into and uniform() < 0.5  # noqa: PLR2004 - both ways alike
        yield Choice(
            number,
            cells[METHODS[method].interface],
            Operation.HOLD,
            0,
            file,
            first * PAGE_SIZE,
            pages * PAGE_SIZE,
            int(into),
            method,
            hold_ns,
        )


def _range(operation: Operation, pages: int, generator: random.Random) -> tuple[int, int]:
    """Draw first page and number of pages; truncations have a new size and no length."""
    draw = generator.random()
    match operation:
        case Operation.TRUNCATE_ZERO | Operation.OPEN_TRUNCATE:
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
