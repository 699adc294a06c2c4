# SPDX-License-Identifier: GPL-2.0-only
"""The response to stalls: collect evidence, report, count, then free the stuck workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from soak.detectors.base import Detector
from soak.detectors.probes import ProbeRecord
from soak.detectors.stalls.counts import WaitCounts
from soak.detectors.stalls.evidence import Evidence
from soak.detectors.stalls.findings import canary_finding, explain, overdue_finding, wait_finding
from soak.detectors.stalls.freeing import Freeing
from soak.detectors.stalls.probe import PROBES, ProbePlace
from soak.model.vocabulary import DetectorName, Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from soak.detectors.probes import Answer
    from soak.detectors.reporter import Reporter
    from soak.detectors.stalls.judge import Clock, Judgement, StallDetector
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.workload.pool import WorkerPool, WorkerProcess

# Attempts of a probe at the start, and later while the workers rest.
_ATTEMPTS: Final = 10
_AGAIN_ATTEMPTS: Final = 3


class StallWatch(Detector):
    """Runs the stall detector, counts and reports its judgements, and frees stuck workers."""

    name = DetectorName.STALLS

    def __init__(
        self,
        block: BlockWriter,
        journal: Journal,
        reporter: Reporter,
        pool: WorkerPool,
        *,
        detector: StallDetector,
        clock: Clock,
        probe_directory: Path | None,
        slow_device: Path | None,
        known_issues: frozenset[str],
        probes: Mapping[str, Callable[[ProbePlace], Answer | None]] = PROBES,
    ) -> None:
        """`probes` has the probe of each known issue of waits."""
        self._block = block
        self._reporter = reporter
        self._detector = detector
        self._probe_directory = probe_directory
        self._slow_device = slow_device
        self._probes = probes
        self._answers = ProbeRecord(reporter, known_issues)
        self._counts = WaitCounts(block)
        self._evidence = Evidence(pool, clock)
        self._freeing = Freeing(block, journal, pool, clock, self._counts)

    def probe(self) -> None:
        """Probe how this kernel wakes a truncate that waits for a pin.

        Raises:
            HelperError: a probe did not finish.
        """
        if self._probe_directory is None:
            return
        attempts = _ATTEMPTS if self._answers.empty else _AGAIN_ATTEMPTS
        place = ProbePlace(self._probe_directory, attempts, self._slow_device)
        for issue, probe in self._probes.items():
            if self._answers.is_open(issue) and (answer := probe(place)) is not None:
                self._answers.note(issue, answer)

    @property
    def undecided(self) -> bool:
        return self._answers.undecided

    def look(self) -> None:
        """Judge, report, and continue to free the stuck workers."""
        now = time.monotonic_ns()
        for judgement in self._detector.look(now):
            if judgement.wait.canary:
                self._report_canary(judgement)
            else:
                self._counts.add(judgement)
                self._respond(judgement)
        for overdue in self._detector.look_for_overdue(now):
            self._reporter.report(overdue_finding(overdue, self._evidence.of_overdue(overdue)))
            # Other workers wait for the holder of this pin.
            self._freeing.begin(overdue.hold.worker, overdue.number)
        self._freeing.step(now)

    def commit(self) -> None:
        """Store how far the workers' rings are judged, for the next supervisor."""
        for name, (ended, holds) in self._detector.read().items():
            self._block.set_at("read", ended, name, "ended")
            self._block.set_at("read", holds, name, "holds")

    def uncovered(self) -> Sequence[str]:
        return [cell.label for cell in self._detector.uncovered()]

    def free(self, worker: WorkerProcess) -> None:
        """Free a worker that does not come to rest from the system call that it is in.

        A worker outside a call waits for another worker, which is freed separately.
        """
        begun = worker.block.get("begun")
        if begun > worker.block.get("ended"):
            self._freeing.begin(worker.plan.name, begun - 1)

    def completed(self) -> dict[str, int]:
        return self._counts.completed()

    def _respond(self, judgement: Judgement) -> None:
        wait, violation = judgement.wait, judgement.violation
        if violation is None:
            return
        task = self._evidence.culprit(judgement)
        explanation = explain(judgement, violation, task, self._answers)
        evidence = self._evidence.of_wait(judgement, task)
        self._reporter.report(wait_finding(judgement, violation, explanation, evidence))
        if violation is Violation.STALL and not wait.end:
            self._freeing.begin(wait.worker, wait.number, wait.operation)

    def _report_canary(self, judgement: Judgement) -> None:
        """Report a canary's violation; canaries are not counted, and free themselves."""
        if judgement.violation is not None:
            self._reporter.report(canary_finding(judgement, judgement.violation))
