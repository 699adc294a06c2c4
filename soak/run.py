"""One soak on this machine: the regions are opened, the parts are put together, the supervisor runs.

The guest of a lab runs this same thing; only its ledger and its journal lie elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.abi.btf import BtfError
from soak.abi.procfs import kernel_release
from soak.crew import Crew, Member
from soak.detectors.leaks import RegionLeaks
from soak.detectors.refusals import RefusalDetector
from soak.detectors.struct_pages import StructPages
from soak.errors import UsageError
from soak.expectations import parse_release
from soak.journal import FileJournal, Level, PortJournal
from soak.known_issues import KNOWN_ISSUES
from soak.ledger import Ledger
from soak.mirror import Mirror, place_ledger
from soak.plan import RunPlan, make_plan
from soak.regions import FsDaxRegion, open_region
from soak.regions.fs_dax import first_files
from soak.reporter import Reporter
from soak.schema import SUPERVISOR
from soak.supervisor import Supervisor
from soak.sweeper import Sweeper
from soak.vocabulary import Role
from soak.workload.invalidator import Invalidator
from soak.workload.mapper import Mapper
from soak.workload.worker import outcome_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from soak.config import Config
    from soak.journal import Journal
    from soak.ledger import BlockWriter
    from soak.regions import Region
    from soak.workload.choices import WorkerPlan
    from soak.workload.worker import Operator


# On tmpfs, where the memory that the host shares is slow.
_MIRRORED_LEDGER = Path("/run/dax-soak-ledger")


@dataclass(frozen=True)
class Places:
    """Where a run keeps what it writes. In a lab the host made the ledger and writes the journal."""

    run_id: str
    ledger: Path
    journal: Path
    in_lab: bool
    mirror: bool = False


def run_soak(config: Config, places: Places) -> None:
    """Soak, from the first check to the last line of the journal.

    Raises:
        UsageError: the configuration does not fit this machine.
    """
    os.environ["TZ"] = "UTC"  # schedule reckons in local time, which summer time makes jump
    time.tzset()
    regions = [open_region(section) for section in config.regions]
    plan = make_plan(config, regions)
    functions = _functions(config)
    ledger, mirror = _open_ledger(plan, places)
    with contextlib.closing(_open_journal(places)) as journal, contextlib.ExitStack() as stack:
        leaks = _watch_leaks(regions, journal, stack)
        crew = _crew(plan, regions, functions, ledger)
        release = parse_release(kernel_release())
        block = ledger.block(SUPERVISOR)
        reporter = Reporter(block, journal)
        supervisor = Supervisor(
            block=block,
            crew=crew,
            journal=journal,
            reporter=reporter,
            refusals=RefusalDetector([member.block for member in crew.members], release),
            sweeper=Sweeper(
                block,
                journal,
                reporter,
                leaks,
                crew,
                probe_function=functions[0] if functions else None,
                known_issues=frozenset(
                    issue.name
                    for issue in KNOWN_ISSUES
                    if config.known_issues.get(issue.name, True)
                ),
            ),
            duration=config.run.duration,
            sweep_interval=config.leaks.sweep,
            run=_run_facts(plan, places),
            mirror=mirror,
        )
        supervisor.run()


def _run_facts(plan: RunPlan, places: Places) -> dict[str, Any]:
    return {
        "run_id": places.run_id,
        "seed": plan.config.run.seed,
        "scenario": plan.config.workload.scenario,
        "duration": plan.config.run.duration,
        "promised": plan.promised,
        "swept": [
            region.name for region in plan.regions if region.kind in {"device-dax", "fs-dax"}
        ],
    }


def _functions(config: Config) -> tuple[str, ...]:
    """Return the PCI functions: the first is for probes, the others are the mappers'."""
    needed = config.workload.mappers + 1
    if config.workload.mappers and len(config.vfio.devices) < needed:
        raise UsageError(
            f"{config.workload.mappers} mappers need {needed} PCI functions in [vfio] devices (one "
            f"for each and one for probes), and there are {len(config.vfio.devices)}."
        )
    return config.vfio.devices


def _open_ledger(plan: RunPlan, places: Places) -> tuple[Ledger, Mirror | None]:
    if places.in_lab:
        return place_ledger(places.ledger, _MIRRORED_LEDGER, always=places.mirror)
    layout = plan.layout({"run_id": places.run_id}, lab=False)
    return Ledger.create(places.ledger, layout), None


def _open_journal(places: Places) -> FileJournal | PortJournal:
    if places.in_lab:
        return PortJournal(os.open(places.journal, os.O_RDWR | os.O_CLOEXEC))
    return FileJournal(places.journal)


def _watch_leaks(
    regions: Sequence[Region], journal: Journal, stack: contextlib.ExitStack
) -> list[RegionLeaks]:
    """Calibrate the regions whose pages can be read; where none can, say so and go on blind."""
    try:
        pages = stack.enter_context(StructPages())
        return [
            RegionLeaks(region, region.pages, pages)
            for region in regions
            if region.pages is not None
        ]
    except (OSError, BtfError, LookupError) as error:
        journal.write(
            "detector.failed", Level.ERROR, detector="leaks",
            summary=f"page references cannot be read on this kernel: {error}",
        )  # fmt: skip
        return []


def _crew(
    plan: RunPlan, regions: Sequence[Region], functions: Sequence[str], ledger: Ledger
) -> Crew:
    release = parse_release(kernel_release())
    blocks = {worker.name: ledger.block(worker.name) for worker in plan.workers}
    mappers = [worker for worker in plan.workers if worker.role is Role.MAPPER]
    quarantines = [blocks[worker.name].view("quarantine") for worker in mappers]
    members = [
        Member(
            worker,
            blocks[worker.name],
            outcome_columns(worker.cells, release),
            _operator_factory(worker, regions, functions, quarantines),
        )
        for worker in plan.workers
    ]
    return Crew(members, ledger.block(SUPERVISOR).view("pause"))


def _operator_factory(
    worker: WorkerPlan,
    regions: Sequence[Region],
    functions: Sequence[str],
    quarantines: Sequence[memoryview[int]],
) -> Callable[[BlockWriter], Operator]:
    if worker.role is Role.MAPPER:
        return functools.partial(
            _make_mapper, regions=regions, function=functions[worker.index + 1]
        )
    position = next(
        index for index, region in enumerate(regions) if region.name == worker.regions[0].name
    )
    region = regions[position]
    if not isinstance(region, FsDaxRegion):
        raise TypeError(f"{worker.name} needs files, and {region.name} has none")
    first = first_files(regions)[position]
    own = [words[first:] for words in quarantines]

    def make_invalidator(_block: BlockWriter) -> Invalidator:
        return Invalidator(region, worker.files, own)

    return make_invalidator


def _make_mapper(block: BlockWriter, regions: Sequence[Region], function: str) -> Mapper:
    return Mapper(block, regions, function)
