# SPDX-License-Identifier: GPL-2.0-only
"""The plan of a run: regions, workers and ledger layout, made without access to a kernel.

The host of a lab makes the same plan as the guest, lays out the ledger from it and prints its choices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from soak.errors import UsageError
from soak.files.printable import shown
from soak.ledger.schema import soak_layout
from soak.model.cell import Cell
from soak.model.known_issues import KNOWN_ISSUES
from soak.model.vocabulary import Operation, RegionKind, Role
from soak.regions.fs_dax import FILE_SIZE, file_count
from soak.verdict import REQUIRED_ATTEMPTS, REQUIRED_TRIALS
from soak.workload.choices import Choice, PlannedRegion
from soak.workload.pins.methods import INTO_MEMORY, METHODS
from soak.workload.trials import pairings
from soak.workload.worker_plan import WorkerPlan, plan_workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from soak.config.sections import Config
    from soak.ledger.layout import Layout
    from soak.regions import Region

# A quarter of the mappings that a process may have (vm.max_map_count, 65530 by default).
_MOST_FILES: Final = 16384


@dataclass(frozen=True)
class RunPlan:
    """The workers of a run and their regions."""

    config: Config
    regions: tuple[PlannedRegion, ...]
    workers: tuple[WorkerPlan, ...]

    @property
    def functions(self) -> int:
        """Number of PCI functions: one for probes, and one for each mapper whose interface needs one."""
        return 1 + sum(worker.function is not None for worker in self.workers)

    @property
    def promised(self) -> dict[str, int]:
        """Completed operations that each cell needs before the run can pass.

        A cell of trials combines an operation with the interface of the pin.
        """
        crowd = [worker for worker in self.workers if not worker.pair]
        labels = dict.fromkeys(
            (cell.label for worker in crowd for cell in worker.cells), REQUIRED_ATTEMPTS
        )
        return labels | dict.fromkeys(self._trial_labels(), REQUIRED_TRIALS)

    def _trial_labels(self) -> list[str]:
        pairs = [worker for worker in self.workers if worker.pair]
        return [
            Cell(operation, RegionKind.FS_DAX, interface).label
            for worker in pairs[:1]
            for operation, interface in pairings(worker.methods)
        ]

    def layout(self, facts: dict[str, Any], *, lab: bool) -> Layout:
        """Lay out the ledger; `facts` (run_id, filesystem) go into its header."""
        run = {
            **facts,
            "seed": self.config.run.seed,
            "scenario": self.config.workload.scenario,
            "duration_seconds": self.config.run.duration,
            "regions": [
                {
                    "name": region.name,
                    "kind": region.kind,
                    "size": region.size,
                    "files": file_count(region),
                }
                for region in self.regions
            ],
        }
        workers = [(worker.name, worker.role, worker.cells) for worker in self.workers]
        return soak_layout(run, workers, [issue.name for issue in KNOWN_ISSUES], lab=lab)

    def first_choices(self, count: int) -> Iterator[tuple[WorkerPlan, Choice]]:
        """Yield the first `count` choices of each worker."""
        for worker in self.workers:
            for choice, _ in zip(worker.choices(), range(count), strict=False):
                yield worker, choice


def make_plan(config: Config, regions: Sequence[Region] | None = None) -> RunPlan:
    """Plan a run with the sizes of `regions`, or else with the configured sizes.

    Raises:
        UsageError: a known issue or the scenario is unknown, or the regions do not suit the workers.
    """
    check_known_issues(config)
    if regions is None:
        planned = [PlannedRegion(section.name, section.kind, section.size) for section in config.regions]
    else:
        planned = [PlannedRegion(region.name, region.kind, region.size) for region in regions]
    _check_files(planned)
    workers = plan_workers(planned, config.workload, config.run.seed)
    return RunPlan(config, tuple(planned), tuple(workers))


def _check_files(regions: Sequence[PlannedRegion]) -> None:
    """Refuse more files than a worker can map: each file takes one mapping."""
    count = sum(file_count(region) for region in regions)
    if count > _MOST_FILES:
        largest = max(regions, key=file_count)
        raise UsageError(
            f"The fs-dax regions have {count} files of {FILE_SIZE >> 20} MiB, expected at most "
            f"{_MOST_FILES} ({_MOST_FILES * FILE_SIZE >> 30} GiB): give the region {largest.name!r} a "
            f"smaller size."
        )


def check_known_issues(config: Config) -> None:
    """Check the names in [known-issues].

    Raises:
        UsageError: a name is unknown.
    """
    known = {issue.name for issue in KNOWN_ISSUES}
    for name in config.known_issues:
        if name not in known:
            raise UsageError(
                f"[known-issues] unknown issue {shown(name)} (choose from {', '.join(sorted(known))})."
            )


def with_overrides(
    config: Config, *, duration: float | None, seed: int | None, scenario: str | None
) -> Config:
    """Return the configuration with the command line's options applied."""
    run, workload = config.run, config.workload
    if duration is not None:
        run = replace(run, duration=duration)
    if seed is not None:
        run = replace(run, seed=seed)
    if scenario is not None:
        workload = replace(workload, scenario=scenario)
    return replace(config, run=run, workload=workload)


def choice_line(worker: WorkerPlan, choice: Choice) -> str:
    """Format a choice as one line."""
    region = worker.regions[choice.region]
    where = f"file {choice.place}" if worker.files else f"slot {choice.place}"
    return (
        f"{worker.name} {choice.number} {choice.operation} {region.name} {where} "
        f"offset {choice.offset} length {choice.length}"
        + (f" access {_ACCESS[choice.access]}" if worker.role is Role.MAPPER else "")
        + (f" {_hold_text(choice)}" if choice.operation is Operation.HOLD else "")
    )


def _hold_text(choice: Choice) -> str:
    method = METHODS[choice.method]
    direction = "in" if choice.access & INTO_MEMORY else "out"
    return f"by {method.name} {direction} for {choice.hold_ns / 1e6:.1f} ms"


_ACCESS: Final = {1: "r", 2: "w", 3: "rw"}
