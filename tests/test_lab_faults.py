"""Faults that a lab plants, and the detectors that must notice them."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from soak.journal import read_journal
from soak.ledger import LedgerReader
from tests.lab_support import QUICK_KERNEL, LabProcess, alive, lab, run_script, total

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.lab

LINGER = ("--linger", "45s")


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabProcess]:
    """Hold one page of each kind of DAX memory, then lower the limit of vfio."""
    directory = tmp_path_factory.mktemp("refused") / "run"
    faults = ("--fault", "leak:4", "--fault", "leak-file:4", "--fault", "refuse-map:18")
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "28s")
    with lab(directory, *arguments, *faults) as process:
        process.finish()
        yield process


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
    faults = ("--fault", "page-cache:4", "--fault", "panic:16")
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "10m", *LINGER)
    with lab(tmp_path / "run", *arguments, *faults) as process:
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
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "10m", *LINGER, "--fault", "hang:5")
    with lab(tmp_path / "run", *arguments) as process:
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
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "10m", *LINGER)
    with lab(tmp_path / "run", *arguments, "--fault", "kill-supervisor:5") as process:
        process.wait_until("its death is noticed", (process.run_dir / "verdict.json").exists)
        assert process.metric("up") == 1
        assert process.metric("run_active") == 0
        process.interrupt()
        assert process.finish() == 3
        assert process.verdict()["verdict"] == "unknown"
        assert any("SIGKILL" in reason for reason in process.verdict()["reasons"])


def test_a_killed_qemu_makes_the_verdict_unknown(tmp_path: Path) -> None:
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "10m", "--linger", "1s")
    with lab(tmp_path / "run", *arguments) as process:
        process.wait_until("the soak begins", lambda: process.operations() > 0)
        os.kill(process.qemu_pid(), signal.SIGKILL)
        assert process.finish() == 3
        assert any("SIGKILL" in reason for reason in process.verdict()["reasons"])


def test_ctrl_c_ends_a_soak_in_order(tmp_path: Path) -> None:
    with lab(tmp_path / "run", "--kernel", QUICK_KERNEL, "--duration", "10m") as process:
        process.wait_until("the soak begins", lambda: process.operations() > 0)
        pid = process.qemu_pid()
        process.interrupt()
        assert process.finish() in {0, 3}
        assert not alive(pid)
        ended = process.events("run.ended")
        assert [event["why"] for event in ended] == ["told to by SIGTERM"]
        assert process.stdout.startswith("verdict ")


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


@pytest.mark.parametrize(
    ("append", "timeout", "says"),
    [
        ("rdinit=/nothing init=/nothing", "5m", "ended before it was ready"),
        ("rdinit=/usr/bin/python3.11", "20s", "never answered"),
    ],
    ids=["panics at boot", "never answers"],
)
def test_a_guest_that_does_not_come_up_is_a_usage_error(
    tmp_path: Path, append: str, timeout: str, says: str
) -> None:
    run_dir = tmp_path / "run"
    arguments = ("--kernel", QUICK_KERNEL, "--append", append, "--boot-timeout", timeout)
    with lab(run_dir, *arguments) as process:
        assert process.finish() == 2
        assert says in process.stderr
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
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stuck\n")
    assert not (tmp_path / "script-run").exists()
