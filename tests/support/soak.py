# SPDX-License-Identifier: GPL-2.0-only
"""What several tests of the soak share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import settings

from soak.config.sections import WorkloadSection
from soak.ledger.schema import soak_layout
from soak.ledger.writer import Ledger
from soak.model.vocabulary import RegionKind, Role
from soak.workload.choices import PlannedRegion
from soak.workload.worker_plan import plan_workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from soak.workload.worker_plan import WorkerPlan

DEADLINE = 60.0
KNOWN_ISSUE = "type1-device-dax-leak"

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=100)

REGIONS = (
    PlannedRegion("dax", RegionKind.DEVICE_DAX, 64 << 20),
    PlannedRegion("files", RegionKind.FS_DAX, 32 << 20),
    PlannedRegion("control", RegionKind.ANONYMOUS, 16 << 20),
)


def workers(mappers: int = 1, invalidators: int = 1, seed: int = 1) -> list[WorkerPlan]:
    return planned(mappers=mappers, invalidators=invalidators, seed=seed)


def planned(
    regions: Sequence[PlannedRegion] = REGIONS,
    *,
    seed: int = 1,
    transfers: bool = False,
    **workload: Any,  # noqa: ANN401 - keys of the section
) -> list[WorkerPlan]:
    """Plan workers of the given numbers, and no others."""
    devices = ("/dev/slow",) if transfers else ()
    none = {"mappers": 0, "invalidators": 0, "holders": 0, "trials": 0}
    return plan_workers(regions, WorkloadSection(**none | workload, slow_devices=devices), seed)


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
