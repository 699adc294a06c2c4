# SPDX-License-Identifier: GPL-2.0-only
"""Chooses the run of `dax-soak run`: the newest interrupted one with `--resume`, or a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from soak import run_directory
from soak.config.sections import load_config
from soak.errors import UsageError
from soak.journal.events import valid_events
from soak.journal.reading import journal_exists, read_given_journal
from soak.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from soak.config.sections import Config

_SPACE_NEEDED: Final = 64 << 20


@dataclass(frozen=True)
class RunHistory:
    """The beginning and the end of a run, from its journal."""

    started: dict[str, Any] | None
    lab: dict[str, Any] | None
    ended: bool

    @classmethod
    def of(cls, directory: Path) -> RunHistory:
        """Read the journal of a run.

        Raises:
            UsageError: it cannot be read.
        """
        started = lab = None
        ended = False
        for event in valid_events(read_given_journal(directory / run_directory.JOURNAL)):
            match event["event"]:
                case "run.started":
                    started = started or event
                case "lab.started":
                    lab = lab or event
                case "run.ended":
                    ended = True
                case "run.resumed":
                    ended = False
        return cls(started, lab, ended)


@dataclass(frozen=True)
class ChosenRun:
    """A run of this machine: a resumed one, or a new one without a directory yet."""

    run_id: str
    resumed: bool
    config: Config
    directory: Path | None

    def open(self) -> RunDirectory:
        """Make the directory of a new run, or take that of a resumed one.

        Raises:
            UsageError: it cannot be made, is in use, or other users may write to it.
        """
        if self.resumed and self.directory is not None:
            return RunDirectory.take(self.directory, self.run_id)
        made = RunDirectory.make(self.directory, self.run_id, _SPACE_NEEDED)
        try:
            (made.path / run_directory.CONFIG).write_text(tomli_w.dumps(self.config.to_table()))
        except OSError as error:
            made.close()
            raise UsageError(
                f"The run directory {made.path} cannot be written: {error.strerror}."
            ) from None
        return made


def choose_run(config: Config, wanted: Path | None, *, resume: bool) -> ChosenRun:
    """Choose the run to resume, or a new one.

    With `resume` that is the run in `wanted`, or else the newest interrupted run of this machine with
    this configuration, among all runs: `latest` may name one of the lab.

    Raises:
        UsageError: the newest run was interrupted and had another configuration, or `wanted` is in use.
    """
    if resume:
        known = run_directory.begun_runs() if wanted is None else [wanted]
        interrupted = _interrupted(config, known)
        if interrupted is not None:
            return interrupted
    if wanted is not None:
        run_directory.check_new(wanted)
    return ChosenRun(run_directory.new_run_id(), False, config, wanted)


def _interrupted(config: Config, known: Sequence[Path]) -> ChosenRun | None:
    """Find the newest run of this machine that did not end, and had this configuration.

    Raises:
        UsageError: the newest of all runs did not end, and had another configuration.
    """
    newest = True
    for directory in known:
        history = _own_history(directory)
        if history is None or history.started is None:
            continue
        if not history.ended:
            changed = _changed(config, directory)
            if not changed:
                run_id = str(history.started["run_id"])
                return ChosenRun(run_id, True, config, directory.resolve())
            if newest:
                raise UsageError(
                    f"The run in {directory} was interrupted and had another configuration in "
                    f"[{'], ['.join(changed)}]: restore that, or start a new run without --resume."
                )
        newest = False
    return None


def _own_history(directory: Path) -> RunHistory | None:
    """Return the history of a run of this machine; None if none began there, or it is a lab's."""
    if not journal_exists(directory / run_directory.JOURNAL):
        return None
    started = None
    for event in valid_events(read_given_journal(directory / run_directory.JOURNAL)):
        if event["event"] == "lab.started":
            return None
        if event["event"] == "run.started":
            started = event
            break
    if (directory / run_directory.VERDICT).exists():
        # The verdict is written at the end, so the whole journal of a long run need not be read.
        return RunHistory(started, None, ended=True)
    return RunHistory.of(directory)


def _changed(config: Config, directory: Path) -> list[str]:
    """Return the names of the sections that differ from the run's configuration."""
    before, now = load_config(directory / run_directory.CONFIG).to_table(), config.to_table()
    return [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
