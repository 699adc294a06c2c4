# SPDX-License-Identifier: GPL-2.0-only
"""The daily summary: what came since the last one, and everything, both true to the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import SUPERVISOR, leaks_field
from soak.supervisor.summary import Summary
from tests.support.soak import KNOWN_ISSUE, make_ledger

if TYPE_CHECKING:
    from pathlib import Path


def test_a_summary_has_differences_and_totals(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger")
    block, mapper = ledger.block(SUPERVISOR), ledger.block("mapper-0")
    invalidator = ledger.block("invalidator-0")
    summary = Summary(block, FileJournal(tmp_path / "journal"), [mapper, invalidator])
    summary.write()
    for share in (2, 3):
        mapper.add_at("counts", share, "map fs-dax vfio-type1", "refused EOPNOTSUPP")
        mapper.add_at("counts", 10 * share, "map device-dax vfio-type1", "done")
        invalidator.add_at("counts", share, "punch-hole fs-dax none", "done")
        invalidator.add_at("counts", share, "punch-hole fs-dax none", "interrupted")
        block.add_at("violations", share, "stall", "none")
        block.add_at("violations", 100 * share, "leak", KNOWN_ISSUE)
        block.add_at("waits", share, "truncate-zero", "stalls")
        block.add_at("waits", 999, "truncate-zero", "stalled_ns")
        block.add_at("restarts", share, "mapper-0")
        block.add_at("sweeps", share, "dax")
        block.add_at("canaries", share, "leaks", "seen")
        block.add_at("canaries", 123456, "leaks", "seen_ns")
        words = block.view(leaks_field("dax"))
        columns = block.names(leaks_field("dax"))
        words[columns.index(f"leaked_total {KNOWN_ISSUE}")] += 100 * share
        words[columns.index(f"leaked {KNOWN_ISSUE}")] = 7
        summary.write()
    empty, first, second = read_journal(tmp_path / "journal")
    assert empty["event"] == first["event"] == "summary.written"
    assert empty["total"] == {"stalls": 0, "restarts": 0}
    assert first["since"] == first["total"] == expected(2)
    assert second["since"] == expected(3)
    assert second["total"] == expected(5)
    assert second["seconds"].keys() == {"since", "total"}


def expected(share: int) -> dict[str, Any]:
    return {
        "operations": {"done": 11 * share, "refused": share, "interrupted": share},
        "violations": {"stall": {"none": share}, "leak": {KNOWN_ISSUE: 100 * share}},
        "stalls": share,
        "restarts": share,
        "sweeps": {"dax": share},
        "leaked": {"dax": {KNOWN_ISSUE: 100 * share}},
        "canaries": {"leaks": {"seen": share}},
    }
