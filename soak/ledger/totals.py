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
    """Count, for each cell, the operations that ended in whatever way but interrupted.

    `blocks` gives for each worker the labels of its cells and its counts, flat.
    """
    totals: Counter[str] = Counter()
    width = len(COUNT_COLUMNS)
    for labels, counts in blocks:
        for index, label in enumerate(labels):
            row = counts[index * width : (index + 1) * width]
            totals[label] += sum(row) - row[INTERRUPTED_COLUMN]
    return dict(totals)


def judged_trials(rows: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Label how often each operation was judged against each kind of pin: the field `trials`."""
    return {
        f"{operation} {RegionKind.FS_DAX} {interface}": count
        for operation, counts in rows.items()
        for interface, count in counts.items()
    }
