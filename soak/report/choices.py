# SPDX-License-Identifier: GPL-2.0-only
"""The first choices of each worker, printed without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.process.output import put
from soak.workload.plan import choice_line

if TYPE_CHECKING:
    from soak.workload.plan import RunPlan


def print_choices(plan: RunPlan, count: int) -> int:
    """Print the first `count` choices of each worker; return 0."""
    for worker, choice in plan.first_choices(count):
        if not put(f"{choice_line(worker, choice)}\n"):
            break
    return 0
