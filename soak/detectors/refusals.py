# SPDX-License-Identifier: GPL-2.0-only
"""The refusal detector: compares the outcome of every operation with its expectation.

It reads the workers' counts from the ledger, and takes evidence from their flight recorders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from soak.detectors.base import Detector, Finding
from soak.ledger.recorder import RECORDER, Line
from soak.ledger.schema import CANARY, COUNT_COLUMNS, DONE_COLUMN, FAILED_COLUMN
from soak.model.cell import Cell
from soak.model.vocabulary import ERRNOS, DetectorName, Violation, errno_name
from soak.workload.expectations import expected

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from soak.detectors.reporter import Reporter
    from soak.ledger.writer import BlockWriter
    from soak.model.expectations import Expectation
    from soak.model.kernels import Release

_EVIDENCE_LINES: Final = 5


class RefusalDetector:
    """Compares the counts since the last look with the expectations."""

    def __init__(
        self, blocks: Sequence[BlockWriter], release: Release, judged: Sequence[memoryview[int]]
    ) -> None:
        """`judged` has, for each block, the words that store the counts already judged."""
        self._blocks = blocks
        self._judged = judged
        self._cells = [[Cell.parse(label) for label in block.names("counts")] for block in blocks]
        self._rows = [[expected(cell, release) for cell in cells] for cells in self._cells]
        self._seen = [list(words) for words in judged]

    def uncovered(self) -> list[Cell]:
        """Return the cells of this run that no expectation covers."""
        missing = {
            cell: None
            for block, cells, rows in zip(self._blocks, self._cells, self._rows, strict=True)
            for cell, row in zip(cells, rows, strict=True)
            # A canary's block also has cells of regions and interfaces that are not in the run.
            if row is None and block.block.kind != CANARY
        }
        return list(missing)

    def look(self) -> list[Finding]:
        """Judge the operations counted since the last call."""
        found: list[Finding] = []
        for number, block in enumerate(self._blocks):
            counts = list(block.view("counts"))
            if counts == self._seen[number]:
                continue
            for index, (cell, row) in enumerate(
                zip(self._cells[number], self._rows[number], strict=True)
            ):
                start = index * len(COUNT_COLUMNS)
                stop = start + len(COUNT_COLUMNS)
                now, before = counts[start:stop], self._seen[number][start:stop]
                if row is not None and now != before:
                    new = [after - earlier for after, earlier in zip(now, before, strict=True)]
                    canary = block.block.kind == CANARY
                    found += (
                        replace(finding, canary=canary)
                        for finding in _judge(block, index, cell, row, new)
                    )
            self._seen[number] = counts
        return found

    def commit(self) -> None:
        """Store the judged counts, so that no later supervisor judges them again.

        All findings up to there must be on disk.
        """
        for words, seen in zip(self._judged, self._seen, strict=True):
            for position, count in enumerate(seen):
                words[position] = count


class Refusals(Detector):
    """Reports the findings of a `RefusalDetector`."""

    name = DetectorName.REFUSALS

    def __init__(self, detector: RefusalDetector, reporter: Reporter) -> None:
        self._detector, self._reporter = detector, reporter

    def look(self) -> None:
        for finding in self._detector.look():
            self._reporter.report(finding)

    def commit(self) -> None:
        self._detector.commit()

    def uncovered(self) -> Sequence[str]:
        return [cell.label for cell in self._detector.uncovered()]


def _judge(
    block: BlockWriter, index: int, cell: Cell, row: Expectation, new: Sequence[int]
) -> Iterable[Finding]:
    label = f"{cell.operation} of {cell.region} over {cell.interface}"
    worker = block.block.name
    if row.refusal is not None and new[DONE_COLUMN]:
        yield Finding(
            Violation.UNEXPECTED_PIN,
            cell.region,
            cell.interface,
            cell.operation,
            new[DONE_COLUMN],
            f"{label} was granted; expected {errno_name(row.refusal)}",
            evidence={"worker": worker, "operations": _recent(block, index, 0), "owed": row.reason},
        )
    for column, name in enumerate(ERRNOS):
        count = new[FAILED_COLUMN + column]
        if count:
            kind = Violation.WRONG_ERRNO if row.refusal else Violation.UNEXPECTED_REFUSAL
            wanted = errno_name(row.refusal) if row.refusal else "success"
            yield Finding(
                kind,
                cell.region,
                cell.interface,
                cell.operation,
                count,
                f"{label} failed with {name}; expected {wanted}",
                evidence={
                    "worker": worker,
                    "errno": name,
                    "operations": _recent(block, index, None),
                    "owed": row.reason,
                },
            )


def _recent(block: BlockWriter, cell: int, result: int | None) -> list[Line]:
    """Return the cell's newest lines in the flight recorder with `result`, or with any error if None."""
    recorder = list(block.view("recorder"))
    ended = block.get("ended")
    lines: list[Line] = []
    for line in reversed(RECORDER.last(recorder, ended, RECORDER.length)):
        matches = line["result"] == result if result is not None else line["result"] != 0
        # A line without an end was skipped; its result belongs to an older operation.
        if line["cell"] == cell and line["end_ns"] and matches:
            lines.append(line)
            if len(lines) == _EVIDENCE_LINES:
                break
    return lines
