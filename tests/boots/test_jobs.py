# SPDX-License-Identifier: GPL-2.0-only
"""Scheduled work on a machine whose clock is set, and where summer time comes and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab

SCRIPT = guest_program("jobs")


def test_clock_jumps_and_summer_time_change_nothing(tmp_path: Path) -> None:
    told = {name: fact for name, fact in seen_in_guest(tmp_path, SCRIPT).items() if name != "step"}
    assert len(told) == 5
    for event, line in told.items():
        # Of all turns, as many as a slow machine lets come; none is made up for.
        pause, seconds, interval = line["longest pause"], line["seconds"], line["interval"]
        assert seconds / (interval + pause) - 1 <= line["runs"] <= seconds / interval, event
        assert line["longest gap"] <= interval + 2 * pause, event
        assert line["lateness"] <= 2 * pause, event
        # What is due in half an hour is not done because the clock says that it has passed.
        assert line["hourly"] == 0, event
        assert line["offset changed"] == event.startswith("summer"), event
    # The control, `schedule` as it is: it stands still, and it hurries.
    assert told["back"]["plain"] <= 2
    assert told["summer time ends"]["plain"] <= 2
    for event in ("forward", "a day forward", "summer time begins"):
        assert told[event]["plain hourly"] == 1
