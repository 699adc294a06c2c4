# SPDX-License-Identifier: GPL-2.0-only
"""Keeps the ledger of a run on this machine on tmpfs, and copies it to disk at each sample.

A store into a page of a file on disk could wait for the disk. tmpfs survives a dead process, not a dead
machine: then the run continues from the last copy and the later journal lines.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.journal.events import valid_events
from soak.journal.writer import Level, read_journal
from soak.ledger.schema import NO_KNOWN_ISSUE, SUPERVISOR, leaks_field
from soak.ledger.writer import Ledger
from soak.machine.changes import FAILED, FORGOTTEN, RESTORED, Settled
from soak.model.vocabulary import Violation
from soak.run_directory import JOURNAL, LEDGER, write_whole
from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.journal.writer import FileJournal
    from soak.ledger.layout import Layout
    from soak.ledger.writer import BlockWriter

MEMORY: Final = Path("/run/dax-soak")
_COPY: Final = "ledger.saved"
_MODE: Final = 0o640
# In memory, beside the ledger: a link to the directory of its run.
_HOME: Final = "run"


class LedgerStore(Hook):
    """Owns the ledger of a new or resumed run."""

    def __init__(
        self,
        directory: Path,
        run_id: str,
        layout: Layout,
        journal: FileJournal,
        *,
        resumed: bool,
        memory: Path = MEMORY,
    ) -> None:
        """Make the ledger, or reopen that of a resumed run.

        Raises:
            UsageError: it cannot be made, or belongs to another configuration or version.
        """
        self._directory, self._journal = directory, journal
        self._reported = False
        self._memory = memory / run_id
        self._path = self._memory / LEDGER
        try:
            self._make_room()
            self.ledger = self._reopen(layout) if resumed else self._create(layout)
            self._link()
        except OSError as error:
            raise UsageError(f"The ledger {self._path} cannot be made: {error.strerror}.") from None

    def sampled(self) -> None:
        """Copy the ledger to disk, atomically."""
        self.ledger.block(SUPERVISOR).set("saved_seq", self._journal.seq)
        try:
            _write(self._directory / _COPY, self.ledger.to_bytes())
        except OSError as error:
            # A full disk does not end the run: the previous copy and the journal remain.
            if not self._reported:
                self._journal.write(
                    "ledger.unsaved",
                    Level.WARNING,
                    summary=f"the ledger cannot be copied to disk ({error.strerror}): after a crash of "
                    f"the machine its counters would continue from the last copy",
                )
            self._reported = True
        else:
            self._reported = False

    def close(self) -> None:
        """Move the ledger to the run directory.

        On a full disk it stays on tmpfs, until `dax-soak restore` moves it.
        """
        try:
            _store(self._directory, self.ledger.to_bytes())
        except OSError as error:
            self._journal.write(
                "ledger.unsaved",
                Level.WARNING,
                summary=f"the ledger stays in {self._memory} ({error.strerror}): free some space, then "
                f"'dax-soak restore' moves it to the run directory",
            )
        else:
            shutil.rmtree(self._memory, ignore_errors=True)

    def _make_room(self) -> None:
        for place in (self._memory.parent, self._memory):
            place.mkdir(mode=0o755, exist_ok=True)
            place.chmod(0o755)
        home = self._memory / _HOME
        home.unlink(missing_ok=True)
        home.symlink_to(self._directory.absolute())

    def _create(self, layout: Layout) -> Ledger:
        self._path.unlink(missing_ok=True)
        ledger = Ledger.create(self._path, layout)
        _open_to_readers(self._path, self._directory)
        return ledger

    def _reopen(self, layout: Layout) -> Ledger:
        if self._path.exists():
            return Ledger.reopen(self._path, layout)
        copies = (self._directory / LEDGER, self._directory / _COPY)
        copy = next((copy for copy in copies if copy.exists()), None)
        if copy is not None:
            shutil.copyfile(copy, self._path)
            _open_to_readers(self._path, self._directory)
            ledger = Ledger.reopen(self._path, layout)
        else:
            ledger = self._create(layout)
        supervisor = ledger.block(SUPERVISOR)
        saved = supervisor.get("saved_seq")
        for event in valid_events(read_journal(self._directory / JOURNAL)):
            if event["seq"] > saved and event["event"] == "violation.found":
                _count_again(supervisor, event)
        return ledger

    def _link(self) -> None:
        unfinished = self._directory / f".{LEDGER}"
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(self._path)
        unfinished.rename(self._directory / LEDGER)


def rescue_ledgers(but: str = "", memory: Path = MEMORY) -> list[Settled]:
    """Move the ledgers of killed soaks from tmpfs to their run directories, except that of run `but`.

    The caller holds the lock of the machine's changes, so no other soak is using a ledger there.
    """
    if not memory.is_dir():
        return []
    return [_rescue(place) for place in sorted(memory.iterdir()) if place.name != but]


def _rescue(place: Path) -> Settled:
    def settled(event: str, level: Level, summary: str) -> Settled:
        return Settled(event, level, "ledger", place.name, place.name, summary)

    directory = place / _HOME
    try:
        if (directory / LEDGER).resolve() != place / LEDGER:
            shutil.rmtree(place)
            return settled(
                FORGOTTEN,
                Level.WARNING,
                f"{place} of run {place.name} was removed: the run directory is gone, or has the ledger",
            )
        _store(directory, (place / LEDGER).read_bytes())
        shutil.rmtree(place)
    except OSError as error:
        return settled(
            FAILED,
            Level.ERROR,
            f"the ledger of run {place.name} stays in {place}: it cannot be moved to the run "
            f"directory ({error.strerror})",
        )
    return settled(
        RESTORED, Level.INFO, f"the ledger of run {place.name} was moved from memory to its run directory"
    )


def _store(directory: Path, ledger: bytes) -> None:
    """Write the ledger to a run directory, and remove its older copy."""
    _write(directory / LEDGER, ledger)
    (directory / _COPY).unlink(missing_ok=True)


def _write(path: Path, ledger: bytes) -> None:
    """Write a copy, readable for the group of the run directory."""
    write_whole(path, ledger, _MODE, path.parent.stat().st_gid)


def _open_to_readers(path: Path, directory: Path) -> None:
    """Make the ledger readable for the group of the run directory."""
    path.chmod(_MODE)
    os.chown(path, -1, directory.stat().st_gid)


def _count_again(block: BlockWriter, event: Mapping[str, object]) -> None:
    """Count a violation that the journal has and the last copy of the ledger lacks."""
    issue = str(event["known_issue"] or NO_KNOWN_ISSUE)
    count = int(str(event["count"]))
    block.add_at("violations", count, str(event["kind"]), issue)
    match event["kind"]:
        case Violation.UNEXPECTED_PIN:
            block.add_at("unexpected_pins", count, str(event["region"]), str(event["interface"]))
        case Violation.LEAK:
            field = leaks_field(str(event["region_name"]))
            position = block.names(field).index(f"leaked_total {issue}")
            block.view(field)[position] += count
