# SPDX-License-Identifier: GPL-2.0-only
"""The workers of a run: their roles, regions, files and choices."""

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
    """Everything that determines the operations of a worker."""

    name: str
    role: Role
    index: int
    cells: tuple[Cell, ...]
    regions: tuple[PlannedRegion, ...]
    files: tuple[int, ...]
    scenario: Scenario
    seed: int
    # Indices into METHODS of the pins that the holder, or the pair's holder, takes.
    methods: tuple[int, ...] = ()
    # The pair of a trial worker.
    pair: str = ""
    # The interface of a mapper, and the index of its PCI function in [vfio] devices.
    long_term: LongTermInterface | None = None
    function: int | None = None

    @cached_property
    def _trials(self) -> TrialPlan:
        return TrialPlan(self.seed, self.pair, self.methods)

    @cached_property
    def _positions(self) -> dict[tuple[Operation, Interface], int]:
        return {(cell.operation, cell.interface): at for at, cell in enumerate(self.cells)}

    def trial_choices(self, number: int) -> tuple[Choice, Choice]:
        """Return the choices of a trial worker in trial `number`."""
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
        """Draw choices without end. Outside trials each incarnation draws its own sequence."""
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
    """Plan all workers of a run.

    Raises:
        UsageError: the scenario is unknown, or a worker has no region or no file.
    """
    scenario = find_scenario(workload.scenario)
    plans = list(_plan_mappers(regions, workload, scenario, seed))
    files = [region for region in regions if region.kind is RegionKind.FS_DAX]
    if files:
        plans += _plan_invalidators(files, workload.invalidators, scenario, seed)
        # Transfers need block devices.
        methods = available(transfers=bool(workload.slow_devices))
        plans += _plan_holders(files, workload.holders, methods, scenario, seed)
        for index in range(workload.trials):
            plans += _plan_pair(index, files[index % len(files)], methods, scenario, seed)
    return plans


def _plan_mappers(
    regions: Sequence[PlannedRegion], workload: WorkloadSection, scenario: Scenario, seed: int
) -> Iterator[WorkerPlan]:
    """Plan mappers over the interfaces in turn. The first PCI function belongs to probes."""
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
        # A file has one invalidator, whose choices track its size.
        first = index % len(regions)
        region, sharers = regions[first], len(range(first, number, len(regions)))
        files = range(index // len(regions), region.size // FILE_SIZE, sharers)
        if not files:
            raise UsageError(
                f"The region {region.name!r} has {region.size // FILE_SIZE} files of {FILE_SIZE} bytes "
                f"for {sharers} invalidators: increase its size, or use fewer invalidators."
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
                f"{FILE_SIZE} bytes: increase its size, or use no holders."
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
    """Plan the holder and the invalidator of a pair, on a file of their own."""
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
