# SPDX-License-Identifier: GPL-2.0-only
"""Moves the kernel's crash log of an earlier boot from pstore to the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.pstore import crash_records
from soak.journal.writer import Level
from soak.verdict import lost_machine_event

if TYPE_CHECKING:
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter

_TAIL_LINES: Final = 60
# The firmware's clock dates a record, and may differ from the clock of the heartbeats.
_CLOCK_SLACK_SECONDS: Final = 120.0


def report_crash_log(block: BlockWriter, journal: Journal, *, counts: bool) -> None:
    """Write crash records newer than the last heartbeat of the previous boot to the journal.

    With `counts` a crash is a `lost-machine` violation; in a lab the host has counted it already.
    """
    last_beat = (block.get("heartbeat_ns") + block.get("realtime_offset_ns")) / 1e9
    try:
        records = crash_records(last_beat - _CLOCK_SLACK_SECONDS)
    except OSError as error:
        journal.write(
            "crash-log.unreadable",
            Level.WARNING,
            summary=f"the kernel's crash log cannot be read: {error}",
        )
        return
    tail = [line for record in records for line in record.text.splitlines() if line.strip()]
    evidence = {"records": [str(record.path) for record in records], "console": tail[-_TAIL_LINES:]}
    if not records:
        journal.write(
            "crash-log.absent",
            Level.WARNING,
            summary="the machine rebooted during the run without a crash log: a reboot, a power cut, "
            "or a crash without pstore",
        )
    elif counts:
        summary = "the machine's kernel crashed; the evidence is its log"
        journal.write("violation.found", Level.ERROR, **lost_machine_event(summary, evidence))
        block.add_at("violations", 1, "lost-machine", "none")
    else:
        journal.write(
            "crash-log.found",
            Level.WARNING,
            evidence=evidence,
            summary=f"the kernel of the previous boot left {len(records)} crash records",
        )
