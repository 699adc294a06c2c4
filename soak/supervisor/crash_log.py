# SPDX-License-Identifier: GPL-2.0-only
"""Picking up what the machine said when it died, if it kept it (pstore)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.abi.pstore import crash_records
from soak.journal.writer import Level
from soak.verdict import lost_machine_event

if TYPE_CHECKING:
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter

_TAIL_LINES: Final = 60
# A record bears the time of a clock that need not be the one that the heart beat by.
_CLOCK_SLACK_SECONDS: Final = 120.0


def pick_up(block: BlockWriter, journal: Journal, *, counts: bool) -> None:
    """Write the crash logs that are newer than the last heartbeat of the boot before to the journal.

    With `counts` the lost machine is a violation: a host that has seen the guest die has counted it.
    """
    last_beat = (block.get("heartbeat_ns") + block.get("realtime_offset_ns")) / 1e9
    try:
        records = crash_records(last_beat - _CLOCK_SLACK_SECONDS)
    except OSError as error:
        journal.write(
            "crash-log.unreadable",
            Level.WARNING,
            summary=f"what the kernel said when it died cannot be read: {error}",
        )
        return
    tail = [line for record in records for line in record.text.splitlines() if line.strip()]
    evidence = {"records": [str(record.path) for record in records], "console": tail[-_TAIL_LINES:]}
    if not records:
        journal.write(
            "crash-log.absent",
            Level.WARNING,
            summary="the machine was started anew in the middle of the run and kept no crash log: "
            "it was rebooted, lost its power, or has no pstore",
        )
    elif counts:
        summary = "the machine's kernel crashed: its last words are the evidence"
        journal.write("violation.found", Level.ERROR, **lost_machine_event(summary, evidence))
        block.add_at("violations", 1, "lost-machine", "none")
    else:
        journal.write(
            "crash-log.found",
            Level.WARNING,
            evidence=evidence,
            summary=f"the kernel of the boot before left {len(records)} records of its last words",
        )
