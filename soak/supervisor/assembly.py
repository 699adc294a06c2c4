# SPDX-License-Identifier: GPL-2.0-only
"""Assembles a soak from its parts, and runs its supervisor; on hardware and in the guest of a lab."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.abi.btf import BtfError
from soak.abi.procfs import boot_id, kernel_release
from soak.detectors.canaries.kinds import make_canaries
from soak.detectors.canaries.runner import Canaries
from soak.detectors.clock import SoakClock
from soak.detectors.leaks.measure import Account, RegionLeaks
from soak.detectors.leaks.recycler import Recycler
from soak.detectors.leaks.struct_pages import StructPages
from soak.detectors.leaks.sweeper import Sweeper, totals
from soak.detectors.refusals import RefusalDetector, Refusals
from soak.detectors.reporter import Reporter
from soak.detectors.stalls.judge import StallDetector
from soak.detectors.stalls.responder import StallWatch
from soak.journal.writer import Level
from soak.ledger.schema import (
    ACCOUNT_COLUMNS,
    CANARY_HOLDER,
    CANARY_INVALIDATOR,
    CANARY_REFUSED,
    SUPERVISOR,
    account_field,
    judged_field,
)
from soak.model.kernels import parse_release
from soak.model.known_issues import KNOWN_ISSUES
from soak.model.vocabulary import RegionKind, Role
from soak.regions import FsDaxRegion
from soak.supervisor.control import ControlSocket
from soak.supervisor.crash_log import report_crash_log
from soak.supervisor.mirror import Mirror
from soak.supervisor.summary import Summary
from soak.supervisor.supervisor import Supervisor
from soak.workload.pins.interfaces import chosen_interfaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter, Ledger
    from soak.model.kernels import Release
    from soak.regions import Region
    from soak.supervisor.hooks.base import Hook
    from soak.supervisor.workers import RunWorkers
    from soak.workload.pins.long_term import LongTermInterface
    from soak.workload.plan import RunPlan
    from soak.workload.pool import WorkerPool


@dataclass(frozen=True)
class Setting:
    """The environment of a run: its outputs and its hooks.

    `control` is the directory of the control socket. In a lab the host makes the ledger, writes the
    journal, and counts lost machines.
    """

    run_id: str
    ledger: Ledger
    journal: Journal
    control: Path
    hooks: tuple[Hook, ...]
    # Makes the kernel show symbol addresses inside its block.
    readable_addresses: AbstractContextManager[None]
    in_lab: bool


@dataclass(frozen=True)
class PriorRun:
    """The earlier supervisors of a run: none if `starts` is 0."""

    starts: int
    same_boot: bool

    @classmethod
    def of(cls, block: BlockWriter) -> PriorRun:
        return cls(block.get("starts"), block.text("boot_id") == boot_id())


def run_soak(plan: RunPlan, regions: Sequence[Region], workers: RunWorkers, setting: Setting) -> None:
    """Soak in opened regions, from the first calibration to the last journal line.

    Continues the ledger of an earlier supervisor of the run.
    """
    ledger, journal = setting.ledger, setting.journal
    config = plan.config
    probed = _probed(plan)
    with contextlib.ExitStack() as stack:
        block = ledger.block(SUPERVISOR)
        past = PriorRun.of(block)
        pool = workers.pool()
        if past.starts:
            pool.adopt()
        with setting.readable_addresses:
            leaks = _watch_leaks(regions, _accounts(regions, block, past), journal, stack)
        if past.starts and not past.same_boot:
            report_crash_log(block, journal, counts=not setting.in_lab)
            # The reboot has reset the reference counts.
            for watch in leaks:
                watch.renew(*totals(watch.region, block, pool))
        release = parse_release(kernel_release())
        control = stack.enter_context(ControlSocket(setting.control))
        reporter = Reporter(block, journal)
        clock = SoakClock()
        known_issues = frozenset(
            issue.name
            for issue in KNOWN_ISSUES
            if config.known_issues.get(issue.name, True) and release in issue.kernels
        )
        sweeper = Sweeper(
            block,
            journal,
            reporter,
            leaks,
            pool,
            open_pins={entry.interface: partial(entry.open, function) for entry, function in probed},
            known_issues=known_issues,
            canaries=[ledger.block(CANARY_HOLDER)],
        )
        stalls = StallWatch(
            block,
            journal,
            reporter,
            pool,
            detector=_stall_detector(
                plan, pool, ledger, clock, release, read=_read_before(pool, block, past)
            ),
            clock=clock,
            probe_directory=_probe_directory(regions),
            slow_device=next(map(Path, config.workload.slow_devices), None),
            known_issues=known_issues,
        )
        refusals = Refusals(_refusal_detector(pool, ledger, release), reporter)
        canaries = Canaries(
            block,
            journal,
            reporter,
            make_canaries(
                regions,
                ledger.block,
                clock,
                release,
                long_term=probed,
                threshold=config.stall.threshold,
                swept=[watch.region.name for watch in leaks],
            ),
            every=config.canaries.every,
            differences=sweeper.differences,
        )
        recycler = Recycler(
            block, journal, pool, sweeper, leaks, threshold=config.leaks.recycle, release=release
        )
        supervisor = Supervisor(
            block=block,
            pool=pool,
            journal=journal,
            reporter=reporter,
            detectors=[sweeper, stalls, refusals],
            recycler=recycler,
            canaries=canaries,
            summary=Summary(block, journal, [worker.block for worker in pool.workers]),
            clock=clock,
            duration=config.run.duration,
            sweep_interval=config.leaks.sweep,
            most_wedged=config.limits.wedged_workers,
            run={**_run_facts(plan, setting), "canaries": canaries.detectors},
            hooks=setting.hooks,
            control=control,
        )
        supervisor.run()


def _run_facts(plan: RunPlan, setting: Setting) -> dict[str, Any]:
    return {
        "run_id": setting.run_id,
        "seed": plan.config.run.seed,
        "scenario": plan.config.workload.scenario,
        "duration": plan.config.run.duration,
        "mirrored": any(isinstance(hook, Mirror) for hook in setting.hooks),
        "promised": plan.promised,
        "swept": [region.name for region in plan.regions if region.kind in {"device-dax", "fs-dax"}],
    }


def _probed(plan: RunPlan) -> list[tuple[LongTermInterface, str]]:
    """Return the interfaces that probes and canaries can use, each with the function to open it on."""
    functions = plan.config.vfio.devices
    return [
        (entry, functions[0] if entry.needs_function else "")
        for entry in chosen_interfaces(plan.config.workload.interfaces)
        if functions or not entry.needs_function
    ]


def _watch_leaks(
    regions: Sequence[Region],
    accounts: Mapping[str, Account],
    journal: Journal,
    stack: contextlib.ExitStack,
) -> list[RegionLeaks]:
    """Watch the regions with readable pages; without any, log `detector.failed` and go on.

    A region without an account is calibrated now.
    """
    try:
        pages = stack.enter_context(StructPages())
        return [
            RegionLeaks(region, region.pages, pages, accounts.get(region.name))
            for region in regions
            if region.pages is not None
        ]
    except (OSError, BtfError, LookupError) as error:
        journal.write(
            "detector.failed",
            Level.ERROR,
            detector="leaks",
            summary=f"page references cannot be read on this kernel: {error}",
        )
        return []


def _accounts(regions: Sequence[Region], block: BlockWriter, past: PriorRun) -> dict[str, Account]:
    """Return the regions' earlier baselines, if they are still valid."""
    accounts = {}
    for region in regions if past.starts and past.same_boot else ():
        _, *values = block.view(account_field(region.name))
        account = Account(**dict(zip(ACCOUNT_COLUMNS[1:], values, strict=True)))
        if account.idle:
            accounts[region.name] = account
    return accounts


def _read_before(pool: WorkerPool, block: BlockWriter, past: PriorRun) -> dict[str, tuple[int, int]]:
    """Return how far each worker's rings are judged; after a reboot that is all of them."""
    if past.same_boot:
        rows = block.view("read")
        return {
            worker.plan.name: (rows[2 * index], rows[2 * index + 1])
            for index, worker in enumerate(pool.workers)
        }
    return {
        worker.plan.name: (
            worker.block.get("ended"),
            worker.block.get("holds_begun") if worker.plan.role is Role.HOLDER else 0,
        )
        for worker in pool.workers
    }


def _refusal_detector(pool: WorkerPool, ledger: Ledger, release: Release) -> RefusalDetector:
    block, refused = ledger.block(SUPERVISOR), ledger.block(CANARY_REFUSED)
    return RefusalDetector(
        [*(worker.block for worker in pool.workers), refused],
        release,
        [
            *(block.view(judged_field(worker.plan.name)) for worker in pool.workers),
            # Earlier refusals of the canary are judged already.
            memoryview(bytearray(bytes(refused.view("counts")))).cast("Q"),
        ],
    )


def _stall_detector(
    plan: RunPlan,
    pool: WorkerPool,
    ledger: Ledger,
    clock: SoakClock,
    release: Release,
    *,
    read: Mapping[str, tuple[int, int]],
) -> StallDetector:
    workers = {
        worker.plan.name: (
            worker.plan.role,
            worker.block,
            tuple(region.name for region in worker.plan.regions),
        )
        for worker in pool.workers
    }
    files = tuple(region.name for region in plan.regions if region.kind is RegionKind.FS_DAX)
    holder, invalidator = ledger.block(CANARY_HOLDER), ledger.block(CANARY_INVALIDATOR)
    workers[CANARY_HOLDER] = (Role.HOLDER, holder, files)
    workers[CANARY_INVALIDATOR] = (Role.INVALIDATOR, invalidator, files)
    # Earlier operations of canaries are judged already.
    before = {
        CANARY_HOLDER: (0, holder.get("holds_begun")),
        CANARY_INVALIDATOR: (invalidator.get("ended"), 0),
    }
    bounds = plan.config.stall
    return StallDetector(
        workers,
        clock,
        release,
        late_ns=int(bounds.late * 1e9),
        stall_ns=int(bounds.threshold * 1e9),
        read={**read, **before},
    )


def _probe_directory(regions: Sequence[Region]) -> Path | None:
    return next((region.directory for region in regions if isinstance(region, FsDaxRegion)), None)
