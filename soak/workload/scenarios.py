# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: weighted mixes of operations, regions, sizes and pins that workers draw from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.files.printable import shown
from soak.model.vocabulary import RegionKind
from soak.workload.operations.table import FILE_OPERATIONS
from soak.workload.pins.long_term import READ, WRITE
from soak.workload.pins.methods import COPY, PIPE, REPEATED, TRANSFER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.model.vocabulary import Operation
    from soak.workload.pins.methods import Method

# Sizes of a map other than a number of bytes: the whole region, or any size up to a limit.
WHOLE: Final = "whole"
ANY: Final = "any"


@dataclass(frozen=True)
class Scenario:
    """A mix of operations, as relative weights. `map_sizes` are in bytes, `WHOLE` or `ANY`."""

    name: str
    map_regions: Mapping[RegionKind, float]
    map_sizes: Mapping[int | str, float]
    accesses: Mapping[int, float]
    invalidations: Mapping[Operation, float]
    holds: Mapping[Method, float]


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "mixed",
            {RegionKind.DEVICE_DAX: 0.5, RegionKind.FS_DAX: 0.3, RegionKind.ANONYMOUS: 0.2},
            {4 << 10: 0.25, 64 << 10: 0.2, 2 << 20: 0.35, ANY: 0.198, WHOLE: 0.002},
            {READ | WRITE: 0.8, READ: 0.2},
            {entry.operation: entry.weight for entry in FILE_OPERATIONS if entry.weight},
            # A lost wake-up stalls an invalidator for seconds: the crowd risks few, trials find them.
            {PIPE: 0.8, COPY: 0.14, REPEATED: 0.03, TRANSFER: 0.03},
        ),
    )
}


def find_scenario(name: str) -> Scenario:
    """Return the scenario of this name.

    Raises:
        UsageError: the name is unknown.
    """
    try:
        return SCENARIOS[name]
    except KeyError:
        raise UsageError(
            f"Unknown scenario {shown(name)} (choose from {', '.join(sorted(SCENARIOS))})."
        ) from None
