# SPDX-License-Identifier: GPL-2.0-only
"""Canaries on real kernels: seen by detectors that see, missed by those that were made blind.

One of the kernels is given as files, its ledger is mirrored, and Ctrl-C stops it in a bisection.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from soak.verdict import judge
from tests.boots.harness.evidence import check_lost_wakeups
from tests.boots.harness.installed_kernel import find, install_modules
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import STEADY, lab
from tests.boots.harness.scrape import total
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.boots.harness.lab import LabProcess
    from tests.boots.harness.scrape import Scrape
    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab(seconds=100)

DETECTORS: Final = ("refusals", "stalls", "leaks")
ROUNDS: Final = 2
# So often that sweeps come while a truncate of a canary waits for its page.
CONFIG: Final = f"""
[canaries]
every = "15s"
[leaks]
sweep = "2s"
[workload]
{STEADY}
"""
DEBIAN: Final = "debian:6.1"
FILES: Final = f"{DEBIAN} as files"
# What others show as well is for 'make soak-long'.
SOAKS: Final = [
    (FILES, "xfs"),
    *(
        pytest.param((kernel, filesystem), marks=pytest.mark.long)
        for kernel, filesystem in (
            (QUICK_KERNEL, "ext4"),
            (QUICK_KERNEL, "xfs"),
            (DEBIAN, "ext4"),
            (DEBIAN, "xfs"),
            ("debian:sid", "ext4"),
        )
    ),
]


@dataclass
class Soaked:
    """A soak whose canaries were seen often, and that was interrupted then."""

    process: LabProcess
    kernel: str
    release: str
    scrape: Scrape
    code: int


@pytest.fixture(params=SOAKS, ids="-".join)
def soaked(request: pytest.FixtureRequest, shared: SharedSetUps) -> Soaked:
    kernel, filesystem = request.param

    def make(place: Path, stack: ExitStack) -> Soaked:
        config = place / "soak.toml"
        config.write_text(CONFIG)
        arguments = ["-c", str(config), "--filesystem", filesystem, "--duration", "1h"]
        found = find(DEBIAN if kernel == FILES else kernel)
        if kernel == FILES:
            install_modules(found, place / "installed")
            arguments += ["--kernel", str(found.image), "--modules", str(place / "installed")]
            arguments += ["--mirror-ledger", "--bisect"]
        else:
            arguments += ["--kernel", kernel]
        process = stack.enter_context(lab(place / "run", *arguments))
        wait_for_canaries(process)
        scrape = process.scrape()
        process.interrupt()
        return Soaked(process, kernel, found.release, scrape, process.finish())

    return shared.get(request, f"{kernel}-{filesystem}".replace("/", "_"), make)


def wait_for_canaries(process: LabProcess) -> None:
    process.wait_until(
        "canaries were seen", lambda: all(seen(process, detector) >= ROUNDS for detector in DETECTORS)
    )
    if any(event.get("lost") for event in process.events("known-issue.probed")):
        process.wait_until("a stall was found", lambda: process.events("operation.freed") != [])
    # They are in the journal a moment before they are in the ledger.
    process.wait_until("canaries were counted", lambda: counted_often(process))


def test_every_canary_is_seen_as_canary_only(soaked: Soaked) -> None:
    process, scrape = soaked.process, soaked.scrape
    assert total(scrape, "canaries_total", result="missed") == 0
    for detector in DETECTORS:
        assert total(scrape, "last_canary_timestamp_seconds", detector=detector) > 0
    leaked = total(scrape, "leaked_page_references")
    assert leaked == total(scrape, "predicted_leaked_page_references")
    verdict = process.verdict()
    # It need not have covered all that it promised.
    assert verdict["verdict"] != "fail", process.stdout
    assert all(entry["made"] == entry["seen"] >= ROUNDS for entry in verdict["canaries"])
    assert {entry["detector"] for entry in verdict["canaries"]} == set(DETECTORS)
    assert all(entry["known_issue"] for entry in verdict["violations"])
    assert not process.violations("early-truncate")
    if soaked.kernel in {DEBIAN, FILES}:
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


def test_an_interrupted_bisection_judges_no_commit(soaked: Soaked) -> None:
    bisecting = soaked.kernel == FILES
    assert soaked.code in ({130} if bisecting else {0, 3}), soaked.process.stderr
    assert "\nverdict   " in soaked.process.stdout
    (ended,) = soaked.process.events("run.ended")
    assert ended["why"] == "stopped by SIGTERM"


def test_a_kernel_file_with_a_modules_directory(soaked: Soaked) -> None:
    assert soaked.process.verdict()["kernel"] == soaked.release


def test_a_mirrored_ledger_counts_as_the_verdict(soaked: Soaked) -> None:
    process = soaked.process
    assert [event["mirrored"] for event in process.events("run.started")] == [soaked.kernel == FILES]
    with process.ledger() or pytest.fail("there is no ledger") as reader:
        told = Counter[str]()
        for cell in process.verdict()["coverage"]:
            told[cell["operation"]] += cell["attempts"]
        assert set(told) >= {"map", "unmap", "truncate-up"}
        mappers = [block for block in reader.blocks("worker") if block.block.labels["role"] == "mapper"]
        ended = sum(block.get("ended") for block in mappers)
        assert ended == told["map"] + told["unmap"]


def counted_often(process: LabProcess) -> bool:
    return all(
        process.metric("canaries_total", detector=detector, result="seen") >= ROUNDS
        for detector in DETECTORS
    )


def seen(process: LabProcess, detector: str) -> int:
    return sum(event["detector"] == detector for event in process.events("canary.seen"))


BLIND: Final = guest_program("blind")


def test_broken_detectors_miss_their_canaries(tmp_path: Path) -> None:
    events = seen_in_guest(tmp_path, BLIND)["journal"]
    missed = [event for event in events if event["event"] == "canary.missed"]
    assert {event["detector"] for event in missed} == set(DETECTORS), json.dumps(events[-5:])
    assert not any(event["event"] == "canary.seen" for event in events)
    verdict = judge(events)
    assert verdict.verdict == "unknown"
    assert {event["summary"] for event in missed} <= set(verdict.reasons)
    assert {entry["detector"]: entry["seen"] for entry in verdict.canaries} == dict.fromkeys(DETECTORS, 0)
