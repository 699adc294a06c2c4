# SPDX-License-Identifier: GPL-2.0-only
"""Runs periodic jobs; one that fails does not affect the others.

`schedule` keeps the jobs and runs the due ones, in order. It uses naive local time, which jumps when the
clock is set and twice a year. So this module decides on the monotonic clock when a job is due, and
before each poll converts that to the local time that `schedule` compares with.
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
    """When a job is due next, in monotonic nanoseconds, and its interval."""

    job: Any  # schedule.Job, which has no type information
    interval_ns: int
    due_ns: int

    def pass_by(self, now_ns: int) -> None:
        """Advance to the first turn after now. Skips missed turns and keeps the phase."""
        missed = max(now_ns - self.due_ns, 0) // self.interval_ns
        self.due_ns += (missed + 1) * self.interval_ns


class Jobs:
    """Owns the jobs of a supervisor, and keeps their statistics in its block (field `jobs`)."""

    def __init__(self, block: BlockWriter, journal: Journal, *, day_seconds: float = DAY_SECONDS) -> None:
        self._block = block
        self._journal = journal
        self._day_seconds = day_seconds
        self._scheduler = schedule.Scheduler()
        self._turns: list[_Turn] = []

    def every(
        self, name: str, seconds: float, work: Callable[[], None], *, first: float | None = None
    ) -> None:
        """Run a job every `seconds` seconds, the first time after `first` (default: `seconds`).

        Raises:
            ValueError: the interval is not positive, or the ledger has no job of this name.
        """
        if seconds <= 0:
            raise ValueError(f"the interval of job {name} is {seconds:g} s, and must be positive")
        self._block.index("jobs", name, "runs")
        # run_pending() sets the due time before each poll.
        job = self._scheduler.every().seconds
        begin = time.monotonic_ns() + int((seconds if first is None else first) * 1e9)
        turn = _Turn(job, max(int(seconds * 1e9), 1), begin)
        self._turns.append(turn)
        job.do(self._run, name, turn, work)

    def daily(self, name: str, work: Callable[[], None], *, passed: float = 0.0) -> None:
        """Run a job after each day of the run, independent of the time of day.

        `passed` is the seconds that the run had soaked before this supervisor.
        """
        day = self._day_seconds
        self.every(name, day, work, first=day - passed % day)

    def run_pending(self) -> None:
        """Run each due job once, the most overdue first."""
        now_ns, now = time.monotonic_ns(), datetime.now()  # noqa: DTZ005 - as schedule has it
        for turn in self._turns:
            turn.job.next_run = now + timedelta(microseconds=(turn.due_ns - now_ns) / 1000)
        self._scheduler.run_pending()

    def _run(self, name: str, turn: _Turn, work: Callable[[], None]) -> None:
        """Run a job. Catches everything: `schedule` would run a raising job at every poll."""
        late_ns = time.monotonic_ns() - turn.due_ns
        if late_ns < 0:
            # The wall clock was set after run_pending() read it.
            return
        self._block.set_at("jobs", late_ns, name, "lateness_ns")
        self._block.add_at("jobs", 1, name, "runs")
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a failed job is logged, and the run goes on
            self._block.add_at("jobs", 1, name, "failures")
            self._journal.write(
                "job.failed", Level.ERROR, job=name, summary=f"job {name} failed: {error!r}"
            )
        finally:
            turn.pass_by(time.monotonic_ns())
