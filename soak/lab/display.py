# SPDX-License-Identifier: GPL-2.0-only
"""Shows the phases of a lab run's boot, then a summary of its ledger."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from soak.ledger.view import LedgerView

if TYPE_CHECKING:
    from soak.lab.progress import Progress
    from soak.lab.request import LabRequest
    from soak.ledger.reader import LedgerReader


class Display:
    """Shows the phases of a boot, and then the ledger.

    `begun` is the number of operations before this boot, for a resumed run.
    """

    def __init__(self, progress: Progress, request: LabRequest, begun: int) -> None:
        self._progress = progress
        self._request = request
        self._begun_before = begun
        self._seen_first = False

    @property
    def elapsed(self) -> float:
        """Seconds since the command started."""
        return time.monotonic() - self._request.began

    def answered(self, release: str) -> None:
        """Show that the guest's first process runs, and on which kernel."""
        self._progress.say(f"Linux {release} answers after {self.elapsed:.1f} s")

    def covered(self) -> None:
        self._progress.say("Everything promised was covered: the soak ends.")

    def show(self, reader: LedgerReader, *, booted: bool, ready: bool) -> float | None:
        """Show the current state; return the elapsed seconds when the first operation appears."""
        ledger = LedgerView(reader, time.time_ns())
        if ledger.begun <= self._begun_before:
            phase = self._request.doing if ready else _PHASES[booted]
            self._progress.tick(f"{self.elapsed:5.1f} s  {phase}")
            return None
        first = None if self._seen_first else self.elapsed
        self._seen_first = True
        if first is not None:
            self._progress.say(f"First operation after {first:.1f} s")
        duration = self._request.config.run.duration
        self._progress.tick(self._progress.ledger_line(ledger, duration))
        return first


_PHASES = {False: "booting", True: "preparing NVDIMM, file systems and disks"}
