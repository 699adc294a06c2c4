# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak run` on a machine of its own, on a real kernel: safe, killed, gone on with, given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.evidence import NOTHING_LEFT
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab(seconds=200)

KNOWN_LEAK = "type1-device-dax-leak"


@pytest.fixture(params=[100, pytest.param(500, marks=pytest.mark.long)], ids=["100 kills", "500 kills"])
def seen(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot once, and have everything tried that this file is about."""
    kills = request.param
    script = guest_program("run", KILLS=kills)
    return shared.get(request, f"run-{kills}", lambda place, _: seen_in_guest(place, script))


def test_a_run_changes_and_restores_the_machine(seen: Mapping[str, Any]) -> None:
    functions = seen["ordinary"]["functions"]
    assert seen["ordinary"]["bound"] == functions
    ended = seen["killed"]
    assert ended["left"] == NOTHING_LEFT
    assert ended["events"].count("change.restored") >= len(functions)
    # SIGTERM ends a run in order, and what was seen so far is judged.
    assert ended["events"][-1] == "change.restored"
    assert ended["events"].count("run.ended") == 1
    # The ledger has come from memory to the disk.
    assert ended["ledger"] is False


def test_a_run_serves_metrics_and_answers_requests(seen: Mapping[str, Any]) -> None:
    ordinary = seen["ordinary"]
    assert ordinary["served"]
    assert ordinary["pause"] == "paused: all workers rest\n"
    assert ordinary["rests"]
    assert ordinary["continue"] == "running\n"


def test_restore_undoes_a_killed_run(seen: Mapping[str, Any]) -> None:
    restore = seen["ordinary"]["restore"]
    assert restore["code"] == 0
    assert len(restore["said"]) >= len(seen["ordinary"]["functions"])
    assert restore["again"] == "Nothing to restore.\n"
    assert restore["bound"] == []
    assert restore["ledger"] is False
    assert restore["memory"] == []


def test_a_second_soak_is_refused(seen: Mapping[str, Any]) -> None:
    code, said = seen["ordinary"]["second"]
    assert code == 2
    assert "Another soak has this machine" in said
    assert "Traceback" not in said


def test_the_oom_killer_takes_workers_first(seen: Mapping[str, Any]) -> None:
    assert seen["ordinary"]["oom"] == ["1000"]


def test_kills_lose_no_acknowledged_line(seen: Mapping[str, Any]) -> None:
    killed = seen["killed"]
    assert sum(killed["kills"].values()) == killed["tried"]
    assert min(killed["kills"].values()) > 0
    assert killed["starts"] == killed["kills"]["supervisor"] + 1
    assert killed["resumed"] == killed["kills"]["supervisor"]
    assert killed["missing"] == []
    assert killed["in_order"]
    assert killed["gone_back"] == []


def test_killed_processes_are_no_violations(seen: Mapping[str, Any]) -> None:
    """Whoever is killed gives back what it holds: the books still agree with the kernel's."""
    verdict = seen["killed"]["verdict"]
    # With the evidence, of which nothing else is left when the guest has ended.
    assert seen["killed"]["unexplained"] == []
    assert (verdict["verdict"], seen["killed"]["code"]) == ("pass", 0), verdict["reasons"]
    assert {entry["known_issue"] for entry in verdict["violations"]} <= {KNOWN_LEAK}


def test_a_full_disk_keeps_run_and_verdict(seen: Mapping[str, Any]) -> None:
    full = seen["full"]
    assert full["code"] in {0, 3}
    # The journal's reserve, which it gives back at its end, has room for what is written last.
    assert f"verdict   {full['verdict']['verdict'].upper()}" in full["said"]
    assert "the ledger stays in /run/dax-soak" in full["said"]
    assert "Traceback" not in full["said"]
    assert "program.crashed" not in full["said"]
    # All is given back but the ledger, which has no place to go yet.
    assert {**full["left"], "memory": []} == NOTHING_LEFT
    assert len(full["left"]["memory"]) == 1
    assert full["after"] == NOTHING_LEFT
    assert "was moved from memory to its run directory" in full["restore"]
    before, after = full["begun"]
    assert after >= before
    assert full["report"].endswith(f"verdict   {full['verdict']['verdict'].upper()}\n")


def test_a_removed_device_ends_the_run(seen: Mapping[str, Any]) -> None:
    gone = seen["gone"]
    assert gone["why"] == f"{gone['device']}, which this run uses, is gone"
    assert gone["code"] in {1, 3}
    assert gone["left"] == NOTHING_LEFT


def test_a_leak_waits_for_a_conclusive_probe(seen: Mapping[str, Any]) -> None:
    """The first one could pin nothing; what leaked until another could is explained by it then."""
    gone = seen["gone"]
    assert gone["probes"][0] == "inconclusive"
    assert gone["probes"][-1] == "confirmed"
    assert [KNOWN_LEAK, None] in gone["leaks"]
    assert {issue or undecided for issue, undecided in gone["leaks"]} == {KNOWN_LEAK}
    leaks = [entry for entry in gone["violations"] if entry["kind"] == "leak"]
    assert {entry["known_issue"] for entry in leaks} == {KNOWN_LEAK}
