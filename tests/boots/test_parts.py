# SPDX-License-Identifier: GPL-2.0-only
"""What needs a real kernel and no soak, in one guest without an IOMMU.

A journal on a file system that gets full and has space again, scheduled work on a machine whose clock is
set, and the survey of a machine that lacks an IOMMU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.boots.harness.script import guest_program, seen_in_guest
from tests.journal.test_backlog import check_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab

SCRIPT: Final = guest_program("parts")
CHANGES: Final = ("back", "forward", "a day forward", "summer time begins", "summer time ends")


@pytest.fixture(params=["ext4", pytest.param("xfs", marks=pytest.mark.long)])
def seen(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot once for each file system, and have everything tried that this file is about."""
    filesystem = request.param
    arguments = ("--filesystem", filesystem, "--append", "intel_iommu=off")
    return shared.get(
        request, f"parts-{filesystem}", lambda place, _: seen_in_guest(place, SCRIPT, *arguments)
    )


def test_the_reserve_of_a_real_file_system(seen: Mapping[str, Any]) -> None:
    check_scenario(seen["full disk"])


def test_without_an_iommu_the_remedy_is_shown(seen: Mapping[str, Any]) -> None:
    reasons, text = seen["survey"]["reasons"], seen["survey"]["survey"]
    assert reasons == [reason for reason in reasons if "intel_iommu=on" in reason]
    assert len(reasons) == 1
    assert "MISS  IOMMU" in text
    assert "has an IOMMU group" in text


@pytest.mark.parametrize("event", CHANGES)
def test_scheduled_jobs_keep_their_times(seen: Mapping[str, Any], event: str) -> None:
    told = seen[event]
    # Of all turns, as many as a slow machine lets come; none is made up for.
    pause, seconds, interval = told["longest pause"], told["seconds"], told["interval"]
    assert seconds / (interval + pause) - 1 <= told["runs"] <= seconds / interval
    assert told["longest gap"] <= interval + 2 * pause
    assert told["lateness"] <= 2 * pause
    # What is due in half an hour is not done because the clock says that it has passed.
    assert told["hourly"] == 0
    assert told["offset changed"] == event.startswith("summer")


def test_the_schedule_library_alone_does_not(seen: Mapping[str, Any]) -> None:
    """The control, `schedule` as it is: it stands still, and it hurries."""
    assert seen["back"]["plain"] <= 2
    assert seen["summer time ends"]["plain"] <= 2
    for event in ("forward", "a day forward", "summer time begins"):
        assert seen[event]["plain hourly"] == 1
