# SPDX-License-Identifier: GPL-2.0-only
"""What takes too long for each change: ten minutes of each kernel, and pages of a gigabyte."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from soak.config.values import parse_duration
from tests.boots.harness.lab import FULL_LOAD, lab

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.lab, pytest.mark.long]

DURATION = os.environ.get("DURATION", "10m")
# At most ten a second.
MOST_BEATS = int(20 * parse_duration(DURATION))


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
@pytest.mark.parametrize("kernel", ["debian:6.1", "debian:6.12", "debian:sid"])
def test_no_false_alarm(tmp_path: Path, kernel: str, filesystem: str) -> None:
    arguments = ("--kernel", kernel, "--filesystem", filesystem, "--duration", DURATION)
    with lab(tmp_path / "run", *arguments, workload=FULL_LOAD) as process:
        assert process.finish(MOST_BEATS) == 0, process.stdout
        confirmed = {
            event["known_issue"]
            for event in process.events("known-issue.probed")
            if event["result"] == "confirmed"
        }
        # What a probe has shown is found by the soak as well, and nothing else.
        assert {entry["known_issue"] for entry in process.verdict()["violations"]} == confirmed


GIGABYTE_PAGES = """
[[region]]
name = "huge"
kind = "device-dax"
path = "the lab's"
size = "1G"
alignment = "1G"
[[region]]
name = "files"
kind = "fs-dax"
path = "the lab's"
[[region]]
name = "control"
kind = "anonymous"
"""


def test_a_region_in_pages_of_a_gigabyte(tmp_path: Path) -> None:
    """Of one folio of 262,144 pages every sub-range is mapped, and what leaks of it is foreseen."""
    config = tmp_path / "soak.toml"
    config.write_text(GIGABYTE_PAGES)
    with lab(tmp_path / "run", "-c", str(config), "--duration", "10m") as process:
        assert process.finish_when_covered() == 0, process.stdout
        probed = [event for event in process.events("known-issue.probed") if event.get("region")]
        assert {event["region"] for event in probed} == {"huge"}
        leaks = [entry for entry in process.verdict()["violations"] if entry["kind"] == "leak"]
        assert {entry["known_issue"] for entry in leaks} == {
            event["known_issue"] for event in probed if event["result"] == "confirmed"
        }
