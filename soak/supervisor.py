"""The supervisor: it starts the workers, runs the detectors and the scheduled jobs, keeps the journal.

It makes no call that can hang. A beat is a tenth of a second; coarse jobs are scheduled, everything that
measures time uses the monotonic clock.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import schedule

from soak.abi.procfs import boot_id, foll_pins, kernel_release, locked_and_pinned_bytes, taint
from soak.journal import Level
from soak.reporter import REPORT_SECONDS
from soak.sweeper import FULL_HEADROOM_PPM
from soak.tally import completed_operations
from soak.vocabulary import Detector, RunState, VerdictWord

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.clock import SoakClock
    from soak.crew import Crew, Death
    from soak.detectors.refusals import RefusalDetector
    from soak.journal import Journal
    from soak.ledger import BlockWriter
    from soak.mirror import Mirror
    from soak.reporter import Reporter
    from soak.stall_watch import StallWatch
    from soak.sweeper import Sweeper

BEAT_SECONDS: Final = 0.1

_SAMPLE_SECONDS: Final = 10.0
_COUNTERS_SECONDS: Final = 5.0
_BARRIER_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Runs one soak, from its first worker to its last line in the journal."""

    def __init__(
        self,
        *,
        block: BlockWriter,
        crew: Crew,
        journal: Journal,
        reporter: Reporter,
        refusals: RefusalDetector,
        stalls: StallWatch,
        sweeper: Sweeper,
        clock: SoakClock,
        duration: float,
        sweep_interval: float,
        most_wedged: int,
        run: dict[str, Any],
        mirror: Mirror | None,
    ) -> None:
        self._block = block
        self._crew = crew
        self._journal = journal
        self._reporter = reporter
        self._refusals = refusals
        self._stalls = stalls
        self._sweeper = sweeper
        self._clock = clock
        self._duration = duration
        self._sweep_interval = sweep_interval
        self._most_wedged = most_wedged
        self._looked = 0.0
        self._run = run
        self._mirror = mirror
        self._jobs = schedule.Scheduler()
        self._failures: set[str] = set()

    def run(self) -> None:
        """Soak until the time is over or a signal says stop."""
        # From here on these signals are waited for, never handled in the middle of something.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, signal.SIGCHLD})
        self._begin()
        try:
            self._guarded(Detector.LEAKS, self._sweeper.probe)
            self._guarded(Detector.STALLS, self._stalls.probe)
            self._crew.start()
            self._block.set_word("state", RunState.RUNNING)
            self._journal.write("workers.started", workers=len(self._crew.members))
            why = self._soak()
        finally:
            self._end_workers()
        self._guarded(Detector.REFUSALS, self._look_for_refusals)
        self._guarded(Detector.STALLS, self._stalls.look)
        self._guarded(Detector.LEAKS, self._sweeper.sweep)
        self._reporter.flush()
        self._sample()
        self._journal.write("run.ended", why=why)
        self._block.set_word("state", RunState.ENDED)
        self._beat()

    def _begin(self) -> None:
        block = self._block
        block.set("pid", os.getpid())
        block.set_text("kernel_release", kernel_release())
        block.set_text("boot_id", boot_id())
        block.set_word("verdict", VerdictWord.UNKNOWN)
        block.set("started_ns", time.monotonic_ns())
        block.set("ends_ns", time.monotonic_ns() + int(self._duration * 1e9))
        block.set("coverage_cells_required", len(self._run["promised"]))
        for region in range(len(block.names("headroom_ppm"))):
            block.set("headroom_ppm", FULL_HEADROOM_PPM, region)
        self._beat()
        self._journal.write("machine.booted", kernel=kernel_release())
        self._journal.write("run.started", mirrored=self._mirror is not None, **self._run)
        uncovered = [cell.label for cell in self._refusals.uncovered()]
        for label in (*uncovered, *self._stalls.uncovered()):
            self._journal.write(
                "expectation.missing", Level.ERROR,
                summary=f"nobody has written down what the kernel owes for {label}",
            )  # fmt: skip

    def _soak(self) -> str:
        """Beat until the end; return why it came."""
        self._schedule("sweep", self._sweep_interval, self._sweep_between)
        self._schedule("sample", _SAMPLE_SECONDS, self._sample)
        self._schedule("counters", _COUNTERS_SECONDS, self._read_counters)
        end = time.monotonic() + self._duration
        while time.monotonic() < end:
            self._beat()
            self._look_for_stalls()
            for death in self._crew.reap():
                self._report_death(death)
            self._guarded(Detector.REFUSALS, self._look_for_refusals)
            self._jobs.run_pending()
            caught = signal.sigtimedwait({*_ENDING, signal.SIGCHLD}, BEAT_SECONDS)
            if caught is not None and caught.si_signo in _ENDING:
                return f"told to by {signal.Signals(caught.si_signo).name}"
            wedged = sum(member.abandoned for member in self._crew.members)
            if wedged > self._most_wedged:
                why = f"{wedged} workers hang in the kernel for good"
                self._journal.write(
                    "limit.reached", Level.ERROR, limit="wedged-workers", wedged=wedged,
                    summary=f"{why}, and no more than {self._most_wedged} may",
                )  # fmt: skip
                return why
        return "its time was over"

    def _beat(self) -> None:
        now = time.monotonic_ns()
        self._clock.beat(now)
        self._block.set("realtime_offset_ns", time.time_ns() - now)
        self._block.set("heartbeat_ns", now)
        self._block.add("heartbeats", 1)
        self._journal.retry()
        self._block.set("journal_errors", self._journal.errors)
        if self._mirror is not None:
            self._mirror.copy()

    def _schedule(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        """Have a coarse job done again and again.

        A job that raised would be tried at every poll and starve those behind it, so nothing may.
        """

        def run() -> None:
            due = job.next_run
            if due is not None:
                # schedule reckons in naive local time, which is UTC in this process.
                late = max((datetime.now() - due).total_seconds(), 0.0)  # noqa: DTZ005 - the same
                self._block.set_at("jobs", int(late * 1e9), name, "lateness_ns")
            self._block.add_at("jobs", 1, name, "runs")
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever it was, the run goes on and says so
                self._block.add_at("jobs", 1, name, "failures")
                self._journal.write(
                    "job.failed", Level.ERROR, job=name, summary=f"the job {name} failed: {error!r}"
                )

        job = self._jobs.every(max(round(seconds), 1)).seconds
        job.do(run)

    def _guarded(self, detector: Detector, work: Callable[[], None]) -> None:
        """Run a detector; when it raises, its blindness is a fact of the run, not the run's end."""
        start = time.monotonic_ns()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a detector that failed makes the verdict unknown
            self._fail(detector, f"the detector {detector} failed: {error!r}")
        else:
            self._block.set_at("detectors", 1, detector, "success")
        self._block.add_at("detectors", 1, detector, "runs")
        self._block.set_at("detectors", time.monotonic_ns() - start, detector, "duration_ns")

    def _fail(self, detector: Detector, summary: str) -> None:
        """Note that a detector saw nothing; the same reason is written down once."""
        self._block.set_at("detectors", 0, detector, "success")
        if summary not in self._failures:
            self._failures.add(summary)
            self._journal.write("detector.failed", Level.ERROR, detector=detector, summary=summary)

    def _look_for_stalls(self) -> None:
        self._looked = time.monotonic()
        self._guarded(Detector.STALLS, self._stalls.look)

    def _watch(self) -> None:
        """Do, while workers come to rest, what cannot wait: a stall is what may keep one from it."""
        self._beat()
        if time.monotonic() - self._looked >= BEAT_SECONDS:
            self._look_for_stalls()

    def _look_for_refusals(self) -> None:
        for finding in self._refusals.look():
            self._reporter.report(finding)
        self._reporter.flush(REPORT_SECONDS)

    def _report_death(self, death: Death) -> None:
        index = self._block.index("restarts", death.worker)
        by = (
            f"by {signal.Signals(death.signal_number).name}"
            if death.signal_number
            else f"with exit code {death.exit_code}"
        )
        self._journal.write(
            "worker.died", Level.WARNING, worker=death.worker, incarnation=death.incarnation,
            signal=death.signal_number, exit_code=death.exit_code, in_flight=death.in_flight,
            summary=f"{death.worker} ended {by}",
        )  # fmt: skip
        if death.gave_up:
            self._block.set("dead", 1, *index)
            self._journal.write(
                "harness.failed", Level.ERROR, worker=death.worker,
                summary=f"{death.worker} ends {by} right after each start and was given up",
            )  # fmt: skip
        else:
            self._block.add("restarts", 1, *index)
            self._journal.write("worker.restarted", worker=death.worker)

    def _end_workers(self) -> None:
        killed = self._crew.stop(_STOP_SECONDS, self._watch)
        if killed:
            self._journal.write(
                "workers.killed", Level.WARNING, workers=killed,
                summary=f"{', '.join(killed)} did not stop by themselves",
            )  # fmt: skip

    def _sweep_between(self) -> None:
        """Sweep while the workers rest between two operations."""
        try:
            late = self._crew.pause(_BARRIER_SECONDS, self._watch)
            for worker in late:
                self._stalls.free(self._crew.member(worker))
            if late:
                self._fail(Detector.LEAKS, f"no sweep: {', '.join(late)} did not come to rest")
            else:
                self._guarded(Detector.LEAKS, self._sweeper.sweep)
        finally:
            self._crew.resume()

    def _sample(self) -> None:
        """Write down what the verdict needs, so that it can be computed from the journal alone."""
        completed = {
            **completed_operations(
                (member.block.names("counts"), member.block.view("counts"))
                for member in self._crew.members
            ),
            **self._stalls.trials(),
        }
        met = sum(completed.get(label, 0) >= need for label, need in self._run["promised"].items())
        self._block.set("coverage_cells", met)
        self._journal.write(
            "sample.taken",
            completed=completed,
            sweeps=self._sweeper.counts(),
            journal_errors=self._journal.errors,
            workers={
                member.plan.name: member.block.get("incarnation") for member in self._crew.members
            },
        )

    def _read_counters(self) -> None:
        acquired, released = foll_pins()
        self._block.set("foll_pins_acquired", acquired)
        self._block.set("foll_pins_released", released)
        self._block.set("tainted", taint())
        locked = pinned = 0
        for member in self._crew.members:
            if member.running:
                of_one = locked_and_pinned_bytes(member.pid)
                locked, pinned = locked + of_one[0], pinned + of_one[1]
        self._block.set("locked_bytes", locked)
        self._block.set("pinned_bytes", pinned)
