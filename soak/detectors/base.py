# SPDX-License-Identifier: GPL-2.0-only
"""What every detector is, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from soak.model.vocabulary import DetectorName, Interface, Operation, RegionKind, Violation
    from soak.workload.pool import WorkerProcess


class Detector:
    """A way to find broken expectations, which hands its findings to the reporter.

    The supervisor calls it; what it raises makes the verdict unknown, and ends nothing. All but `name`
    may be left as it is here.
    """

    name: DetectorName

    def prepare(self) -> None:
        """See how everything is, before anything was pinned."""

    def probe(self) -> None:
        """Learn which known issues this kernel has, while no worker is at work."""

    @property
    def undecided(self) -> bool:
        """Whether a probe of an issue that applies was inconclusive so far: `probe` tries again."""
        return False

    def look(self) -> None:
        """Judge what was noted since the last call: several times a second, and in no time."""

    def at_rest(self) -> None:
        """Measure what can only be measured while no worker is at work.

        Where a worker does not come to rest it is not called, and has failed.
        """

    def free(self, worker: WorkerProcess) -> None:
        """Free a worker that does not come to rest."""

    def commit(self) -> None:
        """Store how far was judged: what was found is on disk."""

    def uncovered(self) -> Sequence[str]:
        """Return what this run does and no expectation covers."""
        return ()

    def completed(self) -> Mapping[str, int]:
        """Return how often each trial was judged, by label."""
        return {}

    def sweeps(self) -> Mapping[str, int]:
        """Return how often each region was measured, by name."""
        return {}


@dataclass(frozen=True)
class Finding:
    """A broken expectation: `count` operations, or page references for a leak.

    `undecided` names the known issue that explains it if a probe confirms that, which was inconclusive
    so far. `canary` says that the soak broke it itself, to see whether it would be found.
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
