# SPDX-License-Identifier: GPL-2.0-only
"""The hot loop of a worker: it runs operations and records them in the ledger.

Readers rely on the order of the stores: the loop records an operation before it begins, and its result
before it counts it. A worker that hangs or dies leaves a readable block.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from soak.ledger.layout import WORD
from soak.ledger.schema import (
    BUCKET_BOUNDS_NS,
    COUNT_COLUMNS,
    DONE_COLUMN,
    FAILED_COLUMN,
    INTERRUPTED_COLUMN,
    RECORDER_COLUMNS,
    RECORDER_LENGTH,
    REFUSED_COLUMN,
    RUN_WORD,
    STOP_WORD,
)
from soak.model.vocabulary import ERRNO_COLUMN, ERRNOS, WorkerState
from soak.workload.expectations import expected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from soak.ledger.writer import BlockWriter
    from soak.model.cell import Cell
    from soak.model.kernels import Release
    from soak.model.vocabulary import Operation
    from soak.workload.choices import Choice

# The result of a call that skipped its operation on purpose: the loop does not count it.
SKIPPED: Final = -1

_EINTR: Final = 4
_BUCKETS: Final = len(BUCKET_BOUNDS_NS) + 1
_PAUSE_POLL_SECONDS: Final = 0.005
_COLUMNS: Final = len(COUNT_COLUMNS)
_ROW_WORDS: Final = len(RECORDER_COLUMNS)
_END: Final = RECORDER_COLUMNS.index("end_ns")
_RESULT: Final = RECORDER_COLUMNS.index("result")
# The columns up to `end_ns`, the last one that the loop writes before an operation.
_fill_line: Final = struct.Struct(f"<{_END + 1}Q").pack_into


class Barrier:
    """Pauses a worker between two operations on request."""

    def __init__(
        self, block: BlockWriter, pause: memoryview[int], rest: Callable[[], None] | None
    ) -> None:
        self._block, self._pause, self._rest = block, pause, rest
        self._acknowledged = block.view("acknowledged")

    @property
    def stopping(self) -> bool:
        return self._pause[0] == STOP_WORD

    def passed(self) -> bool:
        """Rest during a pause; return False once the pause word is STOP_WORD."""
        if self._pause[0] == self._acknowledged[0]:
            return True
        return _wait(self._block, self._pause, self._rest)


def outcome_columns(cells: Sequence[Cell], release: Release) -> list[dict[int, int]]:
    """Return, for each cell, the column of `counts` for each errno."""
    tables = []
    for cell in cells:
        row = expected(cell, release)
        columns = {0: DONE_COLUMN, _EINTR: INTERRUPTED_COLUMN}
        for number, column in ERRNO_COLUMN.items():
            refused = row is not None and number == row.refusal
            columns[number] = (REFUSED_COLUMN if refused else FAILED_COLUMN) + column
        tables.append(columns)
    return tables


def work(
    block: BlockWriter,
    pause: memoryview[int],
    choices: Iterator[Choice],
    calls: Mapping[Operation, Callable[[Choice], int]],
    columns: Sequence[Mapping[int, int]],
    *,
    rest: Callable[[], None] | None = None,
) -> None:
    """Run `choices` until the pause word is STOP_WORD; call `rest` at each pause."""
    recorder, sums = block.view("recorder"), block.view("duration_sum_ns")
    books = _books(block, columns)
    begun, ended = block.view("begun"), block.view("ended")
    number_begun, number_ended = begun[0], ended[0]
    other = FAILED_COLUMN + len(ERRNOS) - 1
    now, bounds = time.monotonic_ns, BUCKET_BOUNDS_NS

    for choice in choices:
        # While the worker runs, `acknowledged` is RUN_WORD, which is 0.
        if pause[0] and not _wait(block, pause, rest):
            return
        number, cell, operation, region, place, offset, length, _, _, _ = choice
        call = calls[operation]
        row = number_begun % RECORDER_LENGTH * _ROW_WORDS
        start = now()
        # Readers ignore the line until `begun` counts it, so its words need no atomic stores.
        _fill_line(recorder, row * WORD, number, cell, start, region, place, offset, length, 0)
        begun[0] = number_begun = number_begun + 1

        result = call(choice)

        end = now()
        if result != SKIPPED:
            recorder[row + _RESULT] = result
            recorder[row + _END] = end
            took = end - start
            counts, column, buckets = books[cell]
            counts[column(result, other)] += 1
            sums[cell] += took
            buckets[bisect_left(bounds, took)] += 1
        ended[0] = number_ended = number_ended + 1


def _books(
    block: BlockWriter, columns: Sequence[Mapping[int, int]]
) -> list[tuple[memoryview[int], Callable[[int, int], int], memoryview[int]]]:
    """Return, for each cell, its counts, the lookup from result to column, and its histogram."""
    counts, buckets = block.view("counts"), block.view("duration_buckets")
    return [
        (
            counts[cell * _COLUMNS : (cell + 1) * _COLUMNS],
            table.get,
            buckets[cell * _BUCKETS : (cell + 1) * _BUCKETS],
        )
        for cell, table in enumerate(columns)
    ]


def _wait(block: BlockWriter, pause: memoryview[int], rest: Callable[[], None] | None) -> bool:
    """Acknowledge the pause word and wait for RUN_WORD; return False on STOP_WORD."""
    if rest is not None and pause[0] not in {RUN_WORD, STOP_WORD}:
        rest()
    while (word := pause[0]) != RUN_WORD:
        if word == STOP_WORD:
            return False
        block.set("acknowledged", word)
        block.set_word("state", WorkerState.PAUSED)
        time.sleep(_PAUSE_POLL_SECONDS)
    block.set("acknowledged", 0)
    block.set_word("state", WorkerState.RUNNING)
    return True
