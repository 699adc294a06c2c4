# SPDX-License-Identifier: GPL-2.0-only
"""Makes the workers of a run, with their operators: in `dax-soak run`, a lab and a benchmark."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from soak.abi.procfs import kernel_release
from soak.errors import UsageError
from soak.ledger.schema import SUPERVISOR
from soak.machine.changes import be_expendable
from soak.model.expectations import parse_release
from soak.model.vocabulary import Role
from soak.regions import FsDaxRegion
from soak.regions.fs_dax import first_files
from soak.workload.loop import outcome_columns
from soak.workload.operators.holder import Holder
from soak.workload.operators.invalidator import Invalidator
from soak.workload.operators.mapper import Mapper
from soak.workload.operators.trial import TrialHolder, TrialInvalidator
from soak.workload.pool import WorkerPool, WorkerProcess
from soak.workload.worker import WorkerLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.ledger.writer import BlockWriter, Ledger
    from soak.regions import Region
    from soak.workload.pins.long_term import LongTermPin
    from soak.workload.plan import RunPlan
    from soak.workload.worker import Operator
    from soak.workload.worker_plan import WorkerPlan


class RunWorkers:
    """Makes the worker processes and the operators of a plan, on open regions."""

    def __init__(self, plan: RunPlan, regions: Sequence[Region], ledger: Ledger) -> None:
        """Check that the plan has enough PCI functions.

        Raises:
            UsageError: there are too few for its mappers.
        """
        self._plan, self._regions = plan, regions
        self._supervisor = ledger.block(SUPERVISOR)
        self._blocks = {worker.name: ledger.block(worker.name) for worker in plan.workers}
        # Trial workers have their own files, and give them up by generation.
        self._quarantines = [
            self._blocks[worker.name].view("quarantine") for worker in plan.workers if not worker.pair
        ]
        self._first_files = first_files(regions)
        self._slow = [Path(path) for path in plan.config.workload.slow_devices]
        self._fast = [Path(path) for path in plan.config.workload.fast_devices]
        needed, devices = plan.functions, plan.config.vfio.devices
        if len(devices) < needed and needed > 1:
            raise UsageError(
                f"{needed - 1} mappers need {needed} PCI functions, one for each and one for probes; "
                f"[vfio] devices has {len(devices)}."
            )

    def pool(self) -> WorkerPool:
        """Return the pool of all workers, none of them started."""
        release = parse_release(kernel_release())
        processes = [
            WorkerProcess(
                worker,
                self._blocks[worker.name],
                outcome_columns(worker.cells, release),
                partial(self._operator, worker),
                self._first_files[self._position(worker)],
            )
            for worker in self._plan.workers
        ]
        config = self._plan.config
        memory = config.limits.memory or None
        limits = WorkerLimits(rate=config.workload.rate, enter=lambda: be_expendable(memory))
        block = self._supervisor
        return WorkerPool(processes, block.view("pause"), block.view("uncertain"), limits=limits)

    def mapper(self, worker: WorkerPlan, pin: LongTermPin) -> Mapper:
        """Return the operator of a mapper, which owns the pin from now on."""
        return Mapper(self._blocks[worker.name], self._regions, pin)

    def given_up_files(self) -> list[Path]:
        """Return the files that no worker may truncate or unlink any more in this run."""
        paths = [
            path for region in self._regions if isinstance(region, FsDaxRegion) for path in region.paths()
        ]
        files = []
        for worker in self._plan.workers:
            region, block = self._regions[self._position(worker)], self._blocks[worker.name]
            if worker.pair and isinstance(region, FsDaxRegion):
                (place,) = worker.files
                files += [region.trial_path(place, old) for old in range(block.get("generation"))]
            else:
                marks = block.view("quarantine")
                files += [path for path, mark in zip(paths, marks, strict=False) if mark]
        return files

    def _operator(self, worker: WorkerPlan, block: BlockWriter) -> Operator:
        """Make the operator of a worker, in the worker's own process."""
        if worker.long_term is not None:
            functions = self._plan.config.vfio.devices
            function = "" if worker.function is None else functions[worker.function]
            return self.mapper(worker, worker.long_term.open(function))
        position = self._position(worker)
        region = self._regions[position]
        if not isinstance(region, FsDaxRegion):
            raise TypeError(f"{worker.name} needs files, and {region.name} has none")
        if worker.pair:
            partner = self._partner(worker)
            if worker.role is Role.HOLDER:
                return TrialHolder(block, partner, worker, region, slow=self._slow, fast=self._fast)
            return TrialInvalidator(block, partner, worker, region)
        quarantines = [words[self._first_files[position] :] for words in self._quarantines]
        if worker.role is Role.HOLDER:
            return Holder(block, region, slow=self._slow, fast=self._fast, quarantines=quarantines)
        return Invalidator(region, worker.files, quarantines)

    def _partner(self, worker: WorkerPlan) -> BlockWriter:
        """Return the block of the other worker of a pair."""
        return next(
            self._blocks[other.name]
            for other in self._plan.workers
            if other.pair == worker.pair and other is not worker
        )

    def _position(self, worker: WorkerPlan) -> int:
        """Return the index of the worker's first region among all regions."""
        name = worker.regions[0].name
        return next(index for index, region in enumerate(self._regions) if region.name == name)
