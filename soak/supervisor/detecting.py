# SPDX-License-Identifier: GPL-2.0-only
"""Calls the detectors of a run, and records the success and the duration of each.

An exception from a detector makes the verdict unknown, and neither ends the run nor stops the others.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from soak.detectors.base import Detector
from soak.journal.writer import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.workload.pool import WorkerProcess

_T = TypeVar("_T")


class DetectorSet:
    """All detectors of a run. Every call of one goes through here."""

    def __init__(self, block: BlockWriter, journal: Journal, detectors: Sequence[Detector]) -> None:
        self._block, self._journal = block, journal
        self._detectors = detectors
        self._failures: set[str] = set()

    def run(self, step: str) -> None:
        """Call this method of each detector that implements it."""
        for detector in self._detectors:
            if _has_step(detector, step):
                self._run(detector, getattr(detector, step))

    def miss_sweep(self, late: Sequence[str]) -> None:
        """Fail the detectors that measure at rest: these workers did not come to rest."""
        for detector in self._detectors:
            if _has_step(detector, "at_rest"):
                self._fail(detector, f"no sweep: {', '.join(late)} did not come to rest")

    def free(self, worker: WorkerProcess) -> None:
        for detector in self._detectors:
            self._call(detector, partial(detector.free, worker), None)

    def commit(self) -> None:
        for detector in self._detectors:
            self._call(detector, detector.commit, None)

    @property
    def undecided(self) -> bool:
        """Whether a probe of an applicable issue is still inconclusive."""
        return any(map(self._is_undecided, self._detectors))

    def probe_undecided(self) -> None:
        for detector in self._detectors:
            if self._is_undecided(detector):
                self._run(detector, detector.probe)

    def uncovered(self) -> list[str]:
        """Return the cells of this run that no expectation covers."""
        none: Sequence[str] = ()
        return [
            label
            for detector in self._detectors
            for label in self._call(detector, detector.uncovered, none)
        ]

    def completed(self) -> dict[str, int]:
        """Return the number of judged trials by label."""
        return self._merged(lambda detector: detector.completed())

    def sweeps(self) -> dict[str, int]:
        """Return the number of sweeps by region name."""
        return self._merged(lambda detector: detector.sweeps())

    def _merged(self, counts: Callable[[Detector], Mapping[str, int]]) -> dict[str, int]:
        none: Mapping[str, int] = {}
        merged: dict[str, int] = {}
        for detector in self._detectors:
            merged |= self._call(detector, partial(counts, detector), none)
        return merged

    def _is_undecided(self, detector: Detector) -> bool:
        return self._call(detector, lambda: detector.undecided, False)

    def _run(self, detector: Detector, work: Callable[[], None]) -> None:
        """Call a step of a detector, and record its success and duration."""
        name, start = detector.name, time.monotonic_ns()
        # A failure resets it.
        self._block.set_at("detectors", 1, name, "success")
        self._call(detector, work, None)
        self._block.add_at("detectors", 1, name, "runs")
        self._block.set_at("detectors", time.monotonic_ns() - start, name, "duration_ns")

    def _call(self, detector: Detector, work: Callable[[], _T], default: _T) -> _T:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - a detector that failed makes the verdict unknown
            self._fail(detector, f"detector {detector.name} failed: {error!r}")
            return default

    def _fail(self, detector: Detector, summary: str) -> None:
        """Record that a detector failed; each reason goes to the journal once."""
        self._block.set_at("detectors", 0, detector.name, "success")
        if summary not in self._failures:
            self._failures.add(summary)
            self._journal.write("detector.failed", Level.ERROR, detector=detector.name, summary=summary)


def _has_step(detector: Detector, step: str) -> bool:
    return getattr(type(detector), step) is not getattr(Detector, step)
