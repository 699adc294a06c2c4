# SPDX-License-Identifier: GPL-2.0-only
"""Reports the deaths, restarts and failed starts of workers, in the ledger and the journal."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from soak.journal.writer import Level

if TYPE_CHECKING:
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.workload.pool import Death, WorkerPool


class WorkerEvents:
    """Reaps dead workers, which starts others in their place, and reports both."""

    def __init__(self, block: BlockWriter, journal: Journal, pool: WorkerPool) -> None:
        self._block, self._journal, self._pool = block, journal, pool
        self._unborn: set[str] = set()

    def reap(self) -> None:
        """Replace and report workers that died since the last call."""
        for death in self._pool.reap():
            self._report_death(death)

    def _report_death(self, death: Death) -> None:
        index = self._block.index("restarts", death.worker)
        by = (
            f"by {signal.Signals(death.signal_number).name}"
            if death.signal_number
            else f"with exit code {death.exit_code}"
        )
        self._journal.write(
            "worker.died",
            Level.WARNING,
            worker=death.worker,
            incarnation=death.incarnation,
            signal=death.signal_number,
            exit_code=death.exit_code,
            in_flight=death.in_flight,
            summary=f"{death.worker} ended {by}",
        )
        if death.gave_up:
            self._block.set("dead", 1, *index)
            self._journal.write(
                "harness.failed",
                Level.ERROR,
                worker=death.worker,
                summary=f"{death.worker} ends {by} right after each start; it is not restarted again",
            )
        else:
            self._block.add("restarts", 1, *index)
            if death.worker not in self._pool.unborn:
                self._journal.write("worker.restarted", worker=death.worker)

    def report_unborn(self) -> None:
        """Log which workers have no process, and when one has a process again."""
        unborn = self._pool.unborn
        for name in self._unborn - unborn.keys():
            self._journal.write("worker.restarted", worker=name)
        for name in unborn.keys() - self._unborn:
            self._journal.write(
                "worker.waits",
                Level.WARNING,
                worker=name,
                summary=f"{name} cannot be started ({unborn[name]}); retrying",
            )
        self._unborn = set(unborn)
