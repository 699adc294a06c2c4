# SPDX-License-Identifier: GPL-2.0-only
"""Scheduled work: coarse jobs that come round again and again, each guarded from the others.

`schedule` keeps the jobs and runs those that are due, in order. It reckons in naive local time, which
jumps when somebody sets the clock and twice a year by itself. When a job is due is therefore decided
here, on the monotonic clock: before each poll every job is told when that is, in the time that
`schedule` is about to compare it with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import schedule

from soak.journal.writer import Level

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter

DAY_SECONDS: Final = 86_400.0


@dataclass
class _Turn:
    """When a job is due, in monotonic nanoseconds, and how long it is from one turn to the next."""

    job: Any  # schedule.Job, which has no type information
    interval_ns: int
    due_ns: int

    def pass_by(self, now_ns: int) -> None:
        """Go on to the next turn after now. Turns that were missed are left out, and none moves."""
        missed = max(now_ns - self.due_ns, 0) // self.interval_ns
        self.due_ns += (missed + 1) * self.interval_ns


class Jobs:
    """Owns the jobs of a supervisor and notes in its block how they fare (field `jobs`)."""

    def __init__(self, block: BlockWriter, journal: Journal, *, day_seconds: float = DAY_SECONDS) -> None:
        self._block = block
        self._journal = journal
        self._day_seconds = day_seconds
        self._scheduler = schedule.Scheduler()
        self._turns: list[_Turn] = []

    def every(
        self, name: str, seconds: float, work: Callable[[], None], *, first: float | None = None
    ) -> None:
        """Have a job done every so many seconds, `first` (or as many) seconds from now on.

        Raises:
            ValueError: the interval is no time at all, or the ledger knows no job of this name.
        """
        if seconds <= 0:
            raise ValueError(f"the job {name} would be due every {seconds:g} s, and never done")
        self._block.index("jobs", name, "runs")
        # How long that is, is told again before each poll.
        job = self._scheduler.every().seconds
        begin = time.monotonic_ns() + int((seconds if first is None else first) * 1e9)
        turn = _Turn(job, max(int(seconds * 1e9), 1), begin)
        self._turns.append(turn)
        job.do(self._run, name, turn, work)

    def daily(self, name: str, work: Callable[[], None], *, passed: float = 0.0) -> None:
        """Have a job done after each day of the run, whatever the time of day is.

        `passed` seconds of the run were over already when this supervisor took over.
        """
        day = self._day_seconds
        self.every(name, day, work, first=day - passed % day)

    def run_pending(self) -> None:
        """Do each job that is due, once, the one that has waited longest first."""
        now_ns, now = time.monotonic_ns(), datetime.now()  # noqa: DTZ005 - as schedule has it
        for turn in self._turns:
            turn.job.next_run = now + timedelta(microseconds=(turn.due_ns - now_ns) / 1000)
        self._scheduler.run_pending()

    def _run(self, name: str, turn: _Turn, work: Callable[[], None]) -> None:
        """Do a job. One that raised would be tried at every poll and starve the others: none may."""
        late_ns = time.monotonic_ns() - turn.due_ns
        if late_ns < 0:
            # The clock was set just now, after this poll had read it.
            return
        self._block.set_at("jobs", late_ns, name, "lateness_ns")
        self._block.add_at("jobs", 1, name, "runs")
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it was, the run goes on and says so
            self._block.add_at("jobs", 1, name, "failures")
            self._journal.write(
                "job.failed", Level.ERROR, job=name, summary=f"the job {name} failed: {error!r}"
            )
        finally:
            turn.pass_by(time.monotonic_ns())
