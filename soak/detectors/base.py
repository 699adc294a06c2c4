# SPDX-License-Identifier: GPL-2.0-only
"""What a detector reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.model.vocabulary import Interface, Operation, RegionKind, Violation


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
