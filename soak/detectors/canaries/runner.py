# SPDX-License-Identifier: GPL-2.0-only
"""Canaries: faults that the soak injects to prove that its detectors work.

They are real faults: a pinned page, a sleeping truncate, a call that fails with the wrong errno. The
detectors find them through their normal path. Findings of canaries are tagged, and counted only here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.detectors.canaries.kinds import Attempt, WedgedHelperError
from soak.journal.writer import Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.detectors.canaries.kinds import Canary, Differences, Result, Steps
    from soak.detectors.reporter import Reporter
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter

# Soon after the start: a run proves little before its detectors have seen a canary.
FIRST_SECONDS: Final = 3.0


@dataclass
class _UnderWay:
    canary: Canary
    attempt: Attempt
    steps: Steps


class Canaries:
    """Runs rounds of canaries, and journals and counts the result of each."""

    def __init__(
        self,
        block: BlockWriter,
        journal: Journal,
        reporter: Reporter,
        canaries: Sequence[Canary],
        *,
        every: float,
        differences: Differences,
    ) -> None:
        """`every` is the seconds between rounds (0: no canaries); `differences` measures the regions."""
        self.every = every
        self._differences = differences
        self._block = block
        self._journal = journal
        self._reporter = reporter
        self._canaries = list(canaries) if every else []
        self._under_way: list[_UnderWay] = []
        self._rounds = 0

    @property
    def detectors(self) -> list[str]:
        """The detectors that have a canary."""
        return [str(canary.detector) for canary in self._canaries]

    @property
    def busy(self) -> bool:
        """Whether a canary is under way, which may hold a pin or block a truncate."""
        return bool(self._under_way)

    def begin_round(self) -> None:
        """Begin a canary for each detector that has none under way."""
        self._rounds += 1
        busy = [under_way.canary for under_way in self._under_way]
        for canary in self._canaries:
            if canary not in busy:
                attempt = Attempt(self._rounds)
                self._under_way.append(_UnderWay(canary, attempt, canary.go(attempt)))

    def look(self) -> None:
        """Advance each canary by one step, and record the new results."""
        self._assign_findings()
        for under_way in list(self._under_way):
            error: Exception | None = None
            try:
                next(under_way.steps)
                over = False
            except StopIteration:
                over = True
            except Exception as raised:  # noqa: BLE001 - the run goes on without this canary
                over, error = True, raised
            for result in under_way.attempt.results:
                self._note(under_way.canary, result)
            under_way.attempt.results.clear()
            if over:
                self._under_way.remove(under_way)
            if error is not None:
                self._note_failure(under_way.canary, error)

    def asks_for_rest(self) -> bool:
        """Return whether a canary has become ready for the step that needs all workers at rest."""
        return any(under_way.canary.asks_for_rest() for under_way in self._under_way)

    def at_rest(self) -> None:
        """Run the step that needs all workers at rest."""
        for under_way in list(self._under_way):
            try:
                under_way.canary.at_rest(self._differences)
            except Exception as error:  # noqa: BLE001 - the run goes on without this canary
                self._under_way.remove(under_way)
                under_way.steps.close()
                self._note_failure(under_way.canary, error)

    def stop(self) -> None:
        """End all canaries under way without a result; afterwards no pin and no truncate is left."""
        for under_way in self._under_way:
            try:
                under_way.steps.close()
            except WedgedHelperError as error:
                self._note_failure(under_way.canary, error)
        self._under_way.clear()

    def _assign_findings(self) -> None:
        for finding in self._reporter.take_canaries():
            worker = finding.evidence.get("worker")
            for under_way in self._under_way:
                if worker in {block.block.name for block in under_way.canary.blocks}:
                    under_way.attempt.found.append(finding)

    def _note_failure(self, canary: Canary, error: Exception) -> None:
        """Record that a canary could not be injected. If its helper is wedged, disable this canary."""
        summary = f"canary of detector {canary.detector} failed: {error}"
        if isinstance(error, WedgedHelperError) and canary in self._canaries:
            self._canaries.remove(canary)
            summary += "; this canary is disabled for the rest of the run"
        self._journal.write("canary.failed", Level.WARNING, detector=canary.detector, summary=summary)

    def _note(self, canary: Canary, result: Result) -> None:
        detector, word = canary.detector, "seen" if result.seen else "missed"
        evidence = dict(result.evidence)
        if result.seen:
            self._journal.write("canary.seen", detector=detector, made=result.made, evidence=evidence)
            self._block.set_at("canaries", time.monotonic_ns(), detector, "seen_ns")
        else:
            self._journal.write(
                "canary.missed",
                Level.ERROR,
                detector=detector,
                made=result.made,
                evidence=evidence,
                summary=f"detector {detector} missed its canary: {result.made}",
            )
        self._block.add_at("canaries", 1, detector, word)
