# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak run` in the guest of a lab: ledger and journal are the host's, which also judges."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.journal.writer import PortJournal
from soak.machine.changes import MachineChanges
from soak.machine.fitness import require_fit_config
from soak.supervisor.assembly import Setting, given_up_files, run_soak
from soak.supervisor.hooks.uevents import UeventWatch, things_in_use
from soak.supervisor.mirror import place_ledger
from soak.supervisor.preparation import RegionFiles, prepared_machine, teller
from soak.workload.plan import make_plan

if TYPE_CHECKING:
    from soak.config.sections import Config

_STATE: Final = Path("/run/dax-soak-changes")
# On tmpfs, where the memory that the host shares is slow.
_MIRRORED_LEDGER: Final = Path("/run/dax-soak-ledger")


@dataclass(frozen=True)
class LabPlaces:
    """Where the guest of a lab finds what its host made."""

    run_id: str
    ledger: Path
    journal: Path
    control: Path
    mirror: bool


def soak_in_lab(config: Config, places: LabPlaces) -> None:
    """Soak in the guest of a lab, whose host keeps ledger and journal, and judges.

    Raises:
        UsageError: the configuration does not fit the guest.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
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
            contextlib.closing(
                UeventWatch(journal, things_in_use(files.regions, config.vfio.devices))
            ) as uevents,
        ):
            plan = make_plan(config, files.regions)
            files.given_up = lambda: given_up_files(plan, files.regions, ledger)
            setting = Setting(
                places.run_id,
                ledger,
                journal,
                places.control,
                (uevents, *([mirror] if mirror else [])),
                changes.readable_addresses(teller(journal)),
                in_lab=True,
            )
            run_soak(config, plan, files.regions, setting)
