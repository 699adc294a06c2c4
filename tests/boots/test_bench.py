# SPDX-License-Identifier: GPL-2.0-only
"""A short bench in a real guest: who took part, and what their ratios may be on any machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.progress_lines import say
from tests.support.program import dax_soak

if TYPE_CHECKING:
    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab
# It ends what would hang for ever.
DEADLINE_SECONDS = 1200.0


@pytest.fixture
def report(request: pytest.FixtureRequest, shared: SharedSetUps) -> dict[str, Any]:
    return shared.get(request, "bench", lambda _place, _stack: measure())


def measure() -> dict[str, Any]:
    say(f"dax-soak bench in a guest with {QUICK_KERNEL}")
    words = ("--kernel", QUICK_KERNEL, "--duration", "6s", "--format", "json")
    result = dax_soak("bench", *words, seconds=DEADLINE_SECONDS)
    assert result.returncode == 0, result.stderr
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


def contenders(subject: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["contender"]: row for row in subject["contenders"]}


def test_every_contender_completed_all_operations(report: dict[str, Any]) -> None:
    assert len(report["subjects"]) == 3
    for subject in report["subjects"]:
        assert subject["rounds"] >= 5
        assert subject["operations"] > 0
        for row in subject["contenders"]:
            assert row["completed"] == subject["rounds"] * subject["operations"], row
            assert row["rate"] > 0


def test_contender_ratios_are_plausible(report: dict[str, Any]) -> None:
    """Nobody is quicker than the same calls from C by more than the noise of a busy machine."""
    granted, refused, sweep = report["subjects"]
    for loops in (granted, refused):
        rows = contenders(loops)
        assert list(rows) == ["C loop", "bare Python loop", "worker's loop", "worker's loop, drawing"]
        for name in list(rows)[1:]:
            ratios = {ratio["of"]: ratio for ratio in rows[name]["ratios"]}
            assert 0 < ratios["C loop"]["low"] <= ratios["C loop"]["high"]
            assert ratios["C loop"]["median"] < 1.5
    # A refusal is much shorter than a map, so the same books weigh more.
    of_granted, of_refused = (
        contenders(loops)["worker's loop"]["ratios"][0]["median"] for loops in (granted, refused)
    )
    assert of_refused < of_granted
    rows = contenders(sweep)
    assert list(rows) == ["memcpy", "added up in Python", "sweep"]
    assert rows["sweep"]["rate"] > rows["added up in Python"]["rate"]


def test_a_scrape_covers_a_whole_run(report: dict[str, Any]) -> None:
    assert 100 < report["scrape"]["series"] < 1000
    assert report["scrape"]["milliseconds"] > 0
