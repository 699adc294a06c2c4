# SPDX-License-Identifier: GPL-2.0-only
"""Setup of a soak or benchmark in the guest of a lab: machine, ledger, journal and regions."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.journal.writer import PortJournal
from soak.machine.changes import MachineChanges
from soak.machine.fitness import require_fit_config
from soak.supervisor.mirror import place_ledger
from soak.supervisor.preparation import RegionFiles, prepared_machine
from soak.supervisor.workers import RunWorkers
from soak.workload.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.config.sections import Config
    from soak.ledger.writer import Ledger
    from soak.supervisor.mirror import Mirror
    from soak.workload.plan import RunPlan

_STATE: Final = Path("/run/dax-soak-changes")
# On tmpfs, for a guest whose memory shared with the host is slow.
_MIRRORED_LEDGER: Final = Path("/run/dax-soak-ledger")


@dataclass(frozen=True)
class LabPlaces:
    """Paths in the guest to the files and ports of the host."""

    run_id: str
    ledger: Path
    journal: Path
    control: Path
    mirror: bool


@dataclass(frozen=True)
class OpenedRun:
    """A run in the guest, ready to start. `mirror` is None if the shared memory is fast."""

    plan: RunPlan
    workers: RunWorkers
    files: RegionFiles
    ledger: Ledger
    mirror: Mirror | None
    journal: PortJournal
    changes: MachineChanges


@contextlib.contextmanager
def opened_run(config: Config, places: LabPlaces) -> Iterator[OpenedRun]:
    """Prepare the guest and open everything; restore and close it on exit.

    Raises:
        UsageError: the configuration does not fit the guest.
    """
    port = os.open(places.journal, os.O_RDWR | os.O_CLOEXEC)
    with (
        MachineChanges.open(_STATE, places.run_id) as changes,
        contextlib.closing(PortJournal(port)) as journal,
    ):
        recovered = changes.recover()
        require_fit_config(config, make_plan)
        ledger, mirror = place_ledger(places.ledger, _MIRRORED_LEDGER, always=places.mirror)
        with (
            prepared_machine(config, places.run_id, changes, journal, recovered),
            contextlib.closing(RegionFiles(config, changes, journal)) as files,
        ):
            plan = make_plan(config, files.regions)
            workers = RunWorkers(plan, files.regions, ledger)
            files.given_up = workers.given_up_files
            yield OpenedRun(plan, workers, files, ledger, mirror, journal, changes)
