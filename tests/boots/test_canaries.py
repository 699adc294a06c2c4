# SPDX-License-Identifier: GPL-2.0-only
"""Canaries on real kernels: seen by detectors that see, missed by those that were made blind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from soak.verdict import judge
from tests.boots.harness.evidence import check_lost_wakeups
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import CALM, lab
from tests.boots.harness.scrape import total
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.boots.harness.lab import LabProcess

pytestmark = pytest.mark.lab

DETECTORS = ("refusals", "stalls", "leaks")
ROUNDS = 2


def config(directory: Path) -> str:
    path = directory / "soak.toml"
    # So often that sweeps come while a truncate of a canary waits for its page.
    path.write_text(f'[canaries]\nevery = "15s"\n[leaks]\nsweep = "2s"\n[workload]\n{CALM}')
    return str(path)


@pytest.mark.parametrize(
    ("kernel", "filesystem"),
    [
        ("debian:6.1", "xfs"),
        # Each takes a minute, and shows nothing that this and other tests do not.
        pytest.param(QUICK_KERNEL, "ext4", marks=pytest.mark.long),
        pytest.param(QUICK_KERNEL, "xfs", marks=pytest.mark.long),
        pytest.param("debian:6.1", "ext4", marks=pytest.mark.long),
        pytest.param("debian:sid", "ext4", marks=pytest.mark.long),
    ],
)
def test_every_canary_is_seen_as_canary_only(tmp_path: Path, kernel: str, filesystem: str) -> None:
    arguments = ("--kernel", kernel, "--filesystem", filesystem, "-c", config(tmp_path))
    with lab(tmp_path / "run", *arguments, "--duration", "1h") as process:

        def seen_often() -> bool:
            return all(seen(process, detector) >= ROUNDS for detector in DETECTORS)

        process.wait_until("canaries were seen", seen_often)
        if any(event.get("lost") for event in process.events("known-issue.probed")):
            process.wait_until("a stall was found", lambda: process.events("operation.freed") != [])
        # They are in the journal a moment before they are in the ledger.
        process.wait_until("canaries were counted", lambda: counted_often(process))
        scrape = process.scrape()
        assert total(scrape, "canaries_total", result="missed") == 0
        for detector in DETECTORS:
            assert total(scrape, "last_canary_timestamp_seconds", detector=detector) > 0
        leaked = total(scrape, "leaked_page_references")
        assert leaked == total(scrape, "predicted_leaked_page_references")
        process.interrupt()
        # It need not have covered all that it promised.
        assert process.finish() in {0, 3}, process.stdout
        verdict = process.verdict()
        assert all(entry["made"] == entry["seen"] >= ROUNDS for entry in verdict["canaries"])
        assert {entry["detector"] for entry in verdict["canaries"]} == set(DETECTORS)
        assert all(entry["known_issue"] for entry in verdict["violations"])
        assert not process.violations("early-truncate")
        if kernel == "debian:6.1":
            check_lost_wakeups(process)
        # Both kinds of memory were counted, and a pin showed as itself whatever the kernel had leaked.
        regions = {
            event["evidence"]["region"]
            for event in process.events("canary.seen")
            if event["detector"] == "leaks"
        }
        assert regions == {"device-dax", "fs-dax"}
        assert process.events("canary.failed") == []
        (summary,) = process.events("summary.written")
        assert summary["total"]["canaries"].keys() == set(DETECTORS)
        assert sum(summary["total"]["operations"].values()) > 100


def counted_often(process: LabProcess) -> bool:
    return all(
        process.metric("canaries_total", detector=detector, result="seen") >= ROUNDS
        for detector in DETECTORS
    )


def seen(process: LabProcess, detector: str) -> int:
    return sum(event["detector"] == detector for event in process.events("canary.seen"))


BLIND = guest_program("blind")


def test_broken_detectors_miss_their_canaries(tmp_path: Path) -> None:
    events = seen_in_guest(tmp_path, BLIND)["journal"]
    missed = [event for event in events if event["event"] == "canary.missed"]
    assert {event["detector"] for event in missed} == set(DETECTORS), json.dumps(events[-5:])
    assert not any(event["event"] == "canary.seen" for event in events)
    verdict = judge(events)
    assert verdict.verdict == "unknown"
    assert {event["summary"] for event in missed} <= set(verdict.reasons)
    assert {entry["detector"]: entry["seen"] for entry in verdict.canaries} == dict.fromkeys(DETECTORS, 0)
