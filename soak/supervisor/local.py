# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak run`: soaks on this machine's own devices."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak import run_directory
from soak.abi.mounts import filesystem_of
from soak.abi.procfs import boot_id
from soak.config.listen import parse_listen
from soak.errors import UsageError
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import SUPERVISOR
from soak.log import configure, log_event
from soak.machine.changes import MachineChanges, protect_supervisor
from soak.machine.fitness import require_fit_config
from soak.model.exit_codes import PLAIN
from soak.process.http_probe import ExporterProbe
from soak.regions import FsDaxRegion
from soak.report.text import publish
from soak.supervisor.assembly import Setting, run_soak
from soak.supervisor.control import ending_signals
from soak.supervisor.hooks.exporter import ExporterKeeper, ExporterProcess
from soak.supervisor.hooks.systemd import Service
from soak.supervisor.hooks.uevents import UeventWatch, devices_in_use
from soak.supervisor.hooks.verdict import VerdictKeeper
from soak.supervisor.ledger_store import LedgerStore, rescue_ledgers
from soak.supervisor.preparation import RegionFiles, prepared_machine, settled_writer
from soak.supervisor.restoring import STATE
from soak.supervisor.resume import ChosenRun, choose_run
from soak.supervisor.workers import RunWorkers
from soak.verdict import Judge
from soak.workload.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from soak.config.sections import Config
    from soak.machine.changes import Settled
    from soak.regions import Region
    from soak.supervisor.hooks.base import Hook
    from soak.verdict import Verdict

_ENDING_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Serving:
    """Which exporter serves the metrics: the run's own at `listen`, or a service at `watched`."""

    listen: str
    watched: str | None


def soak_here(
    config: Config, run_dir: Path | None, serving: Serving, *, resume: bool, strict: bool
) -> int:
    """Soak on this machine's own devices and return the exit code of the verdict.

    With `resume` continue the newest interrupted run.

    Raises:
        UsageError: the configuration does not fit the machine, which stays unchanged.
    """
    _check_root()
    # Block the ending signals until the supervisor waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    chosen = choose_run(config, run_dir, resume=resume)
    configure(program="dax-soak", run=chosen.run_id, boot=boot_id())
    with contextlib.ExitStack() as owning:
        with MachineChanges.open(STATE, chosen.run_id) as changes:
            recovered = [*changes.recover(), *rescue_ledgers(but=chosen.run_id)]
            try:
                require_fit_config(config, make_plan)
            except UsageError:
                # There is no journal yet to write these to.
                for settled in recovered:
                    log_event({"event": settled.event, "level": settled.level, **settled.fields})
                raise
            directory = owning.enter_context(chosen.open()).path
            try:
                verdict = _soak_in(directory, chosen, changes, recovered, serving, strict=strict)
            except UsageError:
                if not chosen.resumed:
                    run_directory.discard(directory)
                raise
        publish(verdict, directory)
    return PLAIN.verdicts[verdict.verdict]


def _soak_in(
    directory: Path,
    chosen: ChosenRun,
    changes: MachineChanges,
    recovered: Sequence[Settled],
    serving: Serving,
    *,
    strict: bool,
) -> Verdict:
    """Soak in a run directory, and undo all changes to the machine at the end."""
    config, judge = chosen.config, Judge(strict)
    for event in read_journal(directory / run_directory.JOURNAL) if chosen.resumed else ():
        judge.add(event)

    def on_line(line: dict[str, object]) -> None:
        judge.add(line)
        log_event(line)
        if line["event"] == "run.started":
            run_directory.note_begun(directory)

    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(FileJournal(directory / run_directory.JOURNAL, on_line=on_line))
        exporter = None
        if serving.watched is None:
            # It starts while the machine is prepared, and listens once the ledger exists. The exporter of
            # a killed soak may hold the port for some seconds.
            bind_seconds = _ENDING_SECONDS if chosen.resumed else 0.0
            exporter = stack.enter_context(
                contextlib.closing(ExporterProcess(directory, serving.listen, bind_seconds=bind_seconds))
            )
        with (
            prepared_machine(config, chosen.run_id, changes, journal, recovered),
            contextlib.closing(RegionFiles(config, changes, journal)) as files,
        ):
            regions = files.regions
            plan = make_plan(config, regions)
            layout = plan.layout({"run_id": chosen.run_id, "filesystem": _filesystem(regions)}, lab=False)
            store = LedgerStore(directory, chosen.run_id, layout, journal, resumed=chosen.resumed)
            stack.callback(store.close)
            workers = RunWorkers(plan, regions, store.ledger)
            files.given_up = workers.given_up_files
            block = store.ledger.block(SUPERVISOR)
            keeper = VerdictKeeper(judge, block)
            stack.callback(keeper.sampled)
            hooks: list[Hook] = [store, keeper]
            if exporter is not None:
                journal.write("exporter.started", address=exporter.address)
                hooks.append(ExporterKeeper(exporter, journal))
            uevents = UeventWatch(journal, devices_in_use(regions, config.vfio.devices))
            stack.enter_context(contextlib.closing(uevents))
            service = stack.enter_context(Service(block, journal, _probe(serving)))
            hooks += [service, uevents]
            protect_supervisor()
            setting = Setting(
                chosen.run_id,
                store.ledger,
                journal,
                directory,
                tuple(hooks),
                changes.readable_addresses(settled_writer(journal)),
                in_lab=False,
            )
            run_soak(plan, regions, workers, setting)
    return judge.verdict()


def _check_root() -> None:
    if os.geteuid() != 0:
        raise UsageError(
            "'dax-soak run' needs root to bind PCI functions and read kernel memory: run it as root, or "
            "use 'dax-soak lab', which does not need root."
        )


def _filesystem(regions: Sequence[Region]) -> str:
    """Return the file system of the first fs-dax region."""
    region = next((region for region in regions if isinstance(region, FsDaxRegion)), None)
    return filesystem_of(region.disk) if region is not None else "none"


def _probe(serving: Serving) -> ExporterProbe | None:
    if serving.watched is None:
        return None
    return ExporterProbe(*parse_listen(serving.watched, "--watch-exporter"))
