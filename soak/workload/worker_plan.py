# SPDX-License-Identifier: GPL-2.0-only
"""Which workers a run has, what each of them may touch, and what it does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING

from soak.errors import UsageError
from soak.model.cell import Cell
from soak.model.vocabulary import Interface, Operation, RegionKind, Role
from soak.regions.fs_dax import FILE_SIZE
from soak.workload.choices import Choice, holder_choices, invalidator_choices, mapper_choices
from soak.workload.operations.table import FILE_OPERATIONS
from soak.workload.pins.interfaces import chosen_interfaces
from soak.workload.pins.methods import METHODS, available
from soak.workload.scenarios import find_scenario
from soak.workload.trials import TrialPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from soak.config.sections import WorkloadSection
    from soak.workload.choices import PlannedRegion
    from soak.workload.pins.long_term import LongTermInterface
    from soak.workload.scenarios import Scenario

_FAULT = Cell(Operation.FAULT, RegionKind.FS_DAX, Interface.NONE)


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
    # The interface of a mapper, and the position of its PCI function in [vfio] devices.
    long_term: LongTermInterface | None = None
    function: int | None = None

    @cached_property
    def _trials(self) -> TrialPlan:
        return TrialPlan(self.seed, self.pair, self.methods)

    @cached_property
    def _positions(self) -> dict[tuple[Operation, Interface], int]:
        return {(cell.operation, cell.interface): at for at, cell in enumerate(self.cells)}

    def trial_choices(self, number: int) -> tuple[Choice, Choice]:
        """Return what a worker of trials does in the trial of this number."""
        trial = self._trials.trial(number)
        first, second = 2 * number, 2 * number + 1
        (place,) = self.files
        if self.role is Role.HOLDER:
            pinned = (0, place, trial.offset, trial.length)
            hold = self._positions[Operation.HOLD, METHODS[trial.method].interface]
            how = (int(trial.into), trial.method, trial.hold_ns)
            fault = self._positions[_FAULT.operation, _FAULT.interface]
            return (
                Choice(first, fault, Operation.FAULT, *pinned, 0),
                Choice(second, hold, Operation.HOLD, *pinned, *how),
            )
        operation, empty = trial.operation, Operation.TRUNCATE_ZERO
        taken = (0, place, trial.taken_offset, trial.taken_length)
        when = (0, trial.method, trial.delay_ns)
        return (
            Choice(first, self._positions[operation, Interface.NONE], operation, *taken, *when),
            Choice(second, self._positions[empty, Interface.NONE], empty, 0, place, 0, 0, 0),
        )

    def choices(self, incarnation: int = 0) -> Iterator[Choice]:
        """Draw without end. Each incarnation of a worker draws other choices."""
        if self.pair:
            return chain.from_iterable(self.trial_choices(number) for number in count())
        key = f"{self.seed}/{self.name}/{incarnation}"
        generator = random.Random(key)  # noqa: S311 - repeatable on purpose
        if self.role is Role.MAPPER:
            return mapper_choices(self.scenario, self.cells, self.regions, generator)
        if self.role is Role.HOLDER:
            return holder_choices(self.scenario, self.cells, self.files, self.methods, generator)
        return invalidator_choices(self.scenario, self.cells, self.files, generator)


def plan_workers(
    regions: Sequence[PlannedRegion], workload: WorkloadSection, seed: int
) -> list[WorkerPlan]:
    """Decide which workers there are and what each may touch.

    Raises:
        UsageError: there is no such scenario, or a worker has nothing to work on.
    """
    scenario = find_scenario(workload.scenario)
    plans = list(_plan_mappers(regions, workload, scenario, seed))
    files = [region for region in regions if region.kind is RegionKind.FS_DAX]
    if files:
        plans += _plan_invalidators(files, workload.invalidators, scenario, seed)
        # Without block devices there are no transfers.
        methods = available(transfers=bool(workload.slow_devices))
        plans += _plan_holders(files, workload.holders, methods, scenario, seed)
        for index in range(workload.trials):
            plans += _plan_pair(index, files[index % len(files)], methods, scenario, seed)
    return plans


def _plan_mappers(
    regions: Sequence[PlannedRegion], workload: WorkloadSection, scenario: Scenario, seed: int
) -> Iterator[WorkerPlan]:
    """Plan mappers, which take the interfaces in turn. The first PCI function is for probes."""
    interfaces = chosen_interfaces(workload.interfaces)
    if workload.mappers and not regions:
        raise UsageError("There is no region to map: add a [[region]] to the configuration.")
    functions = count(1)
    for index in range(workload.mappers):
        long_term = interfaces[index % len(interfaces)]
        yield WorkerPlan(
            f"mapper-{index}",
            Role.MAPPER,
            index,
            _mapper_cells(regions, long_term.interface),
            tuple(regions),
            (),
            scenario,
            seed,
            long_term=long_term,
            function=next(functions) if long_term.needs_function else None,
        )


def _plan_invalidators(
    regions: Sequence[PlannedRegion], number: int, scenario: Scenario, seed: int
) -> Iterator[WorkerPlan]:
    for index in range(number):
        # A file has one invalidator, so that no other worker changes the size that it expects.
        first = index % len(regions)
        region, sharers = regions[first], len(range(first, number, len(regions)))
        files = range(index // len(regions), region.size // FILE_SIZE, sharers)
        if not files:
            raise UsageError(
                f"The region {region.name!r} has {region.size // FILE_SIZE} files of {FILE_SIZE} bytes "
                f"for {sharers} invalidators: give it a larger size, or have fewer invalidators."
            )
        yield WorkerPlan(
            f"invalidator-{index}",
            Role.INVALIDATOR,
            index,
            _file_cells(scenario.invalidations),
            (region,),
            tuple(files),
            scenario,
            seed,
        )


def _plan_holders(
    regions: Sequence[PlannedRegion], number: int, methods: Sequence[int], scenario: Scenario, seed: int
) -> Iterator[WorkerPlan]:
    mixed = tuple(method for method in methods if METHODS[method] in scenario.holds)
    for index in range(number):
        region = regions[index % len(regions)]
        if region.size < FILE_SIZE:
            raise UsageError(
                f"The region {region.name!r} has {region.size} bytes, and a holder needs a file of "
                f"{FILE_SIZE} bytes: give it a larger size, or have no holders."
            )
        yield WorkerPlan(
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


def _plan_pair(
    index: int, region: PlannedRegion, methods: tuple[int, ...], scenario: Scenario, seed: int
) -> Iterator[WorkerPlan]:
    """Plan the holder and the invalidator of a pair, which have a file to themselves."""
    file = region.size // FILE_SIZE + index
    aimed = [entry.operation for entry in FILE_OPERATIONS if entry.aim is not None]
    for role, cells in (
        (Role.HOLDER, (*_holder_cells(methods), _FAULT)),
        (Role.INVALIDATOR, _file_cells(aimed)),
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


def _mapper_cells(regions: Sequence[PlannedRegion], interface: Interface) -> tuple[Cell, ...]:
    kinds = dict.fromkeys(region.kind for region in regions)
    maps = [Cell(Operation.MAP, kind, interface) for kind in kinds]
    unmaps = [Cell(Operation.UNMAP, kind, interface) for kind in kinds if kind is not RegionKind.FS_DAX]
    return (*maps, *unmaps)


def _file_cells(operations: Iterable[Operation]) -> tuple[Cell, ...]:
    return tuple(Cell(operation, RegionKind.FS_DAX, Interface.NONE) for operation in operations)


def _holder_cells(methods: Sequence[int]) -> tuple[Cell, ...]:
    interfaces = dict.fromkeys(METHODS[method].interface for method in methods)
    return tuple(Cell(Operation.HOLD, RegionKind.FS_DAX, interface) for interface in interfaces)
