# SPDX-License-Identifier: GPL-2.0-only
"""Counts of judged waits in the supervisor's block: trials, wake-up delays, stalls."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from soak.ledger.schema import BUCKET_BOUNDS_NS, STALL_COLUMNS
from soak.ledger.totals import judged_trials
from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Violation

if TYPE_CHECKING:
    from soak.detectors.stalls.judge import Judgement
    from soak.ledger.writer import BlockWriter
    from soak.model.vocabulary import Operation

_BUCKETS: Final = len(BUCKET_BOUNDS_NS) + 1


class WaitCounts:
    """Counts each judgement once, and the operations that are stalled now."""

    def __init__(self, block: BlockWriter) -> None:
        """Keep the counts of earlier supervisors, but reset the number of stalled operations."""
        self._trials, self._waits = block.view("trials"), block.view("waits")
        self._delay_sums = block.view("wakeup_delay_sum_ns")
        self._delay_buckets = block.view("wakeup_delay_buckets")
        for operation in INVALIDATIONS:
            self._waits[_place(operation, "stalled")] = 0

    def add(self, judgement: Judgement) -> None:
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
            self._waits[_place(judgement.wait.operation, "stalls")] += 1
            self.add_stalled_time(judgement.wait.operation, judgement.excess)

    def begin_stalled(self, operation: Operation) -> None:
        self._waits[_place(operation, "stalled")] += 1

    def add_stalled_time(self, operation: Operation, nanoseconds: int) -> None:
        self._waits[_place(operation, "stalled_ns")] += nanoseconds

    def end_stalled(self, operation: Operation) -> None:
        self._waits[_place(operation, "stalled")] -= 1

    def completed(self) -> dict[str, int]:
        """Return the judged trials of each operation against each kind of pin, by label."""
        width = len(SHORT_PINS)
        return judged_trials(
            {
                operation: dict(zip(SHORT_PINS, self._trials[row * width :][:width], strict=True))
                for row, operation in enumerate(INVALIDATIONS)
            }
        )


def _place(operation: Operation, column: str) -> int:
    return INVALIDATIONS.index(operation) * len(STALL_COLUMNS) + STALL_COLUMNS.index(column)
