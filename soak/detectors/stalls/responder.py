# SPDX-License-Identifier: GPL-2.0-only
"""Stalls on the way from the detector to journal and ledger; what is stuck is freed.

Evidence comes first, then signals, again and again until the ledger moves; then SIGKILL; and what does
not even die of that is wedged: its file is given up, and another worker takes its place.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from soak.detectors.base import Detector, Finding
from soak.detectors.probes import ProbeRecord
from soak.detectors.stalls.probe import PROBES, ProbePlace
from soak.detectors.tasks import look_at, waits_for_pages
from soak.journal.writer import Level
from soak.ledger.recorder import RECORDER, Line
from soak.ledger.schema import BUCKET_BOUNDS_NS, STALL_COLUMNS
from soak.ledger.totals import judged_trials
from soak.model.known_issues import KNOWN_ISSUES, Observation
from soak.model.vocabulary import (
    INVALIDATIONS,
    SHORT_PINS,
    DetectorName,
    Interface,
    Operation,
    ProbeResult,
    RegionKind,
    Violation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from soak.detectors.clock import SoakClock
    from soak.detectors.reporter import Reporter
    from soak.detectors.stalls.judge import Hold, Judgement, Overdue, StallDetector
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.workload.pool import WorkerPool, WorkerProcess

# How often a probe is tried at the start, and later while the workers rest.
_ATTEMPTS: Final = 10
_AGAIN_ATTEMPTS: Final = 3
_KILL_NS: Final = 5_000_000_000
_WEDGED_NS: Final = 10_000_000_000
_EVIDENCE_HOLDS: Final = 8
_EVIDENCE_LINES: Final = 8
_MILLISECOND: Final = 1_000_000
_BUCKETS: Final = len(BUCKET_BOUNDS_NS) + 1


@dataclass
class _Stuck:
    """A worker that is being freed. Times are monotonic nanoseconds; `row` is its row of `waits`."""

    number: int
    incarnation: int
    since: int
    accounted: int
    row: int | None
    killed: bool = False


class StallWatch(Detector):
    """Has the detector look, keeps the books of what it finds, and frees what is stuck."""

    name = DetectorName.STALLS

    def __init__(
        self,
        block: BlockWriter,
        journal: Journal,
        reporter: Reporter,
        pool: WorkerPool,
        *,
        detector: StallDetector,
        clock: SoakClock,
        probe_directory: Path | None,
        slow_device: Path | None,
        known_issues: frozenset[str],
    ) -> None:
        self._block = block
        self._journal = journal
        self._reporter = reporter
        self._pool = pool
        self._detector = detector
        self._clock = clock
        self._probe_directory = probe_directory
        self._slow_device = slow_device
        self._probes = ProbeRecord(reporter, known_issues)
        self._stuck: dict[str, _Stuck] = {}
        self._waits = block.view("waits")
        self._trials = block.view("trials")
        self._delay_sums = block.view("wakeup_delay_sum_ns")
        self._delay_buckets = block.view("wakeup_delay_buckets")

    def probe(self) -> None:
        """Learn how this kernel wakes what waits for a pin, before anybody waits for one.

        Raises:
            HelperError: a probe did not come to an end.
        """
        if self._probe_directory is None:
            return
        attempts = _ATTEMPTS if self._probes.empty else _AGAIN_ATTEMPTS
        place = ProbePlace(self._probe_directory, attempts, self._slow_device)
        for issue, probe in PROBES.items():
            if self._probes.is_open(issue) and (answer := probe(place)) is not None:
                self._probes.note(issue, answer)

    @property
    def undecided(self) -> bool:
        """Whether a probe of an issue that applies was inconclusive so far: `probe` tries again."""
        return self._probes.undecided

    def look(self) -> None:
        """Judge, report, and go on freeing what is stuck."""
        now = time.monotonic_ns()
        for judgement in self._detector.look(now):
            if judgement.wait.canary:
                self._report_canary(judgement)
                continue
            self._count(judgement)
            if judgement.violation is not None:
                self._report(judgement)
            if judgement.violation is Violation.STALL and not judgement.wait.end:
                self._begin_freeing(judgement, now)
        for overdue in self._detector.look_for_overdue(now):
            self._report_overdue(overdue)
        self._free(now)

    def commit(self) -> None:
        """Store how far the workers' rings were judged, for a supervisor that comes after this one."""
        for name, (ended, holds) in self._detector.read().items():
            self._block.set_at("read", ended, name, "ended")
            self._block.set_at("read", holds, name, "holds")

    def uncovered(self) -> Sequence[str]:
        """Return what this run tries and no expectation speaks of."""
        return [cell.label for cell in self._detector.uncovered()]

    def free(self, worker: WorkerProcess) -> None:
        """Free a worker that does not come to rest, whatever it is doing."""
        self._begin_to_free(worker, worker.block.get("begun") - 1)

    def _begin_to_free(self, worker: WorkerProcess, number: int) -> None:
        name, now = worker.plan.name, time.monotonic_ns()
        if name not in self._stuck:
            self._stuck[name] = _Stuck(number, worker.block.get("incarnation"), now, now, None)

    def completed(self) -> dict[str, int]:
        """Return how often each operation was judged against each kind of pin, by label."""
        width = len(SHORT_PINS)
        return judged_trials(
            {
                operation: dict(zip(SHORT_PINS, self._trials[row * width :][:width], strict=True))
                for row, operation in enumerate(INVALIDATIONS)
            }
        )

    def _count(self, judgement: Judgement) -> None:
        if judgement.tried is not None:
            row = INVALIDATIONS.index(judgement.wait.operation)
            column = SHORT_PINS.index(judgement.tried.interface)
            self._trials[row * len(SHORT_PINS) + column] += 1
        if judgement.woken and judgement.last is not None:
            row = SHORT_PINS.index(judgement.last.interface)
            self._delay_sums[row] += judgement.excess
            bucket = bisect_left(BUCKET_BOUNDS_NS, judgement.excess)
            self._delay_buckets[row * _BUCKETS + bucket] += 1
        if judgement.violation is Violation.STALL:
            self._add(judgement, "stalls", 1)
            self._add(judgement, "stalled_ns", judgement.excess)

    def _add(self, judgement: Judgement, column: str, amount: int) -> None:
        self._waits[_row_of(judgement) + STALL_COLUMNS.index(column)] += amount

    def _report(self, judgement: Judgement) -> None:
        wait, kind = judgement.wait, judgement.violation
        if kind is None:
            return
        worker = self._pool.worker(wait.worker)
        task = look_at(worker.pid) if worker.running and not wait.end else {}
        interface, issue, undecided = self._explain(judgement, task)
        where = f"{wait.operation} of {RegionKind.FS_DAX}"
        if kind is Violation.EARLY_TRUNCATE:
            what = f"ended while a page was pinned over {interface} that it had to wait for"
        elif judgement.behind is not None:
            what = f"waits for a pin over {interface} that its holder cannot give back"
        elif interface is Interface.NONE:
            what = "did not end, though no page that it had to wait for was pinned"
        elif kind is Violation.STALL:
            what = f"slept on after the last pin over {interface} was given back"
        else:
            what = f"woke up late after the last pin over {interface} was given back"
        if issue is not None:
            what += f", as {issue} predicts"
        self._reporter.report(
            Finding(
                kind,
                RegionKind.FS_DAX,
                interface,
                wait.operation,
                1,
                f"{where} {what}",
                wait.region,
                issue,
                self._evidence(judgement, worker, task),
                undecided=undecided,
            )
        )

    def _report_overdue(self, overdue: Overdue) -> None:
        """Report a pin that does not end, and free its holder, for which others wait."""
        hold = overdue.hold
        worker = self._pool.worker(hold.worker)
        seconds = overdue.bound / 1e9
        what = "lasts" if hold.take_after else "is being taken"
        self._reporter.report(
            Finding(
                Violation.STALL,
                RegionKind.FS_DAX,
                hold.interface,
                Operation.HOLD,
                1,
                f"a pin of {RegionKind.FS_DAX} over {hold.interface} {what} for more than {seconds:g} s, "
                f"and its holder hangs in the kernel",
                overdue.region,
                evidence={
                    "worker": hold.worker,
                    "file": overdue.place,
                    "excess_ms": round((overdue.lasted - overdue.bound) / _MILLISECOND, 3),
                    "task": look_at(worker.pid) if worker.running else {},
                    "held": [_hold_line(hold, hold.take_before)],
                    "recorders": {hold.worker: _last_lines(worker.block)},
                },
            )
        )
        self._begin_to_free(worker, overdue.number)

    def _report_canary(self, judgement: Judgement) -> None:
        """Say what a canary looks like, as of any wait; it is in no books, and frees itself."""
        wait, last = judgement.wait, judgement.last
        if judgement.violation is not None:
            self._reporter.report(
                Finding(
                    judgement.violation,
                    RegionKind.FS_DAX,
                    last.interface if last else Interface.NONE,
                    wait.operation,
                    1,
                    f"{wait.operation} of {RegionKind.FS_DAX}: {judgement.violation}",
                    wait.region,
                    evidence={
                        "worker": wait.worker,
                        "excess_ms": round(judgement.excess / _MILLISECOND, 3),
                        "held": [_hold_line(hold, wait.start) for hold in judgement.holds],
                    },
                    canary=True,
                )
            )

    def _explain(
        self, judgement: Judgement, task: dict[str, Any]
    ) -> tuple[Interface, str | None, str | None]:
        """Return the interface of the pin that matters, and the known issue that predicts this.

        Then the one that would, had its probe been conclusive.
        """
        holds, last, wait = judgement.holds, judgement.last, judgement.wait
        nothing = (last.interface if last else Interface.NONE), None, None
        if judgement.behind is not None:
            return judgement.behind.interface, None, None
        asleep_elsewhere = not wait.end and not waits_for_pages(task.get("stack", ()))
        if judgement.violation is None or asleep_elsewhere:
            return nothing
        seen = Observation(
            judgement.violation,
            RegionKind.FS_DAX,
            tuple(hold.interface for hold in holds),
            ended=bool(wait.end),
            # By one of several, one of a row, or one that is still being taken page by page.
            pinned_again=len(holds) > 1 or any(hold.may_be_taken_after(wait.start) for hold in holds),
        )
        undecided = None
        for issue in KNOWN_ISSUES:
            result = self._probes.result(issue.name)
            if result is None or not issue.explains(seen):
                continue
            *_, interface = (each for each in seen.interfaces if each in issue.interfaces)
            if result is ProbeResult.CONFIRMED:
                return interface, issue.name, None
            if result is ProbeResult.INCONCLUSIVE and undecided is None:
                undecided = interface, None, issue.name
        return undecided or nothing

    def _evidence(
        self, judgement: Judgement, worker: WorkerProcess, task: dict[str, Any]
    ) -> dict[str, Any]:
        wait = judgement.wait
        holders = {hold.worker for hold in judgement.holds}
        return {
            "worker": wait.worker,
            "file": wait.place,
            "excess_ms": round(judgement.excess / _MILLISECOND, 3),
            "task": task,
            "behind": [] if wait.end else self._behind(worker),
            # In milliseconds from the start of the wait.
            "held": [_hold_line(hold, wait.start) for hold in judgement.holds[-_EVIDENCE_HOLDS:]],
            "recorders": {
                name: _last_lines(self._pool.worker(name).block)
                for name in sorted({wait.worker, *holders})
            },
        }

    def _behind(self, culprit: WorkerProcess) -> list[dict[str, Any]]:
        """Look at the other workers that have been in one call for long."""
        now = time.monotonic_ns()
        behind = []
        for worker in self._pool.workers:
            begun = worker.block.get("begun")
            if worker is culprit or not worker.running or begun == worker.block.get("ended"):
                continue
            line = _last_lines(worker.block)[-1]
            if self._clock.between(line["start_ns"], now) > _KILL_NS // 10:
                behind.append({"worker": worker.plan.name, **look_at(worker.pid)})
        return behind

    def _begin_freeing(self, judgement: Judgement, now: int) -> None:
        worker = self._pool.worker(judgement.wait.worker)
        self._add(judgement, "stalled", 1)
        self._stuck[judgement.wait.worker] = _Stuck(
            judgement.wait.number, worker.block.get("incarnation"), now, now, _row_of(judgement)
        )

    def _free(self, now: int) -> None:
        for name, stuck in list(self._stuck.items()):
            worker = self._pool.worker(name)
            spent = self._clock.between(stuck.since, now)
            if stuck.row is not None:
                grown = self._clock.between(stuck.accounted, now)
                self._waits[stuck.row + STALL_COLUMNS.index("stalled_ns")] += grown
                stuck.accounted = now
            moved = (
                worker.block.get("ended") > stuck.number
                or worker.block.get("incarnation") != stuck.incarnation
            )
            if moved:
                self._let_go(name, stuck)
            elif spent > _WEDGED_NS:
                self._abandon(worker)
            elif spent > _KILL_NS:
                stuck.killed = True
                self._pool.kill(worker)
            else:
                self._pool.nudge(worker)

    def _forget(self, name: str) -> None:
        row = self._stuck.pop(name).row
        if row is not None:
            self._waits[row + STALL_COLUMNS.index("stalled")] -= 1

    def _let_go(self, name: str, stuck: _Stuck) -> None:
        self._forget(name)
        self._journal.write(
            "operation.freed",
            worker=name,
            by="SIGKILL" if stuck.killed else "a signal",
            seconds=round(self._clock.between(stuck.since, time.monotonic_ns()) / 1e9, 3),
        )

    def _abandon(self, worker: WorkerProcess) -> None:
        self._forget(worker.plan.name)
        task = look_at(worker.pid)
        self._pool.abandon(worker)
        self._block.set_at("wedged", worker.abandoned, worker.plan.name)
        self._journal.write(
            "worker.wedged",
            Level.ERROR,
            worker=worker.plan.name,
            task=task,
            summary=f"{worker.plan.name} hangs in the kernel and cannot be killed: another worker "
            f"goes on with another file",
        )


def _row_of(judgement: Judgement) -> int:
    return INVALIDATIONS.index(judgement.wait.operation) * len(STALL_COLUMNS)


def _hold_line(hold: Hold, start: int) -> dict[str, Any]:
    def since(moment: int) -> float | None:
        return round((moment - start) / _MILLISECOND, 3) if moment else None

    return {
        "worker": hold.worker,
        "interface": hold.interface,
        "backing": hold.backing,
        "taken": [since(hold.take_before), since(hold.take_after)],
        "given_back": [since(hold.release_before), since(hold.release_after)],
    }


def _last_lines(block: BlockWriter) -> list[Line]:
    return RECORDER.last(block.view("recorder"), block.get("begun"), _EVIDENCE_LINES)
