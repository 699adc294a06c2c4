# SPDX-License-Identifier: GPL-2.0-only
"""The lab's host without a guest's kernel: how it judges boots, runs and ends."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from soak import run_directory
from soak.lab import protocol
from tests.lab.stand_in_qemu import (
    ALIVE,
    CLOCK_RATE,
    COMPLAIN,
    CONSOLE,
    END,
    EXPECT,
    FROM_OUTSIDE,
    IGNORE_QUIT,
    KILL,
    OPERATIONS,
    PANIC_AT_NMI,
    PAUSED,
    POWERED_OFF,
    REFUSE,
    RESET,
    STOP_BEATING,
    WAIT_FOR,
    Step,
    message,
)
from tests.lab.support import (
    BOOTED,
    COVERED,
    ENDED,
    EXITED,
    HANG,
    LABEL,
    PATIENT,
    READY,
    RUN_ENDED,
    SOAKING,
    HostRun,
    is_served,
)
from tests.support.processes import alive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PANICKED = "the guest's kernel panicked or reset the machine"


def lost(host: HostRun) -> list[dict[str, Any]]:
    found = host.events("violation.found")
    assert {event["kind"] for event in found} <= {"lost-machine"}
    return found


def test_a_regular_guest_passes(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (OPERATIONS, 7), *ENDED])
    assert host.judged()[0] == "pass"
    names = [event["event"] for event in host.events()]
    assert names[:2] == ["exporter.started", "lab.started"]
    assert names[-1] == "lab.ended"
    assert {"machine.booted", "run.started", "sample.taken", "run.ended"} <= set(names)
    # The guest took its last sample itself.
    assert len(host.events("sample.taken")) == 1
    assert (host.host("state"), host.host("boots"), host.host("lost_machines")) == ("ended", 1, 0)
    (ended,) = host.events("run.ended")
    assert host.host("journal_lines") == ended["seq"]
    assert host.host("guest_heartbeat_realtime_ns") > 0
    assert (host.directory / run_directory.CONFIG).read_text()
    assert "Linux 6.1.0 answers" in host.shown


def test_the_exporter_ends_with_the_run(run: Callable[..., HostRun], tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    host = run([*SOAKING, (WAIT_FOR, str(go_on)), *ENDED])
    host.until_event("run.started")
    (started,) = host.events("exporter.started")
    assert host.host("state") == "running"
    assert is_served(started["address"])
    go_on.touch()
    host.end()
    assert not is_served(started["address"])


def test_the_first_operation_is_journalled(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (OPERATIONS, 1), HANG])
    host.until_event("lab.soaking")
    (soaking,) = host.events("lab.soaking")
    assert soaking["seconds_to_first_operation"] > 0


def test_a_panic_is_a_lost_machine(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (OPERATIONS, 7), (CONSOLE, "Kernel panic - not syncing"), (END, RESET)])
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("fail", PANICKED)
    (found,) = lost(host)
    assert found["evidence"]["console"] == ["Kernel panic - not syncing"]
    assert (host.host("state"), host.host("lost_machines")) == ("lost", 1)
    assert "Kernel panic" in (host.directory / run_directory.CONSOLE).read_text()
    # The host took the last sample, from the ledger that the guest left.
    (sample,) = host.events("sample.taken")
    assert (sample["by"], sum(sample["completed"].values())) == ("host", 7)


def test_a_panic_at_an_nmi_is_lost(run: Callable[..., HostRun]) -> None:
    steps = [(PANIC_AT_NMI, ""), *SOAKING, (STOP_BEATING, ""), HANG]
    host = run(steps, replace(PATIENT, silent_beats=20))
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("fail", "the guest went silent and panicked at an NMI")
    assert len(host.events("guest.silent")) == 1
    (found,) = lost(host)
    assert "NMI" in found["evidence"]["console"][-1]


def test_a_guest_ignoring_an_nmi_is_lost(run: Callable[..., HostRun]) -> None:
    steps = [*SOAKING, (STOP_BEATING, ""), HANG]
    host = run(steps, replace(PATIENT, silent_beats=20, nmi_beats=20))
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("fail", "the guest went silent and did not even answer an NMI")
    assert host.host("state") == "lost"


def test_a_preparing_guest_may_be_silent_longer(run: Callable[..., HostRun]) -> None:
    """Its supervisor starts only when the machine is prepared."""
    timing = replace(PATIENT, silent_beats=1, prepare_beats=60, nmi_beats=1)
    host = run([(STOP_BEATING, ""), *BOOTED, HANG], timing)
    host.until_shown("answers after")
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("fail", "the guest went silent and did not even answer an NMI")


NOT_THE_KERNEL = [
    pytest.param(
        [(PAUSED, ""), *SOAKING, (STOP_BEATING, ""), HANG],
        {"silent_beats": 20},
        "QEMU does not run the guest: it was paused or stopped",
        id="paused",
    ),
    pytest.param(
        [*SOAKING, (ALIVE, ""), (STOP_BEATING, ""), HANG],
        {"stuck_beats": 20},
        "the supervisor in the guest stopped, though the guest is alive",
        id="stuck",
    ),
    pytest.param(
        [*SOAKING, (KILL, signal.SIGKILL)], {}, "QEMU was ended by SIGKILL", id="QEMU is killed"
    ),
    pytest.param(
        [*SOAKING, (END, FROM_OUTSIDE)],
        {},
        "QEMU was ended by a signal from outside",
        id="QEMU is terminated",
    ),
    pytest.param(
        [*SOAKING, message(protocol.EXITED, code=3), (END, POWERED_OFF)],
        {},
        "the supervisor in the guest ended with exit code 3",
        id="supervisor fails",
    ),
    pytest.param(
        [*SOAKING, message(protocol.EXITED, code=-9), (END, POWERED_OFF)],
        {},
        "the supervisor in the guest ended by SIGKILL",
        id="supervisor is killed",
    ),
    pytest.param(
        [*SOAKING, *COVERED, *RUN_ENDED, (END, RESET)],
        {},
        f"{PANICKED}, after its run had ended",
        id="panic at the end",
    ),
    pytest.param(
        [*SOAKING, *COVERED, *RUN_ENDED, (STOP_BEATING, ""), HANG],
        {"silent_beats": 20, "nmi_beats": 1},
        "the guest went silent and did not even answer an NMI, after its run had ended",
        id="silent at the end",
    ),
    pytest.param(
        [*SOAKING, HANG],
        # What a boot has beside its duration, 1 s, and the boot's own deadline.
        {"beside_seconds": 0.0},
        "the run did not end within its time limit",
        id="endless",
    ),
    pytest.param(
        [*SOAKING, message(protocol.UNPLANTED, name="leak", summary="no device"), *ENDED],
        {},
        "the fault leak could not be planted: no device",
        id="no fault",
    ),
]


@pytest.mark.parametrize(("steps", "deadlines", "reason"), NOT_THE_KERNEL)
def test_faults_of_the_harness_are_unknown(
    run: Callable[..., HostRun], steps: list[Step], deadlines: dict[str, Any], reason: str
) -> None:
    host = run(steps, replace(PATIENT, **deadlines), boot_seconds=2.0)
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("unknown", reason)
    assert host.failures() == [reason]
    assert lost(host) == []
    assert (host.host("state"), host.host("lost_machines")) == ("ended", 0)


def test_a_wrong_guest_clock_is_unknown(run: Callable[..., HostRun]) -> None:
    steps = [*SOAKING, (CLOCK_RATE, 5.0), (EXPECT, "stop"), *ENDED]
    host = run(steps, replace(PATIENT, clock_spans=((0.3, 1.5),)))
    host.until_event("guest.clock-wrong")
    host.signal(signal.SIGTERM)
    verdict, reasons = host.judged()
    (wrong,) = host.events("guest.clock-wrong")
    assert (verdict, reasons) == ("unknown", [wrong["summary"]])
    assert wrong["ratio"] > 1.5


def test_a_guest_left_on_is_ended(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, *ENDED[:-1], HANG], replace(PATIENT, off_beats=5))
    assert host.judged()[0] == "pass"
    assert len(host.events("guest.left-on")) == 1
    (started,) = host.events("lab.started")
    assert not alive(started["qemu_pid"])


def test_a_qemu_ignoring_quit_is_killed(run: Callable[..., HostRun]) -> None:
    steps = [(IGNORE_QUIT, ""), *SOAKING, *ENDED[:-1], HANG]
    host = run(steps, replace(PATIENT, off_beats=5, command_seconds=0.5))
    assert host.judged()[0] == "pass"
    (started,) = host.events("lab.started")
    assert not alive(started["qemu_pid"])


def test_a_covered_run_ends_early(run: Callable[..., HostRun]) -> None:
    steps = [*SOAKING, *COVERED, (EXPECT, "stop"), *RUN_ENDED, EXITED, (END, POWERED_OFF)]
    host = run(steps, until_covered=True)
    assert host.judged()[0] == "pass"
    assert len(host.events("lab.covered")) == 1
    assert not host.end()["interrupted"]


def test_an_uncovered_run_is_not_ended(run: Callable[..., HostRun], tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    host = run(
        [*SOAKING, (WAIT_FOR, str(go_on)), *RUN_ENDED, EXITED, (END, POWERED_OFF)], until_covered=True
    )
    host.until_event("run.started")
    beat = host.host("heartbeat_realtime_ns")
    host.until(lambda: host.host("heartbeat_realtime_ns") > beat)
    go_on.touch()
    verdict, reasons = host.judged()
    assert (verdict, host.events("lab.covered")) == ("unknown", [])
    assert any("completed 0 times, expected at least 5" in reason for reason in reasons)


def test_a_resumed_run_keeps_its_record(run: Callable[..., HostRun]) -> None:
    first = run([*SOAKING, (OPERATIONS, 7), (END, RESET)], keep=True)
    assert first.judged()[0] == "fail"
    steps = [*SOAKING[:-1], *ENDED]
    second = run(steps, directory=first.directory, resumed=True, keep=True)
    # What the first boot found is judged with the second.
    verdict, reasons = second.judged()
    assert (verdict, reasons[0]) == ("fail", PANICKED)
    assert (second.host("boots"), second.host("lost_machines")) == (2, 1)
    assert [event["resumed"] for event in second.events("lab.started")] == [False, True]


NO_BOOT = [
    pytest.param([(CONSOLE, "Loading"), (END, RESET)], "ended before it was ready", True, id="early"),
    pytest.param([*BOOTED, (END, RESET)], "ended before it was ready", True, id="while it prepares"),
    pytest.param(
        [*BOOTED, message(protocol.FAILED, summary="no NVDIMM"), HANG],
        "cannot be used: no NVDIMM",
        False,
        id="lacking",
    ),
    pytest.param(
        [*READY, message(protocol.EXITED, code=2), (END, POWERED_OFF)],
        "could not start the soak",
        False,
        id="no soak",
    ),
]


@pytest.mark.parametrize(("steps", "how", "crashed"), NO_BOOT)
def test_a_failed_boot_is_an_error(
    run: Callable[..., HostRun], steps: list[Step], how: str, *, crashed: bool
) -> None:
    host = run(steps)
    outcome = host.end()
    assert outcome["error"].startswith(f"The guest with kernel stand-in {how}. Its console ended:")
    assert (outcome["crashed"], outcome["started"]) == (crashed, True)
    assert not (host.directory / run_directory.VERDICT).exists()


def test_a_mute_guest_is_a_failed_boot(run: Callable[..., HostRun]) -> None:
    outcome = run([(CONSOLE, "Loading"), HANG], boot_seconds=0.4).end()
    assert "never answered. Its console ended:\nLoading" in outcome["error"]
    assert not outcome["crashed"]


def test_a_sleeping_guest_is_a_crashed_boot(run: Callable[..., HostRun]) -> None:
    """The stand-in sleeps without heartbeats, like a guest whose processors all halted."""
    outcome = run([(STOP_BEATING, ""), (CONSOLE, "Loading"), HANG]).end()
    assert "stood still while it booted" in outcome["error"]
    assert outcome["crashed"]


def test_a_failed_qemu_start_blames_no_kernel(run: Callable[..., HostRun]) -> None:
    host = run([(REFUSE, "no such device")])
    assert host.end() == {
        "error": "QEMU did not start: no such device",
        "crashed": False,
        "started": False,
    }
    assert host.events("lab.started") == []
    assert "no such device" in (host.directory / "qemu.log").read_text()


def test_lost_journal_lines_are_unknown(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, *RUN_ENDED, EXITED, (COMPLAIN, "a warning"), (END, POWERED_OFF)])
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("unknown", "lines 3 to 3 of the guest's journal did not come")
    assert host.events("guest.lines-lost")[0]["first"] == 3
    assert LABEL.split()[0] in reasons[-1]


def test_metrics_stay_up_after_a_bad_end(run: Callable[..., HostRun]) -> None:
    """The last scrape may have been before the end."""
    host = run([*SOAKING, (END, RESET)], linger_seconds=600.0)
    host.until_shown("metrics stay up for 600 s more")
    (started,) = host.events("exporter.started")
    assert is_served(started["address"])
    assert (host.directory / run_directory.VERDICT).exists()
    host.signal(signal.SIGTERM)
    assert host.judged()[0] == "fail"


def test_metrics_stay_up_after_giving_up(run: Callable[..., HostRun]) -> None:
    steps = [(PAUSED, ""), *SOAKING, (STOP_BEATING, ""), HANG]
    host = run(steps, replace(PATIENT, silent_beats=20), linger_seconds=0.2)
    assert host.judged()[0] == "unknown"
    assert "metrics stay up for 0.2 s more" in host.shown
