# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak run` in the guest of a lab: the host owns ledger and journal, and judges."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from soak.lab.guest.opened import opened_run
from soak.supervisor.assembly import Setting, run_soak
from soak.supervisor.hooks.uevents import UeventWatch, devices_in_use
from soak.supervisor.preparation import settled_writer

if TYPE_CHECKING:
    from soak.config.sections import Config
    from soak.lab.guest.opened import LabPlaces


def soak_in_lab(config: Config, places: LabPlaces) -> None:
    """Soak in a lab's guest.

    Raises:
        UsageError: the configuration does not fit the guest.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    with opened_run(config, places) as run:
        regions, journal = run.files.regions, run.journal
        used = devices_in_use(regions, config.vfio.devices)
        with contextlib.closing(UeventWatch(journal, used)) as uevents:
            setting = Setting(
                places.run_id,
                run.ledger,
                journal,
                places.control,
                (uevents, *([run.mirror] if run.mirror else [])),
                run.changes.readable_addresses(settled_writer(journal)),
                in_lab=True,
            )
            run_soak(run.plan, regions, run.workers, setting)
