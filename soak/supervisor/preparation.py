# SPDX-License-Identifier: GPL-2.0-only
"""Prepares a machine, real or a lab's guest, for a soak, and restores it afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.journal.writer import Level
from soak.machine.changes import Demand, raise_limits
from soak.regions import open_regions
from soak.regions.fs_dax import file_count
from soak.regions.transfer_disks import mark_disks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from soak.config.sections import Config
    from soak.journal.writer import Journal
    from soak.machine.changes import MachineChanges, Settled

_DRIVER: Final = "vfio-pci"


@contextlib.contextmanager
def prepared_machine(
    config: Config, run_id: str, changes: MachineChanges, journal: Journal, recovered: Sequence[Settled]
) -> Iterator[None]:
    """Bind PCI functions, tune sysctls and mark disks; at the end undo everything but the marks."""
    write = settled_writer(journal)
    for settled in recovered:
        write(settled)
    try:
        raise_limits()
        if config.vfio.devices:
            changes.load_module(_DRIVER)
        for function in config.vfio.devices:
            changes.bind(function)
        changes.tune(_demand(config))
        disks = (*config.workload.slow_devices, *config.workload.fast_devices)
        mark_disks([Path(disk) for disk in disks], run_id)
        yield
    finally:
        for settled in changes.restore():
            write(settled)


class RegionFiles:
    """The regions of a run and their files, in directories that the end of the run removes."""

    def __init__(self, config: Config, changes: MachineChanges, journal: Journal) -> None:
        self._changes, self._journal = changes, journal
        self.regions = open_regions(config.regions, changes.make_directory)
        # Returns the files that must not be touched again; set once the ledger exists.
        self.given_up: Callable[[], list[Path]] = list

    def close(self) -> None:
        """Keep the directories whose files hang in the kernel."""
        left = self.given_up()
        for directory in sorted({path.parent for path in left}):
            self._changes.leave_directory(directory)
        if left:
            names = [str(path) for path in left]
            self._journal.write(
                "files.left",
                Level.WARNING,
                files=names,
                summary=f"files that hang in the kernel were left behind: {', '.join(names)}",
            )


def settled_writer(journal: Journal) -> Callable[[Settled], None]:
    def write(settled: Settled) -> None:
        journal.write(settled.event, settled.level, **settled.fields)

    return write


def _demand(config: Config) -> Demand:
    """Compute the workers' use of limited kernel resources."""
    workload = config.workload
    files = [file_count(region) for region in config.regions]
    return Demand(aio_contexts=workload.holders + workload.trials + 1, mappings=max(files, default=0))
