# SPDX-License-Identifier: GPL-2.0-only
"""The ledger of a machine's own run: in memory while it runs, on disk when it ends or another starts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from soak import run_directory
from soak.journal.writer import FileJournal, Level
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import NO_KNOWN_ISSUE, SUPERVISOR
from soak.machine.changes import FAILED, FORGOTTEN, RESTORED
from soak.model.vocabulary import Violation
from soak.supervisor.ledger_store import LedgerStore, rescue_ledgers
from tests.support.journal import valid_fields
from tests.support.soak import make_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = "run-1"


class Place:
    """A run directory, the memory of its machine, and the run's journal."""

    def __init__(self, root: Path) -> None:
        self.directory, self.memory = root / "runs" / RUN, root / "memory"
        self.directory.mkdir(parents=True)
        self.layout = make_ledger(root / "pattern").layout
        self.journal = FileJournal(self.directory / run_directory.JOURNAL)

    def store(self, *, resumed: bool = False) -> LedgerStore:
        return LedgerStore(
            self.directory, RUN, self.layout, self.journal, resumed=resumed, memory=self.memory
        )

    def count(self, store: LedgerStore, number: int) -> None:
        store.ledger.block(SUPERVISOR).set("starts", number)

    @property
    def counted(self) -> int:
        with LedgerReader.open(self.directory / run_directory.LEDGER) as reader:
            return reader.block(SUPERVISOR).get("starts")

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.directory.iterdir() if "ledger" in path.name}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.journal.close()


def test_ledger_moves_from_memory_to_disk(place: Place) -> None:
    store = place.store()
    place.count(store, 1)
    assert (place.directory / run_directory.LEDGER).resolve().is_relative_to(place.memory)
    assert place.counted == 1
    store.sampled()
    place.count(store, 2)
    store.close()
    assert not (place.directory / run_directory.LEDGER).is_symlink()
    assert place.counted == 2
    assert place.names == {run_directory.LEDGER}
    assert list(place.memory.iterdir()) == []
    assert rescue_ledgers(memory=place.memory) == []


def test_next_run_rescues_a_killed_runs_ledger(place: Place) -> None:
    store = place.store()
    store.sampled()
    place.count(store, 3)
    # Its own resumption finds it where it was.
    assert rescue_ledgers(RUN, memory=place.memory) == []
    (settled,) = rescue_ledgers(memory=place.memory)
    assert (settled.event, settled.target) == (RESTORED, RUN)
    assert place.counted == 3
    assert place.names == {run_directory.LEDGER}
    assert list(place.memory.iterdir()) == []


def test_run_resumes_from_memory_directory_or_copy(place: Place) -> None:
    place.count(place.store(), 4)
    assert place.counted == 4
    place.count(place.store(resumed=True), 5)
    rescue_ledgers(memory=place.memory)
    again = place.store(resumed=True)
    assert place.counted == 5
    again.sampled()
    place.count(again, 6)
    found = valid_fields("violation.found", kind="wrong-errno", known_issue=None, count=2)
    place.journal.write("violation.found", **{**found, "level": Level.ERROR})
    # The machine has crashed: of what came after the copy, what is in the journal is counted again.
    shutil.rmtree(place.memory)
    after = place.store(resumed=True)
    assert place.counted == 5
    supervisor = after.ledger.block(SUPERVISOR)
    where = supervisor.index("violations", Violation.WRONG_ERRNO, NO_KNOWN_ISSUE)
    assert supervisor.get("violations", *where) == 2


def test_ledger_without_a_run_is_removed(place: Place) -> None:
    place.store()
    shutil.rmtree(place.directory)
    (settled,) = rescue_ledgers(memory=place.memory)
    assert settled.event == FORGOTTEN
    assert list(place.memory.iterdir()) == []


def test_run_killed_at_its_end_keeps_its_ledger(place: Place) -> None:
    store = place.store()
    place.count(store, 7)
    kept = place.memory.with_name("kept")
    shutil.copytree(place.memory, kept, symlinks=True)
    store.close()
    shutil.copytree(kept, place.memory, symlinks=True, dirs_exist_ok=True)
    place.memory.joinpath(RUN, run_directory.LEDGER).write_bytes(b"older")
    (settled,) = rescue_ledgers(memory=place.memory)
    assert settled.event == FORGOTTEN
    assert place.counted == 7


def test_unmovable_ledger_stays_and_is_reported(place: Place) -> None:
    place.count(place.store(), 8)
    (place.directory / f".{run_directory.LEDGER}").mkdir()
    (settled,) = rescue_ledgers(memory=place.memory)
    assert settled.event == FAILED
    assert str(place.memory / RUN) in settled.summary
    assert place.counted == 8
