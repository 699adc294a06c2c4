# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the guest of a lab: soaks with blind detectors, until each has missed its canary.

It reports the journal of that run.
"""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.config.sections import parse_config
from soak.detectors.leaks.measure import RegionLeaks
from soak.detectors.refusals import RefusalDetector
from soak.detectors.stalls.judge import StallDetector
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.writer import Ledger
from soak.regions import open_regions
from soak.supervisor.assembly import Setting, run_soak
from soak.supervisor.workers import RunWorkers
from soak.workload.plan import make_plan
from tests.boots.harness.in_guest import report, step

if TYPE_CHECKING:
    from soak.detectors.leaks.measure import Held, Measurement

HOME: Final = Path("/run/soak")
CONFIG: Final = {
    "run": {"duration": 3600, "seed": 1},
    "region": [
        {"name": "dax", "kind": "device-dax", "path": "/dev/dax0.0"},
        {"name": "files", "kind": "fs-dax", "path": "/mnt/dax"},
    ],
    "workload": {"mappers": 0, "trials": 1},
    "leaks": {"sweep": 2},
    "canaries": {"every": 600},
}


def make_blind() -> None:
    """Have each detector go on looking and see nothing: what it measured first it always measures."""
    measure = RegionLeaks.measure
    first: dict[str, Measurement] = {}

    def stale(self: RegionLeaks, held: Held) -> Measurement:
        if self.region.name not in first:
            first[self.region.name] = measure(self, held)
        return first[self.region.name]

    RegionLeaks.measure = stale  # type: ignore[method-assign] # blind on purpose, as are those below
    RefusalDetector.look = lambda self: []  # type: ignore[method-assign]  # noqa: ARG005 - as it is called
    StallDetector.look = lambda self, now_ns: []  # type: ignore[method-assign]  # noqa: ARG005


def made(path: Path) -> Path:
    """Make a directory that the guest takes with it."""
    path.mkdir()
    return path


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    make_blind()
    soak = parse_config(CONFIG, "script")
    HOME.mkdir()
    regions = open_regions(soak.regions, made)
    plan = make_plan(soak, regions)
    ledger = Ledger.create(HOME / "ledger", plan.layout({"run_id": "blind"}, lab=False))
    promised: set[str] = set()
    missed: set[str] = set()

    def heard(line: dict[str, Any]) -> None:
        """End the soak when each detector has missed what was made for it."""
        if line["event"] == "canary.missed":
            missed.add(line["detector"])
            step(f"{line['detector']} missed its canary")
            if len(missed) == len(promised):
                os.kill(os.getpid(), signal.SIGTERM)
        elif line["event"] == "run.started":
            promised.update(line["canaries"])

    with FileJournal(HOME / "journal", on_line=heard) as journal:
        setting = Setting("blind", ledger, journal, HOME, (), nullcontext(), in_lab=False)
        run_soak(plan, regions, RunWorkers(plan, regions, ledger), setting)
    report("journal", list(read_journal(HOME / "journal")))


main()
