# SPDX-License-Identifier: GPL-2.0-only
"""Sums over the blocks of all workers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from soak.ledger.schema import COUNT_COLUMNS, INTERRUPTED_COLUMN
from soak.model.vocabulary import RegionKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def completed_operations(blocks: Iterable[tuple[Sequence[str], Sequence[int]]]) -> dict[str, int]:
    """Count the operations of each cell that ended, interrupted ones excluded.

    `blocks` has the cell labels and the flat counts of each worker.
    """
    totals: Counter[str] = Counter()
    width = len(COUNT_COLUMNS)
    for labels, counts in blocks:
        for index, label in enumerate(labels):
            row = counts[index * width : (index + 1) * width]
            totals[label] += sum(row) - row[INTERRUPTED_COLUMN]
    return dict(totals)


def judged_trials(rows: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the judged trials by label, from the rows of the field `trials`."""
    return {
        f"{operation} {RegionKind.FS_DAX} {interface}": count
        for operation, counts in rows.items()
        for interface, count in counts.items()
    }
