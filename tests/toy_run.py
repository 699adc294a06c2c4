# SPDX-License-Identifier: GPL-2.0-only
"""Run on a copy of the program to which toys were added: a soak of a second, with nothing but the toys.

Prints what became of them as one JSON object.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

from exporter.collector import LedgerCollector
from soak.config.sections import parse_config
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger
from soak.regions import open_regions
from soak.supervisor.assembly import Setting, run_soak
from soak.verdict import judge
from soak.workload.plan import make_plan

CONFIG = {
    "run": {"duration": 1},
    "region": [{"name": "control", "kind": "anonymous"}],
    "workload": {"mappers": 0, "invalidators": 0, "holders": 0, "trials": 0},
    "canaries": {"every": 0},
}


def main(home: Path) -> None:
    config = parse_config(CONFIG, "toy")
    regions = open_regions(config.regions, lambda path: path)
    plan = make_plan(config, regions)
    layout = plan.layout({"run_id": "1", "filesystem": "none"}, lab=False)
    ledger = Ledger.create(home / "ledger", layout)
    with FileJournal(home / "journal.jsonl") as journal:
        setting = Setting("1", ledger, journal, home, (), nullcontext(), in_lab=False)
        run_soak(config, plan, regions, setting)
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
                "verdict": verdict.verdict,
                "reasons": list(verdict.reasons),
            }
        )
    )


main(Path(sys.argv[1]))
