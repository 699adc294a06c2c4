# SPDX-License-Identifier: GPL-2.0-only
"""Whoever listens for devices may die, or never live: the run goes on without, and says so."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

from soak.journal.writer import FileJournal, read_journal
from soak.process.helper import in_helper
from soak.supervisor.hooks.uevents import UeventWatch
from tests.exporter.support import eventually
from tests.support.processes import children
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


def told(path: Path) -> list[str]:
    return [event["summary"] for event in read_journal(path) if event["event"] == "uevents.failed"]


def test_a_dead_listener_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    before = children()
    with FileJournal(path) as journal:
        watch = UeventWatch(journal, {})
        watch.started()
        (listener,) = children() - before
        assert watch.beat() is None
        os.kill(listener, signal.SIGKILL)

        def heard() -> bool:
            assert watch.beat() is None
            return told(path) != []

        assert eventually(heard)
        watch.beat()
        watch.ended()
    (sentence,) = told(path)
    assert "listener died" in sentence
    assert children() == before


def test_a_listener_that_cannot_start_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def work() -> None:
        with FileJournal(path) as journal:
            watch = UeventWatch(journal, {})
            if os.geteuid() == 0:
                os.setuid(65534)  # root has no such limit
            _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
            resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
            watch.started()
            assert watch.beat() is None
            watch.ended()

    in_helper(work, DEADLINE)
    (sentence,) = told(path)
    assert "could not be started" in sentence
