# SPDX-License-Identifier: GPL-2.0-only
"""Run on a copy of the program to which toys were added: a soak in anonymous memory and files.

Prints what became of the toys as one JSON object. The files are those of any file system: what is asked
is where a toy shows, not what a kernel does with DAX memory.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from exporter.collector import LedgerCollector
from soak.config.sections import parse_config
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger
from soak.regions import AnonymousRegion, FsDaxRegion, Region
from soak.regions.fs_dax import FILE_SIZE
from soak.report.text import text_report
from soak.supervisor.assembly import Setting, run_soak
from soak.supervisor.hooks.base import Hook
from soak.supervisor.workers import RunWorkers
from soak.verdict import judge
from soak.workload.plan import make_plan

CONFIG = {
    # It ends when all toys have been seen.
    "run": {"duration": "5m"},
    "region": [
        {"name": "control", "kind": "anonymous"},
        {"name": "files", "kind": "fs-dax", "path": "files"},
    ],
    "workload": {
        "mappers": 1,
        "invalidators": 1,
        "holders": 0,
        "trials": 0,
        "interfaces": ["toy-pin"],
        "rate": 200,
    },
}


class EndWhenSeen(Hook):
    """Ends the run when every cell was completed, and a canary of the refusal detector was made."""

    def __init__(self, reader: LedgerReader) -> None:
        self._reader = reader

    def beat(self) -> str | None:
        canaries = self._reader.block("supervisor").named_rows("canaries")["refusals"]
        workers = self._reader.blocks("worker")
        rows = [row for worker in workers for row in worker.named_rows("counts").values()]
        if all(sum(row.values()) for row in rows) and canaries["seen"] + canaries["missed"]:
            return "all toys were seen"
        return None


def make_files(home: Path) -> FsDaxRegion:
    directory = home / "files"
    directory.mkdir()
    # There are no pages that a sweep could read.
    return FsDaxRegion("files", home, FILE_SIZE, cast("Any", None)).prepare(lambda _: directory)


def main(home: Path) -> None:
    config = parse_config(CONFIG, "toy")
    regions: list[Region] = [AnonymousRegion("control", 1 << 20), make_files(home)]
    plan = make_plan(config, regions)
    layout = plan.layout({"run_id": "1", "filesystem": "none"}, lab=False)
    ledger = Ledger.create(home / "ledger", layout)
    with FileJournal(home / "journal.jsonl") as journal, LedgerReader.open(home / "ledger") as reader:
        hooks = (EndWhenSeen(reader),)
        setting = Setting("1", ledger, journal, home, hooks, nullcontext(), in_lab=False)
        run_soak(plan, regions, RunWorkers(plan, regions, ledger), setting)
    events = list(read_journal(home / "journal.jsonl"))
    with LedgerReader.open(home / "ledger") as reader:
        families = LedgerCollector(lambda: reader).collect()
        rows = reader.block("supervisor").named_rows("detectors")
    verdict = judge(events)
    print(  # noqa: T201 - this is what it is for
        json.dumps(
            {
                "program": sys.modules["soak"].__file__,
                "ledger": {name: row["runs"] > 0 for name, row in rows.items()},
                "completed": {
                    f"{cell.operation} {cell.region} {cell.interface}": cell.attempts
                    for cell in verdict.coverage
                },
                "exposition": sorted(
                    f"{sample.name} {' '.join(sample.labels.values())}".strip()
                    for family in families
                    for sample in family.samples
                ),
                "missing": [
                    event["summary"] for event in events if event["event"] == "expectation.missing"
                ],
                "found": [
                    [event["kind"], event["summary"]]
                    for event in events
                    if event["event"] == "violation.found"
                ],
                "canaries": [
                    [event["detector"], event["made"]]
                    for event in events
                    if event["event"] == "canary.seen"
                ],
                "verdict": verdict.verdict,
                "report": [" ".join(line.split()) for line in text_report(verdict, home).splitlines()],
            }
        )
    )


main(Path(sys.argv[1]))
