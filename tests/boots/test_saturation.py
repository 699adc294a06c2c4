# SPDX-License-Identifier: GPL-2.0-only
"""A page that can be pinned no more, on a real kernel: what an earlier soak left is no violation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.evidence import NOTHING_LEFT
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab(seconds=80)

SCRIPT = guest_program("saturation")
# With 4 KiB alignment each page has a count of its own, and a pin is 1024 references.
SMALL_PAGES = """
[[region]]
name = "dax"
kind = "device-dax"
path = "the lab's"
size = "32M"
alignment = "4K"
[[region]]
name = "files"
kind = "fs-dax"
path = "the lab's"
"""


@pytest.fixture
def seen(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot once, and have everything tried that this file is about."""

    def make(place: Path, _: object) -> Mapping[str, Any]:
        config = place / "lab.toml"
        config.write_text(SMALL_PAGES)
        return seen_in_guest(place, SCRIPT, "-c", str(config))

    return shared.get(request, "saturation", make)


def unexplained(verdict: Mapping[str, Any]) -> list[str]:
    return [entry["kind"] for entry in verdict["violations"] if entry["known_issue"] is None]


def test_the_kernel_refuses_at_the_predicted_count(seen: Mapping[str, Any]) -> None:
    full = seen["full"]
    assert full["errno"] == "ENOMEM"
    # The idle count takes a part of the last pin.
    assert full["of"] - 1 <= full["pins"] <= full["of"]


def test_headroom_used_before_does_not_recycle(seen: Mapping[str, Any]) -> None:
    used = seen["used"]
    assert used["recycled"] == used["limits"] == []
    assert (used["verdict"]["verdict"], used["code"]) == ("pass", 0), used["verdict"]["reasons"]


def test_a_full_unrecyclable_region_is_not_soaked(seen: Mapping[str, Any]) -> None:
    alone = seen["alone"]
    assert alone["why"] == "the reference counts of region dax are nearly full"
    (sentence,) = alone["limits"]
    assert "'recyclable = true'" in sentence
    assert alone["started"] == 0
    assert (alone["verdict"]["verdict"], alone["code"]) == ("unknown", 3)
    # That pins would be refused is no fault of the kernel's.
    assert alone["verdict"]["violations"] == []
    assert alone["left"] == NOTHING_LEFT


def test_a_full_region_is_recycled_before_pinning(seen: Mapping[str, Any]) -> None:
    recycled = seen["recycled"]
    (event,) = recycled["recycled"]
    assert event["headroom_before"] < 0.01
    assert event["headroom"] > 0.9
    assert recycled["started"] == 1
    assert unexplained(recycled["verdict"]) == []
    assert recycled["verdict"]["verdict"] == "pass", recycled["verdict"]["reasons"]
    assert recycled["left"] == NOTHING_LEFT
