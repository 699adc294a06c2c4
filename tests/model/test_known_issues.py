# SPDX-License-Identifier: GPL-2.0-only
"""A known issue explains what it predicts, and nothing that only looks like it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from soak.model.known_issues import (
    KNOWN_ISSUES,
    O_DIRECT_LOST_WAKEUP,
    REMAPPED_PAGE_STALL,
    TYPE1_DEVICE_DAX_LEAK,
    KnownIssue,
    Observation,
    leak_issue,
)
from soak.model.vocabulary import Interface, RegionKind, Violation

BY_TRANSFER = Observation(Violation.STALL, RegionKind.FS_DAX, (Interface.O_DIRECT,))
AGAIN = Observation(
    Violation.LATE_WAKEUP, RegionKind.FS_DAX, (Interface.VMSPLICE,), ended=True, pinned_again=True
)
OF_DEVICE = Observation(Violation.LEAK, RegionKind.DEVICE_DAX, (Interface.VFIO_TYPE1,))


@pytest.mark.parametrize(
    ("issue", "seen"),
    [
        (O_DIRECT_LOST_WAKEUP, BY_TRANSFER),
        (O_DIRECT_LOST_WAKEUP, replace(BY_TRANSFER, interfaces=(*AGAIN.interfaces, Interface.O_DIRECT))),
        (REMAPPED_PAGE_STALL, AGAIN),
        (REMAPPED_PAGE_STALL, replace(AGAIN, violation=Violation.STALL, ended=False)),
        (TYPE1_DEVICE_DAX_LEAK, OF_DEVICE),
    ],
)
def test_issue_explains_its_prediction(issue: KnownIssue, seen: Observation) -> None:
    assert issue.explains(seen)


@pytest.mark.parametrize(
    ("issue", "seen"),
    [
        # What has ended by itself was woken.
        (O_DIRECT_LOST_WAKEUP, replace(BY_TRANSFER, ended=True)),
        (O_DIRECT_LOST_WAKEUP, replace(BY_TRANSFER, interfaces=(Interface.VMSPLICE,))),
        (O_DIRECT_LOST_WAKEUP, replace(BY_TRANSFER, interfaces=())),
        (O_DIRECT_LOST_WAKEUP, replace(BY_TRANSFER, violation=Violation.EARLY_TRUNCATE)),
        (REMAPPED_PAGE_STALL, replace(AGAIN, pinned_again=False)),
        (REMAPPED_PAGE_STALL, replace(AGAIN, region=RegionKind.ANONYMOUS)),
        (TYPE1_DEVICE_DAX_LEAK, replace(OF_DEVICE, region=RegionKind.FS_DAX)),
    ],
)
def test_issue_explains_nothing_else(issue: KnownIssue, seen: Observation) -> None:
    assert not issue.explains(seen)


def test_region_kind_has_at_most_one_leak_issue() -> None:
    of_leaks = [issue.region for issue in KNOWN_ISSUES if Violation.LEAK in issue.violations]
    assert len(of_leaks) == len(set(of_leaks))
    assert leak_issue(RegionKind.DEVICE_DAX) is TYPE1_DEVICE_DAX_LEAK
    assert leak_issue(RegionKind.FS_DAX) is None
