# SPDX-License-Identifier: GPL-2.0-only
"""The units as installed, under a real systemd on a real kernel: started, killed, starved, ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.evidence import NOTHING_LEFT
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab(seconds=200)

SCRIPT = guest_program("systemd")
# systemd asks for seccomp, among others, which a kernel made for a lab need not have.
KERNEL = "debian:6.1"
RUNNING = {"ActiveState": "active", "SubState": "running"}


@pytest.fixture
def seen(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot once, and have everything tried that this file is about."""
    return shared.get(request, "systemd", lambda place, _: look(place, SCRIPT))


def look(place: Path, script: str) -> Mapping[str, Any]:
    return seen_in_guest(place, script, "--package", "systemd", kernel=KERNEL)


def test_the_printed_commands_start_both_units(seen: Mapping[str, Any]) -> None:
    for words in ("systemd-sysusers", "systemd-tmpfiles --create", "systemctl enable --now"):
        assert words in seen["prepared"]["install"]
    started = seen["started"]
    assert started["soak"] == {**RUNNING, "Type": "notify", "StatusText": "Soaking"}
    assert started["exporter"] == RUNNING
    assert len(started["bound"]) > 1


def test_a_start_completes_when_workers_run(seen: Mapping[str, Any]) -> None:
    assert seen["started"]["workers"] == 1


def test_the_exporters_dynamic_user_reads_the_run(seen: Mapping[str, Any]) -> None:
    started = seen["started"]
    # systemd.exec(5), DynamicUser=
    assert 61184 <= started["uid"] <= 65519
    assert started["active"]


def test_a_killed_soak_resumes_its_run(seen: Mapping[str, Any]) -> None:
    assert seen["killed"] == {"restarts": 1, "resumed": 1, "active": True}


def test_a_stopped_exporter_is_replaced_alone(seen: Mapping[str, Any]) -> None:
    assert seen["exporter_stands_still"] == {"soak": 0, "active": True}


@pytest.mark.long
def test_a_stopped_supervisor_is_replaced(tmp_path: Path) -> None:
    """Its watchdog does what the exporter's does, and takes a minute."""
    seen = look(tmp_path, guest_program("systemd", THOROUGH=True))
    assert seen["supervisor_stands_still"] == {"restarts": 1, "resumed": 1}


def test_stop_ends_the_run_in_order(seen: Mapping[str, Any]) -> None:
    stopped = seen["stopped"]
    assert stopped["soak"]["Result"] == "success"
    assert stopped["soak"]["ActiveState"] == "inactive"
    assert "run.ended" in stopped["events"]
    assert stopped["left"] == NOTHING_LEFT
    assert stopped["verdict"]["verdict"] == "pass", stopped["verdict"]["reasons"]
    # Whoever scrapes still learns how it ended.
    assert stopped["exporters"] == 1
    assert stopped["over"]


def test_a_configuration_error_is_not_retried(seen: Mapping[str, Any]) -> None:
    mistaken = seen["mistaken"]
    assert mistaken["started"] != 0
    assert mistaken["soak"] == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "2",
        "NRestarts": "0",
    }
    assert "run.duration is 'soon'" in mistaken["status"]


def test_enabled_units_are_not_removed(seen: Mapping[str, Any]) -> None:
    removed = seen["removed"]
    assert "systemctl disable --now" in removed["refused"]
    assert removed["left"] == []
