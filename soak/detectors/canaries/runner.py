# SPDX-License-Identifier: GPL-2.0-only
"""Canaries: faults that the soak makes itself, so that a detector which misses one is known to be blind.

They are real: a page is pinned, a truncate sleeps, a call ends with the wrong errno. The detectors see
them on their ordinary way. What they find is tagged, and counted here and nowhere else.
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

# Soon after the start: a run is not worth much before it has seen its detectors at work.
FIRST_SECONDS: Final = 3.0


@dataclass
class _UnderWay:
    canary: Canary
    attempt: Attempt
    steps: Steps


class Canaries:
    """Makes a round of canaries when it is told to, and says what became of each."""

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
        """Take the seconds between two rounds, 0 for none, and what measures regions as a sweep does."""
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
        """For which detectors a canary is made."""
        return [str(canary.detector) for canary in self._canaries]

    @property
    def busy(self) -> bool:
        """Whether a canary may hold a page, or have a truncate wait, that is to be reckoned with."""
        return bool(self._under_way)

    def begin_round(self) -> None:
        """Begin a canary for each detector, but for those whose last one is still under way."""
        self._rounds += 1
        busy = [under_way.canary for under_way in self._under_way]
        for canary in self._canaries:
            if canary not in busy:
                attempt = Attempt(self._rounds)
                self._under_way.append(_UnderWay(canary, attempt, canary.go(attempt)))

    def look(self) -> None:
        """Let each canary go on, and write down what came of those that are over."""
        self._hand_out_findings()
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
        """Say whether a canary has become ready for what is done while no worker is at work."""
        return any(under_way.canary.asks_for_rest() for under_way in self._under_way)

    def at_rest(self) -> None:
        """Do what can only be done while no worker takes or gives back a pin."""
        for under_way in list(self._under_way):
            try:
                under_way.canary.at_rest(self._differences)
            except Exception as error:  # noqa: BLE001 - the run goes on without this canary
                self._under_way.remove(under_way)
                under_way.steps.close()
                self._note_failure(under_way.canary, error)

    def stop(self) -> None:
        """End what is under way, unjudged: nothing is held or waits afterwards."""
        for under_way in self._under_way:
            try:
                under_way.steps.close()
            except WedgedHelperError as error:
                self._note_failure(under_way.canary, error)
        self._under_way.clear()

    def _hand_out_findings(self) -> None:
        for finding in self._reporter.take_canaries():
            worker = finding.evidence.get("worker")
            for under_way in self._under_way:
                if worker in {block.block.name for block in under_way.canary.blocks}:
                    under_way.attempt.found.append(finding)

    def _note_failure(self, canary: Canary, error: Exception) -> None:
        """Write down that one could not be made. Where its helper hangs for good, no more are made."""
        summary = f"a canary of the detector {canary.detector} failed: {error}"
        if isinstance(error, WedgedHelperError) and canary in self._canaries:
            self._canaries.remove(canary)
            summary += "; no more of them are made"
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
