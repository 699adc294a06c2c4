# SPDX-License-Identifier: GPL-2.0-only
"""The supervisor: starts the workers, runs the detectors and the periodic jobs, keeps the journal.

It makes no call that can hang. A beat is a tenth of a second; all times are of the monotonic clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from soak.abi.procfs import boot_id, foll_pins, kernel_release, locked_and_pinned_bytes, taint
from soak.detectors.canaries.runner import FIRST_SECONDS
from soak.detectors.leaks.sweeper import FULL_HEADROOM_PPM
from soak.detectors.reporter import REPORT_SECONDS
from soak.journal.writer import Level
from soak.ledger.totals import completed_operations
from soak.model.vocabulary import RunState, VerdictWord
from soak.supervisor.control import CONTINUE, PAUSE, STOP, WORDS, ending_signals
from soak.supervisor.detecting import DetectorSet
from soak.supervisor.jobs import Jobs
from soak.supervisor.worker_events import WorkerEvents

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from soak.detectors.base import Detector
    from soak.detectors.canaries.runner import Canaries
    from soak.detectors.clock import SoakClock
    from soak.detectors.leaks.recycler import Recycler
    from soak.detectors.reporter import Reporter
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.supervisor.control import ControlSocket
    from soak.supervisor.hooks.base import Hook
    from soak.supervisor.summary import Summary
    from soak.workload.pool import WorkerPool

BEAT_SECONDS: Final = 0.1

_SAMPLE_SECONDS: Final = 10.0
_COUNTERS_SECONDS: Final = 5.0
_BARRIER_SECONDS: Final = 30.0
# A signal frees a call at once; killing and replacing a worker takes a few seconds.
_FREED_SECONDS: Final = 10.0
_COMMIT_SECONDS: Final = 1.0
_COVERAGE_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 10.0
_NICENESS: Final = -10
_STOP_SECONDS: Final = 30.0


class Supervisor:
    """Runs one soak, from its first worker to its last journal line."""

    def __init__(
        self,
        *,
        block: BlockWriter,
        pool: WorkerPool,
        journal: Journal,
        reporter: Reporter,
        detectors: Sequence[Detector],
        recycler: Recycler,
        canaries: Canaries,
        summary: Summary,
        clock: SoakClock,
        duration: float,
        sweep_interval: float,
        most_wedged: int,
        run: dict[str, Any],
        hooks: Sequence[Hook],
        control: ControlSocket | None,
    ) -> None:
        self._block = block
        self._pool = pool
        self._worker_events = WorkerEvents(block, journal, pool)
        self._journal = journal
        self._reporter = reporter
        self._detectors = DetectorSet(block, journal, detectors)
        self._recycler = recycler
        self._end_reason: str | None = None
        self._canaries = canaries
        self._summary = summary
        self._clock = clock
        self._duration = duration
        self._sweep_interval = sweep_interval
        self._most_wedged = most_wedged
        self._last_look = 0.0
        self._last_commit = 0.0
        self._last_count = 0.0
        self._covered = False
        self._run = run
        self._hooks = hooks
        self._control = control
        self._paused = False
        self._ending = ending_signals()
        self._jobs = Jobs(block, journal)
        self._running = block.block.fields["state"].values.index(RunState.RUNNING)
        self._last_beat_ns = 0

    def run(self) -> None:
        """Soak until the duration has elapsed, or a signal or a request ends the run."""
        # From here on sigtimedwait() takes these signals, so that none interrupts other work.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._ending, signal.SIGCHLD})
        # The workers never sleep, and would starve the supervisor on two processors.
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        self._begin()
        try:
            # Before the probes, to which a page with a full reference count looks like a refusal.
            self._detectors.run("prepare")
            why = self._recycler.make_room()
            if why is None:
                self._start()
                why = self._soak()
        finally:
            self._end_workers()
            self._canaries.stop()
        self._look()
        self._detectors.probe_undecided()
        self._detectors.run("at_rest")
        self._sample()
        self._reporter.give_up_deciding()
        self._summary.write()
        self._journal.write("run.ended", why=why)
        self._block.set_word("state", RunState.ENDED)
        self._beat()
        for hook in self._hooks:
            hook.ended()

    def _begin(self) -> None:
        block = self._block
        rebooted = block.text("boot_id") != boot_id()
        block.set("pid", os.getpid())
        block.set_text("kernel_release", kernel_release())
        block.set_text("boot_id", boot_id())
        block.set_word("state", RunState.PREPARING)
        block.set_word("verdict", VerdictWord.UNKNOWN)
        now = self._last_beat_ns = time.monotonic_ns()
        block.set("started_ns", now)
        if block.get("starts") == 0:
            block.set("first_start_realtime_ns", time.time_ns())
        block.set("coverage_cells_required", len(self._run["promised"]))
        for region in range(len(block.names("headroom_ppm"))):
            if rebooted:
                block.set("headroom_ppm", FULL_HEADROOM_PPM, region)
                block.set("last_sweep_ns", 0, region)
        self._beat()
        if rebooted:
            block.add("boots", 1)
            self._journal.write("machine.booted", kernel=kernel_release())
        self._journal.write("run.started", **self._run)
        if block.get("starts"):
            soaked = block.get("soaked_ns") / 1e9
            self._journal.write(
                "run.resumed",
                Level.WARNING,
                starts=block.get("starts") + 1,
                rebooted=rebooted,
                soaked_seconds=round(soaked, 3),
                summary=f"the run continues after {soaked:.0f} s of soaking, "
                + ("after a reboot" if rebooted else "in the same boot"),
            )
        block.add("starts", 1)
        for label in self._detectors.uncovered():
            self._journal.write(
                "expectation.missing", Level.ERROR, summary=f"no expectation covers {label}"
            )

    def _start(self) -> None:
        self._detectors.run("probe")
        self._pool.start()
        self._block.set_word("state", RunState.RUNNING)
        self._journal.write("workers.started", workers=len(self._pool.workers))
        for hook in self._hooks:
            hook.started()

    def _soak(self) -> str:
        """Beat until the end of the run; return its reason."""
        self._jobs.every("sweep", self._sweep_interval, self._sweep_between)
        self._jobs.every("recycle", self._sweep_interval, self._recycle)
        self._jobs.every("sample", _SAMPLE_SECONDS, self._sample)
        self._jobs.every("counters", _COUNTERS_SECONDS, self._read_counters)
        self._jobs.every("probe", _PROBE_SECONDS, self._probe_again)
        soaked = self._block.get("soaked_ns") / 1e9
        self._jobs.daily("summary", self._summary.write, passed=soaked)
        if self._canaries.every:
            soon = min(FIRST_SECONDS, self._duration / 4, self._canaries.every)
            self._jobs.every("canary", self._canaries.every, self._canaries.begin_round, first=soon)
        while self._left_ns() > 0:
            self._beat()
            self._look()
            self._worker_events.reap()
            self._worker_events.report_unborn()
            self._flush_and_commit()
            self._canaries.look()
            if not self._paused:
                if self._canaries.asks_for_rest():
                    self._sweep_between()
                self._note_coverage()
                self._jobs.run_pending()
            if self._end_reason is not None:
                return self._end_reason
            if self._answer_requests():
                return "stopped by 'dax-soak stop'"
            caught = signal.sigtimedwait({*self._ending, signal.SIGCHLD}, BEAT_SECONDS)
            if caught is not None and caught.si_signo in self._ending:
                return f"stopped by {signal.Signals(caught.si_signo).name}"
            wedged = sum(worker.abandoned for worker in self._pool.workers)
            if wedged > self._most_wedged:
                why = f"{wedged} workers are wedged in the kernel"
                self._journal.write(
                    "limit.reached",
                    Level.ERROR,
                    limit="wedged-workers",
                    wedged=wedged,
                    summary=f"{why}, more than the allowed {self._most_wedged}",
                )
                return why
        return "duration elapsed"

    def _left_ns(self) -> int:
        return int(self._duration * 1e9) - self._block.get("soaked_ns")

    def _answer_requests(self) -> bool:
        """Answer requests of the control socket; True if the soak must stop."""
        stop = False
        for request in self._control.poll() if self._control is not None else ():
            if request.word == STOP:
                stop = True
                request.answer("stopping")
            elif request.word == PAUSE:
                request.answer(self._pause())
            elif request.word == CONTINUE:
                request.answer(self._continue())
            else:
                request.answer(f"unknown request (choose from {', '.join(WORDS)})")
        return stop

    def _pause(self) -> str:
        """Bring every worker to rest until `_continue`."""
        if self._paused:
            return "paused already"
        late = self._pool.pause(_BARRIER_SECONDS, self._watch_and_replace)
        self._paused = True
        self._block.set_word("state", RunState.PAUSED)
        self._journal.write("run.paused", Level.WARNING, late=late, summary="the run is paused")
        if late:
            return f"paused, except {', '.join(late)}, which hang in a call"
        return "paused: all workers rest"

    def _continue(self) -> str:
        if not self._paused:
            return "running already"
        self._paused = False
        self._pool.resume()
        self._block.set_word("state", RunState.RUNNING)
        self._journal.write("run.continued", Level.WARNING, summary="the run goes on")
        return "running"

    def _beat(self) -> None:
        now = time.monotonic_ns()
        if not self._paused and self._block.get("state") == self._running:
            self._block.add("soaked_ns", now - self._last_beat_ns)
        self._last_beat_ns = now
        self._block.set("ends_ns", now + max(self._left_ns(), 0))
        self._clock.beat(now)
        self._block.set("realtime_offset_ns", time.time_ns() - now)
        self._block.set("heartbeat_ns", now)
        self._block.add("heartbeats", 1)
        self._journal.retry()
        self._block.set("journal_errors", self._journal.errors)
        for hook in self._hooks:
            self._end_reason = self._end_reason or hook.beat()

    def _look(self) -> None:
        self._last_look = time.monotonic()
        self._detectors.run("look")

    def _watch(self) -> None:
        """Beat and look while workers come to rest: a stall may keep one from it."""
        self._beat()
        if time.monotonic() - self._last_look >= BEAT_SECONDS:
            self._look()

    def _watch_and_replace(self) -> None:
        """Also replace workers that die meanwhile: others may wait for their pins."""
        self._watch()
        self._worker_events.reap()

    def _flush_and_commit(self) -> None:
        self._reporter.flush(REPORT_SECONDS)
        if self._reporter.idle and time.monotonic() - self._last_commit >= _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        """Store how far the detectors have judged, once all findings are on disk.

        A supervisor that takes over judges later operations again: it may count one twice, and never
        misses one.
        """
        self._last_commit = time.monotonic()
        self._detectors.commit()

    def _end_workers(self) -> None:
        killed = self._pool.stop(_STOP_SECONDS, self._watch)
        if killed:
            self._journal.write(
                "workers.killed",
                Level.WARNING,
                workers=killed,
                summary=f"{', '.join(killed)} did not stop in time and were killed",
            )

    def _sweep_between(self) -> None:
        """Sweep while the workers rest between two operations."""
        with self._at_rest() as late:
            if late:
                self._detectors.miss_sweep(late)
            else:
                self._detectors.run("at_rest")
                self._canaries.at_rest()

    def _recycle(self) -> None:
        """Recycle regions that run short of head-room, unless a canary still holds a page."""
        if self._canaries.busy or not (due := self._recycler.due()):
            return
        with self._at_rest() as late:
            for name in due if not late else ():
                self._end_reason = self._end_reason or self._recycler.recycle(name)

    def _probe_again(self) -> None:
        """Repeat inconclusive probes while the workers rest."""
        if self._detectors.undecided:
            with self._at_rest() as late:
                if not late:
                    self._detectors.probe_undecided()

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[list[str]]:
        """Rest the workers inside the block; yield the names that did not, even after being freed."""
        try:
            late = self._pool.pause(_BARRIER_SECONDS, self._watch_and_replace)
            for worker in late:
                self._detectors.free(self._pool.worker(worker))
            if late:
                late = self._pool.pause(_FREED_SECONDS, self._watch_and_replace)
            yield late
        finally:
            self._pool.resume()

    def _sample(self) -> None:
        """Write everything that the verdict needs to the journal."""
        self._reporter.flush()
        self._commit()
        completed = self._count_completed()
        self._journal.write(
            "sample.taken",
            completed=completed,
            sweeps=self._detectors.sweeps(),
            journal_errors=self._journal.errors,
            workers={worker.plan.name: worker.block.get("incarnation") for worker in self._pool.workers},
        )
        for hook in self._hooks:
            hook.sampled()

    def _note_coverage(self) -> None:
        """Sample as soon as every promised cell is covered: a client may wait for that."""
        if not self._covered and time.monotonic() - self._last_count >= _COVERAGE_SECONDS:
            self._count_completed()
            if self._covered:
                self._sample()

    def _count_completed(self) -> dict[str, int]:
        """Count completed operations by label, and the promised cells that they cover."""
        self._last_count = time.monotonic()
        completed = completed_operations(
            (worker.block.names("counts"), worker.block.view("counts")) for worker in self._pool.workers
        )
        completed |= self._detectors.completed()
        promised: dict[str, int] = self._run["promised"]
        met = sum(completed.get(label, 0) >= need for label, need in promised.items())
        self._block.set("coverage_cells", met)
        self._covered = met == len(promised)
        return completed

    def _read_counters(self) -> None:
        acquired, released = foll_pins()
        self._block.set("foll_pins_acquired", acquired)
        self._block.set("foll_pins_released", released)
        self._block.set("tainted", taint())
        locked = pinned = 0
        for worker in self._pool.workers:
            if worker.running:
                of_one = locked_and_pinned_bytes(worker.pid)
                locked, pinned = locked + of_one[0], pinned + of_one[1]
        self._block.set("locked_bytes", locked)
        self._block.set("pinned_bytes", pinned)
