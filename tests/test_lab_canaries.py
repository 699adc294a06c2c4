"""Canaries on real kernels: seen by detectors that see, missed by those that were made blind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from soak.journal import read_journal
from soak.verdict import judge
from tests.lab_support import QUICK_KERNEL, check_lost_wakeups, lab, run_script, total

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab_support import LabProcess

pytestmark = pytest.mark.lab

DETECTORS = ("refusals", "stalls", "leaks")
ROUNDS = 2


def config(directory: Path) -> str:
    path = directory / "soak.toml"
    # So often that sweeps come while a truncate of a canary waits for its page.
    path.write_text('[canaries]\nevery = "15s"\n[leaks]\nsweep = "2s"\n')
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
def test_every_canary_is_seen_and_is_nothing_else(
    tmp_path: Path, kernel: str, filesystem: str
) -> None:
    arguments = ("--kernel", kernel, "--filesystem", filesystem, "-c", config(tmp_path))
    with lab(tmp_path / "run", *arguments, "--duration", "10m") as process:

        def seen_often() -> bool:
            return all(seen(process, detector) >= ROUNDS for detector in DETECTORS)

        process.wait_until("canaries were seen", seen_often)
        scrape = process.scrape()
        assert total(scrape, "canaries_total", result="missed") == 0
        for detector in DETECTORS:
            assert total(scrape, "canaries_total", detector=detector, result="seen") >= ROUNDS
            assert total(scrape, "last_canary_timestamp_seconds", detector=detector) > 0
        leaked = total(scrape, "leaked_page_references")
        assert leaked == total(scrape, "predicted_leaked_page_references")
        assert process.finish_when_covered() == 0, process.stdout
        verdict = process.verdict()
        assert all(entry["made"] == entry["seen"] >= ROUNDS for entry in verdict["canaries"])
        assert {entry["detector"] for entry in verdict["canaries"]} == set(DETECTORS)
        assert all(entry["known_issue"] for entry in verdict["violations"])
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
        assert sum(summary["total"]["operations"].values()) > 1000


def seen(process: LabProcess, detector: str) -> int:
    return sum(event["detector"] == detector for event in process.events("canary.seen"))


BLIND = """
    import os
    os.dup2(1, 2)
    from contextlib import nullcontext
    from pathlib import Path
    from soak.config import parse_config
    from soak.detectors.leaks import RegionLeaks
    from soak.detectors.refusals import RefusalDetector
    from soak.detectors.stalls import StallDetector
    from soak.journal import FileJournal
    from soak.ledger import Ledger
    from soak.plan import make_plan
    from soak.regions import open_regions
    from soak.run import Setting, run_soak

    # It goes on measuring and sees nothing: what was measured first is what it always measures.
    measure = RegionLeaks.measure
    def stale(self, held):
        if not hasattr(self, "once"):
            self.once = measure(self, held)
        return self.once
    RegionLeaks.measure = stale
    RefusalDetector.look = lambda self: []
    StallDetector.look = lambda self, now: []

    dax = next(path for path in Path("/dev").glob("dax*") if path.name != "dax")
    soak = parse_config({
        "run": {"duration": 75, "seed": 1},
        "region": [
            {"name": "dax", "kind": "device-dax", "path": str(dax)},
            {"name": "files", "kind": "fs-dax", "path": "/mnt/dax"},
        ],
        "workload": {"mappers": 0, "trials": 1},
        "leaks": {"sweep": 5},
        "canaries": {"every": 600},
    }, "script")
    home = Path("/run/soak")
    home.mkdir()
    regions = open_regions(soak.regions, "blind")
    plan = make_plan(soak, regions)
    ledger = Ledger.create(home / "ledger", plan.layout({"run_id": "blind"}, lab=False))
    with FileJournal(home / "journal") as journal:
        setting = Setting("blind", ledger, journal, home, (), nullcontext(), in_lab=False)
        run_soak(soak, plan, regions, setting)
    print((home / "journal").read_text(), flush=True)
"""


def test_detectors_that_were_made_blind_are_known_to_be(tmp_path: Path) -> None:
    done = run_script(tmp_path, BLIND, seconds=240)
    assert done.returncode == 0, done.stderr + done.stdout
    journal = tmp_path / "journal.jsonl"
    journal.write_text(done.stdout)
    events = list(read_journal(journal))
    missed = [event for event in events if event["event"] == "canary.missed"]
    assert {event["detector"] for event in missed} == set(DETECTORS), json.dumps(events[-5:])
    assert not any(event["event"] == "canary.seen" for event in events)
    verdict = judge(events)
    assert verdict.verdict == "unknown"
    assert {event["summary"] for event in missed} <= set(verdict.reasons)
    assert {entry["detector"]: entry["seen"] for entry in verdict.canaries} == dict.fromkeys(
        DETECTORS, 0
    )
