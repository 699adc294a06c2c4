# SPDX-License-Identifier: GPL-2.0-only
"""What several tests of the soak share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import settings

from soak.ledger.schema import soak_layout
from soak.ledger.writer import Ledger
from soak.model.vocabulary import RegionKind, Role
from soak.workload.choices import PlannedRegion, plan_workers

if TYPE_CHECKING:
    from pathlib import Path

    from soak.workload.choices import WorkerPlan

DEADLINE = 60.0
KNOWN_ISSUE = "type1-device-dax-leak"

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=100)

REGIONS = (
    PlannedRegion("dax", RegionKind.DEVICE_DAX, 64 << 20),
    PlannedRegion("files", RegionKind.FS_DAX, 32 << 20),
    PlannedRegion("control", RegionKind.ANONYMOUS, 16 << 20),
)


def workers(mappers: int = 1, invalidators: int = 1, seed: int = 1) -> list[WorkerPlan]:
    return plan_workers(REGIONS, "mixed", mappers, invalidators, seed)


def role(plans: list[WorkerPlan], wanted: Role) -> list[WorkerPlan]:
    return [plan for plan in plans if plan.role is wanted]


def make_ledger(path: Path) -> Ledger:
    """Make a ledger of one mapper and one invalidator, with nothing counted yet."""
    run: dict[str, Any] = {
        "run_id": "run-1",
        "regions": [
            {"name": region.name, "kind": region.kind, "size": region.size, "files": 0}
            for region in REGIONS
        ],
    }
    entries = [(plan.name, plan.role, plan.cells) for plan in workers()]
    return Ledger.create(path, soak_layout(run, entries, [KNOWN_ISSUE], lab=False))
