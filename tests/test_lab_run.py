"""`dax-soak run` on a machine of its own, on a real kernel: safe, killed, gone on with, given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab_support import run_script, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.lab

SCRIPT = (Path(__file__).parent / "guest_run.py").read_text()
NOTHING: dict[str, list[str]] = {"bound": [], "files": [], "memory": [], "exporters": []}
KNOWN_LEAK = "type1-device-dax-leak"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Boot once, and have everything tried that this file is about."""
    return seen_in_guest(tmp_path_factory.mktemp("run"), SCRIPT, seconds=900.0)


def unexplained(verdict: Mapping[str, Any]) -> list[str]:
    return [entry["kind"] for entry in verdict["violations"] if entry["known_issue"] is None]


def test_it_takes_what_the_configuration_names_and_gives_it_back(seen: Mapping[str, Any]) -> None:
    ordinary = seen["ordinary"]
    assert ordinary["bound"] == ordinary["functions"]
    assert ordinary["left"] == NOTHING
    assert ordinary["events"].count("custody.restored") >= len(ordinary["functions"])
    # SIGTERM ends a run in order, and what was seen so far is judged.
    assert ordinary["events"][-1] == "custody.restored"
    assert "run.ended" in ordinary["events"]
    assert ordinary["code"] in {0, 3}
    assert unexplained(ordinary["verdict"]) == []
    # The ledger has come from memory to the disk.
    assert ordinary["ledger"] is False


def test_it_serves_metrics_and_hears_what_it_is_told(seen: Mapping[str, Any]) -> None:
    ordinary = seen["ordinary"]
    assert ordinary["served"]
    assert ordinary["pause"] == "paused: all workers rest\n"
    assert ordinary["rests"]
    assert ordinary["continue"] == "running\n"


def test_what_a_killed_run_took_can_be_given_back_alone(seen: Mapping[str, Any]) -> None:
    restore = seen["restore"]
    assert restore["before"] == seen["ordinary"]["functions"]
    assert restore["code"] == 0
    assert len(restore["said"]) >= len(restore["before"])
    assert restore["again"] == "There was nothing to put back.\n"
    assert restore["bound"] == []
    assert restore["ledger"] is False
    assert restore["memory"] == []


def test_one_soak_at_a_time_has_a_machine(seen: Mapping[str, Any]) -> None:
    code, said = seen["ordinary"]["second"]
    assert code == 2
    assert "Another soak has this machine" in said
    assert "Traceback" not in said


def test_workers_go_first_when_memory_is_short(seen: Mapping[str, Any]) -> None:
    assert seen["ordinary"]["oom"] == ["1000"]


def test_nothing_acknowledged_is_lost_when_processes_are_killed(seen: Mapping[str, Any]) -> None:
    killed = seen["killed"]
    assert sum(killed["kills"].values()) > 180
    assert min(killed["kills"].values()) > 0
    assert killed["starts"] == killed["kills"]["supervisor"] + 1
    assert killed["resumed"] == killed["kills"]["supervisor"]
    assert killed["missing"] == []
    assert killed["in_order"]
    assert not killed["gone_back"]
    assert killed["left"] == NOTHING


def test_killed_processes_are_no_violations(seen: Mapping[str, Any]) -> None:
    """Whoever is killed gives back what it holds: the books still agree with the kernel's."""
    verdict = seen["killed"]["verdict"]
    assert unexplained(verdict) == []
    assert verdict["verdict"] == "pass", verdict["reasons"]
    assert {entry["known_issue"] for entry in verdict["violations"]} <= {KNOWN_LEAK}


def test_a_full_disk_ends_no_run_and_takes_no_verdict(seen: Mapping[str, Any]) -> None:
    full = seen["full"]
    assert full["code"] in {0, 3}
    # The journal's reserve, which it gives back at its end, has room for what is written last.
    assert f"verdict   {full['verdict']['verdict'].upper()}" in full["said"]
    assert "the ledger stays in /run/dax-soak" in full["said"]
    assert "Traceback" not in full["said"]
    assert "program.crashed" not in full["said"]
    # All is given back but the ledger, which has no place to go yet.
    assert {**full["left"], "memory": []} == NOTHING
    assert len(full["left"]["memory"]) == 1
    assert full["after"] == NOTHING
    assert "was moved from memory to its run directory" in full["restore"]
    before, after = full["begun"]
    assert after >= before
    assert full["report"].startswith("verdict   ")


def test_a_device_that_goes_away_ends_the_run_with_a_sentence(seen: Mapping[str, Any]) -> None:
    gone = seen["gone"]
    assert gone["why"] == f"{gone['device']}, which this run works on, has gone away"
    assert gone["code"] in {1, 3}
    assert gone["left"] == NOTHING


def test_a_run_goes_on_after_its_machine_has_crashed(tmp_path: Path) -> None:
    """Memory is gone: the counters go on from the last copy on disk, and the crash log is found."""
    script = (Path(__file__).parent / "guest_reboot.py").read_text()
    nvdimm = ("--nvdimm", str(tmp_path / "nvdimm"))
    crashed = run_script(tmp_path, script, *nvdimm)
    assert crashed.returncode == 2
    assert "sysrq triggered crash" in crashed.stderr
    before = json.loads(crashed.stdout)
    done = run_script(tmp_path, script, *nvdimm)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    resumed, end = after["resumed"], after["end"]
    assert (resumed["starts"], resumed["boots"]) == (2, 2)
    assert before["begun"] <= resumed["begun"] < end["begun"]
    assert resumed["first_start"] == before["now"]["first_start"]
    assert after["soaked"][0] > 0
    # The violations that came after the last copy are counted from the journal.
    assert resumed["leaked"] >= before["now"]["leaked"]
    assert resumed["lost"] == end["lost"] == 1
    (crash,) = after["crash"]
    assert any("sysrq triggered crash" in line for line in crash["evidence"]["console"])
    assert after["in_order"]
    verdict = after["verdict"]
    assert unexplained(verdict) == ["lost-machine"]
    assert (verdict["verdict"], after["code"]) == ("fail", 1)
    assert len(verdict["boot_ids"]) == 2
    assert after["bound"] == after["left"] == []
