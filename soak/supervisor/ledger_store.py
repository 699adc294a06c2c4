# SPDX-License-Identifier: GPL-2.0-only
"""Where a machine's own run keeps its ledger: on tmpfs, with a copy on disk at each sample.

A store into a page of a file on disk would wait for the disk. A process that dies leaves tmpfs as it
is; a machine that dies does not, and then the run goes on from the last copy and what the journal says
since.
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
    """Owns the ledger of a run from its start, or from where it was cut short, to its end."""

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
        """Make the ledger, or take that of a run that goes on.

        Raises:
            UsageError: it cannot be made, or is of another configuration or version.
        """
        self._directory, self._journal = directory, journal
        self._told = False
        self._memory = memory / run_id
        self._path = self._memory / LEDGER
        try:
            self._make_room()
            self.ledger = self._taken_over(layout) if resumed else self._made(layout)
            self._link()
        except OSError as error:
            raise UsageError(f"The ledger {self._path} cannot be made: {error.strerror}.") from None

    def sampled(self) -> None:
        """Keep a copy that is whole or not there, whatever happens to the machine."""
        self.ledger.block(SUPERVISOR).set("saved_seq", self._journal.seq)
        try:
            _write(self._directory / _COPY, self.ledger.to_bytes())
        except OSError as error:
            # A full disk ends no run: the copy before stays, and the journal has what came since.
            if not self._told:
                self._journal.write(
                    "ledger.unsaved",
                    Level.WARNING,
                    summary=f"the ledger cannot be copied to disk ({error.strerror}): after a crash of "
                    f"the machine its counters would go on from the last copy",
                )
            self._told = True
        else:
            self._told = False

    def close(self) -> None:
        """Leave the ledger in the run directory, for whoever looks at the run later.

        Where the disk is full it stays in memory, from where `restore` brings it home.
        """
        try:
            _lay_down(self._directory, self.ledger.to_bytes())
        except OSError as error:
            self._journal.write(
                "ledger.unsaved",
                Level.WARNING,
                summary=f"the ledger stays in {self._memory} ({error.strerror}): when there is space, "
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

    def _made(self, layout: Layout) -> Ledger:
        self._path.unlink(missing_ok=True)
        ledger = Ledger.create(self._path, layout)
        _open_to_readers(self._path, self._directory)
        return ledger

    def _taken_over(self, layout: Layout) -> Ledger:
        if self._path.exists():
            return Ledger.reopen(self._path, layout)
        copies = (self._directory / LEDGER, self._directory / _COPY)
        copy = next((copy for copy in copies if copy.exists()), None)
        if copy is not None:
            shutil.copyfile(copy, self._path)
            _open_to_readers(self._path, self._directory)
            ledger = Ledger.reopen(self._path, layout)
        else:
            ledger = self._made(layout)
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


def bring_home(but: str = "", memory: Path = MEMORY) -> list[Settled]:
    """Move what killed soaks left in memory to the directories of their runs, `but` of one run.

    Only who holds the lock of the machine's changes may: no soak that lives has its ledger there.
    """
    if not memory.is_dir():
        return []
    return [_brought_home(place) for place in sorted(memory.iterdir()) if place.name != but]


def _brought_home(place: Path) -> Settled:
    def settled(event: str, level: Level, summary: str) -> Settled:
        return Settled(event, level, "ledger", place.name, place.name, summary)

    directory = place / _HOME
    try:
        if (directory / LEDGER).resolve() != place / LEDGER:
            shutil.rmtree(place)
            return settled(
                FORGOTTEN,
                Level.WARNING,
                f"what was left in memory of run {place.name} was removed: its run directory is gone, "
                f"or has its ledger",
            )
        _lay_down(directory, (place / LEDGER).read_bytes())
        shutil.rmtree(place)
    except OSError as error:
        return settled(
            FAILED,
            Level.ERROR,
            f"the ledger of run {place.name} stays in {place}: it cannot be moved to its run "
            f"directory ({error.strerror})",
        )
    return settled(
        RESTORED, Level.INFO, f"the ledger of run {place.name} was moved from memory to its run directory"
    )


def _lay_down(directory: Path, ledger: bytes) -> None:
    """Leave a whole ledger in the directory of a run, and no older copy."""
    _write(directory / LEDGER, ledger)
    (directory / _COPY).unlink(missing_ok=True)


def _write(path: Path, ledger: bytes) -> None:
    """Write a copy that those may read who may read the run."""
    write_whole(path, ledger, _MODE, path.parent.stat().st_gid)


def _open_to_readers(path: Path, directory: Path) -> None:
    """Let those read it that may read the run."""
    path.chmod(_MODE)
    os.chown(path, -1, directory.stat().st_gid)


def _count_again(block: BlockWriter, event: Mapping[str, object]) -> None:
    """Count a violation that is in the journal and came after the last copy of the ledger."""
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
