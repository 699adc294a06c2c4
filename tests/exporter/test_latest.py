# SPDX-License-Identifier: GPL-2.0-only
"""An exporter of the newest run follows when another run becomes that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from soak import run_directory
from soak.run_directory import RunDirectory
from tests.exporter.support import RUN, Exporter, make_ledger, running_exporter, value
from tests.support.program import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GROUP = 4242
FOLLOW = ("--ledger", f"{run_directory.LATEST}/{run_directory.LEDGER}")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "runs"
    directory.mkdir()
    directory.chmod(0o755)
    monkeypatch.setattr(run_directory, "runs_directory", lambda: directory)
    return directory


def new_run(name: str) -> Path:
    with RunDirectory.make(None, name, 0) as made:
        make_ledger(made.path / run_directory.LEDGER, run={**RUN, "run_id": name})
        run_directory.note_begun(made.path)
        return made.path


def serves(exporter: Exporter, name: str) -> bool:
    samples = exporter.scrape()
    return value(samples, "up") == 1 and f'run_id="{name}"' in exporter.ask().text


def test_exporter_follows_the_newest_run(runs: Path) -> None:
    with running_exporter(runs, *FOLLOW) as exporter:
        assert value(exporter.scrape(), "up") == 0
        new_run("run-1")
        assert serves(exporter, "run-1")
        new_run("run-2")
        assert serves(exporter, "run-2")


def test_previous_run_is_served_until_the_next_begins(runs: Path) -> None:
    new_run("run-1")
    with running_exporter(runs, *FOLLOW) as exporter, RunDirectory.make(None, "run-2", 0) as made:
        make_ledger(made.path / run_directory.LEDGER, run={**RUN, "run_id": "run-2"})
        assert serves(exporter, "run-1")
        run_directory.note_begun(made.path)
        assert serves(exporter, "run-2")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_dropped_privileges_can_read_later_runs(runs: Path) -> None:
    os.chown(runs, 0, GROUP)
    runs.chmod(0o2755)  # as the unit's tmpfiles.d has it
    with running_exporter(runs, *FOLLOW) as exporter:
        for name in ("run-1", "run-2"):
            directory = new_run(name)
            ledger = directory / run_directory.LEDGER
            ledger.chmod(0o640)
            assert ledger.stat().st_gid == GROUP
            assert directory.stat().st_mode & 0o7777 == 0o2755
            assert serves(exporter, name)


def test_names_of_the_newest_run(runs: Path) -> None:
    assert run_directory.find_latest("latest") == runs
    assert run_directory.find_latest(str(runs / "latest")) == runs
    assert run_directory.find_latest("run-1") is None
    assert run_directory.find_latest(str(runs / "run-1")) is None
    assert run_directory.find_latest(str(ROOT / "no-such-directory" / "latest")) is None
    runs.rmdir()
    assert run_directory.find_latest("latest") is None
