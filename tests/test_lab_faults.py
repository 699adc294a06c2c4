"""Faults that a lab plants, and the detectors that must notice them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from soak.journal import read_journal
from soak.ledger import LedgerReader
from tests.lab_support import QUICK_KERNEL, LabProcess, alive, lab, total
from tests.script_support import run_script

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab

# Until whoever waits for it interrupts.
LINGER = ("--linger", "30m")


@pytest.fixture
def refused(request: pytest.FixtureRequest, shared: SharedSetUps) -> LabProcess:
    """Hold one page of each kind of DAX memory, then lower the limit of vfio."""
    return shared.get(request, "refused", _refuse)


def _refuse(place: Path, stack: ExitStack) -> LabProcess:
    process = stack.enter_context(lab(place / "run", "--kernel", QUICK_KERNEL, "--duration", "1h"))
    process.soaks()
    process.plant("leak")
    process.plant("leak-file")

    def found(kind: str) -> set[str]:
        return {
            event["region"]
            for event in process.events("violation.found")
            if event["kind"] == kind and event["known_issue"] is None
        }

    process.wait_until("both leaks were found", lambda: len(found("leak")) > 1)
    process.plant("refuse-map")
    process.wait_until(
        "the refusals were found",
        lambda: len(found("unexpected-refusal")) > 1 and found("wrong-errno") != set(),
    )
    process.interrupt()
    process.finish()
    return process


def test_a_single_held_page_is_found_beside_the_known_leak(refused: LabProcess) -> None:
    leaks = {
        entry["region"]: entry["count"]
        for entry in refused.violations("leak")
        if entry["known_issue"] is None
    }
    assert leaks == {"device-dax": 1, "fs-dax": 1}


def test_refusals_that_must_not_be_are_found(refused: LabProcess) -> None:
    found = {
        (entry["kind"], entry["region"])
        for kind in ("unexpected-refusal", "wrong-errno", "unexpected-pin")
        for entry in refused.violations(kind)
    }
    assert found == {
        ("unexpected-refusal", "device-dax"),
        ("unexpected-refusal", "anonymous"),
        ("wrong-errno", "fs-dax"),
    }
    assert all("ENOSPC" in entry["summary"] for entry in refused.violations("unexpected-refusal"))


def test_violations_carry_evidence_and_fail_the_run(refused: LabProcess) -> None:
    events = [
        event for event in refused.events("violation.found") if event["kind"] == "wrong-errno"
    ]
    assert events[0]["evidence"]["operations"]
    assert all(line["result"] for line in events[0]["evidence"]["operations"])
    assert refused.verdict()["verdict"] == "fail"
    assert refused.process.returncode == 1


def test_counts_of_violations_are_those_of_the_ledger(refused: LabProcess) -> None:
    with LedgerReader.open(refused.run_dir / "ledger") as reader:
        counted = reader.block("supervisor").named_rows("violations")
    for kind, issues in counted.items():
        told = refused.violations(kind)
        for issue, count in issues.items():
            name = None if issue == "none" else issue
            assert count == sum(entry["count"] for entry in told if entry["known_issue"] == name)


def test_pinned_files_are_found_and_a_panic_is_survived(tmp_path: Path) -> None:
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", *LINGER)
    with lab(tmp_path / "run", *arguments) as process:
        process.soaks()
        process.plant("page-cache")

        def truncated_early() -> bool:
            found = process.events("violation.found")
            kinds = {event["kind"] for event in found}
            pins = {event["interface"] for event in found if event["kind"] == "early-truncate"}
            return "unexpected-pin" in kinds and pins >= {"vmsplice", "o-direct"}

        process.wait_until("pins and early truncates were found", truncated_early)
        process.plant("panic")
        process.wait_until("the panic is noticed", lambda: _is_lost(process))
        scrape = process.scrape()
        assert total(scrape, "up") == 1
        assert total(scrape, "run_active") == 0
        assert total(scrape, "verdict", verdict="fail") == 1
        assert total(scrape, "violations_total", kind="lost-machine") == 1
        process.interrupt()
        assert process.finish() == 1
        _check_lost(process)
        early = process.violations("early-truncate")
        assert {entry["known_issue"] for entry in early} == {None}
        assert {entry["interface"] for entry in early} >= {"vmsplice", "o-direct"}
        pins = process.violations("unexpected-pin")
        assert [(pin["region"], pin["operation"]) for pin in pins] == [("fs-dax", "map")]
        assert total(scrape, "unexpected_pins_total", region="fs-dax") == pins[0]["count"]
        console = process.events("violation.found")[-1]["evidence"]["console"]
        assert any("panic" in line for line in console)


def test_a_hang_is_found(tmp_path: Path) -> None:
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", *LINGER)
    with lab(tmp_path / "run", *arguments) as process:
        process.soaks()
        process.plant("hang")
        process.wait_until("the hang is noticed", lambda: _is_lost(process))
        assert process.metric("run_active") == 0
        process.interrupt()
        assert process.finish() == 1
        _check_lost(process)
        assert process.events("guest.silent")


def _is_lost(process: LabProcess) -> bool:
    return (
        any(event.get("kind") == "lost-machine" for event in process.events("violation.found"))
        and (process.run_dir / "verdict.json").exists()
    )


def _check_lost(process: LabProcess) -> None:
    """What a dead guest leaves: a verdict, a readable ledger, a whole journal, the console's end."""
    lost = process.violations("lost-machine")
    assert [entry["count"] for entry in lost] == [1]
    events = process.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert next(event for event in events if event["event"] == "fault.planted")
    with LedgerReader.open(process.run_dir / "ledger") as reader:
        begun = {block.block.name: block.get("begun") for block in reader.blocks("worker")}
        assert reader.block("host").word("state") == "lost"
    assert all(begun.values())
    found = next(event for event in events if event.get("kind") == "lost-machine")
    assert found["evidence"]["console"]


def test_a_killed_supervisor_makes_the_verdict_unknown(tmp_path: Path) -> None:
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", *LINGER)
    with lab(tmp_path / "run", *arguments) as process:
        process.soaks()
        process.plant("kill-supervisor")
        process.wait_until("its death is noticed", (process.run_dir / "verdict.json").exists)
        assert process.metric("up") == 1
        assert process.metric("run_active") == 0
        process.interrupt()
        assert process.finish() == 3
        assert process.verdict()["verdict"] == "unknown"
        assert any("SIGKILL" in reason for reason in process.verdict()["reasons"])


def test_ctrl_c_while_it_boots_ends_it_at_once(tmp_path: Path) -> None:
    with lab(tmp_path / "run", "--kernel", QUICK_KERNEL) as process:
        process.wait_until("QEMU is started", lambda: bool(process.events("lab.started")))
        pid = process.qemu_pid()
        process.interrupt()
        assert process.finish() == 3
        assert not alive(pid)
        assert process.verdict()["verdict"] == "unknown"
        assert (process.run_dir / "run.toml").exists()


def test_a_killed_lab_takes_its_guest_and_exporter_along(tmp_path: Path) -> None:
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


def test_a_guest_that_does_not_come_up_is_a_usage_error(tmp_path: Path) -> None:
    """One that panics at boot is seen in test_lab_trees.py."""
    run_dir = tmp_path / "run"
    append = ("--append", "rdinit=/usr/bin/python3.11", "--boot-timeout", "5s")
    with lab(run_dir, "--kernel", QUICK_KERNEL, *append) as process:
        assert process.finish() == 2
        assert "never answered" in process.stderr
        assert "Its console ended:" in process.stderr
        assert "Traceback" not in process.stderr
        assert not run_dir.exists()


STUCK = """
import os
import time
from pathlib import Path

from soak.abi.vfio import Container
from tests.guest_support import functions

pci = Path("/sys/bus/pci")
function = functions()[0]
(pci / "devices" / function / "driver_override").write_text("vfio-pci")
(pci / "drivers_probe").write_text(function)
container = Container(function)
unbinder = os.fork()
if unbinder == 0:
    (pci / "drivers/vfio-pci/unbind").write_text(function)
    os._exit(0)
while "vfio_unregister_group_dev" not in Path(f"/proc/{unbinder}/stack").read_text():
    time.sleep(0.1)
if os.fork() == 0:
    # What keeps the function outlives the script.
    time.sleep(600)
print("stuck", flush=True)
os._exit(0)
"""


def test_a_guest_whose_kernel_cannot_be_turned_off_is_ended(tmp_path: Path) -> None:
    done = run_script(tmp_path, STUCK)
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("stuck\n")
    assert not (tmp_path / "script-run").exists()
