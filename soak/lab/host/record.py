# SPDX-License-Identifier: GPL-2.0-only
"""What outlives the guest of a lab: its journal, its ledger, and the verdict that follows from them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Self

import tomli_w

from soak import run_directory
from soak.journal.writer import OWN_EVENTS, FileJournal, Level, read_journal
from soak.lab.progress import EventLines
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import HOST
from soak.ledger.totals import completed_operations, judged_trials
from soak.ledger.view import LedgerView
from soak.ledger.writer import Ledger
from soak.model.vocabulary import RunState, VerdictWord
from soak.verdict import Judge
from soak.workload.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from soak.lab.progress import Progress
    from soak.lab.request import LabRequest
    from soak.verdict import Verdict


class RunRecord:
    """Writes the journal and the host's block of the ledger, and judges what the journal has."""

    def __init__(self, directory: Path, ledger: Ledger, judge: Judge, events: EventLines) -> None:
        """Open the journal; `events` shows its lines.

        Raises:
            OSError: the journal cannot be made.
        """
        self._directory = directory
        self._judge = judge
        self._events = events
        self.ledger = ledger
        self._host = ledger.block(HOST)
        self._journal = FileJournal(directory / run_directory.JOURNAL, on_line=self._take_in)

    @classmethod
    def open(cls, request: LabRequest, accelerator: str, progress: Progress) -> Self:
        """Begin the record of a new run, or go on with that of the run that is resumed.

        Raises:
            UsageError: the ledger of a resumed run cannot be used.
            OSError: a file cannot be made.
        """
        judge = Judge(request.strict)
        ledger = _open_ledger(request)
        if request.resumed:
            for event in read_journal(request.directory / run_directory.JOURNAL):
                judge.add(event)
        host = ledger.block(HOST)
        host.set("pid", os.getpid())
        host.set_text("accelerator", accelerator)
        host.set_word("state", RunState.PREPARING)
        host.set_word("verdict", VerdictWord.UNKNOWN)
        record = cls(request.directory, ledger, judge, EventLines(progress))
        record.beat()
        return record

    def reader(self) -> LedgerReader:
        """Open the ledger for reading; its layout is the host's own, whatever the guest writes there."""
        path = self._directory / run_directory.LEDGER
        return LedgerReader.open(path, layout=self.ledger.layout)

    def event(self, name: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401 - as declared
        """Write an event of the host to the journal."""
        self._journal.write(name, level, **fields)

    def harness_failed(self, summary: str, *, ended: bool = True) -> None:
        """Journal a failure of the harness; `ended` says that it ends the boot."""
        how = {"ended": True} if ended else {}
        self.event("harness.failed", Level.ERROR, **how, summary=summary)

    def machine_lost(self, violation: Mapping[str, Any]) -> None:
        self.set_state(RunState.LOST)
        self.event("violation.found", Level.ERROR, **violation)
        self._host.add("lost_machines", 1)

    def guest_line(self, line: dict[str, Any]) -> None:
        """Append a line of the guest's journal, and show it."""
        seq = self._journal.append(line)
        self._events.show(line)
        self._host.set("journal_lines", seq)

    def set_state(self, state: RunState) -> None:
        self._host.set_word("state", state)

    def booted(self) -> None:
        self._host.add("boots", 1)

    def beat(self) -> None:
        """Write the host's heartbeat and the verdict so far into the ledger."""
        self._host.set("heartbeat_realtime_ns", time.time_ns())
        self._host.set_word("verdict", self._judge.verdict().verdict)

    def guest_beat(self) -> None:
        """Write the time of the supervisor's heartbeat into the ledger, by the host's clock."""
        self._host.set("guest_heartbeat_realtime_ns", time.time_ns())

    def retry(self) -> None:
        """Write lines that wait for space on the disk."""
        self._journal.retry()
        self._host.set("journal_errors", self._journal.errors)

    def unmet(self) -> list[str]:
        """Return what the run still has to do before its verdict can be pass."""
        return self._judge.unmet()

    def conclude(self, *, lost: bool, finished: bool) -> Verdict:
        """Judge the whole run and write verdict.json; sample the ledger if the guest did not finish."""
        if not lost:
            self.set_state(RunState.ENDED)
        if not finished:
            self._sample()
        self._journal.flush()
        verdict = self._judge.verdict()
        self.event("lab.ended", verdict=verdict.verdict)
        self.beat()
        # It is there while metrics stay up. On a full disk `publish` tries again, and reports it.
        with contextlib.suppress(OSError):
            path = self._directory / run_directory.VERDICT
            run_directory.write_whole(path, verdict.to_json().encode(), run_directory.READABLE)
        return verdict

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_in(self, line: dict[str, Any]) -> None:
        """Judge a line of the journal once it is numbered."""
        self._judge.add(line)
        if line["event"] in OWN_EVENTS:
            self._events.show(line)

    def _sample(self) -> None:
        """Journal the last sample of the ledger in the guest's place."""
        with self.reader() as reader:
            ledger = LedgerView(reader, time.time_ns())
            sweeps = ledger.supervisor.named("sweeps")
            completed = {
                **completed_operations(
                    ([cell.label for cell in worker.cells], worker.block.flat("counts"))
                    for worker in ledger.workers
                ),
                **judged_trials(ledger.supervisor.named_rows("trials")),
            }
        errors = ledger.supervisor.get("journal_errors") + self._journal.errors
        self.event("sample.taken", completed=completed, sweeps=sweeps, journal_errors=errors, by="host")


def _open_ledger(request: LabRequest) -> Ledger:
    """Make the ledger of a new run and note its configuration, or take that of the run that goes on."""
    path = request.directory / run_directory.LEDGER
    facts = {"run_id": request.run_id, "filesystem": request.filesystem}
    layout = make_plan(request.config).layout(facts, lab=True)
    if request.resumed:
        return Ledger.reopen(path, layout)
    (request.directory / run_directory.CONFIG).write_text(tomli_w.dumps(request.config.to_table()))
    return Ledger.create(path, layout)
