# SPDX-License-Identifier: GPL-2.0-only
"""Signals in each phase of a lab run, and requests over its control socket."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from soak import run_directory
from soak.errors import UsageError
from soak.lab import protocol
from soak.lab.display import Display
from soak.lab.host.ending import Ending
from soak.lab.host.guest_commands import GuestCommands
from soak.lab.host.guest_state import GuestState
from soak.lab.host.port import Port
from soak.lab.host.pumps import GuestIntake
from soak.lab.host.record import RunRecord
from soak.lab.progress import Progress
from soak.supervisor.control import CONTINUE, PAUSE, PLANT, STOP, ControlSocket, Question, ask
from tests.lab.stand_in_qemu import END, EXPECT, POWERED_OFF, RESET, STOP_BEATING, WAIT_FOR, message
from tests.lab.support import (
    BOOTED,
    COVERED,
    ENDED,
    HANG,
    PATIENT,
    READY,
    RUN_ENDED,
    SOAKING,
    HostRun,
    is_served,
    lab_request,
)
from tests.support.processes import alive
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STOPPING = "Stopping: the soak ends in order"


def check_ended(host: HostRun) -> None:
    """Check that QEMU, exporter and control socket are gone."""
    assert [alive(event["qemu_pid"]) for event in host.events("lab.started")] in ([], [False])
    assert not is_served(host.events("exporter.started")[0]["address"])
    with pytest.raises(UsageError, match="no soak is running"):
        ask(host.directory, PAUSE, DEADLINE)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_boot_prevents_it(
    run: Callable[..., HostRun], tmp_path: Path, number: signal.Signals
) -> None:
    """A pipe as a layer of the initramfs holds the host up at that moment."""
    layer = tmp_path / "layer"
    os.mkfifo(layer)
    host = run([HANG], layers=(layer,))
    host.until_event("exporter.started")
    with layer.open("wb"):
        host.signal(number)
    verdict, reasons = host.judged()
    assert (verdict, reasons) == ("unknown", ["no run was started"])
    assert host.end()["interrupted"]
    assert host.events("lab.started") == []
    assert host.host("boots") == 0
    check_ended(host)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_boot_ends_it(run: Callable[..., HostRun], number: signal.Signals) -> None:
    host = run([*BOOTED, HANG])
    host.until_shown("answers after")
    host.signal(number)
    assert host.judged() == ("unknown", ["no run was started"])
    assert host.end()["interrupted"]
    check_ended(host)


def test_a_failed_interrupted_boot_is_no_error(run: Callable[..., HostRun]) -> None:
    """It says nothing about the kernel: a bisection must not skip it."""
    ended = [message(protocol.EXITED, code=2), (END, POWERED_OFF)]
    host = run([*READY, (EXPECT, protocol.STOP), *ended])
    host.until(lambda: host.events("lab.started") and host.host("state") == "running")
    host.signal(signal.SIGINT)
    assert host.end() == {"error": "interrupted"}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_soak_in_order(run: Callable[..., HostRun], number: signal.Signals) -> None:
    host = run([*SOAKING, (EXPECT, protocol.STOP), *ENDED])
    host.until_event("run.started")
    host.signal(number)
    assert host.judged()[0] == "pass"
    assert host.end()["interrupted"]
    assert STOPPING in host.shown
    check_ended(host)


def test_a_signal_during_calibration_ends_in_order(run: Callable[..., HostRun]) -> None:
    """The guest is ready and its supervisor has not journalled `run.started`."""
    host = run([*READY, (EXPECT, protocol.STOP), *SOAKING[len(READY) :], *ENDED])
    host.until(lambda: host.events("lab.started") and host.host("state") == "running")
    host.signal(signal.SIGTERM)
    assert host.judged()[0] == "pass"


def test_a_guest_ready_late_is_stopped(tmp_path: Path) -> None:
    """The signal arrived first, within the same beat."""
    request, progress = lab_request(tmp_path), Progress(io.StringIO())
    guest, ending = GuestState(), Ending()
    port, end = Port.pair()
    with (
        RunRecord.open(request, "tcg", progress) as record,
        ControlSocket(tmp_path) as control,
        contextlib.closing(port),
        end,
    ):
        commands = GuestCommands(control, port, guest, ending, progress)
        display = Display(progress, request, 0)
        intake = GuestIntake(tmp_path, guest, record, commands, ending=ending, display=display)
        end.setblocking(False)
        commands.interrupt()
        intake.take_message({"message": protocol.READY, "uptime": 1})
        assert end.recv(100) == f"{protocol.STOP}\n".encode()


def test_a_second_signal_ends_it_at_once(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (EXPECT, protocol.STOP), HANG])
    host.until_event("run.started")
    host.signal(signal.SIGINT)
    host.until_shown(STOPPING)
    host.signal(signal.SIGINT)
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("unknown", "the run did not finish")
    # Neither kernel nor harness is at fault.
    assert host.events("violation.found") == host.events("harness.failed") == []
    check_ended(host)


def test_a_guest_ignoring_stop_is_ended(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (EXPECT, protocol.STOP), HANG], replace(PATIENT, end_beats=10))
    host.until_event("run.started")
    host.signal(signal.SIGTERM)
    verdict, reasons = host.judged()
    assert (verdict, reasons[0]) == ("unknown", "guest did not stop within its time limit")
    check_ended(host)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_the_end_changes_nothing(
    run: Callable[..., HostRun], tmp_path: Path, number: signal.Signals
) -> None:
    go_on = tmp_path / "go-on"
    host = run([*SOAKING, *ENDED[:-1], (WAIT_FOR, str(go_on)), (END, POWERED_OFF)])
    host.until_event("run.ended")
    host.signal(number)
    go_on.touch()
    assert host.judged()[0] == "pass"
    check_ended(host)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_lingering(run: Callable[..., HostRun], number: signal.Signals) -> None:
    host = run([*SOAKING, (END, RESET)], linger_seconds=DEADLINE * 10)
    host.until_shown("metrics stay up")
    host.signal(number)
    assert host.judged()[0] == "fail"
    check_ended(host)


def test_a_stop_request_ends_lingering(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (END, RESET)], linger_seconds=DEADLINE * 10)
    host.until_shown("metrics stay up")
    with pytest.raises(UsageError, match="ended before it answered"):
        ask(host.directory, PAUSE, DEADLINE)
    assert ask(host.directory, STOP, DEADLINE) == "stopping"
    assert host.judged()[0] == "fail"
    check_ended(host)


def test_a_second_signal_ends_the_nmi_wait(run: Callable[..., HostRun]) -> None:
    """Whether the guest would have answered the NMI stays open, so nothing is reported as lost."""
    steps = [*SOAKING, (STOP_BEATING, ""), HANG]
    host = run(steps, replace(PATIENT, silent_beats=10))
    host.until_event("guest.silent")
    host.signal(signal.SIGINT)
    host.until_shown(STOPPING)
    host.signal(signal.SIGINT)
    assert host.judged()[0] == "unknown"
    assert host.events("violation.found") == []


def test_answers_reach_requests_in_order(run: Callable[..., HostRun]) -> None:
    steps = [
        *SOAKING,
        (EXPECT, PAUSE),
        (EXPECT, CONTINUE),
        message(protocol.ANSWER, answer="paused"),
        message(protocol.ANSWER, answer="running"),
        # An answer without a request.
        message(protocol.ANSWER, answer="paused"),
        (EXPECT, STOP),
        *ENDED,
    ]
    host = run(steps)
    host.until_event("run.started")
    questions = [Question(host.directory, word) for word in (PAUSE, CONTINUE)]
    assert [question.answer(DEADLINE) for question in questions] == ["paused", "running"]
    assert ask(host.directory, STOP, DEADLINE) == "stopping"
    assert host.judged()[0] == "pass"
    assert host.end()["interrupted"]


def test_a_fault_is_planted_by_name(run: Callable[..., HostRun]) -> None:
    planted = message(protocol.FAULT, name="leak")
    host = run([*SOAKING, (EXPECT, f"{protocol.PLANT}leak"), planted, (EXPECT, STOP), *ENDED])
    host.until_event("run.started")
    refused = ask(host.directory, f"{PLANT}flood", DEADLINE)
    assert refused.startswith("unknown fault 'flood': choose from")
    assert ask(host.directory, f"{PLANT}leak", DEADLINE) == "the guest plants leak"
    host.until_event("fault.planted")
    assert host.events("fault.planted")[0]["fault"] == "leak"
    ask(host.directory, STOP, DEADLINE)
    assert host.judged()[0] == "pass"


def test_a_booting_guest_accepts_no_requests(run: Callable[..., HostRun]) -> None:
    host = run([*BOOTED, HANG])
    host.until_shown("answers after")
    for word in (PAUSE, CONTINUE, f"{PLANT}leak"):
        assert ask(host.directory, word, DEADLINE) == "not yet: the guest is not ready"
    assert ask(host.directory, STOP, DEADLINE) == "stopping"
    assert host.judged()[0] == "unknown"


def test_an_unknown_request_is_dismissed(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, HANG])
    host.until_event("run.started")
    assert Question(host.directory, "dance").answer(DEADLINE) == ""


def test_a_pending_request_ends_with_its_guest(run: Callable[..., HostRun]) -> None:
    """The host still lingers and serves its metrics then."""
    steps = [*SOAKING, (EXPECT, PAUSE), *COVERED, *RUN_ENDED, (END, RESET)]
    host = run(steps, linger_seconds=DEADLINE * 10)
    host.until_event("run.started")
    assert Question(host.directory, PAUSE).answer(DEADLINE) == ""
    assert host.is_running()


def test_an_interrupted_run_leaves_all_files(run: Callable[..., HostRun]) -> None:
    host = run([*SOAKING, (EXPECT, protocol.STOP), *ENDED])
    host.until_event("run.started")
    host.signal(signal.SIGTERM)
    host.judged()
    names = {path.name for path in host.directory.iterdir()}
    expected = ("LEDGER", "JOURNAL", "VERDICT", "CONFIG", "CONSOLE")
    assert names == {getattr(run_directory, name) for name in expected}
