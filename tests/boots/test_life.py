# SPDX-License-Identifier: GPL-2.0-only
"""A run's life on a real kernel: paused, continued, stopped, ended by a crash and gone on with."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.evidence import is_lost
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import COVERING, LabProcess, lab
from tests.boots.harness.scrape import total
from tests.boots.harness.script import guest_program, run_script
from tests.support.program import dax_soak

if TYPE_CHECKING:
    import subprocess
    from contextlib import ExitStack
    from pathlib import Path

    from tests.boots.harness.scrape import Scrape
    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab

LEAK = "type1-device-dax-leak"


def say(word: str, run: Path) -> subprocess.CompletedProcess[str]:
    return dax_soak(word, str(run))


def resume(first: LabProcess) -> LabProcess:
    """Go on with the run of a lab that has ended."""
    return first.again("--resume", str(first.directory))


def operations(process: LabProcess) -> float:
    return total(process.scrape(), "operations_total")


def check_leak(process: LabProcess) -> None:
    """Whatever was leaked is what was predicted, over all boots, and nothing is unexplained."""
    confirmed = any(
        event["result"] == "confirmed"
        for event in process.events("known-issue.probed")
        if event["known_issue"] == LEAK
    )
    leaks = process.violations("leak")
    assert {entry["known_issue"] for entry in leaks} == ({LEAK} if confirmed else set())


@dataclass
class Life:
    """A run on a kernel that pins files and panics; it goes on in a new boot, rests, and is stopped."""

    process: LabProcess
    # As it was scraped when the machine was lost, and read from the ledger when its lab had ended.
    lost: Scrape = field(default_factory=dict)
    before: Scrape = field(default_factory=dict)
    resumed: Scrape = field(default_factory=dict)
    rested: Scrape = field(default_factory=dict)
    first_verdict: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)


@pytest.fixture
def life(request: pytest.FixtureRequest, shared: SharedSetUps) -> Life:
    return shared.get(request, "life", _live)


def _live(place: Path, stack: ExitStack) -> Life:
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", "--keep", "--linger", "30m")
    first = stack.enter_context(lab(place / "run", *arguments))
    seen = Life(first)
    first.soaks()

    def canaries_are_over() -> bool:
        seen = [event["evidence"].get("region") for event in first.events("canary.seen")]
        return {"device-dax", "fs-dax"} <= set(seen)

    # A canary that pins a page of a file without DAX is in the books and not among the region's pages.
    first.wait_until("the first canaries were seen", canaries_are_over)
    first.plant("page-cache")

    def truncated_early() -> bool:
        found = first.events("violation.found")
        pins = {event["interface"] for event in found if event["kind"] == "early-truncate"}
        return first.found("unexpected-pin") and pins >= {"vmsplice", "o-direct"}

    first.wait_until("pins and early truncates were found", truncated_early)
    first.plant("panic")
    first.wait_until("the panic is noticed", lambda: is_lost(first))
    seen.lost = first.scrape()
    # It lingers until it is interrupted.
    first.interrupt()
    seen.codes.append(first.finish())
    seen.before, seen.first_verdict = first.scraped_at_end(), first.verdict()

    second = stack.enter_context(resume(first))
    seen.process = second
    second.wait_until("it soaks again", lambda: second.events("run.resumed") != [])
    done = total(seen.before, "operations_total")
    second.wait_until("counters went on", lambda: operations(second) > done)
    seen.resumed = second.scrape()
    seen.said.append(say("pause", second.directory).stdout)
    rested = operations(second)
    seen.said.append(say("pause", second.directory).stdout)
    seen.rested = second.scrape()
    assert total(seen.rested, "operations_total") == rested
    seen.said.append(say("continue", second.directory).stdout)
    second.wait_until("it goes on", lambda: operations(second) > rested)
    seen.said.append(say("stop", second.directory).stdout)
    seen.codes.append(second.finish())
    return seen


def test_pinned_files_are_found(life: Life) -> None:
    verdict = life.first_verdict
    early, pins = (
        [entry for entry in verdict["violations"] if entry["kind"] == kind]
        for kind in ("early-truncate", "unexpected-pin")
    )
    assert {entry["known_issue"] for entry in early} == {None}
    assert {entry["interface"] for entry in early} >= {"vmsplice", "o-direct"}
    assert [(pin["region"], pin["operation"]) for pin in pins] == [("fs-dax", "map")]
    assert total(life.lost, "unexpected_pins_total", region="fs-dax") == pins[0]["count"]


def test_a_run_survives_a_panic(life: Life) -> None:
    assert total(life.lost, "up") == 1
    assert total(life.lost, "run_active") == 0
    assert total(life.lost, "verdict", verdict="fail") == 1
    assert total(life.lost, "violations_total", kind="lost-machine") == 1
    assert life.codes[0] == 1
    lost = [entry for entry in life.first_verdict["violations"] if entry["kind"] == "lost-machine"]
    assert [entry["count"] for entry in lost] == [1]
    (found,) = [event for event in life.process.events() if event.get("kind") == "lost-machine"]
    assert any("panic" in line for line in found["evidence"]["console"])


def test_a_run_continues_in_a_new_boot(life: Life) -> None:
    process, verdict = life.process, life.process.verdict()
    assert total(life.resumed, "boots_total") == 2
    started = "run_start_timestamp_seconds"
    assert total(life.resumed, started) == total(life.before, started)
    assert life.codes[1] == 1, process.stdout
    check_leak(process)
    # What is no DAX memory is refused in its own ways, and the last of it is judged again.
    kinds = {entry["kind"] for entry in verdict["violations"] if not entry["known_issue"]}
    assert kinds >= {"unexpected-pin", "early-truncate", "lost-machine"}
    assert kinds.isdisjoint({"leak", "stall", "late-wakeup"})
    assert len(verdict["boot_ids"]) == 2
    (resumed,) = process.events("run.resumed")
    assert resumed["rebooted"]
    # The kernel's last words outlived it, and say how it died.
    (found,) = process.events("crash-log.found")
    assert any("sysrq triggered crash" in line for line in found["evidence"]["console"])
    numbers = [event["seq"] for event in process.events()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_pause_continue_and_stop_work(life: Life, tmp_path: Path) -> None:
    assert life.said == ["paused: all workers rest\n", "paused already\n", "running\n", "stopped\n"]
    assert total(life.rested, "run_active") == 1
    workers = total(life.rested, "workers")
    assert total(life.rested, "workers", state="paused") == workers > 0
    ended = life.process.events("run.ended")[-1]
    assert [life.process.events(f"run.{what}") != [] for what in ("paused", "continued")] == [True] * 2
    assert ended["why"].startswith("stopped by")
    again = say("pause", life.process.directory)
    assert (again.returncode, again.stdout) == (2, "")
    assert "no soak is running" in again.stderr
    refused = say("stop", tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "There is no run" in refused.stderr


# The small region's head-room is soon so much less that it has to be recycled, again and again.
RECYCLED = f"""
[workload]
{COVERING}
[leaks]
sweep = 3
recycle = 0.9998
[[region]]
name = "small"
kind = "device-dax"
path = "the lab's"
size = "32K"
alignment = "4K"
[[region]]
name = "large"
kind = "device-dax"
path = "the lab's"
size = "64M"
[[region]]
name = "files"
kind = "fs-dax"
path = "the lab's"
[[region]]
name = "more-files"
kind = "fs-dax"
path = "the lab's"
[[region]]
name = "control"
kind = "anonymous"
"""


@dataclass
class Continued:
    """A run whose lab was killed; it goes on in a new boot until all is covered, and passes.

    On this kernel, which the probes find right, nothing waits longer than it must, also where the
    machine stands still.
    """

    process: LabProcess
    done: float
    resumed: float
    code: int


@pytest.fixture
def continued(request: pytest.FixtureRequest, shared: SharedSetUps) -> Continued:
    return shared.get(request, "continued", _continue)


def _continue(place: Path, stack: ExitStack) -> Continued:
    config = place / "soak.toml"
    config.write_text(RECYCLED)
    arguments = ("-c", str(config), "--filesystem", "xfs", "--duration", "1h", "--keep")
    first = stack.enter_context(lab(place / "run", "--kernel", QUICK_KERNEL, *arguments))
    first.wait_until("it soaks", lambda: first.operations() > 1000)
    done = operations(first)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = stack.enter_context(resume(first))
    second.wait_until("it soaks again", lambda: second.events("run.resumed") != [])
    resumed = operations(second)
    second.wait_until("counters went on", lambda: operations(second) > resumed)
    second.stand_still()
    second.wait_until("it was recycled twice", lambda: len(recycled(second)) > 1)
    return Continued(second, done, resumed, second.finish_when_covered())


def recycled(process: LabProcess) -> list[dict[str, Any]]:
    """Return what was recycled since the run has gone on."""
    (resumed,) = [event["seq"] for event in process.events("run.resumed")]
    return [event for event in process.events("region.recycled") if event["seq"] > resumed]


def test_a_run_continues_after_its_lab_was_killed(continued: Continued) -> None:
    """Nothing of the harness was left to say anything: no fault of the kernel, and no doubt, remains."""
    process = continued.process
    assert continued.resumed >= continued.done
    assert continued.code == 0, process.stdout
    check_leak(process)
    assert process.verdict()["verdict"] == "pass"
    probes = process.events("known-issue.probed")
    assert {event["lost"] for event in probes if "lost" in event} == {False}
    kinds = {entry["kind"] for entry in process.verdict()["violations"]}
    assert kinds.isdisjoint({"stall", "late-wakeup", "early-truncate"})
    assert process.events("crash-log.absent")


def test_a_leaking_region_is_recycled_in_time(continued: Continued) -> None:
    events = recycled(continued.process)
    assert {event["region"] for event in events} == {"small"}
    assert all(event["headroom"] > event["headroom_before"] for event in events)
    # What had leaked before is counted on.
    leaked = [event["leaked"] for event in events]
    assert leaked == sorted(set(leaked))
    assert not continued.process.events("worker.died")


def test_a_run_that_has_ended_is_not_resumed(continued: Continued) -> None:
    again = continued.process.again("--resume", str(continued.process.directory))
    with again:
        assert again.finish() == 2
        assert "has ended" in again.stderr


def test_a_run_continues_after_its_machine_crashed(tmp_path: Path) -> None:
    """Memory is gone: the counters go on from the last copy on disk, and the crash log is found."""
    script = guest_program("reboot")
    nvdimm = ("--nvdimm", str(tmp_path / "nvdimm"))
    crashed = run_script(tmp_path, script, *nvdimm)
    assert crashed.code == 2
    assert "sysrq triggered crash" in crashed.stderr
    before = crashed.facts["first boot"]
    done = run_script(tmp_path, script, *nvdimm)
    assert done.code == 0, done.stderr
    after = done.facts["second boot"]
    resumed, end = after["resumed"], after["end"]
    assert (resumed["starts"], resumed["boots"]) == (2, 2)
    assert before["begun"] <= resumed["begun"] < end["begun"]
    assert resumed["first_start"] == before["now"]["first_start"]
    assert after["soaked"][0] > 0
    # The violations that came after the last copy are counted from the journal.
    assert resumed["leaked"] >= before["leaked"] > 0
    assert resumed["lost"] == end["lost"] == 1
    (crash,) = after["crash"]
    assert any("sysrq triggered crash" in line for line in crash["evidence"]["console"])
    assert after["in_order"]
    verdict = after["verdict"]
    assert [entry["kind"] for entry in verdict["violations"] if not entry["known_issue"]] == [
        "lost-machine"
    ]
    assert (verdict["verdict"], after["code"]) == ("fail", 1)
    assert len(verdict["boot_ids"]) == 2
    assert after["bound"] == after["left"] == []
