# SPDX-License-Identifier: GPL-2.0-only
"""The detector protocol, and the findings that detectors report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from soak.model.vocabulary import DetectorName, Interface, Operation, RegionKind, Violation
    from soak.workload.pool import WorkerProcess


class Detector:
    """Finds broken expectations and passes them to the reporter.

    The supervisor calls every method. An exception from a detector makes the verdict unknown and does
    not end the run. A subclass must set `name`; every method has a default.
    """

    name: DetectorName

    def prepare(self) -> None:
        """Record the initial state, before any page is pinned."""

    def probe(self) -> None:
        """Probe this kernel for known issues; all workers rest meanwhile."""

    @property
    def undecided(self) -> bool:
        """Whether a probe of an applicable issue is still inconclusive: `probe` must run again."""
        return False

    def look(self) -> None:
        """Judge everything recorded since the last call. Runs several times a second; must not block."""

    def at_rest(self) -> None:
        """Take the measurements that need all workers at rest.

        If a worker does not come to rest, the supervisor skips the call and counts it as failed.
        """

    def free(self, worker: WorkerProcess) -> None:
        """Free a worker that does not come to rest from its system call."""

    def commit(self) -> None:
        """Store how far the ledger is judged; all findings up to there are on disk."""

    def uncovered(self) -> Sequence[str]:
        """Return the cells of this run that no expectation covers."""
        return ()

    def completed(self) -> Mapping[str, int]:
        """Return the number of judged trials by label."""
        return {}

    def sweeps(self) -> Mapping[str, int]:
        """Return the number of sweeps by region name."""
        return {}


@dataclass(frozen=True)
class Finding:
    """A broken expectation: `count` operations, or page references for a leak.

    `undecided` names the known issue that would explain it, whose probe is still inconclusive.
    `canary` marks a fault that the soak injected to test the detector.
    """

    kind: Violation
    region: RegionKind
    interface: Interface
    operation: Operation
    count: int
    summary: str
    region_name: str | None = None
    known_issue: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    canary: bool = False
    undecided: str | None = None
