"""Ten minutes of each kernel on each file system: nothing that no known issue explains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.lab_support import lab

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.lab, pytest.mark.long]

DURATION = os.environ.get("DURATION", "10m")
DEADLINE_SECONDS = float(os.environ.get("DEADLINE", "3600"))


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
@pytest.mark.parametrize("kernel", ["debian:6.1", "debian:6.12", "debian:sid"])
def test_no_false_alarm(tmp_path: Path, kernel: str, filesystem: str) -> None:
    arguments = ("--kernel", kernel, "--filesystem", filesystem, "--duration", DURATION)
    with lab(tmp_path / "run", *arguments) as process:
        assert process.finish(DEADLINE_SECONDS) == 0, process.stdout
        confirmed = {
            event["known_issue"]
            for event in process.events("known-issue.probed")
            if event["confirmed"]
        }
        # What a probe has shown is found by the soak as well, and nothing else.
        assert {entry["known_issue"] for entry in process.verdict()["violations"]} == confirmed
