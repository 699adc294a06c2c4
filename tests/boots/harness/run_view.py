# SPDX-License-Identifier: GPL-2.0-only
"""A run as it is seen from outside: its journal, ledger and verdict. Hosts and guests use it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from soak.ledger.layout import LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import SUPERVISOR
from soak.verdict import Judge
from tests.boots.harness.journal_tail import JournalTail
from tests.support.patience import Signs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RunView(ABC):
    """The files of a run's directory, read again and again while the run goes on."""

    def __init__(self) -> None:
        self._tail: JournalTail | None = None
        self._judge, self._judged = Judge(), 0
        self._judged_of: tuple[Path, int] | None = None

    @property
    @abstractmethod
    def directory(self) -> Path:
        """The run directory; it may become another one."""

    @property
    def journal(self) -> JournalTail:
        path = self.directory / "journal.jsonl"
        if self._tail is None or self._tail.path != path:
            self._tail = JournalTail(path)
        return self._tail

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all events so far, or those of one name."""
        return [line for line in self.journal.lines() if name in {None, line["event"]}]

    def found(self, kind: str) -> bool:
        """Return whether the journal has a violation of this kind that no known issue explains."""
        return any(
            event["kind"] == kind and event["known_issue"] is None
            for event in self.events("violation.found")
        )

    def samples_after(self, name: str) -> list[dict[str, Any]]:
        """Return the samples that were taken after the first event of this name."""
        first = min((event["seq"] for event in self.events(name)), default=None)
        samples = self.events("sample.taken")
        return [event for event in samples if first is not None and event["seq"] > first]

    def uncovered(self) -> list[str]:
        """Return what a pass still needs: completed operations, sweeps and canaries."""
        journal = self.journal
        lines = journal.lines()
        if self._judged_of != (journal.path, journal.beginnings):
            self._judged_of = journal.path, journal.beginnings
            self._judge, self._judged = Judge(), 0
        for line in lines[self._judged :]:
            self._judge.add(line)
            self._judged += 1
        return self._judge.unmet()

    def ledger(self) -> LedgerReader | None:
        """Open the ledger by its header alone, once it is there."""
        try:
            return LedgerReader.open(self.directory / "ledger")
        except (OSError, LedgerError):
            return None

    @contextmanager
    def reading(self) -> Iterator[LedgerReader | None]:
        """Read the ledger, if it is there."""
        reader = self.ledger()
        if reader is None:
            yield None
        else:
            with reader:
                yield reader

    def operations(self) -> int:
        """Return how many operations were begun."""
        with self.reading() as reader:
            blocks = [] if reader is None else reader.blocks("worker")
            return sum(block.get("begun") for block in blocks)

    def verdict(self) -> dict[str, Any]:
        verdict: dict[str, Any] = json.loads((self.directory / "verdict.json").read_text())
        return verdict

    def violations(self, kind: str) -> list[dict[str, Any]]:
        """Return those of the verdict."""
        return [entry for entry in self.verdict()["violations"] if entry["kind"] == kind]

    def signs(self) -> Signs:
        """Return what moves while the run goes on."""
        with self.reading() as reader:
            beats = 0 if reader is None else reader.block(SUPERVISOR).get("heartbeats")
        return Signs(beats, (self.journal.size,))
