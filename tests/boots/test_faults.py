# SPDX-License-Identifier: GPL-2.0-only
"""Faults that a lab plants, and the detectors that must notice them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pytest

from soak.journal.writer import read_journal
from soak.ledger.reader import LedgerReader
from tests.boots.harness.evidence import check_stall_evidence, is_lost
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import LabProcess, lab
from tests.support.processes import alive

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab

WAITS = ("stall", "late-wakeup", "early-truncate")
STUCK = "stuck-transfer"
CLOCK_WRONG = "guest.clock-wrong"
# Until whoever waits for it interrupts.
LINGER = ("--linger", "30m")


@pytest.fixture
def faulty(request: pytest.FixtureRequest, shared: SharedSetUps) -> LabProcess:
    """Plant one fault after the other in one guest, each when the one before was found."""
    return shared.get(request, "faulty", _plant_all)


def _plant_all(place: Path, stack: ExitStack) -> LabProcess:
    # What hangs at last turns round for half a minute: one processor is left to other tests.
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", "--append", "nr_cpus=1", *LINGER)
    process = stack.enter_context(lab(place / "run", *arguments))
    process.soaks()
    # One page of each kind of DAX memory is held.
    process.plant("leak")
    process.plant("leak-file")

    def found(kind: str) -> set[str]:
        return {
            event["region"]
            for event in process.events("violation.found")
            if event["kind"] == kind and event["known_issue"] is None
        }

    process.wait_until("both leaks were found", lambda: len(leaks(process)) > 1)
    process.plant_until("late-page", "a late wait was found", lambda: process.found("late-wakeup"))
    # This page is not let go at all, and so leaks as well.
    process.plant("stuck-page")

    def went_on() -> bool:
        after = process.samples_after("operation.freed")
        return process.found("stall") and len(after) > 1 and leaked(process, "fs-dax") == 2

    process.wait_until("it was found, and the soak went on", went_on)
    assert leaked(process, "device-dax") == 1
    # The limit of vfio becomes lower.
    process.plant("refuse-map")
    process.wait_until(
        "the refusals were found",
        lambda: len(found("unexpected-refusal")) > 1 and found("wrong-errno") != set(),
    )
    process.plant(STUCK)
    process.wait_until("a hold outlasted its bound", lambda: overdue(process) != [])
    process.wait_until("its holder was freed", lambda: holders_freed(process) != [])
    process.plant("hang")
    process.wait_until("the hang is noticed", lambda: is_lost(process))
    assert process.metric("run_active") == 0
    process.interrupt()
    process.finish()
    return process


def leaks(process: LabProcess) -> list[tuple[str, int]]:
    """Return region and pages of each leak that no known issue explains.

    Without what the stuck transfer holds, also when its holder is dead already.
    """
    stuck = min(planted(process, STUCK), default=math.inf)
    return [
        (event["region"], event["count"])
        for event in process.events("violation.found")
        if event["kind"] == "leak" and event["known_issue"] is None and event["seq"] < stuck
    ]


def leaked(process: LabProcess, region: str) -> float:
    """Return the page references of a region that no known issue explains, as of its last sweep."""
    return process.metric("leaked_page_references", region=region, known_issue="none")


def planted(process: LabProcess, fault: str) -> list[int]:
    """Return the numbers of the events that tell of a fault."""
    return [event["seq"] for event in process.events("fault.planted") if event["fault"] == fault]


def overdue(process: LabProcess) -> list[dict[str, Any]]:
    return [event for event in process.events("violation.found") if event["operation"] == "hold"]


def holders_freed(process: LabProcess) -> list[str]:
    """Return the holders that were freed, or given up, after a pin of theirs outlasted its bound."""
    first = min((event["seq"] for event in overdue(process)), default=math.inf)
    freed = [*process.events("operation.freed"), *process.events("worker.wedged")]
    return [event["worker"] for event in freed if event["seq"] > first and "holder" in event["worker"]]


def test_an_endless_pin_is_found(faulty: LabProcess) -> None:
    """It excuses what waits for it no longer, and its holder is freed as others are."""
    found = overdue(faulty)
    assert {(event["kind"], event["interface"], event["known_issue"]) for event in found} == {
        ("stall", "o-direct", None)
    }
    assert any("holder" in event["evidence"]["worker"] for event in found)
    assert holders_freed(faulty)


def test_single_pages_show_beside_the_known_leak(faulty: LabProcess) -> None:
    # A sweep may have seen a page that is let go late, too: `_plant_all` asserts how many are left.
    found = leaks(faulty)
    assert set(found) == {("device-dax", 1), ("fs-dax", 1)}
    assert found.count(("device-dax", 1)) == 1


def test_late_and_endless_waits_are_found(faulty: LabProcess) -> None:
    """Pages that are let go late, and one that never is."""
    waits = [entry for kind in WAITS for entry in faulty.violations(kind)]
    assert {(entry["kind"], entry["known_issue"]) for entry in waits} == {
        ("late-wakeup", None),
        ("stall", None),
    }
    found = faulty.events("violation.found")
    late, stalled = 500, 2000
    assert all(
        late < event["evidence"]["excess_ms"] <= stalled
        for event in found
        if event["kind"] == "late-wakeup"
    )
    (stuck,) = planted(faulty, "stuck-page")
    assert all(event["seq"] > stuck for event in found if event["kind"] == "stall")
    check_stall_evidence(faulty)
    samples = faulty.samples_after("operation.freed")
    attempts = [sum(sample["completed"].values()) for sample in samples]
    assert attempts[-1] > attempts[0]


def test_unexpected_refusals_are_found(faulty: LabProcess) -> None:
    found = {
        (entry["kind"], entry["region"])
        for kind in ("unexpected-refusal", "wrong-errno", "unexpected-pin")
        for entry in faulty.violations(kind)
    }
    assert found == {
        ("unexpected-refusal", "device-dax"),
        ("unexpected-refusal", "anonymous"),
        ("wrong-errno", "fs-dax"),
    }
    assert all("ENOSPC" in entry["summary"] for entry in faulty.violations("unexpected-refusal"))


def test_violations_carry_evidence_and_fail_the_run(faulty: LabProcess) -> None:
    events = [event for event in faulty.events("violation.found") if event["kind"] == "wrong-errno"]
    assert events[0]["evidence"]["operations"]
    assert all(line["result"] for line in events[0]["evidence"]["operations"])
    assert faulty.verdict()["verdict"] == "fail"
    assert faulty.process.returncode == 1


def test_counts_of_violations_are_those_of_the_ledger(faulty: LabProcess) -> None:
    with LedgerReader.open(faulty.directory / "ledger") as reader:
        counted = reader.block("supervisor").named_rows("violations")
    # The host alone counts those.
    del counted["lost-machine"]
    for kind, issues in counted.items():
        told = faulty.violations(kind)
        for issue, count in issues.items():
            name = None if issue == "none" else issue
            assert count == sum(entry["count"] for entry in told if entry["known_issue"] == name)


def test_a_hang_is_found(faulty: LabProcess) -> None:
    """What a dead guest leaves: a verdict, a readable ledger, a whole journal, the console's end."""
    assert faulty.events("guest.silent")
    lost = faulty.violations("lost-machine")
    assert [entry["count"] for entry in lost] == [1]
    events = faulty.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert next(event for event in events if event["event"] == "fault.planted")
    with LedgerReader.open(faulty.directory / "ledger") as reader:
        begun = {block.block.name: block.get("begun") for block in reader.blocks("worker")}
        assert reader.block("host").word("state") == "lost"
    assert all(begun.values())
    found = next(event for event in events if event.get("kind") == "lost-machine")
    assert found["evidence"]["console"]


def test_ctrl_c_during_boot_ends_the_lab(tmp_path: Path) -> None:
    with lab(tmp_path / "run", "--kernel", QUICK_KERNEL) as process:
        process.wait_until("QEMU is started", lambda: bool(process.events("lab.started")))
        pid = process.qemu_pid()
        process.interrupt()
        assert process.finish() == 3
        assert not alive(pid)
        assert process.verdict()["verdict"] == "unknown"
        assert (process.directory / "run.toml").exists()


def test_a_killed_labs_guest_and_exporter_end(tmp_path: Path) -> None:
    with lab(tmp_path / "run", "--kernel", QUICK_KERNEL) as process:
        process.wait_until("QEMU is started", lambda: bool(process.events("lab.started")))
        pid = process.qemu_pid()
        process.process.kill()
        process.process.wait()
        deadline = time.monotonic() + 30
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(pid)
        whole = list(read_journal(tmp_path / "run/journal.jsonl"))
        assert whole


@pytest.fixture
def doubtful(request: pytest.FixtureRequest, shared: SharedSetUps) -> LabProcess:
    """Soak with a clock that is wrong, and kill the supervisor: for a bisection, which can judge neither.

    The guest's kernel is given a rate that is too low for the host's counter, so that its time flies.
    """
    return shared.get(request, "doubtful", _doubt)


def _doubt(place: Path, stack: ExitStack) -> LabProcess:
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", "--linger", "1s", "--bisect")
    append = ("--append", "no-kvmclock tsc_early_khz=500000")
    process = stack.enter_context(lab(place / "run", *arguments, *append))
    process.soaks()
    process.wait_until("the clock is noticed", lambda: process.events(CLOCK_WRONG) != [])
    assert process.metric("run_active") == 1
    process.plant("kill-supervisor")
    process.finish()
    return process


def test_a_guest_with_a_wrong_clock_is_unknown(doubtful: LabProcess) -> None:
    (event,) = doubtful.events(CLOCK_WRONG)
    assert event["ratio"] > 1.5
    assert event["summary"] in doubtful.verdict()["reasons"]
    assert doubtful.violations("stall") == doubtful.violations("late-wakeup") == []


def test_a_killed_supervisor_makes_the_verdict_unknown(doubtful: LabProcess) -> None:
    assert doubtful.verdict()["verdict"] == "unknown"
    assert any("SIGKILL" in reason for reason in doubtful.verdict()["reasons"])


def test_a_commit_that_cannot_be_judged_is_skipped(doubtful: LabProcess) -> None:
    assert doubtful.process.returncode == 125, doubtful.stdout


def test_a_guest_that_never_boots_ends_with_2(tmp_path: Path) -> None:
    """One that panics at boot is seen in test_trees.py."""
    run_dir = tmp_path / "run"
    append = ("--append", "rdinit=/usr/bin/python3.11", "--boot-timeout", "5s")
    with lab(run_dir, "--kernel", QUICK_KERNEL, *append) as process:
        assert process.finish() == 2
        assert "never answered" in process.stderr
        assert "Its console ended:" in process.stderr
        assert "Traceback" not in process.stderr
        assert not run_dir.exists()
