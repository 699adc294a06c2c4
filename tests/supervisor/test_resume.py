# SPDX-License-Identifier: GPL-2.0-only
"""Which run `run --resume` goes on with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from soak import run_directory
from soak.config.sections import Config, RunSection
from soak.errors import UsageError
from soak.journal.writer import FileJournal
from soak.supervisor.resume import choose_run
from tests.support.journal import valid_fields

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("runs")
CONFIG = Config()
OTHER = Config(run=RunSection(seed=7))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "runs"
    monkeypatch.setattr(run_directory, "runs_directory", lambda: directory)
    return directory


def run(name: str, *events: str, config: Config = CONFIG) -> Path:
    """Leave the directory of a run whose journal has these events."""
    with choose_run(config, run_directory.runs_directory() / name, resume=False).open() as made:
        with FileJournal(made.path / run_directory.JOURNAL) as journal:
            for event in events:
                given = {"run_id": name} if event == "run.started" else {}
                journal.write(event, **valid_fields(event, **given))
        return made.path


def chosen(config: Config = CONFIG) -> str | None:
    """Return the run that is resumed, None where a new one begins."""
    found = choose_run(config, None, resume=True)
    return found.run_id if found.resumed else None


def test_without_runs_a_new_one_begins(runs: Path) -> None:
    assert chosen() is None
    assert not runs.exists()


def test_the_newest_interrupted_run_is_resumed() -> None:
    run("run-1", "run.started")
    run("run-2", "run.started", "run.resumed")
    assert chosen() == "run-2"


@pytest.mark.parametrize(
    "events",
    [
        (),
        ("exporter.started",),
        ("lab.started", "run.started"),
        ("lab.started", "run.started", "run.ended"),
        ("run.started", "run.ended"),
    ],
    ids=["empty", "refused", "of the lab", "of the lab, ended", "ended"],
)
def test_later_runs_do_not_hide_an_interrupted_one(events: tuple[str, ...]) -> None:
    cut_short = run("run-1", "run.started")
    later = run("run-2", *events)
    run_directory.note_begun(later)
    assert chosen() == "run-1"
    assert choose_run(CONFIG, None, resume=True).directory == cut_short


def test_the_latest_link_may_be_missing(runs: Path) -> None:
    run("run-1", "run.started")
    (runs / run_directory.LATEST).symlink_to("gone")
    assert chosen() == "run-1"


def test_an_ended_run_is_not_resumed() -> None:
    run("run-1", "run.started", "run.resumed", "run.ended")
    run("run-2", "run.started", "run.ended", "run.resumed", "run.ended")
    assert chosen() is None


def test_a_run_with_a_verdict_has_ended() -> None:
    (run("run-1", "run.started") / run_directory.VERDICT).write_text("{}")
    assert chosen() is None


def test_the_newest_with_another_configuration_is_refused() -> None:
    run("run-1", "run.started")
    run("run-2", "run.started", config=OTHER)
    with pytest.raises(UsageError, match=r"run-2 was interrupted .* in \[run\]"):
        chosen()
    assert chosen(OTHER) == "run-2"


def test_an_older_run_of_another_configuration_is_skipped() -> None:
    run("run-1", "run.started", config=OTHER)
    run("run-2", "run.started", "run.ended")
    assert chosen() is None
    assert chosen(OTHER) == "run-1"


def test_a_given_run_directory_is_the_only_candidate() -> None:
    given = run("run-1", "run.started")
    run("run-2", "run.started")
    assert choose_run(CONFIG, given, resume=True).run_id == "run-1"
    with pytest.raises(UsageError, match="not empty"):
        choose_run(CONFIG, given, resume=False)
