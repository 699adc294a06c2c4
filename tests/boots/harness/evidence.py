# SPDX-License-Identifier: GPL-2.0-only
"""What several tests require of a run: lost wake-ups, the evidence of a stall, a lost machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.boots.harness.lab import LabProcess

_WAITS: Final = ("stall", "late-wakeup")
# What is left on a machine after a run that ended in order, as `guest_run.left` reports it.
NOTHING_LEFT: Final[dict[str, list[str]]] = {"bound": [], "files": [], "memory": [], "exporters": []}


def is_lost(process: LabProcess) -> bool:
    """Return whether the machine was found to be lost, and the run judged."""
    return (
        any(event.get("kind") == "lost-machine" for event in process.events("violation.found"))
        and (process.directory / "verdict.json").exists()
    )


def check_lost_wakeups(process: LabProcess) -> None:
    """What a run must say of a kernel that loses wake-ups after O_DIRECT, and of one that does not.

    The probe at the start tells which of both this is; the trials then have to agree with it.
    """
    probes = {event["known_issue"]: event for event in process.events("known-issue.probed")}
    lost = probes["o-direct-lost-wakeup"]["lost"]
    # The control: the same truncate, waiting for a page in a pipe, woke up.
    assert probes["o-direct-lost-wakeup"]["control"]["waited"]
    assert probes["o-direct-lost-wakeup"]["control"]["woken"]
    stalls = process.violations("stall")
    assert {entry["interface"] for entry in stalls} == ({"o-direct"} if lost else set())
    assert {entry["known_issue"] for entry in stalls} <= {"o-direct-lost-wakeup"}
    if lost:
        # Of every operation against a transfer, not of a lucky one.
        assert len({entry["operation"] for entry in stalls}) >= len(stalls) - 1
        check_stall_evidence(process)


def check_stall_evidence(process: LabProcess) -> None:
    """What a wait that stalls leaves in the journal: who slept where, and who had held what until when.

    A pin that outlasts its bound is a stall as well, and its holder may be running.
    """
    found = process.events("violation.found")
    stalls = [event for event in found if event["kind"] == "stall" and event["operation"] != "hold"]
    assert stalls
    for event in stalls:
        evidence = event["evidence"]
        assert evidence["task"]["state"] in {"S", "D"}
        assert evidence["task"]["stack"]
        assert evidence["recorders"][evidence["worker"]]
        assert evidence["excess_ms"] > 0
    # A page that nobody of the run holds, which a fault plants, may be all that a stall waits for.
    waits = [event for event in found if event["kind"] in _WAITS]
    assert any(event["evidence"]["held"] for event in waits)
    assert process.events("operation.freed")
