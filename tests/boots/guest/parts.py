# SPDX-License-Identifier: GPL-2.0-only
"""Runs in a guest without an IOMMU: what needs a real kernel, and no soak.

A journal on a disk that gets full, what the survey says of such a machine, and scheduled jobs while the
clock is set, and summer time begins and ends.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import schedule

from soak.journal.writer import FileJournal
from soak.ledger.schema import soak_layout
from soak.ledger.writer import Ledger
from soak.machine.pci import objections
from soak.machine.survey import survey, text_of
from soak.supervisor.jobs import Jobs
from tests.boots.harness.in_guest import functions, play
from tests.journal import full_disk

if TYPE_CHECKING:
    from collections.abc import Callable

HOME: Final = Path("/run/jobs")
# The file systems of DAX memory are those of run directories, too.
DISK: Final = Path("/mnt/dax/run")
# Central European time as a rule, for a guest that has no table of zones.
ZONE: Final = "CET-1CEST,M3.5.0,M10.5.0/3"
INTERVAL: Final = 0.25
SECONDS: Final = 4.0
CHANGE_SECONDS: Final = 1.2
HALF_AN_HOUR: Final = 1800


@dataclass
class Watched:
    """When a job ran, in monotonic seconds."""

    runs: list[float] = field(default_factory=list)

    def note(self) -> None:
        self.runs.append(time.monotonic())

    def note_and_fail(self) -> None:
        self.note()
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def jump(seconds: float) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


def shortly_before(year: int, month: int, day: int) -> None:
    """Set the clock so that the hour, in which summer time begins or ends, is over at the change."""
    hour = datetime(year, month, day, 1, tzinfo=UTC).timestamp()
    time.clock_settime(time.CLOCK_REALTIME, hour - CHANGE_SECONDS)


def offset() -> object:
    return datetime.now().astimezone().utcoffset()


def watch(before: Callable[[], None], change: Callable[[], None]) -> dict[str, Any]:
    """Run jobs for a while, in the middle of which the clock changes."""
    mine, hourly, plain, plain_hourly = Watched(), Watched(), Watched(), Watched()
    before()
    offset_before = offset()
    JOBS_BLOCK.set("jobs", 0, *JOBS_BLOCK.index("jobs", "counters", "lateness_ns"))
    jobs, scheduler = Jobs(JOBS_BLOCK, JOURNAL), schedule.Scheduler()
    jobs.every("counters", INTERVAL, mine.note_and_fail)
    jobs.every("sweep", HALF_AN_HOUR, hourly.note)
    scheduler.every(1).seconds.do(plain.note)
    scheduler.every(HALF_AN_HOUR).seconds.do(plain_hourly.note)
    begun = looked = time.monotonic()
    longest = 0.0
    changed = False
    while looked - begun < SECONDS:
        if not changed and looked - begun > CHANGE_SECONDS:
            change()
            changed = True
        jobs.run_pending()
        scheduler.run_pending()
        time.sleep(0.02)
        now = time.monotonic()
        looked, longest = now, max(longest, now - looked)
    gaps = [later - earlier for earlier, later in zip(mine.runs, mine.runs[1:], strict=False)]
    index = JOBS_BLOCK.index("jobs", "counters", "lateness_ns")
    return {
        "offset changed": offset_before != offset(),
        "interval": INTERVAL,
        "runs": len(mine.runs),
        "longest gap": max(gaps),
        # For how long nobody looked which jobs were due. That is the machine's doing.
        "longest pause": longest,
        "seconds": looked - begun,
        "hourly": len(hourly.runs),
        "plain": len(plain.runs),
        "plain hourly": len(plain_hourly.runs),
        "lateness": JOBS_BLOCK.get("jobs", *index) / 1e9,
    }


def nothing() -> None:
    """The clock changes by itself, or is right to begin with."""


def disk_gets_full() -> dict[str, Any]:
    DISK.mkdir()
    return full_disk.scenario(DISK)


def surveyed() -> dict[str, Any]:
    return {
        "reasons": [objection.text() for objection in objections(functions()[0])],
        "survey": text_of(survey()),
    }


HOME.mkdir()
JOBS_BLOCK: Final = Ledger.create(HOME / "ledger", soak_layout({"regions": []}, [], [], lab=False)).block(
    "supervisor"
)
JOURNAL: Final = FileJournal(HOME / "journal.jsonl")
os.environ["TZ"] = ZONE
time.tzset()
play(
    {
        "full disk": disk_gets_full,
        "survey": surveyed,
        "back": lambda: watch(nothing, lambda: jump(-3600)),
        "forward": lambda: watch(nothing, lambda: jump(3600)),
        "a day forward": lambda: watch(nothing, lambda: jump(86400)),
        "summer time begins": lambda: watch(lambda: shortly_before(2027, 3, 28), nothing),
        "summer time ends": lambda: watch(lambda: shortly_before(2027, 10, 31), nothing),
    }
)
