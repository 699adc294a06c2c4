# SPDX-License-Identifier: GPL-2.0-only
"""The table of expectations of all operations, long-term interfaces and short pins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.model.expectations import FILE_EXPECTATIONS
from soak.workload.operations.table import FILE_OPERATIONS
from soak.workload.pins.interfaces import LONG_TERM_INTERFACES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from soak.model.cell import Cell
    from soak.model.expectations import Expectation
    from soak.model.kernels import Release
    from soak.model.vocabulary import Backing

EXPECTATIONS: Final = (
    *(row for entry in LONG_TERM_INTERFACES for row in entry.expectations),
    *(row for entry in FILE_OPERATIONS for row in entry.expectations),
    *FILE_EXPECTATIONS,
)


def expected(
    cell: Cell,
    release: Release,
    rows: Iterable[Expectation] = EXPECTATIONS,
    *,
    backing: Backing | None = None,
) -> Expectation | None:
    """Return the row for a cell on a kernel, or None where no row covers it.

    Without `backing`, the first row of any backing matches.
    """
    return next((row for row in rows if row.covers(cell, release, backing)), None)
