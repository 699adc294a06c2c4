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
import structlog

from soak.abi.procfs import boot_id, foll_pins, kernel_release, locked_and_pinned_bytes, taint
from soak.detectors.leaks import REFCOUNT_LIMIT, Held
from soak.expectations import parse_release
from soak.helper import HelperError
from soak.journal import Level
from soak.known_issues import TYPE1_DEVICE_DAX_LEAK
from soak.schema import COUNT_COLUMNS, NO_KNOWN_ISSUE, leaks_field
from soak.detectors.finding import Finding
from soak.vocabulary import Detector, Interface, Operation, RunState, VerdictWord, Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from soak.crew import Crew, Death
    from soak.detectors.leaks import Measurement, RegionLeaks
    from soak.detectors.refusals import RefusalDetector
    from soak.journal import Journal
    from soak.ledger import BlockWriter

BEAT_SECONDS: Final = 0.1

_SAMPLE_SECONDS: Final = 10.0
_COUNTERS_SECONDS: Final = 5.0
_BARRIER_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_PPM: Final = 1_000_000


class Supervisor:
    """Runs one soak, from its first worker to its last line in the journal."""

    def __init__(
        self,
        *,
        block: BlockWriter,
        crew: Crew,
        journal: Journal,
        refusals: RefusalDetector,
        leaks: Sequence[RegionLeaks],
        probe_function: str | None,
        known_issues: frozenset[str],
        duration: float,
        sweep_interval: float,
        run: dict[str, Any],
    ) -> None:
        self._block = block
        self._crew = crew
        self._journal = journal
        self._refusals = refusals
        self._leaks = list(leaks)
        self._probe_function = probe_function
        self._known_issues = known_issues
        self._duration = duration
        self._sweep_interval = sweep_interval
        self._run = run
        self._log = structlog.get_logger()
        self._jobs = schedule.Scheduler()
        self._explained = {watch.region.name: 0 for watch in leaks}
        self._unexplained = {watch.region.name: 0 for watch in leaks}

    def run(self) -> None:
        """Soak until the time is over or a signal says stop."""
        # From here on these signals are waited for, never handled in the middle of something.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, signal.SIGCHLD})
        self._begin()
        try:
            self._probe()
            self._crew.start()
            self._block.set_word("state", RunState.RUNNING)
            self._journal.write("workers.started", workers=len(self._crew.members))
            why = self._soak()
        finally:
            self._end_workers()
        self._look_for_refusals()
        self._guarded(Detector.LEAKS, self._sweep_all)
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
        self._beat()
        self._journal.write("machine.booted", kernel=kernel_release())
        self._journal.write("run.started", **self._run)
        for cell in self._refusals.uncovered():
            self._journal.write(
                "expectation.missing", Level.ERROR,
                summary=f"nobody has written down what the kernel owes for {cell.label}",
            )  # fmt: skip

    def _probe(self) -> None:
        """Learn what the kernel does with a single pin, before anything else is pinned."""
        for watch in self._leaks:
            name = watch.region.name
            if watch.idle.preexisting:
                self._journal.write(
                    "region.differs", Level.WARNING, region=name,
                    pages=[list(page) for page in watch.idle.preexisting],
                    summary=f"pages of region {name} were not idle before anything was pinned",
                )  # fmt: skip
            if watch.region.kind is not TYPE1_DEVICE_DAX_LEAK.region or not self._probe_function:
                continue
            try:
                result = watch.probe(self._probe_function)
            except HelperError as error:
                self._fail(Detector.LEAKS, f"the probe of region {name} failed: {error}")
                continue
            self._beat()
            issue = TYPE1_DEVICE_DAX_LEAK
            lower, upper = issue.kernels
            in_scope = lower <= parse_release(kernel_release()) < upper
            applies = watch.leaks_by_design and issue.name in self._known_issues and in_scope
            watch.leaks_by_design = applies
            self._journal.write(
                "known-issue.probed", known_issue=issue.name, region=name, confirmed=applies,
                pinned=result.pinned, left=result.left, errno=result.refused,
            )  # fmt: skip

    def _soak(self) -> str:
        """Beat until the end; return why it came."""
        self._schedule("sweep", self._sweep_interval, self._sweep_between)
        self._schedule("sample", _SAMPLE_SECONDS, self._sample)
        self._schedule("counters", _COUNTERS_SECONDS, self._read_counters)
        end = time.monotonic() + self._duration
        while time.monotonic() < end:
            self._beat()
            for death in self._crew.reap():
                self._report_death(death)
            self._guarded(Detector.REFUSALS, self._look_for_refusals)
            self._jobs.run_pending()
            caught = signal.sigtimedwait({*_ENDING, signal.SIGCHLD}, BEAT_SECONDS)
            if caught is not None and caught.si_signo in _ENDING:
                return f"told to by {signal.Signals(caught.si_signo).name}"
        return "its time was over"

    def _beat(self) -> None:
        now = time.monotonic_ns()
        self._block.set("realtime_offset_ns", time.time_ns() - now)
        self._block.set("heartbeat_ns", now)
        self._block.add("heartbeats", 1)
        self._block.set("journal_errors", self._journal.errors)

    def _schedule(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        """Have a coarse job done again and again.

        A job that raised would be tried at every poll and starve those behind it, so nothing may.
        """

        def run() -> None:
            due = job.next_run
            if due is not None:
                late = max((datetime.now() - due).total_seconds(), 0.0)
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
        self._block.set_at("detectors", 0, detector, "success")
        self._journal.write("detector.failed", Level.ERROR, detector=detector, summary=summary)

    def _look_for_refusals(self) -> None:
        for finding in self._refusals.look():
            self._report(finding)

    def _report(self, finding: Finding) -> None:
        """Put a violation on disk, then count it."""
        self._journal.write(
            "violation.found",
            Level.ERROR if finding.known_issue is None else Level.WARNING,
            kind=finding.kind,
            region=finding.region,
            region_name=finding.region_name,
            interface=finding.interface,
            operation=finding.operation,
            count=finding.count,
            known_issue=finding.known_issue,
            summary=finding.summary,
            evidence=dict(finding.evidence),
        )
        issue = finding.known_issue or NO_KNOWN_ISSUE
        self._block.add_at("violations", finding.count, finding.kind, issue)
        if finding.kind is Violation.UNEXPECTED_PIN:
            self._block.add_at("unexpected_pins", finding.count, finding.region, finding.interface)

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
        killed = self._crew.stop(_STOP_SECONDS)
        if killed:
            self._journal.write(
                "workers.killed", Level.WARNING, workers=killed,
                summary=f"{', '.join(killed)} did not stop by themselves",
            )  # fmt: skip

    def _sweep_between(self) -> None:
        """Sweep while the workers rest between two operations."""
        try:
            late = self._crew.pause(_BARRIER_SECONDS)
            if late:
                self._fail(Detector.LEAKS, f"no sweep: {', '.join(late)} did not come to rest")
            else:
                self._guarded(Detector.LEAKS, self._sweep_all)
        finally:
            self._crew.resume()

    def _sweep_all(self) -> None:
        for watch in self._leaks:
            start = time.monotonic_ns()
            region = watch.region.name
            position = self._block.index("sweeps", region)
            uncertain = self._uncertain_pages(position[0])
            measured = watch.measure(self._held(position[0], uncertain))
            now = time.monotonic_ns()
            self._block.add("sweeps", 1, *position)
            self._block.add("swept_pages", measured.pages, *position)
            self._block.set("sweep_duration_ns", now - start, *position)
            self._block.set("last_sweep_ns", now, *position)
            headroom = _PPM - measured.highest * _PPM // REFCOUNT_LIMIT
            self._block.set("headroom_ppm", max(headroom, 0), *position)
            if measured.reconciled or uncertain:
                self._journal.write(
                    "leak.reconciled", region=region, pages=measured.reconciled,
                    uncertain=uncertain,
                    summary=f"workers killed in the middle of a map had {measured.reconciled} pages "
                    f"pinned",
                )  # fmt: skip
            self._settle_uncertain(position[0])
            self._report_leaks(watch, measured)

    def _held(self, region: int, uncertain: int) -> Held:
        mapped = sum(member.block.get("pages_mapped", region) for member in self._mappers())
        unmapped = sum(member.block.get("pages_unmapped", region) for member in self._mappers())
        return Held(live=mapped - unmapped, given_back=unmapped, uncertain=uncertain)

    def _report_leaks(self, watch: RegionLeaks, measured: Measurement) -> None:
        region, issue = watch.region, TYPE1_DEVICE_DAX_LEAK
        self._store_leaks(watch, measured)
        new = measured.explained - self._explained[region.name]
        if new > 0 and watch.leaks_by_design:
            self._report(
                Finding(
                    Violation.LEAK, region.kind, issue.interface, issue.operation, new,
                    f"{measured.explained} page references of region {region.name} were not given "
                    f"back by unmap, exactly as {issue.name} predicts",
                    region.name, issue.name,
                    {"leaked": measured.explained, "predicted": measured.predicted},
                )
            )  # fmt: skip
            self._explained[region.name] = measured.explained
        change = measured.unexplained - self._unexplained[region.name]
        if change > 0:
            leaked = measured.explained + measured.unexplained
            interface = Interface.VFIO_TYPE1 if watch.leaks_by_design else Interface.NONE
            self._report(
                Finding(
                    Violation.LEAK, region.kind, interface, Operation.UNMAP, change,
                    f"{measured.unexplained} page references of region {region.name} differ from "
                    f"what is held and predicted",
                    region.name, None,
                    {"leaked": leaked, "predicted": measured.predicted, "unit": watch.unit},
                )
            )  # fmt: skip
        self._unexplained[region.name] = measured.unexplained

    def _store_leaks(self, watch: RegionLeaks, measured: Measurement) -> None:
        """Store what is leaked, ever and now, and what was predicted, as one group."""
        issue = TYPE1_DEVICE_DAX_LEAK.name
        field = leaks_field(watch.region.name)
        axis = self._block.block.fields[field].axes[0]
        if isinstance(axis, int):
            raise TypeError(f"{field} has no names")
        explained, unexplained = measured.explained, measured.unexplained
        known = explained if watch.leaks_by_design else 0
        values = {
            f"leaked {issue}": known,
            f"leaked_total {issue}": known,
            f"predicted {issue}": measured.predicted if watch.leaks_by_design else 0,
            f"leaked {NO_KNOWN_ISSUE}": unexplained,
            f"leaked_total {NO_KNOWN_ISSUE}": max(
                unexplained, self._block.get(field, axis.index(f"leaked_total {NO_KNOWN_ISSUE}"))
            ),
        }
        self._block.set_group(field, [values.get(name, 0) for name in axis[1:]])

    def _uncertain_pages(self, region: int) -> int:
        return sum((member.uncertain or {}).get(region, 0) for member in self._crew.members)

    def _settle_uncertain(self, region: int) -> None:
        for member in self._crew.members:
            if member.uncertain:
                member.uncertain.pop(region, None)

    def _sample(self) -> None:
        """Write down what the verdict needs, so that it can be computed from the journal alone."""
        completed = self._completed()
        met = sum(completed.get(label, 0) >= need for label, need in self._run["promised"].items())
        self._block.set("coverage_cells", met)
        self._journal.write(
            "sample.taken",
            completed=completed,
            sweeps={
                watch.region.name: self._block.get("sweeps", *self._position(watch))
                for watch in self._leaks
            },
            workers={
                member.plan.name: member.block.get("incarnation") for member in self._crew.members
            },
        )

    def _completed(self) -> dict[str, int]:
        """Count the operations of each cell that ended, in whatever way but interrupted."""
        totals: dict[str, int] = {}
        width = len(COUNT_COLUMNS)
        for member in self._crew.members:
            counts = member.block.view("counts")
            for index, cell in enumerate(member.plan.cells):
                row = counts[index * width : (index + 1) * width]
                ended = sum(row) - row[COUNT_COLUMNS.index("interrupted")]
                totals[cell.label] = totals.get(cell.label, 0) + ended
        return totals

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

    def _mappers(self) -> list[Any]:
        return list(self._crew.members)

    def _position(self, watch: RegionLeaks) -> tuple[int, ...]:
        return self._block.index("sweeps", watch.region.name)

